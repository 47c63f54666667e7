"""Readable forms of a genome: numbered layers as text, and formulas in LaTeX."""

import functools
from collections.abc import Iterator

from autobert_zero.configuration_autobert_zero import (
    KERNEL_SIZES,
    OPERATIONS,
    SELF_ATTENTION,
    Attention,
    Expression,
    Genome,
)


_FUNCTIONS = {
    "softmax": r"\operatorname{softmax}",
    "logsigmoid": r"\log\sigma",
    "softsign": r"\operatorname{softsign}",
    "sigmoid": r"\sigma",
    "rotary": r"\operatorname{rot}",
    **{name: rf"\operatorname{{conv}}_{{{size}}}" for name, size in KERNEL_SIZES.items()},
    "cosine_similarity": r"\cos",
    "euclidean_distance": r"\operatorname{dist}",
}
# In pictures, a scale of a scale: both divide by the square root of the head size d.
TWICE_SCALED = "scale ÷d"
# Precedence of the outermost operator of a formula; parts of lower precedence get brackets.
_SUM, _SIGN, _PRODUCT, _ATOM = range(4)


def _formula(node: Expression) -> tuple[str, int]:
    def part(operand: Expression, minimum: int) -> str:
        text, binding = _formula(operand)
        return text if binding >= minimum else rf"\left({text}\right)"

    match node.name, node.operands:
        case "v1", ():
            return "V_1", _ATOM
        case name, ():
            return name.upper(), _ATOM
        case "transpose", (x,):
            return f"{part(x, _ATOM)}^{{\\top}}", _PRODUCT
        case "scale", (x,):
            return rf"\frac{{{part(x, _SUM)}}}{{\sqrt{{d}}}}", _PRODUCT
        case "neg", (x,):
            return f"-{part(x, _PRODUCT)}", _SIGN
        case "add", (x, y):
            return f"{part(x, _SUM)} + {part(y, _PRODUCT)}", _SUM
        case "mul", (x, y):
            return rf"{part(x, _PRODUCT)} \odot {part(y, _ATOM)}", _PRODUCT
        case "matmul", (x, y):
            # A product on the right is bracketed, to keep the order of evaluation visible.
            right = part(y, _ATOM if y.name == "matmul" else _PRODUCT)
            return f"{part(x, _PRODUCT)}\\,{right}", _PRODUCT
        case name, operands:
            function = _FUNCTIONS.get(name) or rf"\operatorname{{{name.replace('_', ' ')}}}"
            return rf"{function}\left({', '.join(part(x, _SUM) for x in operands)}\right)", _ATOM
    raise AssertionError(node.name)


def _replaced(old: Expression, new: Expression) -> tuple[Expression, Expression]:
    """The smallest sub-expressions in which two expressions differ, wherever they are used."""
    if old.name != new.name or len(old.operands) != len(new.operands):
        return old, new
    pairs = {_replaced(a, b) for a, b in zip(old.operands, new.operands, strict=True) if a != b}
    return pairs.pop() if len(pairs) == 1 else (old, new)


