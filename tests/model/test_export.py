"""Compiled, exported and in ONNX the model gives its eager outputs, at any length, without graph breaks."""

import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from autobert_zero.configuration_autobert_zero import PUBLISHED_GENOME, Attention, Convolution, Expression, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from tests.conftest import VOCAB, tiny_config


pytestmark = pytest.mark.model

# Two lowered attentions, a convolution, and every other way to mix tokens.
GENOME = Genome(
    [
        PUBLISHED_GENOME[1],
        Convolution(5),
        PUBLISHED_GENOME[9],
        Attention(
            Expression.parse("matmul(softmax(cosine_similarity(q, k)), matmul(euclidean_distance(q, v), softsign(p)))")
        ),
        Attention(Expression.parse("matmul(q, matmul(transpose(k), v))")),
    ]
)


@pytest.fixture
def model():
    return AutoBertZeroForMaskedLM(tiny_config(GENOME)).eval()


def batch(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[1:, tokens // 2 :] = 0
    return {"input_ids": torch.randint(VOCAB, (rows, tokens)), "attention_mask": mask}


@pytest.fixture
def _libraries_warn():
    """Compilers and exporters use deprecated parts of each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("_libraries_warn")
@pytest.mark.parametrize("masked", [True, False])
def test_at_most_two_compilations_for_all_lengths(model, masked):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for tokens in (7, 9, 12, 20, 31):
        inputs = batch(3, tokens)
        if not masked:
            del inputs["attention_mask"]
        with torch.no_grad():
            torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)
    assert 1 <= counter.frame_count <= 2


@pytest.mark.usefixtures("_libraries_warn")
def test_compiled_training_gives_the_same_gradients(model):
    torch._dynamo.reset()
    inputs = {**batch(3, 11), "labels": torch.randint(VOCAB, (3, 11))}
    gradients = []
    for run in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        run(**inputs).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def dynamic(inputs, first=torch.export.Dim.AUTO, second=torch.export.Dim.AUTO):
    return {name: {0: first, 1: second} for name in inputs}


@pytest.mark.usefixtures("_libraries_warn")
def test_exported(model):
    inputs = batch(3, 9)
    program = torch.export.export(model, (), inputs, dynamic_shapes=dynamic(inputs)).module()
    for rows, tokens in ((4, 5), (2, 20)):
        inputs = batch(rows, tokens)
        torch.testing.assert_close(program(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("_libraries_warn")
def test_onnx(model, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    inputs = batch(3, 9)
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        (),
        path,
        kwargs=inputs,
        dynamic_shapes=dynamic(inputs, "batch", "tokens"),
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    session = runtime.InferenceSession(path)
    for rows, tokens in ((4, 5), (1, 20), (6, 31)):
        inputs = batch(rows, tokens)
        [logits] = session.run(["logits"], {name: x.numpy() for name, x in inputs.items()})
        torch.testing.assert_close(torch.tensor(logits), model(**inputs).logits.detach(), atol=1e-4, rtol=0)
