import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertModel

from autobert_zero.configuration_autobert_zero import (
    AUTO_MAP,
    PUBLISHED_GENOME,
    SELF_ATTENTION,
    Attention,
    AutoBertZeroConfig,
    Convolution,
    Expression,
    Genome,
)
from autobert_zero.modeling_autobert_zero import (
    AUTO_CLASSES,
    AutoBertZeroConvolution,
    AutoBertZeroForMaskedLM,
    AutoBertZeroForPreTraining,
    AutoBertZeroForQuestionAnswering,
    AutoBertZeroForSequenceClassification,
    AutoBertZeroModel,
    ExpressionProgram,
    FusedAttention,
    Tokens,
)
from autobert_zero.search.functional_key import evaluate
from autobert_zero.search.grammar import draw_uniformly, random_expression
from autobert_zero.search.settings import stream

from .conftest import BATCH, HEADS, HIDDEN, TOKENS, VOCAB, random_genome, tiny_config


HEAD_SIZE = 4


def expressions(count: int) -> list[Expression]:
    published = [gene.expression for gene in PUBLISHED_GENOME if isinstance(gene, Attention)]
    made = [random_expression("nd", 14, stream(i, "test expression"), draw_uniformly) for i in range(count)]
    return [SELF_ATTENTION.expression, *published, *made]


def softmax_attentions(count: int) -> list[Expression]:
    """Attentions of the form that is lowered, with random parts: in plain random ones it is rare."""
    made = []
    for i in range(count):
        rng = stream(i, "test attention")
        a, b, c = (random_expression("nd", 5, rng, draw_uniformly) for _ in range(3))
        scores = Expression("matmul", (a, Expression("transpose", (b,))))
        for name in rng.choice(["neg", "scale", "transpose"], size=int(rng.integers(4))).tolist():
            scores = Expression(name, (scores,))
        made.append(Expression("matmul", (Expression("softmax", (scores,)), c)))
    return made


def projections(dtype=torch.float64, requires_grad=False) -> dict[str, torch.Tensor]:
    shape = (BATCH, HEADS, TOKENS, HEAD_SIZE)
    return {name: torch.randn(shape, dtype=dtype).requires_grad_(requires_grad) for name in "qkvp"}


def padding_mask() -> torch.Tensor:
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    mask[0, 4:] = False
    mask[1, :3] = False
    mask[2, [0, 2, 6]] = False
    return mask


# Executor


def test_reference_executor_means_what_numpy_says():
    for expression in expressions(300):
        inputs = projections()
        value = ExpressionProgram(expression, lower=False)(inputs, Tokens(), HEAD_SIZE)[0]
        for b in range(2):
            expected = evaluate(expression, {name: x[b, 1].numpy() for name, x in inputs.items()})
            np.testing.assert_allclose(value[b, 1].numpy(), expected, rtol=1e-9, atol=1e-9, err_msg=str(expression))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_lowered_equals_reference(masked, dtype, tolerance):
    tokens = Tokens(padding_mask() if masked else None)
    real = padding_mask()[:, None, :, None] if masked else torch.ones(1)
    for expression in [*expressions(0), *softmax_attentions(100)]:
        programs = ExpressionProgram(expression), ExpressionProgram(expression, lower=False)
        assert any(step.fused for step in programs[0].steps)
        inputs = projections(dtype, requires_grad=True)
        used = [inputs[name] for name in expression.inputs()]
        weights = torch.randn(BATCH, HEADS, TOKENS, HEAD_SIZE, dtype=dtype) * real
        results = []
        for program in programs:
            value, _ = program(inputs, tokens, HEAD_SIZE)
            results.append([value * real, *torch.autograd.grad((value * weights).sum(), used)])
        for a, b in zip(*results, strict=True):
            scale = max(1.0, b.abs().max().item())
            torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=tolerance, msg=str(expression))


def test_all_published_attentions_are_lowered():
    for gene in PUBLISHED_GENOME:
        if isinstance(gene, Attention):
            FusedAttention.match(gene.expression)  # raises where there is none


