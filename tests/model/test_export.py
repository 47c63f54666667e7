"""Compiled, exported and in ONNX the model gives its eager outputs, at any length, without graph breaks."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from autobert_zero.configuration_autobert_zero import PUBLISHED_GENOME, Attention, Convolution, Expression, Genome
from autobert_zero.modeling_autobert_zero import AUTO_CLASSES, AutoBertZeroForMaskedLM
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
        Attention(
            Expression.parse(
                "mix(conv3(mul(v1, sigmoid(p))), matmul(softmax(scale(matmul(rotary(q), transpose(rotary(k))))), v))"
            )
        ),
    ]
)


@pytest.fixture(params=["absolute", "none"])
def positions(request) -> str:
    """Both types of position embeddings."""
    return request.param


@pytest.fixture
def model(positions):
    return AutoBertZeroForMaskedLM(tiny_config(GENOME, position_embedding_type=positions)).eval()


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
@pytest.mark.parametrize("positions", ["none"], indirect=True)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_training_gives_the_same_gradients(model, backend):
    torch._dynamo.reset()
    inputs = {**batch(3, 11), "labels": torch.randint(VOCAB, (3, 11))}
    gradients = []
    for run in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.zero_grad()
        run(**inputs).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# Exported at one shape, run at others; `left`: whether padding is on the left.
SHAPES = [(3, 9), (1, 5), (4, 20), (2, 31)]


def head_batch(name: str, rows: int, tokens: int, left: bool = False) -> dict[str, torch.Tensor]:
    inputs = batch(rows, tokens)
    if left:
        inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    if name == "AutoModelForMultipleChoice":
        inputs = {key: torch.stack([x, x.flip(0)], 1) for key, x in inputs.items()}
    return inputs


def axes(inputs: dict[str, torch.Tensor], first, last) -> dict[str, dict]:
    return {name: {0: first, x.ndim - 1: last} for name, x in inputs.items()}


class LastOutput(torch.nn.Module):
    """A model with positional inputs of given names and one output, as tracing wants."""

    def __init__(self, model, names=("input_ids", "attention_mask")):
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs):
        return self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=False)[-1]


def assert_near(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=atol * max(1.0, expected.abs().max().item()), rtol=0)


def traced(model, inputs, path):
    trace = torch.jit.trace(model, tuple(inputs.values()))
    return lambda given: trace(*given.values())


def exported(model, inputs, path, first=None, last=None, strict=False):
    first, last = first or torch.export.Dim.AUTO, last or torch.export.Dim.AUTO
    shapes = (tuple(axes(inputs, first, last).values()),)  # of *inputs
    program = torch.export.export(model, tuple(inputs.values()), dynamic_shapes=shapes, strict=strict).module()
    return lambda given: program(*given.values())


def exported_with_names(model, inputs, path):
    return exported(model, inputs, path, torch.export.Dim("batch"), torch.export.Dim("tokens", min=2, max=32))


def exported_strictly(model, inputs, path):
    return exported(model, inputs, path, strict=True)


def onnx(model, inputs, path, dynamo=True):
    runtime = pytest.importorskip("onnxruntime")
    shapes = axes(inputs, "batch", "tokens")
    names = {"input_names": list(inputs), "output_names": ["output"]}
    shapes = (
        {"dynamic_shapes": (tuple(shapes.values()),)}
        if dynamo
        else {"dynamic_axes": {**shapes, "output": {0: "batch"}}}
    )
    torch.onnx.export(model, tuple(inputs.values()), path, dynamo=dynamo, verbose=False, **names, **shapes)
    session = runtime.InferenceSession(path)
    return lambda given: torch.tensor(session.run(["output"], {name: x.numpy() for name, x in given.items()})[0])


def onnx_by_tracing(model, inputs, path):
    return onnx(model, inputs, path, dynamo=False)


EXPORTS = [traced, exported, exported_with_names, exported_strictly, onnx, onnx_by_tracing]
NAMES = [auto_class.__name__ for auto_class in AUTO_CLASSES]


def is_fast(name: str, export: Callable) -> bool:
    """A head with a pooler in all quick ways, one without in the quickest."""
    if name == "AutoModelForSequenceClassification":
        return export is not exported_strictly
    return name == "AutoModelForMaskedLM" and export in (traced, onnx_by_tracing)


@pytest.mark.usefixtures("_libraries_warn")
@pytest.mark.parametrize(
    ("name", "export"),
    [
        pytest.param(n, e, id=f"{n}-{e.__name__}", marks=[] if is_fast(n, e) else pytest.mark.slow)
        for n in NAMES
        for e in EXPORTS
    ],
)
def test_exported_at_one_shape_and_run_at_others(name, export, tmp_path):
    """The last output of each head: the pooled one, where there is one."""
    model_class = {auto_class.__name__: model_class for auto_class, model_class in AUTO_CLASSES.items()}[name]
    model = LastOutput(model_class(tiny_config(GENOME))).eval()
    run = export(model, head_batch(name, *SHAPES[0]), tmp_path / "model.onnx")
    for shape in SHAPES:
        for left in (False, True):
            inputs = head_batch(name, *shape, left)
            with torch.no_grad():
                assert_near(run(inputs), model(*inputs.values()))


SOME_EXPORTS = pytest.mark.parametrize(
    "export",
    [traced, onnx_by_tracing, *(pytest.param(e, marks=pytest.mark.slow) for e in (exported, exported_strictly, onnx))],
    ids=lambda export: export.__name__,
)


@pytest.mark.usefixtures("_libraries_warn")
@SOME_EXPORTS
@pytest.mark.parametrize("more", [(), ("token_type_ids", "position_ids"), ("attention_mask", "position_ids")])
def test_exported_with_other_inputs(model, export, more, tmp_path):
    names = ("input_ids", *more)
    model = LastOutput(model, names).eval()

    def inputs(rows: int, tokens: int) -> dict[str, torch.Tensor]:
        found = {**batch(rows, tokens), "token_type_ids": torch.randint(2, (rows, tokens))}
        found["position_ids"] = torch.stack([torch.randperm(tokens) for _ in range(rows)])
        return {name: found[name] for name in names}

    run = export(model, inputs(*SHAPES[0]), tmp_path / "model.onnx")
    for shape in SHAPES:
        given = inputs(*shape)
        with torch.no_grad():
            assert_near(run(given), model(*given.values()), atol=2e-5)


@pytest.mark.usefixtures("_libraries_warn")
@SOME_EXPORTS
def test_exported_with_documents_in_one_row(export, tmp_path):
    """Recorded with one document in each row, run with two."""
    genome = Genome(
        [gene for gene in GENOME if str(gene) != "matmul(q, matmul(transpose(k), v))"]
    )  # of no single token
    model = LastOutput(AutoBertZeroForMaskedLM(tiny_config(genome)), ("input_ids", "position_ids")).eval()

    def inputs(rows: int, tokens: int, first: int) -> dict[str, torch.Tensor]:
        positions = torch.cat([torch.arange(first), torch.arange(tokens - first)])
        return {"input_ids": torch.randint(VOCAB, (rows, tokens)), "position_ids": positions.expand(rows, -1)}

    run = export(model, inputs(3, 9, 9), tmp_path / "model.onnx")
    for shape in ((3, 9, 4), (1, 20, 7), (2, 12, 12)):
        given = inputs(*shape)
        with torch.no_grad():
            assert_near(run(given), model(*given.values()), atol=2e-5)
