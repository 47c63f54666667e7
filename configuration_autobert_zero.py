"""AutoBERT-Zero configuration: the language of attention expressions, genomes, and the presets.

A backbone is described by a *genome*: one gene per layer, either a convolution with a kernel size or an attention
given as an expression over primitive mathematical operations. The genome alone rebuilds the network; it is stored
as JSON in `config.json` under `genome`. Custom operations and layer kinds extend the language (`custom_operations`).

The method is that of "AutoBERT-Zero: Evolving BERT Backbone from Scratch" (Gao et al., AAAI 2022, arXiv 2107.07445).
The textual syntax of expressions, the symbolic types and the size limits are this project's.

This file does not import torch: it is saved with every model, and tools read it that never build one.
"""

import functools
import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import transformers
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PretrainedConfig


# From 5.4 on configurations are dataclasses.
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 4):
    raise ImportError(f"AutoBERT-Zero: expected transformers 5.4 or newer, got {transformers.__version__}")
if int(transformers.__version__.split(".")[0]) > 5:
    warnings.warn(
        f"AutoBERT-Zero is tested with transformers 5.4 and newer 5.x, got {transformers.__version__}", stacklevel=2
    )


# Every operation with its type rule, read like einsum: the same letter is the same axis. An axis is `n` (tokens) or
# `d` (head size); the two never unify, even where the numbers happen to be equal.
OPERATIONS = {
    "neg": "ab->ab",  # -x
    "transpose": "ab->ba",
    "scale": "ab->ab",  # x / sqrt(head size)
    "softmax": "ab->ab",  # over the last axis
    "logsigmoid": "ab->ab",
    "softsign": "ab->ab",  # x / (1 + |x|)
    "add": "ab,ab->ab",
    "matmul": "ab,bc->ac",
    "cosine_similarity": "ac,bc->ab",  # between the rows of x and the rows of y
    "euclidean_distance": "ac,bc->ab",  # between the rows of x and the rows of y
    # Beyond the paper:
    "sigmoid": "ab->ab",
    "mul": "ab,ab->ab",  # elementwise
    "mix": "ab,ab->ab",  # x + σ(λ) (y - x), with one learned λ
    "rotary": "nd->nd",  # rotates each row by its position (Su et al. 2021)
    "conv3": "nd->nd",  # depth-wise convolution over tokens, with learned kernels
    "conv7": "nd->nd",
    "conv15": "nd->nd",
}
# The primitives of the paper, and all there are; `v1` is an input, but counts as an operation beyond the paper.
PAPER_OPERATIONS = tuple(OPERATIONS)[:10]
ALL_OPERATIONS = (*OPERATIONS, "v1")
# Kernel sizes of the operations that are convolutions.
KERNEL_SIZES = {"conv3": 3, "conv7": 7, "conv15": 15}
# Operations with learned parameters: each node has its own.
PARAMETRIC = (*KERNEL_SIZES, "mix")

# The rule of a custom layer kind: a layer maps hidden states to hidden states, and nothing more is known of it here.
LAYER_RULE = "layer"

_RULE = re.compile(r"[abcnd]{2}(,[abcnd]{2})?->[abcnd]{2}")


def check_custom_operations(rules: Mapping[str, str]) -> None:
    """Check the names and type rules of custom operations and layer kinds.

    Args:
        rules: by name, the type rule of one or two operands as in `OPERATIONS`, where the letters `n` and `d` stand
            for themselves, or `layer` for a layer kind.

    Raises: ValueError if a name is not a new lower-case identifier or a rule is not valid.
    """
    for name, rule in rules.items():
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z_0-9]*", name) or name in INPUTS:
            raise ValueError(
                f"operation: expected a lower-case identifier other than {', '.join(INPUTS)}, got {name!r}"
            )
        if name in OPERATIONS or name in _FIELDS:
            known = ", ".join(sorted({*OPERATIONS, *_FIELDS}))
            raise ValueError(f"operation {name!r}: expected a new name, got one of {known}")
        if rule == LAYER_RULE:
            continue
        if not isinstance(rule, str) or not _RULE.fullmatch(rule):
            raise ValueError(
                f"operation {name!r}: expected a rule such as 'ab->ab' or 'nd,nd->nn', or {LAYER_RULE!r}, got {rule!r}"
            )
        operands, result = rule.split("->")
        if not set(result) <= {*operands, "n", "d"}:
            raise ValueError(f"operation {name!r}: expected axes of the operands in the result, got {rule!r}")


