import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertModel

from autobert_zero.configuration_autobert_zero import (
    AUTO_MAP,
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
    AutoBertZeroForSequenceClassification,
    AutoBertZeroModel,
    Tokens,
)

from .conftest import BATCH, HEADS, HIDDEN, TOKENS, VOCAB, random_genome, tiny_config


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
