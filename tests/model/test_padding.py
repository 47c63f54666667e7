"""Padding never changes the output for real tokens, packed or padded, for any genome."""

import contextlib
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from autobert_zero.configuration_autobert_zero import (
    OPERATIONS,
    PUBLISHED_GENOME,
    SELF_ATTENTION,
    Attention,
    Convolution,
    Expression,
    Genome,
)
from autobert_zero.modeling_autobert_zero import AutoBertZeroForQuestionAnswering, AutoBertZeroModel
from tests.conftest import BATCH, HIDDEN, TOKENS, VOCAB, padding_mask, random_genome, tiny_config


pytestmark = pytest.mark.model


def attention(text: str) -> Attention:
    return Attention(Expression.parse(text))


# Every way in which an operation sums or normalizes over tokens, n×n and d×n; and every kernel size.
GENES = [
    *map(
        attention,
        (
            "matmul(softmax(matmul(q, transpose(k))), v)",
            "transpose(softmax(transpose(q)))",
            "matmul(neg(matmul(q, transpose(k))), v)",
            "matmul(q, matmul(transpose(k), v))",
            "matmul(matmul(softsign(matmul(q, transpose(k))), matmul(k, transpose(q))), v)",
            "transpose(matmul(transpose(q), softsign(matmul(k, transpose(v)))))",
            "matmul(cosine_similarity(q, k), v)",
            "transpose(cosine_similarity(transpose(q), matmul(k, transpose(v))))",
            "matmul(q, cosine_similarity(transpose(k), transpose(v)))",
            "matmul(cosine_similarity(matmul(q, transpose(k)), matmul(v, transpose(q))), v)",
            "cosine_similarity(matmul(q, transpose(k)), transpose(v))",
            "matmul(softmax(euclidean_distance(q, k)), v)",
            "euclidean_distance(matmul(q, transpose(k)), transpose(v))",
            "transpose(euclidean_distance(transpose(q), matmul(k, transpose(v))))",
            "matmul(q, euclidean_distance(transpose(k), transpose(v)))",
            "matmul(euclidean_distance(matmul(q, transpose(k)), matmul(v, transpose(q))), v)",
            "transpose(matmul(transpose(v), transpose(softmax(matmul(q, transpose(k))))))",
            "transpose(matmul(transpose(v), transpose(softmax(euclidean_distance(q, k)))))",
        ),
    ),
    *(Convolution(size) for size in (3, 5, 7, 9, 15, 31, 65)),
]


def uses(nodes) -> set[tuple[str, ...]]:
    """Name and operand types of every node that sums or normalizes over tokens."""
    return {
        (node.name, *(operand.type for operand in node.operands))
        for node in nodes
        if node.contracts_tokens() or (node.name == "softmax" and node.type[1] == "n")
    }


def test_the_genes_use_all_ways_to_mix_tokens():
    q = Expression("q")
    transposed = Expression("transpose", (q,))
    operands = [q, transposed, Expression("matmul", (q, transposed)), Expression("matmul", (transposed, q))]
    legal = []
    for name, number in itertools.product(OPERATIONS, (1, 2)):
        for chosen in itertools.product(operands, repeat=number):
            with contextlib.suppress(ValueError):
                legal.append(Expression(name, chosen))
    genes = [gene.expression for gene in GENES if isinstance(gene, Attention)]
    assert uses(node for expression in genes for node in expression.nodes()) == uses(legal)