@pytest.mark.parametrize(
    "text",
    [
        "matmul(softmax(scale(transpose(matmul(k, transpose(q))))), v)",
        "matmul(softmax(neg(scale(neg(neg(scale(matmul(q, transpose(k)))))))), add(v, p))",
        "add(q, matmul(softmax(matmul(softsign(q), logsigmoid(transpose(k)))), matmul(softmax(matmul(q, transpose(q))), k)))",
    ],
)
def test_forms_of_softmax_attention_are_recognised(text):
    expression = Expression.parse(text)
    program = ExpressionProgram(expression)
    assert sum(step.fused is not None for step in program.steps) == text.count("softmax(")
    inputs = projections()
    torch.testing.assert_close(
        program(inputs, Tokens(padding_mask()), HEAD_SIZE)[0],
        ExpressionProgram(expression, lower=False)(inputs, Tokens(padding_mask()), HEAD_SIZE)[0],
    )


@pytest.mark.parametrize(
    "text",
    [
        "matmul(softmax(cosine_similarity(q, k)), v)",
        "matmul(matmul(q, transpose(k)), v)",
        "matmul(softmax(q), matmul(transpose(k), v))",
        "matmul(softmax(matmul(matmul(q, transpose(k)), matmul(q, transpose(v)))), p)",
    ],
)
def test_other_forms_run_in_the_reference(text):
    assert not any(step.fused for step in ExpressionProgram(Expression.parse(text)).steps)


def test_dropout_drops_attention_weights():
    value = torch.eye(TOKENS, HEAD_SIZE).expand(BATCH, HEADS, -1, -1)
    inputs = {"q": torch.zeros_like(value), "k": value, "v": torch.ones_like(value)}
    for lower in (True, False):
        program = ExpressionProgram(SELF_ATTENTION.expression, lower)
        sums = program(inputs, Tokens(), HEAD_SIZE, dropout=0.5)[0][..., 0]  # of the weights that are left, doubled
        counts = sums * TOKENS / 2
        torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)
        assert 2.5 < counts.mean() < 4.5 and counts.std() > 0.5
        torch.testing.assert_close(program(inputs, Tokens(), HEAD_SIZE)[0], torch.ones_like(value))


def test_distances_of_equal_rows_have_finite_gradients():
    for name in ("euclidean_distance", "cosine_similarity"):
        expression = Expression.parse(f"matmul({name}(q, q), q)")
        q = torch.zeros(1, 1, TOKENS, HEAD_SIZE, requires_grad=True)
        ExpressionProgram(expression)({"q": q}, Tokens(), HEAD_SIZE)[0].sum().backward()
        assert q.grad.isfinite().all()


# Padding


def test_padding_changes_nothing_for_any_genome():
    """200 random genomes: pads on the left or right, more or fewer, whatever they hold."""
    sensitive = 0
    for number in range(200):
        genome = random_genome(number)
        model = AutoBertZeroModel(tiny_config(genome)).double().eval()
        real = torch.randint(1, VOCAB, (2, TOKENS))
        with torch.no_grad():
            expected = model(real)
            for left, right in ((0, 4), (4, 0), (2, 9)):
                ids = torch.cat([torch.randint(VOCAB, (2, left)), real, torch.randint(VOCAB, (2, right))], 1)
                mask = F.pad(torch.ones(2, TOKENS, dtype=torch.long), (left, right))
                # Beside a row of another length, so that it is no all-real batch in disguise.
                ids, mask = torch.cat([ids, ids[:1]]), torch.cat([mask, torch.ones_like(mask[:1])])
                padded = model(ids, attention_mask=mask)
                hidden = padded.last_hidden_state[:2, left : left + TOKENS]
                torch.testing.assert_close(hidden, expected.last_hidden_state, atol=1e-8, rtol=0, msg=str(genome))
                torch.testing.assert_close(padded.pooler_output[:2], expected.pooler_output, atol=1e-8, rtol=0)
                unmasked = model(ids).last_hidden_state[:2, left : left + TOKENS]
                sensitive += not torch.allclose(unmasked, expected.last_hidden_state, atol=1e-4)
    assert sensitive > 300  # without the mask the pads do show: the test can fail