def differences(old: Genome, new: Genome) -> list[str]:
    """The changes between two genomes with equally many layers: `layer 3: convolution 7 → convolution 15`."""
    layers = [layer for layer, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    if len(layers) == 2 and [old[i] for i in layers] == [new[i] for i in reversed(layers)]:
        return [f"layers {layers[0] + 1} and {layers[1] + 1} swapped"]
    found = []
    for layer in layers:
        a, b = old[layer], new[layer]
        if isinstance(a, Attention) and isinstance(b, Attention):
            parts: tuple[object, object] = _replaced(a.expression, b.expression)
        else:
            parts = tuple("attention" if isinstance(gene, Attention) else str(gene) for gene in (a, b))  # type: ignore
        found.append(f"layer {layer + 1}: {parts[0]} → {parts[1]}")
    return found


def latex(expression: Expression) -> str:
    """The formula of an attention: `\\operatorname{softmax}\\left(\\frac{Q\\,K^{\\top}}{\\sqrt{d}}\\right)\\,V`."""
    return _formula(expression)[0]


def distinct_attentions(genome: Genome) -> dict[Attention, str]:
    """Each distinct attention with a letter, in order of appearance: `A`, `B`, …, `Z`, `A1`, …"""
    found: dict[Attention, str] = {}
    for gene in genome:
        if isinstance(gene, Attention) and gene not in found:
            number, letter = divmod(len(found), 26)
            found[gene] = chr(ord("A") + letter) + (str(number) if number else "")
    return found


def simplified(genome: Genome) -> Genome:
    """The genome for a picture: without operations that undo each other (transposes of transposes, negations of negations),
    and with scales of scales as one operation. It computes the same, and is easier to read."""

    @functools.cache
    def visit(node: Expression) -> Expression:
        operands = tuple(map(visit, node.operands))
        if node.name in ("transpose", "neg") and operands[0].name == node.name:
            return operands[0].operands[0]
        if node.name == "scale" and operands[0].name == "scale":
            return Expression(TWICE_SCALED, operands[0].operands, OPERATIONS["scale"])
        return Expression(node.name, operands, node.rule)

    return Genome(Attention(visit(gene.expression)) if isinstance(gene, Attention) else gene for gene in genome)


def is_bert(genome: Genome) -> bool:
    """Whether every layer is BERT's self-attention."""
    return all(gene == SELF_ATTENTION for gene in genome)


def layer_names(genome: Genome) -> list[str]:
    """`convolution 65` or `attention A` for each layer."""
    letters = distinct_attentions(genome)
    return [f"attention {letters[gene]}" if isinstance(gene, Attention) else str(gene) for gene in genome]


def _tree(node: Expression, seen: dict[Expression, int], counts: dict[Expression, int]) -> Iterator[tuple[int, str]]:
    """Lines of a tree with their depth; a shared node is numbered, and printed once."""
    if node in seen:
        yield 0, f"[{seen[node]}]"
        return
    label = node.name
    if node.operands and counts[node] > 1:
        seen[node] = len(seen) + 1
        label += f" [{seen[node]}]"
    # Operands that are all inputs are on the line of their operation.
    if all(not x.operands for x in node.operands):
        yield 0, f"{label}({', '.join(x.name for x in node.operands)})" if node.operands else label
        return
    yield 0, label
    for operand in node.operands:
        for depth, line in _tree(operand, seen, counts):
            yield depth + 1, line


def tree(expression: Expression) -> str:
    """An attention as an indented tree, the result above its operands."""
    counts: dict[Expression, int] = {}
    for node in expression.nodes():
        for operand in node.operands:
            counts[operand] = counts.get(operand, 0) + 1
    counts.setdefault(expression, 1)
    return "\n".join("  " * depth + line for depth, line in _tree(expression, {}, counts))


def genome_text(genome: Genome) -> str:
    """Layers, then each distinct attention: its expression and its tree."""
    lines = [f"{number:>3}  {name}" for number, name in enumerate(layer_names(genome), start=1)]
    for gene, letter in distinct_attentions(genome).items():
        lines += ["", f"{letter} = {gene.expression}", *("    " + line for line in tree(gene.expression).splitlines())]
    if any(line.endswith("]") for line in lines):
        lines += ["", "[1]: a value with this number is used more than once, and shown at its first use."]
    return "\n".join(lines)


def genome_latex(genome: Genome) -> str:
    """The layers as comments and, if there are attentions, the formulas of the distinct ones in an `align*` environment."""
    lines = [f"% {number}: {name}" for number, name in enumerate(layer_names(genome), start=1)]
    formulas = [
        rf"  \mathrm{{{letter}}} &= {latex(gene.expression)}" for gene, letter in distinct_attentions(genome).items()
    ]
    if formulas:
        lines += [r"\begin{align*}", " \\\\\n".join(formulas), r"\end{align*}"]
    return "\n".join(lines)