# Linear projections of the layer input, each `n×d` per head, of which an expression uses any; and `v1`, the `v` of the
# first attention layer (value residual; Zhou et al. 2024).
PROJECTED_INPUTS = ("q", "k", "v", "p")
FIRST_VALUES = "v1"
INPUTS = (*PROJECTED_INPUTS, FIRST_VALUES)
INPUT_TYPE = RESULT_TYPE = "nd"

MAX_NODES = 32
MAX_DEPTH = 16
MAX_CHARACTERS = 4096
MAX_KERNEL_SIZE = 1023


def type_name(type_: str) -> str:
    """`"nd"` in readable form: `n×d`."""
    return "×".join(type_)


@functools.cache
def _result_type(name: str, rule: str, operand_types: tuple[str, ...]) -> str:
    """Type of operation `name` on operands of the given types. Raises: ValueError if they do not fit its rule."""
    operands, result = rule.split("->")
    expected = operands.split(",")
    if len(expected) != len(operand_types):
        raise ValueError(f"{name} takes {len(expected)} operand{'s'[: len(expected) > 1]}, got {len(operand_types)}")
    axes = {"n": "n", "d": "d"}
    for letters, actual in zip(expected, operand_types, strict=True):
        for letter, axis in zip(letters, actual, strict=True):
            if axes.setdefault(letter, axis) != axis:
                raise ValueError(
                    f"{name} takes operands of type {' and '.join(map(type_name, expected))}, "
                    f"got {' and '.join(map(type_name, operand_types))}"
                )
    return "".join(axes[letter] for letter in result)


@dataclass(frozen=True)
class Expression:
    """A typed expression: an input (`q k v p v1`) or an operation on operands. Equal sub-expressions are one node of a DAG.

    Raises: ValueError at construction for an unknown name, a wrong number of operands or a type clash.

    Attributes:
        name: one of `INPUTS`, of `OPERATIONS`, or the name of a custom operation.
        operands: the operands, in order.
        rule: the type rule of a custom operation; None otherwise.
        type: two letters, `n` (tokens) or `d` (head size) each: rows and columns.
        depth: number of operations on the longest path to an input; 0 for an input.
    """

    name: str
    operands: "tuple[Expression, ...]" = ()
    rule: str | None = field(default=None, repr=False)
    type: str = field(init=False, compare=False, repr=False)
    depth: int = field(init=False, compare=False, repr=False)
    _hash: int = field(init=False, compare=False, repr=False)

    def __post_init__(self):
        if self.name in INPUTS and not self.operands:
            type_ = INPUT_TYPE
        elif self.name in INPUTS:
            raise ValueError(f"{self.name} is an input and takes no operands, got {len(self.operands)}")
        elif (rule := OPERATIONS.get(self.name, self.rule)) and rule != LAYER_RULE:
            type_ = _result_type(self.name, rule, tuple(operand.type for operand in self.operands))
        else:
            raise ValueError(
                f"unknown name {self.name!r}: expected an input ({', '.join(INPUTS)}) "
                f"or an operation ({', '.join(OPERATIONS)})"
            )
        object.__setattr__(self, "type", type_)
        object.__setattr__(self, "depth", 1 + max((x.depth for x in self.operands), default=-1))
        # Cached: hashing a nested expression would otherwise visit all of it every time.
        object.__setattr__(self, "_hash", hash((self.name, self.operands)))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self):
        # Rebuilt when unpickled: hashes of strings differ between processes.
        return Expression, (self.name, self.operands, self.rule)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.operands))})" if self.operands else self.name

    def nodes(self) -> "list[Expression]":
        """Distinct sub-expressions, operands before the operations that use them; the last one is `self`."""
        found: dict[Expression, None] = {}

        def visit(node: Expression) -> None:
            if node not in found:
                for operand in node.operands:
                    visit(operand)
                found[node] = None

        visit(self)
        return list(found)

    def inputs(self) -> list[str]:
        """Names of the inputs it uses, in the order of `INPUTS`."""
        used = {node.name for node in self.nodes()}
        return [name for name in INPUTS if name in used]

    def parameters(self) -> "dict[Expression, str]":
        """The nodes with learned parameters, each with the name of its parameters: `conv7_0`, `conv7_1`, …"""
        found: dict[Expression, str] = {}
        for node in self.nodes():
            if node.name in PARAMETRIC:
                found[node] = f"{node.name}_{sum(other.name == node.name for other in found)}"
        return found

    def attends(self) -> bool:
        """Whether the result for a token depends on all tokens: some node sums or normalises over them. An expression that
        mixes tokens by `conv` operations alone is a convolution by another name."""
        return any(
            node.contracts_tokens() or (node.name == "softmax" and node.type[1] == "n") for node in self.nodes()
        )

    def uses_positions(self) -> bool:
        """Whether the result depends on the order of tokens beyond that of the inputs."""
        return any(node.name == "rotary" or node.name in KERNEL_SIZES for node in self.nodes())

    def contracts_tokens(self) -> bool:
        """Whether this very operation sums over tokens: a product, similarity or distance along an axis of type n."""
        return self.name in ("matmul", "cosine_similarity", "euclidean_distance") and self.operands[0].type[1] == "n"

    def replace(self, old: "Expression", new: "Expression") -> "Expression":
        """This expression with every occurrence of `old` replaced by `new` (of the same type)."""
        if self == old:
            return new
        if not self.operands:
            return self
        return Expression(self.name, tuple(operand.replace(old, new) for operand in self.operands), self.rule)

    @classmethod
    def parse(cls, text: str, custom_operations: Mapping[str, str] | None = None) -> "Expression":
        """Parse an attention expression, for example `"matmul(softmax(scale(matmul(q, transpose(k)))), v)"`.

        Args:
            text: the expression. It is never evaluated as Python.
            custom_operations: type rules by name of the custom operations that it may use.

        Raises: ValueError that points at the position if the text is not an expression, has an unknown name, a wrong
        number of operands, a type clash, a result that is not n×d, or more than `MAX_NODES` nodes, `MAX_DEPTH` levels
        or `MAX_CHARACTERS` characters.
        """
        if not isinstance(text, str):
            raise ValueError(f"expression: expected a string, got {type(text).__name__}")
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"expression: expected at most {MAX_CHARACTERS} characters, got {len(text)}")
        return _parse(text, tuple((custom_operations or {}).items()))


