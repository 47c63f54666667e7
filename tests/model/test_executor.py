"""The executor of attention expressions: the reference, fused kernels, and masks of tokens by tokens."""

import gc
import weakref

import numpy as np
import pytest
import torch

from autobert_zero import modeling_autobert_zero
from autobert_zero.configuration_autobert_zero import (
    INPUTS,
    KERNEL_SIZES,
    PAPER_OPERATIONS,
    PUBLISHED_GENOME,
    ROTARY_ATTENTION,
    SELF_ATTENTION,
    Attention,
    Expression,
)
from autobert_zero.modeling_autobert_zero import (
    EXECUTORS,
    ExpressionProgram,
    FusedAttention,
    TokenLayout,
    make_operation,
)
from autobert_zero.search.seeding import random_stream
from autobert_zero.search.space.functional_key import evaluate
from autobert_zero.search.space.grammar import Grammar, choose_uniformly
from tests.conftest import BATCH, HEADS, TOKENS, padding_mask


pytestmark = pytest.mark.model

HEAD_SIZE = 4
GRAMMAR = Grammar()


def expressions(count: int, grammar: Grammar = GRAMMAR) -> list[Expression]:
    published = [gene.expression for gene in PUBLISHED_GENOME if isinstance(gene, Attention)]
    made = [
        grammar.random_expression("nd", 14, random_stream(i, "test expression"), choose_uniformly)
        for i in range(count)
    ]
    return [SELF_ATTENTION.expression, *published, *made]


def softmax_attentions(count: int) -> list[Expression]:
    """Attentions that run in a fused kernel, with random parts: they are rare among random expressions."""
    made = []
    for i in range(count):
        rng = random_stream(i, "test attention")
        a, b, c = (GRAMMAR.random_expression("nd", 5, rng, choose_uniformly) for _ in range(3))
        scores = Expression("matmul", (a, Expression("transpose", (b,))))
        for name in rng.choice(["neg", "scale", "transpose"], size=int(rng.integers(4))).tolist():
            scores = Expression(name, (scores,))
        made.append(Expression("matmul", (Expression("softmax", (scores,)), c)))
    return made


def modules_of(expression: Expression, dtype=torch.float64) -> dict[str, torch.nn.Module]:
    """Modules of the nodes with parameters, by name; equal for equal names."""
    modules = {}
    for node, name in expression.parameters().items():
        modules[name] = make_operation(node.name, HEADS * HEAD_SIZE).to(dtype)
        generator = torch.Generator().manual_seed(len(name) + ord(name[-1]))
        for parameter in modules[name].parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return modules


def program_of(expression: Expression, lower: bool = True, dtype=torch.float64) -> ExpressionProgram:
    return ExpressionProgram(expression, lower, modules=modules_of(expression, dtype))


def layout_of(inputs: dict[str, torch.Tensor], real=None, attend_to=None, positions=None) -> TokenLayout:
    """A layout with the rotations of positions, by default 0, 1, 2, …"""
    some = next(iter(inputs.values()))
    positions = torch.arange(some.shape[2])[None] if positions is None else positions
    return TokenLayout(real, attend_to).with_rotations(positions, some.shape[3], 10_000.0, some.dtype)


def projections(dtype=torch.float64, requires_grad=False) -> dict[str, torch.Tensor]:
    shape = (BATCH, HEADS, TOKENS, HEAD_SIZE)
    return {name: torch.randn(shape, dtype=dtype).requires_grad_(requires_grad) for name in INPUTS}


def run(program: ExpressionProgram, inputs: dict[str, torch.Tensor], mask=None, dropout=0.0) -> torch.Tensor:
    values = [inputs[name] for name in program.inputs]
    return program(values, layout_of(inputs, mask), HEAD_SIZE, dropout)[0]


def test_reference_executor_equals_numpy():
    for expression in expressions(300):
        inputs = projections()
        program = program_of(expression, lower=False)
        value = run(program, inputs).detach()
        head = slice(HEAD_SIZE, 2 * HEAD_SIZE)
        parameters = {
            name: module.weight.sigmoid().detach().numpy()
            if name.startswith("mix")
            else module.weight[head, 0].T.detach().numpy()
            for name, module in program.modules.items()
        }
        for b in range(2):
            arrays = {name: x[b, 1].numpy() for name, x in inputs.items()}
            expected = evaluate(expression, arrays, parameters=parameters)
            np.testing.assert_allclose(value[b, 1].numpy(), expected, rtol=1e-9, atol=1e-9, err_msg=str(expression))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_lowered_equals_reference(masked, dtype, tolerance):
    mask = padding_mask() if masked else None
    real = padding_mask()[:, None, :, None] if masked else torch.ones(1)
    for expression in [*expressions(0), *softmax_attentions(100)]:
        programs = [program_of(expression, lower, dtype) for lower in (True, False)]
        assert any(step.fused for step in programs[0].steps)
        inputs = projections(dtype, requires_grad=True)
        used = [inputs[name] for name in expression.inputs()]
        weights = torch.randn(BATCH, HEADS, TOKENS, HEAD_SIZE, dtype=dtype) * real
        results = []
        for program in programs:
            value = run(program, inputs, mask)
            results.append([value * real, *torch.autograd.grad((value * weights).sum(), used)])
        for a, b in zip(*results, strict=True):
            scale = max(1.0, b.abs().max().item())
            torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=tolerance, msg=str(expression))


