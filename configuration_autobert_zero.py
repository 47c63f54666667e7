"""AutoBERT-Zero configuration: the language of attention expressions, genomes, and the presets.

A backbone is described by a *genome*: one gene per layer, either a convolution with a kernel size or an attention
given as an expression over primitive mathematical operations. The genome alone rebuilds the network; it is stored
in `config.json` as JSON under `genome`. Operations and layer kinds of one's own extend the language (`add_operation`).

The method is that of "AutoBERT-Zero: Evolving BERT Backbone from Scratch" (Gao et al., AAAI 2022, arXiv 2107.07445).
The textual syntax of expressions, the symbolic types and the size limits are this project's.

This file has no torch: it travels with every saved model and is read by tools that never build one.
"""

import functools
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
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
}

# Layer kinds of one's own, beside convolution and attention. Their rule is this word: all that is said here of what they
# do is that a layer takes and gives hidden states.
LAYER_RULE = "layer"
LAYER_KINDS: set[str] = set()

BUILT_IN = tuple(OPERATIONS)  # in this order, whatever is added
_RULE = re.compile(r"[abcnd]{2}(,[abcnd]{2})?->[abcnd]{2}")


def add_operation(name: str, rule: str) -> None:
    """Make an operation or a layer kind of one's own part of the language; what it computes is said to the model alone.

    Args:
        name: a lower-case identifier.
        rule: its type rule, of one or two operands, as in `OPERATIONS`; the letters `n` and `d` stand for themselves.
            `layer` for a layer kind.

    Raises: ValueError for what is no name or no rule, or a name that has another rule already.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z_0-9]*", name) or name in INPUTS:
        raise ValueError(f"operation: expected a lower-case identifier other than {', '.join(INPUTS)}, got {name!r}")
    if name in BUILT_IN or name in _FIELDS:
        known = ", ".join(sorted({*BUILT_IN, *_FIELDS}))
        raise ValueError(f"operation {name!r}: expected a new name, got one of {known}")
    if rule != LAYER_RULE:
        if not isinstance(rule, str) or not _RULE.fullmatch(rule):
            raise ValueError(
                f"operation {name!r}: expected a rule such as 'ab->ab' or 'nd,nd->nn', or {LAYER_RULE!r}, got {rule!r}"
            )
        operands, result = rule.split("->")
        if not set(result) <= {*operands, "n", "d"}:
            raise ValueError(f"operation {name!r}: expected axes of the operands in the result, got {rule!r}")
    known = LAYER_RULE if name in LAYER_KINDS else OPERATIONS.get(name, rule)
    if known != rule:
        raise ValueError(f"operation {name!r}: expected the rule {known!r} that it has already, got {rule!r}")
    if rule == LAYER_RULE:
        LAYER_KINDS.add(name)
    else:
        OPERATIONS[name] = rule


def add_operations(rules: dict[str, str] | None) -> None:
    """Make operations and layer kinds part of the language, by name and rule, as a stored genome says that it needs them."""
    for name, rule in (rules or {}).items():
        add_operation(name, rule)


# Linear projections of the layer input, each `n×d` per head. An expression uses as many as it likes.
INPUTS = ("q", "k", "v", "p")
INPUT_TYPE = RESULT_TYPE = "nd"

MAX_NODES = 32
MAX_DEPTH = 16
MAX_CHARACTERS = 4096
MAX_KERNEL_SIZE = 1023


def type_name(type_: str) -> str:
    """`"nd"` as people read it: `n×d`."""
    return "×".join(type_)


@functools.cache
def _result_type(name: str, operand_types: tuple[str, ...]) -> str:
    """Type of operation `name` on operands of the given types, or `ValueError`."""
    operands, result = OPERATIONS[name].split("->")
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
    """A typed expression: an input (`q k v p`) or an operation on operands. Equal sub-expressions are one node of a DAG.

    Raises `ValueError` at construction for an unknown name, a wrong number of operands or a type clash.

    Attributes:
        name: one of `INPUTS` or of `OPERATIONS`.
        operands: the operands, in order.
        type: two letters, `n` (tokens) or `d` (head size) each: rows and columns.
        depth: operations on the longest way to an input; 0 for an input.
    """

    name: str
    operands: "tuple[Expression, ...]" = ()
    type: str = field(init=False, compare=False, repr=False)
    depth: int = field(init=False, compare=False, repr=False)
    _hash: int = field(init=False, compare=False, repr=False)

    def __post_init__(self):
        if self.name in INPUTS and not self.operands:
            type_ = INPUT_TYPE
        elif self.name in INPUTS:
            raise ValueError(f"{self.name} is an input and takes no operands, got {len(self.operands)}")
        elif self.name in OPERATIONS:
            type_ = _result_type(self.name, tuple(operand.type for operand in self.operands))
        else:
            raise ValueError(
                f"unknown name {self.name!r}: expected an input ({', '.join(INPUTS)}) "
                f"or an operation ({', '.join(OPERATIONS)})"
            )
        object.__setattr__(self, "type", type_)
        object.__setattr__(self, "depth", 1 + max((x.depth for x in self.operands), default=-1))
        # Kept, because hashing a nested expression again and again would walk all of it every time.
        object.__setattr__(self, "_hash", hash((self.name, self.operands)))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self):
        # Built anew elsewhere: hashes of strings differ between processes.
        return Expression, (self.name, self.operands)

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

    def mixes_tokens(self) -> bool:
        """Whether the result for a token depends on other tokens: some node sums or normalises over tokens."""
        return any(
            node.contracts_tokens() or (node.name == "softmax" and node.type[1] == "n") for node in self.nodes()
        )

    def contracts_tokens(self) -> bool:
        """Whether this very operation sums over tokens: a product, similarity or distance along an axis of type n."""
        return self.name in ("matmul", "cosine_similarity", "euclidean_distance") and self.operands[0].type[1] == "n"

    def replace(self, old: "Expression", new: "Expression") -> "Expression":
        """This expression with every occurrence of `old` replaced by `new` (of the same type)."""
        if self == old:
            return new
        if not self.operands:
            return self
        return Expression(self.name, tuple(operand.replace(old, new) for operand in self.operands))

    @classmethod
    def parse(cls, text: str) -> "Expression":
        """Read an attention expression, for example `"matmul(softmax(scale(matmul(q, transpose(k)))), v)"`.

        Raises `ValueError` that points at the place, for text that is not an expression, has an unknown name, a wrong
        number of operands, a type clash, a result that is not n×d, or more than `MAX_NODES` nodes, `MAX_DEPTH` levels
        or `MAX_CHARACTERS` characters. Nothing is evaluated.
        """
        if not isinstance(text, str):
            raise ValueError(f"expression: expected a string, got {type(text).__name__}")
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"expression: expected at most {MAX_CHARACTERS} characters, got {len(text)}")
        return _parse(text)


# Genomes of a search share most of their expressions: read once, they are also one object.
@functools.lru_cache(maxsize=1 << 16)
def _parse(text: str) -> Expression:
    expression = _Parser(text).parse()
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

    def __init__(self, text: str):
        self.text = text
        # The empty token is the end of the text.
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
            return Expression(name, tuple(operands))
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
class OwnLayer:
    """Gene of a layer of a `kind` of one's own (`add_operation`)."""

    kind: str

    def __str__(self) -> str:
        return self.kind

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}