# The genomes of a search share most of their expressions: each is parsed once and is one object.
@functools.lru_cache(maxsize=1 << 16)
def _parse(text: str, custom_operations: tuple[tuple[str, str], ...]) -> Expression:
    expression = _Parser(text, dict(custom_operations)).parse()
    if expression.type != RESULT_TYPE:
        raise ValueError(
            f"expression: expected a result of type {type_name(RESULT_TYPE)}, "
            f"got {type_name(expression.type)} from {text!r}"
        )
    if len(expression.nodes()) > MAX_NODES:
        raise ValueError(f"expression: expected at most {MAX_NODES} nodes, got {len(expression.nodes())} in {text!r}")
    return expression


class _Parser:
    """Recursive descent over `name` and `name(operand, ...)`."""

    def __init__(self, text: str, custom_operations: Mapping[str, str]):
        self.text = text
        self.custom_operations = custom_operations
        # The empty token marks the end of the text.
        self.tokens = [(m.group(), m.start()) for m in re.finditer(r"[A-Za-z_0-9]+|[^\s]", text)] + [("", len(text))]
        self.index = 0

    def fail(self, problem: str, position: int) -> NoReturn:
        raise ValueError(f"expression: {problem}, at character {position + 1}:\n  {self.text}\n  {' ' * position}^")

    def expect(self, *expected: str) -> str:
        token, position = self.tokens[self.index]
        if token not in expected:
            names = " or ".join(repr(e) if e else "the end" for e in expected)
            self.fail(f"expected {names}, got {repr(token) if token else 'the end'}", position)
        self.index += 1
        return token

    def parse(self) -> Expression:
        expression = self.parse_node(level=0)
        self.expect("")
        return expression

    def parse_node(self, level: int) -> Expression:
        name, position = self.tokens[self.index]
        if not re.fullmatch(r"[A-Za-z_0-9]+", name):
            self.fail(f"expected an input or an operation, got {repr(name) if name else 'the end'}", position)
        if level > MAX_DEPTH:
            self.fail(f"expected at most {MAX_DEPTH} levels of operations", position)
        self.index += 1
        operands = []
        if self.tokens[self.index][0] == "(":
            self.index += 1
            operands.append(self.parse_node(level + 1))
            while self.expect(",", ")") == ",":
                operands.append(self.parse_node(level + 1))
        try:
            return Expression(name, tuple(operands), self.custom_operations.get(name))
        except ValueError as error:
            self.fail(str(error), position)