def test_all_published_attentions_are_lowered():
    for gene in PUBLISHED_GENOME:
        if isinstance(gene, Attention):
            FusedAttention.match(gene.expression)  # raises if it does not match


@pytest.mark.parametrize(
    "text",
    [
        "matmul(softmax(scale(transpose(matmul(k, transpose(q))))), v)",
        "matmul(softmax(neg(scale(neg(neg(scale(matmul(q, transpose(k)))))))), add(v, p))",
        "add(q, matmul(softmax(matmul(softsign(q), logsigmoid(transpose(k)))), matmul(softmax(matmul(q, transpose(q))), k)))",
    ],
)
def test_forms_of_softmax_attention_are_recognized(text):
    expression = Expression.parse(text)
    program = ExpressionProgram(expression)
    assert sum(step.fused is not None for step in program.steps) == text.count("softmax(")
    inputs = projections()
    torch.testing.assert_close(
        run(program, inputs, padding_mask()),
        run(ExpressionProgram(expression, lower=False), inputs, padding_mask()),
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
        sums = run(program, inputs, dropout=0.5)[..., 0]  # of the remaining weights, doubled
        counts = sums * TOKENS / 2
        torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)
        assert 2.5 < counts.mean() < 4.5 and counts.std() > 0.5
        torch.testing.assert_close(run(program, inputs), torch.ones_like(value))


def test_distances_of_equal_rows_have_finite_gradients():
    for name in ("euclidean_distance", "cosine_similarity"):
        expression = Expression.parse(f"matmul({name}(q, q), q)")
        q = torch.zeros(1, 1, TOKENS, HEAD_SIZE, requires_grad=True)
        run(ExpressionProgram(expression), {"q": q}).sum().backward()
        assert q.grad.isfinite().all()


@pytest.mark.parametrize("length", [3, 2000])
@pytest.mark.parametrize(
    ("dtype", "origin", "tolerance"),
    [(torch.float32, 0, 2e-6), (torch.float32, 100, 1e-5), (torch.float64, 0, 1e-9), (torch.float64, 100, 1e-5)],
)
def test_distances_of_near_rows_are_exact(dtype, origin, tolerance, length):
    """Against plain differences, to the tolerance, also where rows are near each other and far from the origin."""
    program = ExpressionProgram(Expression.parse("matmul(euclidean_distance(q, k), v)"))
    q = origin + torch.randn(1, 1, TOKENS, length, dtype=dtype)
    k = q + torch.logspace(-2, 1, TOKENS, dtype=dtype)[:, None] * torch.randn(q.shape, dtype=dtype)
    k[:, :, -1] = q[:, :, -1]
    found = run(program, {"q": q.requires_grad_(), "k": k.requires_grad_(), "v": torch.eye(TOKENS, dtype=dtype)})
    (found**3).sum().backward()
    x, y = (each.detach().double().requires_grad_() for each in (q, k))
    expected = (x.unsqueeze(-2) - y.unsqueeze(-3)).norm(dim=-1)
    (expected**3).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=1e-15)
    for got, wanted in ((q.grad, x.grad), (k.grad, y.grad)):
        error = (got - wanted).abs().max() / wanted.abs().max()
        assert error < 10 * tolerance


def test_attends_agrees_with_the_executor():
    """The output for a token depends on a token beyond the reach of convolutions if and only if `attends`."""
    answers, tokens = set(), 150
    for expression in expressions(200):
        # Small numbers, so that functions of sums over tokens do not saturate.
        inputs = {name: 0.1 * torch.randn(1, HEADS, tokens, HEAD_SIZE, dtype=torch.float64) for name in INPUTS}
        changed = {name: x.clone() for name, x in inputs.items()}
        for x in changed.values():
            x[:, :, -1] += torch.randn(HEADS, HEAD_SIZE)
        program = program_of(expression)
        a, b = (run(program, x)[:, :, 0] for x in (inputs, changed))
        answers.add(expression.attends())
        assert torch.equal(a, b) != expression.attends(), expression
    assert answers == {True, False}