@pytest.mark.parametrize("unpad", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gene", GENES, ids=str)
def test_a_sequence_alone_and_in_a_batch(gene, dtype, unpad):
    """In a batch of different lengths, padded on either side, every sequence has the same output as alone."""
    config = tiny_config(Genome([gene, gene]), unpad_inputs=unpad)
    model = AutoBertZeroModel(config).to(dtype).eval()
    lengths = [9, 4, 1, 7]
    sequences = [torch.randint(1, VOCAB, (1, length)) for length in lengths]
    with torch.no_grad():
        alone = [model(ids) for ids in sequences]
        for left in (True, False):
            sides = [(9 - n, 0) if left else (0, 9 - n) for n in lengths]
            ids = torch.cat([F.pad(ids, side, value=5) for ids, side in zip(sequences, sides, strict=True)])
            mask = torch.cat([F.pad(torch.ones_like(i), side) for i, side in zip(sequences, sides, strict=True)])
            batch = model(ids, mask)
            assert (batch.last_hidden_state[mask == 0] == 0).all()
            for row, expected in enumerate(alone):
                hidden = batch.last_hidden_state[row, mask[row] == 1]
                # Rounding only: kernels sum in another order. In bfloat16 the last digit is 2^-8 of the value.
                atol = 2e-5 if dtype == torch.float32 else 0.1
                torch.testing.assert_close(hidden, expected.last_hidden_state[0], atol=atol, rtol=0)
                torch.testing.assert_close(batch.pooler_output[row], expected.pooler_output[0], atol=atol, rtol=0)


def test_packed_equals_padded():
    """The same values, also at padding, and the same gradients; packed states have one row per real token."""
    for number in range(20):
        model = AutoBertZeroModel(tiny_config(random_genome(number))).double().eval()
        ids, weights = torch.randint(VOCAB, (BATCH, TOKENS)), torch.randn(BATCH, TOKENS, HIDDEN).double()
        shapes, results = [], []
        linear = model.encoder.layer[0].intermediate
        plain = linear.forward  # a hook would get padded states

        def forward(x, shapes=shapes, plain=plain):
            shapes.append(x.shape)
            return plain(x)

        linear.forward = forward
        for unpad in (True, False):
            model.config.unpad_inputs = unpad
            model.zero_grad()
            output = model(ids, padding_mask(), position_ids=torch.arange(TOKENS)[None])
            (output.last_hidden_state * weights).sum().backward()
            gradients = [p.grad for name, p in model.named_parameters() if "pooler" not in name]
            results.append([output.last_hidden_state, output.pooler_output, *gradients])
        assert shapes[0][:-1] == (int(padding_mask().sum()),) and shapes[1][:-1] == (BATCH, TOKENS)
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_hidden_states_of_all_layers_do_not_change_the_last():
    model = AutoBertZeroModel(tiny_config(random_genome(1))).eval()
    ids = torch.randint(VOCAB, (BATCH, TOKENS))
    packed, padded = (model(ids, padding_mask(), output_hidden_states=flag) for flag in (False, True))
    torch.testing.assert_close(packed.last_hidden_state, padded.last_hidden_state)
    assert padded.hidden_states[-1] is padded.last_hidden_state
    assert len(padded.hidden_states) == 4 and {h.shape for h in padded.hidden_states} == {(BATCH, TOKENS, HIDDEN)}


def test_a_mask_of_tokens_by_tokens():
    """Sequences in one row, separated by a mask, have the same outputs as alone, with every kind of layer."""
    genome = Genome([Convolution(5), PUBLISHED_GENOME[11], attention("matmul(cosine_similarity(q, k), v)")])
    model = AutoBertZeroModel(tiny_config(genome)).double().eval()
    a, b = torch.randint(VOCAB, (1, 4)), torch.randint(VOCAB, (1, 3))
    mask = torch.zeros(1, 9, 9)
    mask[:, :4, :4] = mask[:, 4:7, 4:7] = 1
    ids = torch.cat([a, b, torch.tensor([[7, 7]])], 1)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0]])
    got = model(ids, mask, position_ids=positions)
    torch.testing.assert_close(got.last_hidden_state[:, :4], model(a).last_hidden_state)
    torch.testing.assert_close(got.last_hidden_state[:, 4:7], model(b).last_hidden_state)
    assert (got.last_hidden_state[:, 7:] == 0).all()
    # Equal rows are equivalent to a mask of tokens.
    rows = padding_mask()
    ids = torch.randint(VOCAB, (BATCH, TOKENS))
    torch.testing.assert_close(
        model(ids, rows[:, None].expand(-1, TOKENS, -1)).last_hidden_state, model(ids, rows).last_hidden_state
    )


def test_padding_changes_nothing_for_any_genome():
    """200 random genomes: padding on the left or right, of several lengths and any content."""
    sensitive = 0
    for number in range(200):
        genome = random_genome(number)
        model = AutoBertZeroModel(tiny_config(genome, unpad_inputs=number % 2 == 0)).double().eval()
        real = torch.randint(1, VOCAB, (2, TOKENS))
        with torch.no_grad():
            expected = model(real)
            for left, right in ((0, 4), (4, 0), (2, 9)):
                ids = torch.cat([torch.randint(VOCAB, (2, left)), real, torch.randint(VOCAB, (2, right))], 1)
                mask = F.pad(torch.ones(2, TOKENS, dtype=torch.long), (left, right))
                # With a row of another length, so that the batch is padded.
                ids, mask = torch.cat([ids, ids[:1]]), torch.cat([mask, torch.ones_like(mask[:1])])
                padded = model(ids, attention_mask=mask)
                hidden = padded.last_hidden_state[:2, left : left + TOKENS]
                torch.testing.assert_close(hidden, expected.last_hidden_state, atol=1e-8, rtol=0, msg=str(genome))
                torch.testing.assert_close(padded.pooler_output[:2], expected.pooler_output, atol=1e-8, rtol=0)
                unmasked = model(ids).last_hidden_state[:2, left : left + TOKENS]
                sensitive += not torch.allclose(unmasked, expected.last_hidden_state, atol=1e-4)
    assert sensitive > 300  # without the mask padding does change outputs: the test can fail