def test_pads_that_are_not_finite_say_nothing():
    for genome in (Genome([SELF_ATTENTION] * 2), *map(random_genome, range(20))):
        model = AutoBertZeroModel(tiny_config(genome)).eval()
        embeddings = torch.randn(BATCH, TOKENS, HIDDEN)
        expected = model(inputs_embeds=embeddings, attention_mask=padding_mask()).last_hidden_state
        for value in (math.nan, math.inf, 1e38):
            embeddings[~padding_mask()] = value
            got = model(inputs_embeds=embeddings, attention_mask=padding_mask()).last_hidden_state
            torch.testing.assert_close(got[padding_mask()], expected[padding_mask()])


def test_mixing_tokens_is_what_the_expression_says():
    """A token's output changes with another token's input exactly if `mixes_tokens`."""
    answers = set()
    for expression in expressions(200):
        inputs = projections()
        changed = {name: x.clone() for name, x in inputs.items()}
        for x in changed.values():
            x[:, :, -1] += torch.randn(BATCH, HEADS, HEAD_SIZE)
        program = ExpressionProgram(expression)
        a, b = (program(x, Tokens(), HEAD_SIZE)[0][:, :, :-1] for x in (inputs, changed))
        answers.add(expression.mixes_tokens())
        assert torch.equal(a, b) != expression.mixes_tokens(), expression
    assert answers == {True, False}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_a_real_token_are_finite(dtype):
    for number in range(30):
        model = AutoBertZeroModel(tiny_config(random_genome(number))).to(dtype)
        mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
        mask[1] = 0
        mask[2, 4:] = 0
        output = model(torch.randint(VOCAB, (BATCH, TOKENS)), attention_mask=mask)
        assert output.last_hidden_state.isfinite().all()
        output.last_hidden_state.float().square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# Layers and models


def test_convolution_equals_conv1d():
    mixer = AutoBertZeroConvolution(tiny_config(random_genome(0)), Convolution(5))
    x = torch.randn(BATCH, TOKENS, HIDDEN)
    inner = F.glu(mixer.gate(x)).transpose(1, 2)
    expected = F.conv1d(inner, mixer.convolution.weight, mixer.convolution.bias, padding=2, groups=HIDDEN)
    torch.testing.assert_close(mixer(x, Tokens())[0], mixer.dense(expected.transpose(1, 2)))


def test_published_base_has_the_published_size():
    with torch.device("meta"):
        model = AutoBertZeroModel(AutoBertZeroConfig.preset("autobert-zero-base"))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(103.7e6, rel=1e-3)


def test_only_the_projections_that_are_used_exist():
    genome = Genome([Attention(Expression.parse("matmul(softmax(matmul(q, transpose(p))), q)"))])
    names = {
        name.split(".")[4] for name, _ in AutoBertZeroModel(tiny_config(genome)).named_parameters() if "mixer." in name
    }
    assert names == {"query", "extra", "dense"}


def our_name(name: str) -> str:
    """The name that a parameter of BERT has here."""
    for old, new in {
        ".attention.self.": ".mixer.",
        ".attention.output.dense.": ".mixer.dense.",
        ".attention.output.LayerNorm.": ".mixer_norm.",
        ".intermediate.dense.": ".intermediate.",
        ".output.dense.": ".output.",
        ".output.LayerNorm.": ".output_norm.",
    }.items():
        name = name.replace(old, new)
    return name


def test_bert_weights_give_bert_outputs():
    sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_attention_heads": HEADS, "intermediate_size": 37}
    bert = BertModel(BertConfig(**sizes, num_hidden_layers=12, initializer_range=0.2)).eval()
    model = AutoBertZeroModel(AutoBertZeroConfig.preset("bert-small", **sizes)).eval()
    model.load_state_dict({our_name(name): weight for name, weight in bert.state_dict().items()})
    ids = torch.randint(VOCAB, (BATCH, TOKENS))
    mask = torch.ones_like(ids)
    mask[2, 4:] = 0
    types = torch.randint(2, (BATCH, TOKENS))
    arguments = {"attention_mask": mask, "token_type_ids": types, "output_hidden_states": True}
    with torch.no_grad():
        expected, got = bert(ids, **arguments), model(ids, **arguments)
    assert len(got.hidden_states) == 13
    for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(a[mask.bool()], b[mask.bool()], atol=1e-5, rtol=0)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)


