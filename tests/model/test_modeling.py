"""The model: its layers, heads, arguments, masks, saved files."""

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertModel

from autobert_zero.configuration_autobert_zero import (
    AUTO_MAP,
    MAX_NODES,
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
    AutoBertZeroForMultipleChoice,
    AutoBertZeroForPreTraining,
    AutoBertZeroForSequenceClassification,
    AutoBertZeroModel,
    TokenLayout,
)
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.space.backbone import BackboneSpace
from autobert_zero.search.space.bounds import Bounds
from tests.conftest import BATCH, HEADS, HIDDEN, TOKENS, VOCAB, padding_mask, random_genome, tiny_config


pytestmark = pytest.mark.model


def test_convolution_equals_conv1d():
    mixer = AutoBertZeroConvolution(tiny_config(random_genome(0)), Convolution(5))
    x = torch.randn(BATCH, TOKENS, HIDDEN)
    inner = F.glu(mixer.gate(x)).transpose(1, 2)
    expected = F.conv1d(inner, mixer.convolution.weight, mixer.convolution.bias, padding=2, groups=HIDDEN)
    torch.testing.assert_close(mixer(x, TokenLayout())[0], mixer.dense(expected.transpose(1, 2)))


def test_published_base_has_the_published_size():
    with torch.device("meta"):
        model = AutoBertZeroModel(AutoBertZeroConfig.preset("autobert-zero-base"))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(103.7e6, rel=1e-3)


def test_only_used_projections_exist():
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
def test_heads_equal_those_of_bert(auto_class):
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
    if "QuestionAnswering" not in auto_class.__name__:  # BERT's answers may be at padding
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


def ids(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": ids(7)}, r"input_ids: expected \(batch, tokens\), got \(7,\)"),
        ({"inputs_embeds": torch.ones(7, HIDDEN)}, r"inputs_embeds: expected \(batch, tokens, 24\), got \(7, 24\)"),
        ({"inputs_embeds": torch.ones(1, 7, 3)}, r"inputs_embeds: expected \(batch, tokens, 24\), got \(1, 7, 3\)"),
        ({"input_ids": ids(1, 33)}, "at most max_position_embeddings=32 tokens, got 33"),
        ({"input_ids": VOCAB * ids(2, 7)}, r"input_ids: expected ids from 0 to 98 \(vocab_size=99\), got 99"),
        ({"input_ids": -ids(2, 7)}, r"input_ids: expected ids from 0 to 98 \(vocab_size=99\), got -1"),
        (
            {"input_ids": ids(2, 7), "token_type_ids": 2 * ids(2, 7)},
            r"token_type_ids: .* \(type_vocab_size=2\), got 2",
        ),
        (
            {"input_ids": ids(2, 7), "position_ids": 32 * ids(2, 7)},
            "position_ids: expected ids from 0 to 31 .* got 32",
        ),
        (
            {"input_ids": ids(2, 7), "token_type_ids": ids(2, 6)},
            r"token_type_ids: expected shape \(2, 7\), got \(2, 6\)",
        ),
        ({"input_ids": ids(2, 7), "position_ids": ids(3, 7)}, r"position_ids: expected shape \(2, 7\), got \(3, 7\)"),
        (
            {"input_ids": ids(2, 7), "attention_mask": ids(2, 6)},
            r"attention_mask: expected shape \(2, 7\) or \(2, 7, 7\), got \(2, 6\)",
        ),
        (
            {"input_ids": ids(2, 7), "attention_mask": ids(2, 1, 7, 7)},
            r"attention_mask: expected shape \(2, 7\) or \(2, 7, 7\), got \(2, 1, 7, 7\)",
        ),
        (
            {"input_ids": ids(2, 7), "attention_mask": -1e4 * torch.rand(2, 7)},
            "attention_mask: expected 1 for real tokens and 0 for padding, got negative values",
        ),
        ({"input_ids": ids(2, 7), "attention_mask": -10000 * ids(2, 7, 7)}, "attention_mask: .* got negative values"),
        ({"input_ids": ids(2, 0)}, "input_ids: expected at least one token, got none"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        AutoBertZeroModel(tiny_config(random_genome(0)))(**arguments)


def test_a_mask_of_tokens_by_tokens_needs_layers_that_reduce_for_one_token():
    genome = Genome([Convolution(3), Attention(Expression.parse("matmul(q, matmul(transpose(k), v))"))])
    with pytest.raises(ValueError, match=r"layer 2, matmul\(q, matmul\(transpose\(k\), v\)\), reduces over tokens"):
        AutoBertZeroModel(tiny_config(genome))(ids(2, 7), attention_mask=ids(2, 7, 7))


def test_choices_are_the_second_axis():
    model = AutoBertZeroForMultipleChoice(tiny_config(random_genome(0))).eval()
    with pytest.raises(ValueError, match=r"expected \(batch, choices, tokens\), got \(2, 7\)"):
        model(ids(2, 7))
    tokens = torch.randint(VOCAB, (2, 3, 7))
    positions = torch.arange(7)[None]
    torch.testing.assert_close(model(tokens, position_ids=positions).logits, model(tokens).logits)


def test_a_misspelt_argument_is_an_error():
    with pytest.raises(TypeError, match="atention_mask"):
        AutoBertZeroForMaskedLM(tiny_config(random_genome(0)))(ids(1, 3), atention_mask=ids(1, 3))


def test_output_attentions():
    genome = Genome.from_list(
        [
            {"kind": "convolution", "kernel_size": 3},
            SELF_ATTENTION.to_dict(),
            {"kind": "attention", "expression": "matmul(q, matmul(transpose(k), v))"},
        ]
    )
    model = AutoBertZeroForMaskedLM(tiny_config(genome)).eval()
    tokens = torch.randint(VOCAB, (BATCH, TOKENS))
    output = model(tokens, padding_mask(), output_attentions=True)
    [weights] = output.attentions  # of the one layer that has them
    assert weights.shape == (BATCH, HEADS, TOKENS, TOKENS)
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, HEADS, TOKENS))
    assert (weights.masked_select(~padding_mask()[:, None, None, :]) == 0).all()
    torch.testing.assert_close(output.logits, model(tokens, padding_mask()).logits)
    assert model(tokens).attentions is None
    as_tuple = model(tokens, padding_mask(), output_attentions=True, return_dict=False)
    assert torch.equal(as_tuple[1][0], weights)
    convolutions = AutoBertZeroModel(tiny_config(Genome([Convolution(3)]))).eval()
    assert convolutions(tokens, output_attentions=True).attentions == ()


def test_input_embeddings():
    model = AutoBertZeroModel(tiny_config(random_genome(1))).eval()
    tokens = torch.randint(VOCAB, (BATCH, TOKENS))
    given = model(inputs_embeds=model.get_input_embeddings()(tokens), attention_mask=padding_mask())
    torch.testing.assert_close(given.last_hidden_state, model(tokens, padding_mask()).last_hidden_state)


def test_eager_is_the_reference_and_sdpa_is_lowered():
    model = AutoBertZeroModel(tiny_config(Genome([SELF_ATTENTION, *random_genome(3)]))).double().eval()
    tokens = torch.randint(VOCAB, (BATCH, TOKENS))
    lowered = model(tokens, padding_mask()).last_hidden_state
    assert "scaled_dot_product_attention(q, " in model.describe()
    model.set_attn_implementation("eager")
    assert "scaled_dot_product_attention" not in model.describe() and "the reference was requested" in str(model)
    torch.testing.assert_close(model(tokens, padding_mask()).last_hidden_state, lowered)


def test_description():
    genome = Genome(
        [Convolution(3), PUBLISHED_GENOME[3], Attention(Expression.parse("matmul(cosine_similarity(q, k), v)"))]
    )
    for model in (AutoBertZeroModel(tiny_config(genome)), AutoBertZeroForMaskedLM(tiny_config(genome))):
        lines = model.describe().splitlines()
        assert len(lines) == 7
        for number, gene in enumerate(genome):
            assert lines[1 + 2 * number].split(maxsplit=1) == [str(number + 1), str(gene)]
        assert "depth-wise convolution" in lines[2]
        assert "scaled_dot_product_attention" in lines[4] and "node by node" in lines[6]


def test_weights_of_another_genome(tmp_path):
    genome = Genome([Convolution(3), SELF_ATTENTION, PUBLISHED_GENOME[11]])
    AutoBertZeroForMaskedLM(tiny_config(genome)).save_pretrained(tmp_path)
    other = tiny_config(Genome([Convolution(5), SELF_ATTENTION, PUBLISHED_GENOME[9]]))
    with pytest.raises(
        ValueError, match=r"genome: layer 1: expected convolution 3 .* got convolution 5; layer 3: "
    ) as e:
        AutoModel.from_pretrained(tmp_path, config=other)
    assert "layer 2" not in str(e.value)
    with pytest.raises(ValueError, match="genome: expected the 3 layers of the checkpoint, got 1"):
        AutoBertZeroModel.from_pretrained(tmp_path, config=tiny_config(Genome([Convolution(3)])))
    # The same projections: no weight is missing, but they are used differently.
    swapped = Genome(
        [
            Convolution(3),
            Attention(Expression.parse(str(SELF_ATTENTION).replace("(q, transpose(k))", "(k, transpose(q))"))),
            PUBLISHED_GENOME[11],
        ]
    )
    with pytest.raises(ValueError, match="layer 2: expected "):
        AutoBertZeroModel.from_pretrained(tmp_path, genome=swapped.to_list())
    tiny_config(swapped).save_pretrained(tmp_path / "swapped")
    with pytest.raises(ValueError, match="layer 2: expected "):
        AutoBertZeroModel.from_pretrained(tmp_path, config=str(tmp_path / "swapped"))
    # A changed configuration with unchanged weights.
    config = json.loads((tmp_path / "config.json").read_text())
    config["genome"][0] = SELF_ATTENTION.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"weights: expected those of the genome matmul.*layer\.0\.mixer\.key\.bias"):
        AutoBertZeroModel.from_pretrained(tmp_path)
    BertModel(BertConfig(hidden_size=24, num_attention_heads=3, num_hidden_layers=1)).save_pretrained(
        tmp_path / "bert"
    )
    with pytest.raises(ValueError, match="model_type: expected autobert_zero, got bert"):
        AutoBertZeroModel.from_pretrained(tmp_path / "bert")


@pytest.mark.parametrize(
    "numbers", [range(30), pytest.param(range(30, 1000), marks=pytest.mark.slow)], ids=["30", "970 more"]
)
def test_random_genomes(numbers, tmp_path):
    """1,000 legal genomes, up to the largest size, are built, run forward and backward, saved and loaded."""
    space = BackboneSpace(
        Bounds(num_layers=3, kernel_sizes=(1, 3, 9, 65), max_nodes=MAX_NODES, min_attention_layers=2)
    )
    lowered = 0
    for number in numbers:
        genome = space.random(random_stream(number, "test legal genome"))
        model = AutoBertZeroForSequenceClassification(tiny_config(genome, initializer_range=0.02))
        inputs = {"input_ids": torch.randint(VOCAB, (BATCH, TOKENS)), "attention_mask": padding_mask()}
        output = model(**inputs, labels=torch.randint(2, (BATCH,)))
        output.loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), (name, str(genome))
        model.save_pretrained(tmp_path)
        loaded = AutoBertZeroForSequenceClassification.from_pretrained(tmp_path)
        assert loaded.config.parsed_genome() == genome
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), (name, str(genome))
        assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)
        lowered += "scaled_dot_product" in model.describe()
    print(f"{lowered} of {len(numbers)} have a lowered part")


def test_auto_classes_and_saved_files(tmp_path):
    model = AutoBertZeroForMaskedLM(tiny_config(random_genome(5))).eval()
    model.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"configuration_autobert_zero.py", "modeling_autobert_zero.py", "model.safetensors"} <= files
    # As each of many processes calls it. Some versions of transformers write files in all of them; code is stamped in one.
    model.save_pretrained(tmp_path / "again", is_main_process=False)
    for path in (tmp_path / "again").glob("*.py"):
        assert "Digest of all code saved in this folder: " not in path.read_text()[-200:]
    model.save_pretrained(tmp_path / "again", is_main_process=True)
    assert {path.name for path in (tmp_path / "again").glob("*")} == files
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is AutoBertZeroModel
    for name, parameter in model.autobert_zero.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name
    assert loaded(torch.ones(1, 3, dtype=torch.long)).last_hidden_state.isfinite().all()