def test_values_at_padding_that_are_not_finite_change_nothing():
    for genome in (Genome([SELF_ATTENTION] * 2), *map(random_genome, range(20))):
        model = AutoBertZeroModel(tiny_config(genome)).eval()
        embeddings = torch.randn(BATCH, TOKENS, HIDDEN)
        expected = model(inputs_embeds=embeddings, attention_mask=padding_mask()).last_hidden_state
        for value in (math.nan, math.inf, 1e38):
            embeddings[~padding_mask()] = value
            got = model(inputs_embeds=embeddings, attention_mask=padding_mask()).last_hidden_state
            torch.testing.assert_close(got[padding_mask()], expected[padding_mask()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_a_real_token_are_finite(dtype):
    for number in range(30):
        model = AutoBertZeroModel(tiny_config(random_genome(number), unpad_inputs=number % 2 == 0)).to(dtype)
        mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
        mask[1] = 0
        mask[2, 4:] = 0
        output = model(torch.randint(VOCAB, (BATCH, TOKENS)), attention_mask=mask)
        assert output.last_hidden_state.isfinite().all()
        output.last_hidden_state.float().square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_padding_does_not_change_the_loss_of_answers():
    model = AutoBertZeroForQuestionAnswering(tiny_config(random_genome(6))).eval()
    ids, positions = torch.randint(VOCAB, (BATCH, TOKENS)), torch.randint(TOKENS, (2, BATCH))
    expected = model(ids, start_positions=positions[0], end_positions=positions[1])
    padded, mask = F.pad(ids, (0, 5), value=3), F.pad(torch.ones_like(ids), (0, 5))
    got = model(padded, mask, start_positions=positions[0], end_positions=positions[1])
    torch.testing.assert_close(got.loss, expected.loss)
    assert got.start_logits[:, TOKENS:].max() < -1e30
    model = AutoBertZeroForQuestionAnswering(tiny_config(Genome([SELF_ATTENTION, Convolution(3)]))).eval()
    by_pairs = model(padded, mask[:, None].expand(-1, TOKENS + 5, -1))
    torch.testing.assert_close(by_pairs.start_logits, model(padded, mask).start_logits)


def test_answers_at_padding_are_ignored():
    model = AutoBertZeroForQuestionAnswering(tiny_config(random_genome(6))).eval()
    ids, mask = torch.randint(VOCAB, (3, TOKENS)), torch.ones(3, TOKENS, dtype=torch.long)
    mask[0, :3] = 0
    positions = torch.tensor([[0, 4, 99], [1, 5, 6]])  # both of the first row are at padding
    got = model(ids, mask, start_positions=positions[0], end_positions=positions[1]).loss
    output = model(ids, mask)
    expected = F.cross_entropy(output.start_logits[1:2], positions[0, 1:2])
    expected = (expected + F.cross_entropy(output.end_logits[1:], positions[1, 1:])) / 2
    torch.testing.assert_close(got, expected)


def test_hooks_get_rows():
    """On every module: an output with the batch first, whatever is packed without hooks."""
    genome = Genome([*random_genome(1), Convolution(3)])
    model = AutoBertZeroModel(tiny_config(genome)).eval()
    ids = torch.randint(VOCAB, (BATCH, TOKENS))
    expected = model(ids, padding_mask()).last_hidden_state
    for name, module in model.named_modules():
        shapes = []
        handle = module.register_forward_hook(
            lambda _, inputs, output, shapes=shapes: shapes.append(output[0] if isinstance(output, tuple) else output)
        )
        output = model(ids, padding_mask()).last_hidden_state
        handle.remove()
        torch.testing.assert_close(output, expected)
        if name not in ("", "encoder", "embeddings.position_embeddings", "embeddings.token_type_embeddings"):
            assert all(x.shape[0] == BATCH for x in shapes), name


def test_documents_in_one_row_stay_apart():
    """As `DataCollatorWithFlattening` lays them out: positions that start again at 0."""
    for number in range(12):
        model = AutoBertZeroModel(tiny_config(random_genome(number))).double().eval()
        ids = torch.randint(VOCAB, (1, TOKENS))
        first = 3
        positions = torch.cat([torch.arange(first), torch.arange(TOKENS - first)])[None]
        try:
            output = model(ids, position_ids=positions).last_hidden_state
        except ValueError as error:
            assert "attention_mask" in str(error)  # a layer that cannot keep them apart says so
            continue
        for part in (slice(None, first), slice(first, None)):
            torch.testing.assert_close(output[:, part], model(ids[:, part]).last_hidden_state)