def masked_lm_batch():
    ids = torch.randint(VOCAB, (BATCH, TOKENS))
    return {"input_ids": ids, "labels": torch.where(torch.rand(BATCH, TOKENS) < 0.3, ids, -100)}


def test_sparse_prediction_gives_the_same_loss_and_gradients():
    genome = random_genome(3)
    dense = AutoBertZeroForMaskedLM(tiny_config(genome, sparse_prediction=False)).eval()
    sparse = AutoBertZeroForMaskedLM(tiny_config(genome, sparse_prediction=True)).eval()
    sparse.load_state_dict(dense.state_dict())
    batch = masked_lm_batch()
    outputs = dense(**batch), sparse(**batch)
    labelled = batch["labels"] != -100
    assert outputs[1].logits.shape == (int(labelled.sum()), VOCAB)
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits[labelled])
    for output in outputs:
        output.loss.backward()
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)
    for (name, a), b in zip(dense.named_parameters(), sparse.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    assert sparse(batch["input_ids"]).logits.shape == (BATCH, TOKENS, VOCAB)


def test_word_embeddings_are_tied_and_resized():
    model = AutoBertZeroForMaskedLM(tiny_config(random_genome(1)))
    assert model.predictions.decoder.weight is model.get_input_embeddings().weight
    model.resize_token_embeddings(VOCAB + 3)
    assert model.predictions.decoder.weight is model.get_input_embeddings().weight
    assert model(torch.tensor([[VOCAB + 2, 1]])).logits.shape == (1, 2, VOCAB + 3)


def test_pre_training_loss_is_the_sum_of_both():
    model = AutoBertZeroForPreTraining(tiny_config(random_genome(2))).eval()
    batch = masked_lm_batch()
    pairs = torch.randint(2, (BATCH,))
    output = model(**batch, next_sentence_label=pairs)
    masked = F.cross_entropy(output.prediction_logits.view(-1, VOCAB), batch["labels"].view(-1))
    torch.testing.assert_close(output.loss, masked + F.cross_entropy(output.seq_relationship_logits, pairs))
    assert model(**batch).loss is None


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem", "loss"),
    [
        (1, torch.rand(BATCH), "regression", lambda x, y: F.mse_loss(x[:, 0], y)),
        (3, torch.randint(3, (BATCH,)), "single_label_classification", F.cross_entropy),
        (3, torch.rand(BATCH, 3).round(), "multi_label_classification", F.binary_cross_entropy_with_logits),
    ],
)
def test_sequence_classification(num_labels, labels, problem, loss):
    model = AutoBertZeroForSequenceClassification(tiny_config(random_genome(4), num_labels=num_labels)).eval()
    output = model(torch.randint(VOCAB, (BATCH, TOKENS)), labels=labels)
    assert model.config.problem_type == problem
    torch.testing.assert_close(output.loss, loss(output.logits, labels))
    assert model(torch.randint(VOCAB, (BATCH, TOKENS)), return_dict=False)[0].shape == (BATCH, num_labels)


