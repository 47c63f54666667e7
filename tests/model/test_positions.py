"""A model without a table of positions: rotary positions, convolutions and shared values keep every contract."""

import copy

import pytest
import torch
from torch.nn import functional as F

from autobert_zero.configuration_autobert_zero import ROTARY_ATTENTION, Attention, Convolution, Expression, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroModel
from tests.conftest import BATCH, HEADS, HIDDEN, TOKENS, VOCAB, padding_mask, tiny_config


pytestmark = pytest.mark.model

SCORES = "scale(matmul(rotary(q), transpose(rotary(k))))"
# Everything that knows of positions or of the first layer: rotary attention, convolutions as layers and as operations.
GENOME = Genome(
    [
        ROTARY_ATTENTION,
        Convolution(5),
        Attention(Expression.parse(f"add(matmul(softmax({SCORES}), mix(v, v1)), mul(conv7(v), sigmoid(q)))")),
        Attention(Expression.parse("mix(conv3(v1), matmul(softmax(matmul(rotary(q), transpose(k))), rotary(v)))")),
    ]
)


def model_of(genome: Genome = GENOME, **kwargs) -> AutoBertZeroModel:
    model = AutoBertZeroModel(tiny_config(genome, position_embedding_type="none", **kwargs)).double().eval()
    for name, parameter in model.named_parameters():
        if "mix_" in name:
            parameter.data.fill_(0.7)  # not ½, so that x and y are not interchangeable
    return model


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1, VOCAB, (2, TOKENS))


@torch.no_grad()
def test_only_differences_of_positions_matter(ids):
    # All rotated values are in products of two: rotary(v) by itself is not relative.
    model, positions = model_of(Genome(GENOME[:3])), torch.arange(TOKENS)[None]
    expected = model(ids).last_hidden_state
    for shift in (1, 1000):
        assert_near(model(ids, position_ids=positions + shift).last_hidden_state, expected)
    for other in (2 * positions, positions.flip(1)):
        assert (model(ids, position_ids=other).last_hidden_state - expected).abs().max() > 1e-3


@torch.no_grad()
def test_tokens_may_come_in_any_order_with_their_positions(ids):
    model, order = model_of(Genome([ROTARY_ATTENTION] * 2)), torch.randperm(TOKENS)
    expected = model(ids).last_hidden_state
    assert_near(model(ids[:, order], position_ids=order[None]).last_hidden_state, expected[:, order])
    assert (model(ids[:, order]).last_hidden_state - expected[:, order]).abs().max() > 1e-3
    of_each_row = torch.stack([order, torch.arange(TOKENS)])
    mixed = torch.stack([ids[0, order], ids[1]])
    found = model(mixed, position_ids=of_each_row).last_hidden_state
    assert_near(found, torch.stack([expected[0, order], expected[1]]))


@torch.no_grad()
@pytest.mark.parametrize("unpad", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize(("left", "right"), [(0, 4), (4, 0), (2, 9)])
def test_padding(ids, left, right, unpad):
    model = model_of(unpad_inputs=unpad)
    expected = model(ids)
    padded = torch.cat([torch.randint(VOCAB, (2, left)), ids, torch.randint(VOCAB, (2, right))], 1)
    mask = F.pad(torch.ones_like(ids), (left, right))
    # With a row of another length, so that the batch is padded.
    found = model(torch.cat([padded, padded[:1]]), torch.cat([mask, torch.ones_like(mask[:1])]))
    assert_near(found.last_hidden_state[:2, left : left + TOKENS], expected.last_hidden_state)
    assert_near(found.pooler_output[:2], expected.pooler_output)
    # By token pairs the positions of the real tokens are the same.
    by_pairs = model(padded, mask[:, None].expand(-1, mask.shape[1], -1)).last_hidden_state
    assert_near(by_pairs[:, left : left + TOKENS], expected.last_hidden_state)


@torch.no_grad()
def test_padding_inside_a_row_is_no_position():
    # Without convolutions, for which padding inside a row is a gap.
    model = model_of(Genome([ROTARY_ATTENTION] * 2))
    tokens, mask = torch.randint(VOCAB, (BATCH, TOKENS)), padding_mask()
    found = model(tokens, mask).last_hidden_state
    for row in range(BATCH):
        assert_near(found[row, mask[row]], model(tokens[row, mask[row]][None]).last_hidden_state[0])


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 3])
def test_documents_in_one_row(ids, first):
    """By positions that start again at 0, and by a mask of tokens by tokens."""
    model = model_of()
    positions = torch.cat([torch.arange(first), torch.arange(TOKENS - first)])[None]
    document = (torch.arange(TOKENS) >= first)[None]
    mask = (document[:, :, None] == document[:, None, :]).expand(2, -1, -1)
    for given in ({}, {"attention_mask": mask}):
        found = model(ids, position_ids=positions, **given).last_hidden_state
        for part in (slice(None, first), slice(first, None)):
            assert_near(found[:, part], model(ids[:, part]).last_hidden_state)