Gene = Convolution | Attention | OwnLayer


_FIELDS = {Convolution.kind: "kernel_size", Attention.kind: "expression"}


def _gene_from_dict(gene: Any) -> Gene:
    if not isinstance(gene, dict):
        raise ValueError(f"expected an object with 'kind', got {gene!r}")
    kind = gene.get("kind")
    if not isinstance(kind, str) or kind not in {*_FIELDS, *LAYER_KINDS}:
        raise ValueError(f"kind: expected one of {[*_FIELDS, *sorted(LAYER_KINDS)]}, got {kind!r}")
    if kind in LAYER_KINDS:
        if len(gene) != 1:
            raise ValueError(f"expected the field 'kind' alone, got {sorted(map(str, gene))}")
        return OwnLayer(kind)
    if len(gene) != 2 or _FIELDS[kind] not in gene:
        raise ValueError(f"expected the fields ['kind', {_FIELDS[kind]!r}], got {sorted(map(str, gene))}")
    value = gene[_FIELDS[kind]]
    return Convolution(value) if kind == Convolution.kind else Attention(Expression.parse(value))


class Genome(tuple[Gene, ...]):
    """One gene per layer, from the input up. An immutable value: compare it, hash it, keep it in a set.

    `str(genome)` is one readable line; `to_list` and `from_list` convert to and from the JSON form of `config.json`.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return " | ".join(map(str, self))

    def operations(self) -> list[str]:
        """Names of the operations in the attention layers, each once, sorted."""
        nodes = (node for gene in self if isinstance(gene, Attention) for node in gene.expression.nodes())
        return sorted({node.name for node in nodes if node.operands})

    def own_operations(self) -> dict[str, str]:
        """Rules by name of the operations and layer kinds in it that are not of this file."""
        kinds = sorted({gene.kind for gene in self if isinstance(gene, OwnLayer)})
        rules = {name: OPERATIONS[name] for name in self.operations() if name not in BUILT_IN}
        return rules | dict.fromkeys(kinds, LAYER_RULE)

    def to_list(self) -> list[dict[str, Any]]:
        return [gene.to_dict() for gene in self]

    @classmethod
    def from_list(cls, genes: Any) -> "Genome":
        """Read the JSON form. Raises `ValueError` that names the layer, what was expected and what came."""
        if not isinstance(genes, (list, tuple)) or not genes:
            raise ValueError(f"genome: expected a non-empty list with one gene per layer, got {genes!r}")

        def read() -> Iterator[Gene]:
            for number, gene in enumerate(genes, start=1):
                try:
                    yield _gene_from_dict(gene)
                except ValueError as error:
                    raise ValueError(f"genome, layer {number}: {error}") from None

        return cls(read())


SELF_ATTENTION = Attention(Expression.parse("matmul(softmax(scale(matmul(q, transpose(k)))), v)"))

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
}

# All heads are loadable from any checkpoint, so every saved config names them all.
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


@strict
class AutoBertZeroConfig(PretrainedConfig):
    """Configuration of an AutoBERT-Zero encoder. The defaults are the published base architecture.

    Args:
        genome: one gene per layer, as JSON: `{"kind": "convolution", "kernel_size": 65}` or
            `{"kind": "attention", "expression": "matmul(softmax(scale(matmul(q, transpose(k)))), v)"}`. A `Genome`
            is not JSON: pass `genome.to_list()`. `None` means the published genome.
        own_operations: rules of the operations and layer kinds in the genome that are not of this file (`add_operation`);
            what they compute is in a file that travels with the model. Filled in where they are known.
        num_hidden_layers: number of layers; `None` means the length of the genome, anything else must equal it.
        sparse_prediction: given labels, compute masked-language-model logits only where one stands.
        sparse_pred_ignore_index: the label that stands for "no label".
        unpad_inputs: leave pads out of what works on single tokens, where enough of a batch is pads.

    All other arguments are those of `BertConfig`. Raises `ValueError` for an illegal genome, and the errors of
    `huggingface_hub.dataclasses.strict` for values of a wrong type or sizes that do not fit.
    """

    model_type = "autobert_zero"

    genome: list[dict[str, Any]] | None = None
    own_operations: dict[str, str] | None = None
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int | None = None
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    classifier_dropout: float | int | None = None
    sparse_prediction: bool = False
    sparse_pred_ignore_index: int = -100
    unpad_inputs: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any):
        add_operations(self.own_operations)
        genome = PUBLISHED_GENOME if self.genome is None else Genome.from_list(self.genome)
        self.own_operations = genome.own_operations() or None
        # Written back from the parsed form: one spelling and one order of keys in every config.json.
        self.genome = genome.to_list()
        if self.num_hidden_layers is None:
            self.num_hidden_layers = len(genome)
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        super().__post_init__(**kwargs)

    def validate_genome(self):
        genome = Genome.from_list(self.genome)
        if len(genome) != self.num_hidden_layers:
            raise ValueError(f"genome: expected num_hidden_layers={self.num_hidden_layers} genes, got {len(genome)}")

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
        """The genome as a value: a tuple of genes."""
        return Genome.from_list(self.genome)

    @classmethod
    def preset(cls, name: str, **kwargs: Any) -> "AutoBertZeroConfig":
        """A named architecture; `kwargs` override its fields.

        `autobert-zero-small`, `-base` and `-large` are the published architecture, `bert-small` and `bert-base` twelve
        standard self-attentions of the same sizes.
        """
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {sorted(PRESETS)}, got {name!r}")
        genome, sizes = PRESETS[name]
        return cls(**{"genome": genome.to_list(), **sizes, **kwargs})


AutoBertZeroConfig.register_for_auto_class()

# A module that the remote-code loader made must not register: every checkpoint brings its own copy of this class.
if not __name__.startswith("transformers_modules."):
    AutoConfig.register(AutoBertZeroConfig.model_type, AutoBertZeroConfig)

__all__ = ["AutoBertZeroConfig"]