@pytest.mark.parametrize("auto_class", AUTO_CLASSES, ids=lambda c: c.__name__)
def test_heads_are_bert_s(auto_class):
    """With BERT's weights every head gives the loss and the outputs of BERT's head, and the same for both masks."""
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "intermediate_size": 37,
        "initializer_range": 0.2,
        "num_labels": 2 if "QuestionAnswering" in auto_class.__name__ else 4,
    }
    bert = auto_class.from_config(BertConfig(**sizes, num_hidden_layers=2)).eval()
    ours = auto_class.from_config(AutoBertZeroConfig(genome=Genome([SELF_ATTENTION] * 2).to_list(), **sizes)).eval()
    assert AUTO_MAP[auto_class.__name__] == f"modeling_autobert_zero.{type(ours).__name__}"
    weights = {}
    for name, weight in bert.state_dict().items():
        name = name.replace("bert.", "autobert_zero.", 1) if name.startswith("bert.") else name
        name = name.removeprefix("cls.").replace("predictions.transform.", "predictions.")
        if name != "predictions.bias":  # BERT keeps the decoder's bias under two names
            weights[our_name(name)] = weight
    ours.load_state_dict(weights)

    shape = (BATCH, 2, TOKENS) if "MultipleChoice" in auto_class.__name__ else (BATCH, TOKENS)
    inputs = {"input_ids": torch.randint(VOCAB, shape), "attention_mask": torch.ones(shape, dtype=torch.long)}
    if "QuestionAnswering" not in auto_class.__name__:  # BERT's answers are sought among pads, too
        inputs["attention_mask"][1, ..., 4:] = 0
    tokens = torch.where(inputs["attention_mask"].bool(), torch.randint(4, shape), -100)
    labels = {
        "AutoModel": {},
        "AutoModelForPreTraining": {"labels": tokens, "next_sentence_label": torch.randint(2, (BATCH,))},
        "AutoModelForMaskedLM": {"labels": tokens},
        "AutoModelForTokenClassification": {"labels": tokens},
        "AutoModelForQuestionAnswering": {
            "start_positions": torch.tensor([0, 1, 3, 2, 99]),
            "end_positions": torch.tensor([2, 99, 3, 5, 99]),
        },
        "AutoModelForMultipleChoice": {"labels": torch.randint(2, (BATCH,))},
        "AutoModelForNextSentencePrediction": {"labels": torch.randint(2, (BATCH,))},
        "AutoModelForSequenceClassification": {"labels": torch.randint(4, (BATCH,))},
    }[auto_class.__name__]
    with torch.no_grad():
        expected, got = bert(**inputs, **labels), ours(**inputs, **labels)
    assert list(got) == list(expected)
    real = inputs["attention_mask"].bool()
    for name in expected:
        a, b = got[name], expected[name]
        if a.shape[:2] == real.shape:
            a, b = a[real], b[real]
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=name)
    assert (got.get("loss") is not None) == bool(labels)


def test_padding_does_not_change_the_loss_of_answers():
    model = AutoBertZeroForQuestionAnswering(tiny_config(random_genome(6))).eval()
    ids, positions = torch.randint(VOCAB, (BATCH, TOKENS)), torch.randint(TOKENS, (2, BATCH))
    expected = model(ids, start_positions=positions[0], end_positions=positions[1])
    padded, mask = F.pad(ids, (0, 5), value=3), F.pad(torch.ones_like(ids), (0, 5))
    got = model(padded, mask, start_positions=positions[0], end_positions=positions[1])
    torch.testing.assert_close(got.loss, expected.loss)
    assert got.start_logits[:, TOKENS:].max() < -1e30


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # its heir is not in all of 5.x
def test_gradient_checkpointing_gives_equal_gradients():
    model = AutoBertZeroForMaskedLM(tiny_config(PUBLISHED_GENOME, hidden_dropout_prob=0.0)).train()
    batch = masked_lm_batch()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        model.zero_grad()
        model(**batch).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": torch.ones(1, 33, dtype=torch.long)}, "at most max_position_embeddings=32 tokens, got 33"),
        (
            {"input_ids": torch.ones(2, 7, dtype=torch.long), "attention_mask": torch.ones(2, 6)},
            r"attention_mask: expected shape \(2, 7\) or \(2, 7, 7\), got \(2, 6\)",
        ),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        AutoBertZeroModel(tiny_config(random_genome(0)))(**arguments)


def test_auto_classes_and_saved_files(tmp_path):
    model = AutoBertZeroForMaskedLM(tiny_config(random_genome(5))).eval()
    model.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"configuration_autobert_zero.py", "modeling_autobert_zero.py", "model.safetensors"} <= files
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is AutoBertZeroModel
    for name, parameter in model.autobert_zero.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name
    assert loaded(torch.ones(1, 3, dtype=torch.long)).last_hidden_state.isfinite().all()