@torch.no_grad()
def test_more_tokens_than_max_position_embeddings():
    model, tokens = model_of(), torch.randint(VOCAB, (1, 500))
    assert model.config.max_position_embeddings == 32
    long = model(tokens).last_hidden_state
    assert long.shape == (1, 500, HIDDEN)
    # The same tokens as documents of 10 each, far into the row.
    rows = model(tokens.view(50, 10)).last_hidden_state
    assert_near(model(tokens, position_ids=torch.arange(500)[None] % 10).last_hidden_state.view(50, 10, -1), rows)


@torch.no_grad()
def test_rope_theta(ids):
    model = model_of()
    other = copy.deepcopy(model)
    other.config.rope_theta = 100.0
    assert (other(ids).last_hidden_state - model(ids).last_hidden_state).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
def test_angles_are_not_rounded_to_16_bits(autocast):
    """At positions that bfloat16 cannot tell apart, outputs are as near those of float64 as at the first ones."""
    model = model_of(Genome([ROTARY_ATTENTION] * 2))
    tokens, positions = torch.randint(VOCAB, (1, TOKENS)), torch.arange(TOKENS)[None]
    expected = model(tokens).last_hidden_state
    low = copy.deepcopy(model).to(torch.float32 if autocast else torch.bfloat16)
    for shift in (0, 1000):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = low(tokens, position_ids=positions + shift).last_hidden_state
        assert (found - expected).abs().max() < 0.1


@torch.no_grad()
def test_the_values_of_the_first_layer(ids):
    """`v1` is the first attention's `v`: computed here by hand from its input and weights."""
    genome = Genome(
        [Convolution(3), ROTARY_ATTENTION, Attention(Expression.parse("matmul(softmax(matmul(q, transpose(k))), v1)"))]
    )
    model = model_of(genome)
    states = model(ids, output_hidden_states=True).hidden_states
    first, second = (model.encoder.layer[i].mixer for i in (1, 2))

    def heads(x):
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    values = heads(first.value(states[1]))
    queries, keys = heads(second.query(states[2])), heads(second.key(states[2]))
    mixed = (queries @ keys.transpose(2, 3)).softmax(-1) @ values
    mixed_in = second.dense(mixed.transpose(1, 2).flatten(2))
    found = []
    handle = second.register_forward_hook(lambda module, inputs, output: found.append(output[0]))
    model(ids)
    handle.remove()
    assert_near(found[0], mixed_in)
    assert not hasattr(second, "value")


@torch.no_grad()
def test_in_the_first_layer_v1_is_v(ids):
    weights = model_of(Genome([ROTARY_ATTENTION])).state_dict()
    outputs = []
    for name in ("v", "v1"):
        model = model_of(Genome([Attention(Expression.parse(str(ROTARY_ATTENTION).replace("v)", f"{name})")))]))
        model.load_state_dict(weights)
        outputs.append(model(ids).last_hidden_state)
    assert_near(*outputs)


def test_initial_parameters_of_operations():
    wide = {"hidden_size": 1024, "num_attention_heads": 4}
    model = AutoBertZeroModel(tiny_config(GENOME, position_embedding_type="none", **wide))
    operations = model.encoder.layer[2].mixer.operations
    assert operations["mix_0"].weight == 0  # σ(0) = ½ of each operand
    # The variance of an input of independent tokens is kept.
    kernel = operations["conv7_0"].weight
    assert kernel.shape == (1024, 1, 7) and kernel.mean().abs() < 0.02
    assert kernel.std().item() == pytest.approx(7**-0.5, rel=0.05)