@dataclass(frozen=True)
class Convolution:
    """Gene of a layer that mixes tokens by a depth-wise convolution of an odd `kernel_size`."""

    kind: ClassVar[str] = "convolution"
    kernel_size: int

    def __post_init__(self):
        size = self.kernel_size
        if type(size) is not int or not 1 <= size <= MAX_KERNEL_SIZE or size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd integer from 1 to {MAX_KERNEL_SIZE}, got {size!r}")

    def __str__(self) -> str:
        return f"convolution {self.kernel_size}"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "kernel_size": self.kernel_size}


@dataclass(frozen=True)
class Attention:
    """Gene of a layer that mixes tokens by an attention `expression` of type n×d."""

    kind: ClassVar[str] = "attention"
    expression: Expression

    def __str__(self) -> str:
        return str(self.expression)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "expression": str(self.expression)}


@dataclass(frozen=True)
class CustomLayer:
    """Gene of a layer of a custom `kind`."""

    kind: str

    def __str__(self) -> str:
        return self.kind

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}


Gene = Convolution | Attention | CustomLayer

_FIELDS = {Convolution.kind: "kernel_size", Attention.kind: "expression"}


def _gene_from_dict(gene: Any, custom_operations: Mapping[str, str]) -> Gene:
    layer_kinds = sorted(name for name, rule in custom_operations.items() if rule == LAYER_RULE)
    if not isinstance(gene, dict):
        raise ValueError(f"expected an object with 'kind', got {gene!r}")
    kind = gene.get("kind")
    if not isinstance(kind, str) or kind not in (*_FIELDS, *layer_kinds):
        raise ValueError(f"kind: expected one of {[*_FIELDS, *layer_kinds]}, got {kind!r}")
    if kind in layer_kinds:
        if len(gene) != 1:
            raise ValueError(f"expected only the field 'kind', got {sorted(map(str, gene))}")
        return CustomLayer(kind)
    if len(gene) != 2 or _FIELDS[kind] not in gene:
        raise ValueError(f"expected the fields ['kind', {_FIELDS[kind]!r}], got {sorted(map(str, gene))}")
    value = gene[_FIELDS[kind]]
    if kind == Convolution.kind:
        return Convolution(value)
    return Attention(Expression.parse(value, {n: r for n, r in custom_operations.items() if r != LAYER_RULE}))


class Genome(tuple[Gene, ...]):
    """One gene per layer, from the input up. Immutable and hashable.

    `str(genome)` is one readable line; `to_list` and `from_list` convert to and from the JSON form of `config.json`.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return " | ".join(map(str, self))

    def operations(self) -> list[str]:
        """Names of the operations in the attention layers, each once, sorted."""
        nodes = (node for gene in self if isinstance(gene, Attention) for node in gene.expression.nodes())
        return sorted({node.name for node in nodes if node.operands})

    def has_order(self) -> bool:
        """Whether some layer depends on the order of tokens without position embeddings: a convolution of more than one
        token, an attention with positions, or a custom layer, of which nothing is known."""

        def depends(gene: Gene) -> bool:
            if isinstance(gene, Attention):
                return gene.expression.uses_positions()
            return not isinstance(gene, Convolution) or gene.kernel_size > 1

        return any(map(depends, self))

    def first_attention(self) -> int | None:
        """Index of the first attention layer."""
        return next((i for i, gene in enumerate(self) if isinstance(gene, Attention)), None)

    def shares_values(self) -> bool:
        """Whether some attention uses the values of the first one (`v1`)."""
        return any(isinstance(gene, Attention) and FIRST_VALUES in gene.expression.inputs() for gene in self)

    def projections(self, layer: int) -> list[str]:
        """The projections of an attention layer: those that its expression uses, and `v` if `v1` is used anywhere and
        it is the first."""
        gene = self[layer]
        if not isinstance(gene, Attention):
            raise ValueError(f"layer: expected an attention, got {gene}")
        used = set(gene.expression.inputs())
        if layer == self.first_attention():
            used |= {"v"} if self.shares_values() else set()
        return [name for name in PROJECTED_INPUTS if name in used]

    def custom_operations(self) -> dict[str, str]:
        """Rules by name of the custom operations and layer kinds that it uses."""
        nodes = (node for gene in self if isinstance(gene, Attention) for node in gene.expression.nodes())
        rules = {node.name: node.rule for node in nodes if node.rule}
        kinds = {gene.kind for gene in self if isinstance(gene, CustomLayer)}
        return dict(sorted(rules.items())) | dict.fromkeys(sorted(kinds), LAYER_RULE)

    def to_list(self) -> list[dict[str, Any]]:
        return [gene.to_dict() for gene in self]

    @classmethod
    def from_list(cls, genes: Any, custom_operations: Mapping[str, str] | None = None) -> "Genome":
        """Read the JSON form.

        Args:
            genes: a list with one gene per layer.
            custom_operations: rules by name of the custom operations and layer kinds that it may use.

        Raises: ValueError that names the layer, what was expected and what came.
        """
        if not isinstance(genes, (list, tuple)) or not genes:
            raise ValueError(f"genome: expected a non-empty list with one gene per layer, got {genes!r}")

        def read() -> Iterator[Gene]:
            for number, gene in enumerate(genes, start=1):
                try:
                    yield _gene_from_dict(gene, custom_operations or {})
                except ValueError as error:
                    raise ValueError(f"genome, layer {number}: {error}") from None

        return cls(read())


SELF_ATTENTION = Attention(Expression.parse("matmul(softmax(scale(matmul(q, transpose(k)))), v)"))
ROTARY_ATTENTION = Attention(Expression.parse("matmul(softmax(scale(matmul(rotary(q), transpose(rotary(k))))), v)"))

_ATTENTION_6 = "matmul(softmax(scale(matmul(q, neg(transpose(logsigmoid(k)))))), q)"

# Read off the figure of the searched backbone in the paper; `sqrt` boxes are read as `scale`, and the one-input
# `add` on V in layer 12 as V itself.
PUBLISHED_GENOME = Genome.from_list(
    [
        {"kind": "attention", "expression": gene}
        if isinstance(gene, str)
        else {"kind": "convolution", "kernel_size": gene}
        for gene in (
            65,
            "matmul(softmax(scale(matmul(q, neg(transpose(logsigmoid(neg(k))))))), add(k, q))",
            9,
            "matmul(softmax(scale(matmul(q, neg(transpose(logsigmoid(add(logsigmoid(q), add(q, k)))))))), q)",
            3,
            _ATTENTION_6,
            7,
            _ATTENTION_6,
            7,
            "matmul(softmax(scale(matmul(q, transpose(add(scale(k), add(softsign(scale(softsign(k))), v)))))), v)",
            3,
            "matmul(softmax(scale(matmul(q, transpose(add(scale(k), v))))), v)",
        )
    ]
)

_SMALL = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
_BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}

PRESETS: dict[str, tuple[Genome, dict[str, int]]] = {
    "autobert-zero-small": (PUBLISHED_GENOME, _SMALL),
    "autobert-zero-base": (PUBLISHED_GENOME, _BASE),
    "autobert-zero-large": (Genome(PUBLISHED_GENOME * 2), _LARGE),
    "bert-small": (Genome([SELF_ATTENTION] * 12), _SMALL),
    "bert-base": (Genome([SELF_ATTENTION] * 12), _BASE),
    "bert-rotary-small": (Genome([ROTARY_ATTENTION] * 12), _SMALL),
    "bert-rotary-base": (Genome([ROTARY_ATTENTION] * 12), _BASE),
}
# Presets without a table of absolute positions.
_NO_TABLE = ("bert-rotary-small", "bert-rotary-base")


# Any head can be loaded from any checkpoint, so every saved configuration names all of them.
AUTO_MAP = {
    "AutoConfig": "configuration_autobert_zero.AutoBertZeroConfig",
    "AutoModel": "modeling_autobert_zero.AutoBertZeroModel",
    "AutoModelForPreTraining": "modeling_autobert_zero.AutoBertZeroForPreTraining",
    "AutoModelForMaskedLM": "modeling_autobert_zero.AutoBertZeroForMaskedLM",
    "AutoModelForNextSentencePrediction": "modeling_autobert_zero.AutoBertZeroForNextSentencePrediction",
    "AutoModelForSequenceClassification": "modeling_autobert_zero.AutoBertZeroForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_autobert_zero.AutoBertZeroForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_autobert_zero.AutoBertZeroForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling_autobert_zero.AutoBertZeroForMultipleChoice",
}


_STAMP = "# Digest of all code saved in this folder: "


def stamp_code(folder: str | os.PathLike) -> None:
    """Add a digest of all code in the folder of a model to its copy of this file.

    transformers identifies the code of a local model by its configuration module and the name of its folder. With the
    digest, models with different code never share classes in one process.
    """
    path = Path(folder, f"{AUTO_MAP['AutoConfig'].split('.')[0]}.py")
    if not path.exists():
        return
    source = "".join(line for line in path.read_text(encoding="utf-8").splitlines(True) if not line.startswith(_STAMP))
    digest = hashlib.sha256(source.encode())
    for other in sorted(path.parent.glob("*.py")):
        digest.update(b"" if other == path else other.read_bytes())
    # Replaced at once: another process may read it.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(f"{source}{_STAMP}{digest.hexdigest()[:16]}\n", encoding="utf-8")
    os.replace(temporary, path)


@strict
class AutoBertZeroConfig(PretrainedConfig):
    r"""Configuration of an AutoBERT-Zero encoder. The defaults are the published base architecture.

    Args:
        genome (`list[dict]`, *optional*):
            One gene per layer, as JSON: `{"kind": "convolution", "kernel_size": 65}` or
            `{"kind": "attention", "expression": "matmul(softmax(scale(matmul(q, transpose(k)))), v)"}`. A `Genome`
            is not JSON: pass `genome.to_list()`. `None` means the published genome.
        custom_operations (`dict[str, str]`, *optional*):
            Type rules by name of the custom operations and layer kinds in the genome. Those that the genome does not
            use are removed.
        custom_operations_digest (`str`, *optional*):
            First 16 hexadecimal digits of the SHA-256 of the file that defines these operations, which is saved with
            the model.
        vocab_size (`int`, defaults to 30522): Number of token ids.
        hidden_size (`int`, defaults to 768): Width of the encoder.
        num_hidden_layers (`int`, *optional*): Number of layers: the length of the genome, which `None` stands for.
        num_attention_heads (`int`, defaults to 12): Heads of each attention; a divisor of `hidden_size`.
        intermediate_size (`int`, defaults to 3072): Width of the feed-forward part of each layer.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the feed-forward part and of the prediction head.
        hidden_dropout_prob (`float`, defaults to 0.1): Dropout of embeddings and of the two halves of each layer.
        attention_probs_dropout_prob (`float`, defaults to 0.1): Dropout of softmax weights over tokens.
        max_position_embeddings (`int`, defaults to 512): Maximum number of tokens, with absolute positions.
        position_embedding_type (`str`, defaults to `"absolute"`):
            `"absolute"` for BERT's table of position embeddings, `"none"` for none: then the operation `rotary` and
            convolutions provide the order of tokens, and only memory limits their number.
        rope_theta (`float`, defaults to 10000.0): Base of the rotation frequencies of `rotary`.
        type_vocab_size (`int`, defaults to 2): Number of token types.
        initializer_range (`float`, defaults to 0.02): Standard deviation of initial weights.
        layer_norm_eps (`float`, defaults to 1e-12): Epsilon of the layer norms.
        pad_token_id (`int`, *optional*, defaults to 0): Id of the padding token.
        classifier_dropout (`float`, *optional*): Dropout of classification heads; `None` means `hidden_dropout_prob`.
        sparse_prediction (`bool`, defaults to `False`):
            Given labels, compute masked-language-model logits only at labelled tokens.
        sparse_pred_ignore_index (`int`, defaults to -100): The label that means "no label".
        unpad_inputs (`bool`, defaults to `True`):
            Run what works on single tokens without the padding tokens, if enough of a batch is padding.
        tie_word_embeddings (`bool`, defaults to `True`):
            Share the word embeddings with the decoder of the prediction head.

    Raises: ValueError for an illegal genome, and the errors of `huggingface_hub.dataclasses.strict` for values of a
    wrong type or sizes that do not fit.
    """

    model_type = "autobert_zero"

    genome: list[dict[str, Any]] | None = None
    custom_operations: dict[str, str] | None = None
    custom_operations_digest: str | None = None
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int | None = None
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    position_embedding_type: str = "absolute"
    rope_theta: float | int = 10_000.0
    type_vocab_size: int = 2
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-12
    pad_token_id: int | None = 0
    classifier_dropout: float | int | None = None
    sparse_prediction: bool = False
    sparse_pred_ignore_index: int = -100
    unpad_inputs: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any):
        check_custom_operations(self.custom_operations or {})
        genome = PUBLISHED_GENOME if self.genome is None else Genome.from_list(self.genome, self.custom_operations)
        self.custom_operations = genome.custom_operations() or None
        if self.custom_operations is None:
            self.custom_operations_digest = None
        # Written back in parsed form: every config.json has the same spelling and order of keys.
        self.genome = genome.to_list()
        if self.num_hidden_layers is None:
            self.num_hidden_layers = len(genome)
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As `PretrainedConfig.save_pretrained`, with all code that `auto_map` names."""
        super().save_pretrained(save_directory, *args, **kwargs)
        self.save_code(save_directory)

    def save_code(self, folder: str | os.PathLike) -> None:
        """Copy the modules that `auto_map` names to a folder, as far as they are missing there."""
        for reference in (self.auto_map or {}).values():
            module = reference.split("--")[-1].split(".")[0]
            source = Path(__file__).with_name(f"{module}.py")
            target = Path(folder, source.name)
            if source.exists() and not target.exists():
                shutil.copyfile(source, target)
        stamp_code(folder)

    def validate_genome(self):
        genome = self.parsed_genome()
        if len(genome) != self.num_hidden_layers:
            raise ValueError(f"genome: expected num_hidden_layers={self.num_hidden_layers} genes, got {len(genome)}")

    def validate_positions(self):
        if self.position_embedding_type not in ("absolute", "none"):
            raise ValueError(
                f"position_embedding_type: expected 'absolute' or 'none', got {self.position_embedding_type!r}"
            )
        if self.rope_theta <= 0:
            raise ValueError(f"rope_theta: expected a positive number, got {self.rope_theta}")
        if self.position_embedding_type == "absolute":
            return
        genome = self.parsed_genome()
        if not genome.has_order():
            raise ValueError(
                "position_embedding_type: expected 'absolute' for a genome without rotary and without convolutions of more "
                "than one token, which has no notion of the order of tokens, got 'none'"
            )
        if self.num_attention_heads == self.hidden_size and "rotary" in genome.operations():
            raise ValueError(
                "num_attention_heads: expected heads of at least 2 channels for rotary, which rotates pairs of them, "
                f"got {self.num_attention_heads} for hidden_size={self.hidden_size}"
            )

    def validate_sizes(self):
        for name in (
            "vocab_size",
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive integer, got {getattr(self, name)}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {getattr(self, name)}")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id: expected a token id below vocab_size={self.vocab_size}, got {self.pad_token_id}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads: expected a divisor of hidden_size={self.hidden_size}, "
                f"got {self.num_attention_heads}"
            )

    def parsed_genome(self) -> Genome:
        """The genome as a tuple of genes."""
        return Genome.from_list(self.genome, self.custom_operations)

    @classmethod
    def preset(cls, name: str, **kwargs: Any) -> "AutoBertZeroConfig":
        """The configuration of a named architecture; `kwargs` override its fields.

        `autobert-zero-small`, `-base` and `-large` are the published architecture; `bert-small` and `bert-base` have
        twelve layers of self-attention at the same sizes, and `bert-rotary-small` and `bert-rotary-base` the same with
        rotary instead of absolute positions.

        Raises: ValueError for an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {sorted(PRESETS)}, got {name!r}")
        genome, sizes = PRESETS[name]
        position = {"position_embedding_type": "none"} if name in _NO_TABLE else {}
        return cls(**{"genome": genome.to_list(), **sizes, **position, **kwargs})


AutoBertZeroConfig.register_for_auto_class()

# A module made by the remote-code loader must not register: every checkpoint has its own copy of this class.
if not __name__.startswith("transformers_modules."):
    AutoConfig.register(AutoBertZeroConfig.model_type, AutoBertZeroConfig)

__all__ = ["AutoBertZeroConfig"]
