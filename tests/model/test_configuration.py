"""Expressions, genomes, presets and configurations."""

import os
import pickle
import subprocess
import sys

import pytest
from huggingface_hub.errors import StrictDataclassError

from autobert_zero.configuration_autobert_zero import (
    MAX_NODES,
    PRESETS,
    PUBLISHED_GENOME,
    ROTARY_ATTENTION,
    SELF_ATTENTION,
    Attention,
    AutoBertZeroConfig,
    Convolution,
    Expression,
    Genome,
)


pytestmark = pytest.mark.model

STANDARD = "matmul(softmax(scale(matmul(q, transpose(k)))), v)"


def test_expressions_are_parsed_and_written():
    expression = Expression.parse(" matmul( softmax(scale(matmul(q,transpose(k)) ) ),v)\n")
    assert str(expression) == STANDARD
    assert expression == Expression.parse(STANDARD) == SELF_ATTENTION.expression
    assert expression.type == "nd" and expression.depth == 5 and expression.inputs() == ["q", "k", "v"]


def test_equal_sub_expressions_are_one_node():
    expression = Expression.parse("add(neg(q), add(neg(q), neg(q)))")
    assert [str(node) for node in expression.nodes()] == ["q", "neg(q)", "add(neg(q), neg(q))", str(expression)]


def test_replace_changes_every_occurrence():
    expression = Expression.parse("add(neg(q), add(neg(q), k))")
    replaced = expression.replace(Expression.parse("neg(q)"), Expression("p"))
    assert str(replaced) == "add(p, add(p, k))"


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("transpose(q)", "dn"),
        ("matmul(q, transpose(k))", "nn"),
        ("matmul(transpose(q), k)", "dd"),
        ("cosine_similarity(q, k)", "nn"),
        ("euclidean_distance(transpose(q), transpose(k))", "dd"),
    ],
)
def test_types_are_symbolic(text, type_):
    with pytest.raises(ValueError, match=f"expected a result of type n×d, got {type_[0]}×{type_[1]}"):
        Expression.parse(text)


@pytest.mark.parametrize(
    ("text", "problem", "character"),
    [
        ("matmul(softmax(q), w)", "unknown name 'w'", 20),
        ("add(q)", "add takes 2 operands, got 1", 1),
        ("add(q, neg(k, v))", "neg takes 1 operand, got 2", 8),
        ("neg", "neg takes 1 operand, got 0", 1),
        ("neg(q(k))", "q is an input and takes no operands", 5),
        ("neg(add(q, transpose(k)))", "add takes operands of type a×b and a×b, got n×d and d×n", 5),
        ("neg(matmul(q, k))", "matmul takes operands of type a×b and b×c, got n×d and n×d", 5),
        ("add(q, k", "expected ',' or '\\)', got the end", 9),
        ("add(q, k))", "expected the end, got '\\)'", 10),
        ("add(q, , k)", "expected an input or an operation, got ','", 8),
        ("", "expected an input or an operation, got the end", 1),
        ("__import__('os').system('true')", 'expected an input or an operation, got "\'"', 12),
        ("neg(" * 20 + "q" + ")" * 20, "expected at most 16 levels", 69),
    ],
)
def test_errors_point_at_the_position(text, problem, character):
    with pytest.raises(ValueError, match=problem) as error:
        Expression.parse(text)
    assert f"at character {character}:" in str(error.value)
    assert str(error.value).endswith(f"\n  {text}\n  {' ' * (character - 1)}^")


def test_size_is_bounded():
    terms = [f"{a}({b}({x}))" for a in ("neg", "softsign") for b in ("softmax", "scale") for x in "qkvp"]
    while len(terms) > 1:
        terms = [f"add({x}, {y})" for x, y in zip(terms[::2], terms[1::2], strict=True)]
    size = 4 + 2 * 4 + 4 * 4 + 15  # inputs, inner and outer operations, additions
    with pytest.raises(ValueError, match=f"at most {MAX_NODES} nodes, got {size}"):
        Expression.parse(terms[0])
    with pytest.raises(ValueError, match="at most 4096 characters, got 5000"):
        Expression.parse("q" * 5000)
    with pytest.raises(ValueError, match="expected a string, got int"):
        Expression.parse(3)


@pytest.mark.parametrize(
    ("text", "attends"),
    [
        ("q", False),
        ("softsign(add(q, neg(k)))", False),
        ("softmax(q)", False),
        ("transpose(softmax(transpose(q)))", True),
        ("matmul(q, matmul(transpose(k), v))", True),
        ("cosine_similarity(q, cosine_similarity(transpose(k), transpose(v)))", True),
        (STANDARD, True),
        ("conv3(conv15(q))", False),
        ("conv3(softmax(transpose(softmax(transpose(q)))))", True),
    ],
)
def test_attends(text, attends):
    assert Expression.parse(text).attends() == attends


@pytest.mark.parametrize("size", [0, -3, 4, 3.0, True, "3", 2001])
def test_kernel_sizes_are_odd_integers(size):
    with pytest.raises(ValueError, match="kernel_size: expected an odd integer"):
        Convolution(size)