def test_the_transpose_of_an_attention_is_lowered():
    expression = Expression.parse(
        "transpose(matmul(transpose(v), transpose(softmax(scale(matmul(q, transpose(k)))))))"
    )
    assert any(step.fused for step in ExpressionProgram(expression).steps)
    inputs = projections()
    for mask in (None, padding_mask()):
        expected = run(ExpressionProgram(SELF_ATTENTION.expression, lower=False), inputs, mask)
        torch.testing.assert_close(run(ExpressionProgram(expression), inputs, mask), expected)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        (str(SELF_ATTENTION), "softmax(scale(matmul(q, transpose(k))))"),
        ("matmul(cosine_similarity(q, k), v)", "cosine_similarity(q, k)"),
        (
            "add(matmul(softmax(matmul(q, transpose(k))), v), matmul(neg(matmul(p, transpose(p))), v))",
            "softmax(matmul(q, transpose(k)))",
        ),
        ("matmul(q, matmul(transpose(k), v))", None),
    ],
)
def test_weights_of_an_attention(text, weights):
    program = ExpressionProgram(Expression.parse(text), lower=False)
    values = projections()
    _, got = program([values[name] for name in program.inputs], TokenLayout(), HEAD_SIZE, output_weights=True)
    if weights is None:
        assert got is None
    else:
        expected = evaluate(
            Expression.parse(f"matmul({weights}, q)").operands[0], {n: x[0, 0].numpy() for n, x in values.items()}
        )
        np.testing.assert_allclose(got[0, 0], expected)


def test_dead_values_are_freed(monkeypatch):
    """At most two of a long chain of n×n values are in memory at a time, and shared nodes are computed once."""
    alive: list[weakref.ref] = []
    most = 0

    def watch(executor):
        def run_and_count(node, *arguments):
            nonlocal most
            value = executor(node, *arguments)
            if node.type == "nn":
                alive.append(weakref.ref(value))
                most = max(most, sum(ref() is not None for ref in alive))
            return value

        return run_and_count

    for name, executor in EXECUTORS.items():
        monkeypatch.setitem(modeling_autobert_zero.EXECUTORS, name, watch(executor))
    chain = "matmul(q, transpose(k))"
    for name in ("softsign", "neg", "softsign", "softmax", "neg", "softsign", "neg"):
        chain = f"{name}({chain})"
    program = ExpressionProgram(Expression.parse(f"add(matmul({chain}, v), matmul({chain}, p))"))
    gc.disable()  # freed by reference count, not by a garbage collection
    try:
        run(program, projections())
    finally:
        gc.enable()
    assert len(alive) == 8 and most == 2


@pytest.mark.parametrize("lower", [True, False])
def test_a_mask_of_tokens_by_tokens_separates_sequences(lower):
    """Two sequences in one row give the same values as each alone."""
    first = 3
    attend_to = torch.zeros(BATCH, TOKENS, TOKENS, dtype=torch.bool)
    attend_to[:, :first, :first] = attend_to[:, first:, first:] = True
    checked = set()
    for expression in expressions(300) + expressions(300, Grammar(PAPER_OPERATIONS)) + softmax_attentions(20):
        program = program_of(expression, lower)
        if not program.supports_pairwise_mask:
            continue
        inputs = projections()
        positions = torch.cat([torch.arange(first), torch.arange(TOKENS - first)])[None]
        layout = layout_of(inputs, None, attend_to, positions)
        got = program([inputs[name] for name in program.inputs], layout, HEAD_SIZE)[0]
        for part in (slice(None, first), slice(first, None)):
            alone = run(program, {name: x[:, :, part] for name, x in inputs.items()})
            torch.testing.assert_close(got[:, :, part], alone, msg=str(expression))
        checked |= {n.name for n in expression.nodes() if n.contracts_tokens() or n.name in (*KERNEL_SIZES, "rotary")}
    assert checked == {"matmul", "cosine_similarity", "euclidean_distance", "rotary", *KERNEL_SIZES}


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        (
            str(SELF_ATTENTION),
            "scaled_dot_product_attention(q, transpose(transpose(k)), v, scale=d^-1/2), node by node (1 operations)",
        ),
        ("matmul(softmax(cosine_similarity(q, k)), v)", "the scores cosine_similarity(q, k) are not a product"),
        ("matmul(q, matmul(transpose(k), v))", "q does not weight tokens by tokens"),
        ("matmul(neg(matmul(q, transpose(k))), v)", "is not a softmax over the tokens"),
        ("add(q, softsign(k))", "there is no product of type n×d"),
    ],
)
def test_a_program_describes_how_it_runs_and_why(text, runs):
    assert runs in str(ExpressionProgram(Expression.parse(text)))


def test_rotary_attention_depends_on_differences_of_positions():
    """With fp64 accuracy: queries and keys shifted by the same number of positions have the same products."""
    program = ExpressionProgram(ROTARY_ATTENTION.expression)
    inputs = projections()
    values = [inputs[name] for name in program.inputs]
    here, there = (
        program(list(values), layout_of(inputs, positions=torch.arange(TOKENS)[None] + shift), HEAD_SIZE)[0]
        for shift in (0, 1000)
    )
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)
    other = program(list(values), layout_of(inputs, positions=2 * torch.arange(TOKENS)[None]), HEAD_SIZE)[0]
    assert (here - other).abs().max() > 1e-3


def test_rotary_is_that_of_transformers():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    inputs = projections()
    layout = layout_of(inputs)
    cosine, sine = (torch.cat([x, x], -1).squeeze(1) for x in (layout.cosine, layout.sine))
    expected, _ = apply_rotary_pos_emb(inputs["q"], inputs["k"], cosine, sine)
    torch.testing.assert_close(run(ExpressionProgram(Expression.parse("rotary(q)")), inputs), expected)