def test_genome_is_a_value_and_json_round_trips():
    genome = Genome([Convolution(65), SELF_ATTENTION])
    assert genome.to_list() == [
        {"kind": "convolution", "kernel_size": 65},
        {"kind": "attention", "expression": STANDARD},
    ]
    assert Genome.from_list(genome.to_list()) == genome
    assert len({genome, Genome.from_list(genome.to_list())}) == 1
    assert str(genome) == f"convolution 65 | {STANDARD}"


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ([], "non-empty list"),
        ("conv", "non-empty list"),
        ([3], "layer 1: expected an object with 'kind', got 3"),
        ([{"kind": ["x"]}], "layer 1: kind: expected one of"),
        ([{"kind": "recurrence"}], "layer 1: kind: expected one of .*, got 'recurrence'"),
        ([{"kind": "convolution"}], "layer 1: expected the fields .*'kernel_size'"),
        ([{"kind": "convolution", "kernel_size": 3, "bias": True}], "layer 1: expected the fields"),
        ([{"kind": "convolution", "kernel_size": 3}, {"kind": "attention", "expression": "w"}], "layer 2: .*'w'"),
    ],
)
def test_errors_of_illegal_genomes_name_the_layer(genes, message):
    with pytest.raises(ValueError, match=message):
        Genome.from_list(genes)


def test_published_genome():
    kernels = [gene.kernel_size for gene in PUBLISHED_GENOME if isinstance(gene, Convolution)]
    assert kernels == [65, 9, 3, 7, 7, 3]
    assert [isinstance(gene, Attention) for gene in PUBLISHED_GENOME] == [False, True] * 6
    assert PUBLISHED_GENOME[5] == PUBLISHED_GENOME[7]
    assert AutoBertZeroConfig().parsed_genome() == PUBLISHED_GENOME


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    config = AutoBertZeroConfig.preset(name, vocab_size=11)
    assert config.vocab_size == 11 and config.num_hidden_layers == (24 if name.endswith("large") else 12)
    if name.startswith("bert-rotary"):
        assert set(config.parsed_genome()) == {ROTARY_ATTENTION} and config.position_embedding_type == "none"
    elif name.startswith("bert"):
        assert set(config.parsed_genome()) == {SELF_ATTENTION}


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"preset: expected one of .*, got 'bert-huge'"):
        AutoBertZeroConfig.preset("bert-huge")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"genome": [{"kind": "convolution", "kernel_size": 4}]}, "layer 1: kernel_size: .*got 4"),
        ({"num_hidden_layers": 5}, "expected num_hidden_layers=5 genes, got 12"),
        ({"num_attention_heads": 7}, "num_attention_heads: expected a divisor of hidden_size=768, got 7"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob: expected a number from 0 to 1, got 1.5"),
        ({"pad_token_id": 30522}, "pad_token_id: expected a token id below"),
        ({"intermediate_size": 0}, "intermediate_size: expected a positive integer, got 0"),
        (
            {"position_embedding_type": "rotary"},
            "position_embedding_type: expected 'absolute' or 'none', got 'rotary'",
        ),
        ({"rope_theta": -1.0}, "rope_theta: expected a positive number, got -1"),
        (
            {"genome": [SELF_ATTENTION.to_dict()], "position_embedding_type": "none"},
            "position_embedding_type: expected 'absolute' for a genome without rotary and without convolutions",
        ),
        (
            {
                "genome": [SELF_ATTENTION.to_dict(), {"kind": "convolution", "kernel_size": 1}],
                "position_embedding_type": "none",
            },
            "convolutions of more than one token, which has no notion of the order of tokens",
        ),
        (
            {
                "genome": [ROTARY_ATTENTION.to_dict()],
                "hidden_size": 8,
                "num_attention_heads": 8,
                "position_embedding_type": "none",
            },
            "num_attention_heads: expected heads of at least 2 channels for rotary, .* got 8 for hidden_size=8",
        ),
    ],
)
def test_illegal_configurations(kwargs, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        AutoBertZeroConfig(**kwargs)


def test_integers_are_numbers():
    config = AutoBertZeroConfig(rope_theta=10000, initializer_range=1, layer_norm_eps=0, hidden_dropout_prob=0)
    assert (config.rope_theta, config.initializer_range) == (10000, 1)


def test_configuration_edited_by_hand(tmp_path):
    config = AutoBertZeroConfig(genome=Genome([Convolution(3), SELF_ATTENTION]).to_list())
    config.save_pretrained(tmp_path)
    assert AutoBertZeroConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace("transpose(k)", "k"))
    with pytest.raises(ValueError, match=r"genome, layer 2: .*matmul takes operands"):
        AutoBertZeroConfig.from_pretrained(tmp_path)


def test_genomes_are_passed_between_processes():
    """Pickled here and unpickled in processes with other hashes of strings."""
    code = "import pickle, sys; from autobert_zero.configuration_autobert_zero import PUBLISHED_GENOME, Expression\n"
    code += "genome = pickle.load(sys.stdin.buffer); assert genome in {PUBLISHED_GENOME}\n"
    code += "assert Expression('q') in set(genome[1].expression.nodes())"
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            input=pickle.dumps(PUBLISHED_GENOME),
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )
