"""AutoBERT-Zero model: BERT's layer, with the self-attention replaced by the mixer that the layer's gene describes.

The method is that of "AutoBERT-Zero: Evolving BERT Backbone from Scratch" (Gao et al., AAAI 2022, arXiv 2107.07445);
everything else (embeddings, residuals, feed-forward, heads, names of arguments and outputs) follows BERT in
transformers.

Departures from BERT:

1. Padding never changes the output for a real token, whatever the genome: every contraction over tokens ignores
   padding, and positions count real tokens only, so padding on the left equals padding on the right. In a row without
   any real token all tokens count as real, which keeps its numbers finite.
2. The logits of an answer's first and last token are the minimum of the dtype at padding.
3. `sparse_prediction` computes masked-language-model logits and loss only at labelled tokens.
4. If enough of a batch is padding, what works on single tokens runs on the real tokens only (`unpad_inputs`).
5. `attn_implementation="eager"` is the reference executor; `"sdpa"`, the default, runs softmax attention fused.
6. Loading weights of another genome is an error, and so are ids out of range.

Shapes in comments: `(batch, tokens, hidden)` for hidden states; inside an attention `(batch, heads, *type)`, where the
type of a node is n×d, d×n, n×n or d×d with n tokens and d = head size.
"""

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers import (
    initialization as init,
)
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    ModelOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import can_return_tuple

from .configuration_autobert_zero import (
    FIRST_VALUES,
    KERNEL_SIZES,
    Attention,
    AutoBertZeroConfig,
    Convolution,
    CustomLayer,
    Expression,
    Gene,
    Genome,
    check_custom_operations,
)


# The modules that project the layer input, by the name that expressions use.
PROJECTIONS = {"q": "query", "k": "key", "v": "value", "p": "extra"}

# Small enough not to change any real row, large enough that neither it nor its inverse leaves the range of float16.
COSINE_EPSILON = 1e-4

# The arguments of `from_pretrained` that locate a checkpoint.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

# Batches are unpadded if at most this fraction of their tokens is real. Gathering and scattering tokens costs one to
# two percent of a layer at base size.
UNPAD_BELOW = 0.95


def _readable(tensor: torch.Tensor) -> bool:
    """Whether Python code may depend on the values: not while a graph is recorded, nor for a tensor without memory."""
    recording = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not recording and type(tensor) is torch.Tensor and not tensor.is_meta


class TokenLayout(NamedTuple):
    """Which tokens of a batch are real, which tokens each one attends to, and how hidden states store them.

    Hidden states are *padded*, (batch, tokens, hidden), or *packed*, (real tokens, hidden): the real tokens of all
    sequences in one row. Code that works on single tokens is the same for both; code that mixes tokens calls `pad`
    before and `pack` after. (A NamedTuple, because accelerate's hooks move the tensors in it between devices.)

    Attributes:
        real: (batch, tokens) bool; None if all tokens are real. Every row has a real token.
        attend_to: (batch, tokens, tokens) bool, whether a token (row) attends to a token (column); None if all tokens
            attend to all real ones.
        packed: (real tokens,) indices of the real tokens in the flattened batch; None if hidden states are padded.
        cosine, sine: (batch, 1, tokens, head_size // 2), or with a batch of 1 for all rows: the rotations of the
            positions; None if no layer uses them.
    """

    real: torch.Tensor | None = None
    attend_to: torch.Tensor | None = None
    packed: torch.Tensor | None = None
    cosine: torch.Tensor | None = None
    sine: torch.Tensor | None = None

    @classmethod
    def from_mask(cls, attention_mask: torch.Tensor | None, shape: tuple[int, int]) -> "TokenLayout":
        """The layout of an attention mask (batch, tokens) or (batch, tokens, tokens), nonzero at tokens to attend to.

        In a row without a real token all tokens count as real, and a token that attends to nothing attends to all
        real tokens: numbers stay finite.

        Raises: ValueError for another shape.
        """
        if attention_mask is None:
            return cls()
        if attention_mask.shape == shape:
            real, attend_to = attention_mask.bool(), None
            real = real | ~real.any(1, keepdim=True)
        elif attention_mask.shape == (*shape, shape[1]):
            attend_to = attention_mask.bool()
            real = attend_to.any(1)
            real = real | ~real.any(1, keepdim=True)
            attend_to = attend_to | (~attend_to.any(2, keepdim=True) & real[:, None])
        else:
            batch, tokens = shape
            raise ValueError(
                f"attention_mask: expected shape ({batch}, {tokens}) or ({batch}, {tokens}, {tokens}), "
                f"got {tuple(attention_mask.shape)}"
            )
        return cls(real, attend_to)

    def resolve(self, count: int, unpad: bool) -> "TokenLayout":
        """The fastest layout for a number of real tokens: no mask if nothing is padded, packed if that pays."""
        if self.attend_to is not None:
            return self
        if count == self.real.numel():
            return TokenLayout()  # selects the kernels without a mask
        if unpad and count <= UNPAD_BELOW * self.real.numel():
            return TokenLayout(self.real, packed=torch.nonzero_static(self.real.flatten(), size=count).squeeze(1))
        return self

    def with_rotations(self, position_ids: torch.Tensor, head_size: int, theta: float, dtype) -> "TokenLayout":
        """The layout with the rotations of positions (batch, tokens), computed at least in float32."""
        dtype = torch.promote_types(dtype, torch.float32)
        exponents = torch.arange(head_size // 2, dtype=dtype, device=position_ids.device) / (head_size // 2)
        angles = position_ids[:, None, :, None].to(dtype) * theta**-exponents
        return self._replace(cosine=angles.cos(), sine=angles.sin())

    def reduction_mask(self, type_: str, axis: int) -> torch.Tensor | None:
        """Which tokens a reduction over `axis` (-1 or -2) of a value (batch, heads, *type_) includes; None for all.

        If the rows are tokens, each row includes the tokens that its token attends to; otherwise all real tokens.
        """
        if self.attend_to is not None and type_ == "nn" and axis == -1:
            return self.attend_to[:, None]
        if self.real is None:
            return None
        return self.real[:, None, None, :] if axis == -1 else self.real[:, None, :, None]

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, ...) in the form of hidden states: padded or packed."""
        return x if self.packed is None else x.flatten(0, 1)[self.packed]

    def pad(self, x: torch.Tensor, zero_pads: bool = False) -> torch.Tensor:
        """Hidden states as (batch, tokens, ...). Values at padding are undefined, or 0 with `zero_pads`."""
        if self.packed is not None:
            padded = x.new_zeros(self.real.numel(), *x.shape[1:])
            return padded.index_copy(0, self.packed.to(x.device), x).unflatten(0, self.real.shape)
        if zero_pads and self.real is not None:
            # After the last layer, which may be on another device than the first.
            return x.masked_fill(~self.real.to(x.device)[..., None], 0)
        return x


# ---------------------------------------------------------------------------------------------------------------------
# Executor: runs an attention expression
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FusedAttention:
    """`matmul(softmax(± scaled matmul(A, transpose(B))), C)` with A, B, C of type n×d, as one fused kernel.

    Attributes:
        operands: the nodes whose values, or their transposes, are A, B and C.
        transposed: whether A, B and C are the transposes of their nodes.
        negative: whether the scores are negated.
        scalings: how many times the scores are divided by the square root of the head size.
        transposed_result: whether the expression uses the transpose of the result.
    """

    operands: tuple[Expression, Expression, Expression]
    transposed: tuple[bool, bool, bool]
    negative: bool
    scalings: int
    transposed_result: bool

    @classmethod
    def match(cls, node: Expression) -> "FusedAttention":
        """The fused form of a `matmul`. Raises: ValueError with the reason if it has none."""
        if node.name != "matmul" or node.type not in ("nd", "dn"):
            raise ValueError(f"{node} is not a product of type n×d")
        # (W C)ᵀ = Cᵀ Wᵀ
        transposed_result = node.type == "dn"
        value, weights = node.operands if transposed_result else reversed(node.operands)
        if weights.type != "nn":
            raise ValueError(f"{weights} does not weight tokens by tokens")
        unary = []
        while weights.name == "transpose":
            unary.append(weights.name)
            weights = weights.operands[0]
        if weights.name != "softmax" or len(unary) % 2 != transposed_result:
            raise ValueError(f"{weights} is not a softmax over the tokens attended to")
        scores = weights.operands[0]
        unary = []
        while scores.name in ("neg", "scale", "transpose"):
            unary.append(scores.name)
            scores = scores.operands[0]
        if scores.name != "matmul" or scores.operands[0].type != "nd":
            raise ValueError(f"the scores {scores} are not a product of n×d and d×n")
        left, right = scores.operands
        # (left right)ᵀ = rightᵀ leftᵀ: A is then rightᵀ and B is left.
        swapped = unary.count("transpose") % 2 == 1
        return cls(
            operands=(right, left, value) if swapped else (left, right, value),
            transposed=(swapped, not swapped, transposed_result),
            negative=unary.count("neg") % 2 == 1,
            scalings=unary.count("scale"),
            transposed_result=transposed_result,
        )

    def __str__(self) -> str:
        a, b, c = (f"transpose({x})" if t else str(x) for x, t in zip(self.operands, self.transposed, strict=True))
        sign = "-" if self.negative else ""
        return f"scaled_dot_product_attention({a}, {b}, {c}, scale={sign}d^-{self.scalings}/2)"

    def __call__(self, a, b, c, layout, head_size, dropout):
        a, b, c = (
            x.transpose(-1, -2) if transposed else x for x, transposed in zip((a, b, c), self.transposed, strict=True)
        )
        # A is negated, not the scale: kernels subtract the maximum of the raw scores and need a positive scale.
        result = F.scaled_dot_product_attention(
            -a if self.negative else a,
            b,
            c,
            attn_mask=layout.reduction_mask("nn", -1),
            dropout_p=dropout,
            scale=head_size ** (-self.scalings / 2),
        )
        return result.transpose(-1, -2) if self.transposed_result else result


def _zero(x, type_, axis, layout):
    mask = layout.reduction_mask(type_, axis)
    return x if mask is None else x.masked_fill(~mask, 0)


def _softmax(node, x, layout, head_size, dropout):
    if node.type[1] == "d":
        return x.softmax(-1)
    mask = layout.reduction_mask(node.type, -1)
    if mask is not None:
        x = x.masked_fill(~mask, -math.inf)
    return F.dropout(x.softmax(-1), dropout)


def _matmul(node, x, y, layout, head_size, dropout):
    if node.contracts_tokens():
        x, y = _zero(x, node.operands[0].type, -1, layout), _zero(y, node.operands[1].type, -2, layout)
    return x @ y


def _rows(node, x, y, layout):
    """Operands of an operation between rows, with zeros for ignored tokens if the rows extend over tokens."""
    if node.contracts_tokens():
        x, y = _zero(x, node.operands[0].type, -1, layout), _zero(y, node.operands[1].type, -1, layout)
    return x, y


def _cosine_similarity(node, x, y, layout, head_size, dropout):
    x, y = _rows(node, x, y, layout)
    return F.normalize(x, dim=-1, eps=COSINE_EPSILON) @ F.normalize(y, dim=-1, eps=COSINE_EPSILON).transpose(-1, -2)


def _euclidean_distance(node, x, y, layout, head_size, dropout):
    x, y = _rows(node, x, y, layout)
    # All |x|² - 2xy + |y|² as one matrix product, several times as fast as `torch.cdist`. In float64 (which Apple's GPUs
    # lack), so that a small distance survives as the difference of large numbers.
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    wide_x, wide_y = x.to(wide), y.to(wide)
    # Scaled below 1 by the rounding error, so that equal rows have distance 0: sqrt is infinitely steep there.
    scale = 1 - 2 * x.shape[-1] ** 0.5 * torch.finfo(wide).eps
    lengths_x, lengths_y = (scale * rows.square().sum(-1, keepdim=True) for rows in (wide_x, wide_y))
    # Ones by padding: in a trace, `ones_like` would be a constant of one batch size.
    left = F.pad(torch.cat([wide_x, lengths_x], -1), (0, 1), value=1.0)
    right = torch.cat([F.pad(-2 * wide_y, (0, 1), value=1.0), lengths_y], -1)
    squares = (left @ right.transpose(-1, -2)).to(torch.promote_types(x.dtype, torch.float32))
    # The clamp also gives a distance of 0 a gradient of 0.
    return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt().to(x.dtype)


def _rotary(node, x, layout, head_size, dropout):
    """Rotates the pairs (i, i + head_size // 2) of each row; the last entry of an odd number is unchanged."""
    first, second, rest = x.split([head_size // 2, head_size // 2, head_size % 2], -1)
    cosine, sine = layout.cosine.to(x.dtype), layout.sine.to(x.dtype)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], -1)


# The built-in operations without parameters. Every function is given the node, its operands, a `TokenLayout` (of which only
# `real` and `attend_to` matter), the head size and the dropout of attention weights.
EXECUTORS = {
    "neg": lambda node, x, *_: -x,
    "transpose": lambda node, x, *_: x.transpose(-1, -2),
    "scale": lambda node, x, layout, head_size, dropout: x / math.sqrt(head_size),
    "softmax": _softmax,
    "logsigmoid": lambda node, x, *_: F.logsigmoid(x),
    "softsign": lambda node, x, *_: F.softsign(x),
    "add": lambda node, x, y, *_: x + y,
    "matmul": _matmul,
    "cosine_similarity": _cosine_similarity,
    "euclidean_distance": _euclidean_distance,
    "sigmoid": lambda node, x, *_: x.sigmoid(),
    "mul": lambda node, x, y, *_: x * y,
    "rotary": _rotary,
}
# Built-in operations whose values may leave the range of float16, unless a fused kernel computes them.
OVERFLOWS_FP16 = {"matmul", "euclidean_distance", "mul"}


class DepthwiseConvolution(nn.Conv1d):
    """`nn.Conv1d` of stride 1 on (batch, channels, tokens), fast for the transpose of (batch, tokens, channels)."""

    def forward(self, x: torch.Tensor, attend_to: torch.Tensor | None = None) -> torch.Tensor:
        """`attend_to`: (batch, tokens, tokens) bool, whether a token (row) attends to a token (column); None for all."""
        if attend_to is not None:
            return self._tap_by_tap(x, attend_to)
        # As conv2d on (batch, channels, 1, tokens), whose memory is (batch, tokens, channels) for a transpose: on a CPU
        # this channels-last form is many times as fast as conv1d, and nothing is copied.
        # The input may be in another type than the weights: an expression may be computed in float32.
        weight, bias = self.weight.unsqueeze(2).to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        return F.conv2d(x.unsqueeze(2), weight, bias, padding=(0, self.padding[0]), groups=self.groups).squeeze(2)

    def _tap_by_tap(self, x, attend_to):
        tokens, margin = attend_to.shape[1], self.padding[0]
        x, attend_to = F.pad(x, (margin, margin)), F.pad(attend_to, (margin, margin))
        # For token i a tap reads token i + tap - margin, which is at index i + tap after padding.
        read = torch.arange(tokens, device=x.device)[:, None] + torch.arange(2 * margin + 1, device=x.device)
        attended = attend_to.gather(2, read.expand(attend_to.shape[0], -1, -1))[:, None]
        result = 0.0 if self.bias is None else self.bias[:, None]
        for tap, weight in enumerate(self.weight.squeeze(1).unbind(1)):
            result = result + weight[:, None] * x[:, :, tap : tap + tokens] * attended[..., tap]
        return result.to(x.dtype)


class TokenConvolution(DepthwiseConvolution):
    """The operations `conv3`, `conv7`, `conv15`: a depth-wise convolution over tokens of the channels of all heads."""

    def forward(self, x: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        # x: (batch, heads, tokens, head_size)
        heads = x.shape[1]
        x = _zero(x, "nd", -2, layout).transpose(1, 2).flatten(2).transpose(1, 2)
        return super().forward(x, layout.attend_to).unflatten(1, (heads, -1)).transpose(2, 3)


class Mix(nn.Module):
    """The operation `mix`: x + σ(λ) (y - x), with a learned λ."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, y: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        dtype = torch.promote_types(x.dtype, y.dtype)  # autocast may have given them different ones
        return torch.lerp(x.to(dtype), y.to(dtype), self.weight.sigmoid().to(dtype))


def make_operation(name: str, channels: int) -> nn.Module:
    """The module of an operation with parameters; called with its operands and a `TokenLayout`."""
    if name == "mix":
        return Mix()
    size = KERNEL_SIZES[name]
    return TokenConvolution(channels, channels, size, padding=size // 2, groups=channels, bias=False)


# Functions of custom operations and layer kinds: by the digest of the file that defines them, then by name. Every
# configuration names the digest that it needs, so definitions of several models never collide.
CUSTOM_OPERATIONS: dict[str, dict[str, Callable]] = {}


def register_custom_operations(digest: str, operations: Mapping[str, tuple[str, Callable]]) -> None:
    """Make the custom operations and layer kinds of a file available to the configurations that name its digest.

    Args:
        digest: of the file; `custom_operations_digest` of a configuration.
        operations: by name, a type rule (see the configuration) and a function of one or two tensors (batch, heads,
            rows, columns) that returns one. Its output for a token must depend on that token alone: a sum over tokens
            would include padding. Or the rule `layer` and a function that makes a module from a configuration. The
            module is called with hidden states (batch, tokens, hidden), 0 at padding, and which tokens are real,
            (batch, tokens) bool, and returns what is added to the hidden states.

    Raises: ValueError for an invalid name or rule.
    """
    check_custom_operations({name: rule for name, (rule, _) in operations.items()})
    CUSTOM_OPERATIONS[digest] = {name: function for name, (_, function) in operations.items()}


def _custom_functions(config: AutoBertZeroConfig) -> dict[str, Callable]:
    """The functions of the custom operations and layer kinds of a configuration."""
    functions = CUSTOM_OPERATIONS.get(config.custom_operations_digest, {})
    if missing := sorted(set(config.custom_operations or ()) - set(functions)):
        raise ValueError(
            f"custom_operations: expected definitions of {', '.join(missing)}, got none with digest "
            f"{config.custom_operations_digest}: load the file that defines them "
            "(`autobert_zero.search.custom_operations.load`), or load the model with trust_remote_code=True in a "
            "process without this package"
        )
    return functions


class Step(NamedTuple):
    """One step of a program: computes the value of a node from the values in earlier slots, then frees `dead` slots."""

    node: Expression
    fused: FusedAttention | None
    operands: tuple[int, ...]
    dead: tuple[int, ...]


class ExpressionProgram:
    """An expression as a sequence of steps: every node is computed once, and values are freed after their last use.

    Args:
        expression: of type n×d.
        lower: run softmax attention in `scaled_dot_product_attention`. Without it every node runs by itself: the
            reference, which defines the meaning of an expression.
        functions: of the custom operations in the expression, by name.
        modules: of the nodes with parameters, by the names of `Expression.parameters`.

    Attributes:
        steps: in order. Values are stored in slots: first the inputs, then one slot per step.
        weights_slot: slot of the token-by-token weights: the last softmax of type n×n, else the last value of that
            type; None if there is none or it is inside a fused kernel.
        reasons: for each product of type n×d that is not part of a fused kernel, why not.
        supports_pairwise_mask: whether every reduction over tokens is for one token, so that a mask of tokens by
            tokens is well defined.
        fp16_safe: whether values stay in the range of float16: no products outside fused kernels.
    """

    def __init__(
        self,
        expression: Expression,
        lower: bool = True,
        functions: Mapping[str, Callable] | None = None,
        modules: Mapping[str, nn.Module] | None = None,
    ):
        self.expression = expression
        self.lower = lower
        self.functions = functions or {}
        self.modules = modules or {}
        self.parameters = expression.parameters()
        self.inputs = expression.inputs()
        self.reasons: list[str] = []
        slots = {Expression(name): slot for slot, name in enumerate(self.inputs)}
        planned: list[tuple[Expression, FusedAttention | None, tuple[int, ...]]] = []

        def plan(node: Expression) -> int:
            if node not in slots:
                fused = self._fuse(node) if lower else None
                operands = tuple(plan(operand) for operand in (node.operands if fused is None else fused.operands))
                slots[node] = len(slots)
                planned.append((node, fused, operands))
            return slots[node]

        plan(expression)
        last_use = {slot: i for i, (_, _, operands) in enumerate(planned) for slot in operands}
        self.steps = [
            Step(*step, tuple(slot for slot, last in last_use.items() if last == i)) for i, step in enumerate(planned)
        ]
        weights = [step.node for step in self.steps if step.node.type == "nn"]
        softmaxes = [node for node in weights if node.name == "softmax"]
        self.weights_slot = slots[(softmaxes or weights)[-1]] if weights else None
        self.supports_pairwise_mask = all(_supports_pairwise_mask(node) for node in expression.nodes())
        # What a custom operation does to the range of its values is unknown.
        self.fp16_safe = all(
            step.fused or not (step.node.rule or step.node.name in OVERFLOWS_FP16) for step in self.steps
        )

    def _fuse(self, node: Expression) -> FusedAttention | None:
        if node.name != "matmul" or node.type not in ("nd", "dn"):
            return None
        try:
            return FusedAttention.match(node)
        except ValueError as reason:
            self.reasons.append(str(reason))
            return None

    def __str__(self) -> str:
        """How it runs, and why."""
        fused = [str(step.fused) for step in self.steps if step.fused]
        single = f"node by node ({len(self.steps) - len(fused)} operations)"
        if not self.lower:
            return f"{single}: the reference was requested"
        if not fused:
            return f"{single}: {'; '.join(dict.fromkeys(self.reasons)) or 'there is no product of type n×d'}"
        return ", ".join([*dict.fromkeys(fused), *([single] if len(fused) < len(self.steps) else [])])

    def __call__(
        self,
        values: list[torch.Tensor],
        layout: TokenLayout,
        head_size: int,
        dropout: float = 0.0,
        output_weights: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run it.

        Args:
            values: one for each of `inputs`, (batch, heads, tokens, head_size). The list is consumed, so that
                projections are freed as early as everything else.
            layout: which tokens are real, and which tokens each one attends to.
            head_size: d of `scale`.
            dropout: dropout probability of attention weights (entries of a softmax over tokens).
            output_weights: also return the value of `weights_slot`.

        Returns: (batch, heads, tokens, head_size), and the weights (batch, heads, tokens, tokens) or None.
        """
        weights = None
        for node, fused, operands, dead in self.steps:
            arguments = [values[slot] for slot in operands]
            if fused is not None:
                values.append(fused(*arguments, layout, head_size, dropout))
            elif node.rule:
                values.append(self.functions[node.name](*arguments))
            elif node in self.parameters:
                values.append(self.modules[self.parameters[node]](*arguments, layout))
            else:
                values.append(EXECUTORS[node.name](node, *arguments, layout, head_size, dropout))
            if output_weights and len(values) - 1 == self.weights_slot:
                weights = values[-1]
            for slot in dead:
                values[slot] = None
        return values.pop(), weights


def _supports_pairwise_mask(node: Expression) -> bool:
    """Whether each reduction over tokens in `node`, if any, is for one token."""
    if node.name == "softmax" and node.type[1] == "n":
        return node.type[0] == "n"
    if not node.contracts_tokens():
        return True
    rows = node.operands[:1] if node.name == "matmul" else node.operands
    return all(operand.type[0] == "n" for operand in rows)


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings, mixers, layers
# ---------------------------------------------------------------------------------------------------------------------


class AutoBertZeroEmbeddings(nn.Module):
    """Word, position and token-type embeddings, as BERT's."""

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        if config.position_embedding_type == "absolute":
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, token_type_ids, position_ids, inputs_embeds, layout: TokenLayout):
        # ids (batch, tokens), or (1, tokens); embeddings (batch, tokens, hidden)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        embeddings = inputs_embeds + self.token_type_embeddings(token_type_ids)
        if hasattr(self, "position_embeddings"):
            embeddings = embeddings + self.position_embeddings(position_ids)
        embeddings = self.dropout(self.LayerNorm(embeddings))
        # Zeros, because a kernel that only weights padding by 0 would turn infinities there into NaN.
        return embeddings if layout.real is None else embeddings.masked_fill(~layout.real[..., None], 0)


class AutoBertZeroAttention(nn.Module):
    """Mixes tokens by an attention expression: projections, the expression per head, output projection.

    Runs lowered; the reference runs under `attn_implementation="eager"` and if attention weights are requested.
    """

    def __init__(self, config, gene: Attention, provides_values: bool = False):
        super().__init__()
        self.config = config
        self.gene = str(gene)
        self.provides_values = provides_values
        self.head_size = config.hidden_size // config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        functions = _custom_functions(config)
        modules = {
            name: make_operation(node.name, config.hidden_size) for node, name in gene.expression.parameters().items()
        }
        self.lowered = ExpressionProgram(gene.expression, True, functions, modules)
        self.reference = ExpressionProgram(gene.expression, False, functions, modules)
        for name in self._projected(provides_values):
            setattr(self, PROJECTIONS[name], nn.Linear(config.hidden_size, config.hidden_size))
        if modules:
            self.operations = nn.ModuleDict(modules)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def extra_repr(self) -> str:
        return f"{self.gene}\nruns as {self.program()}"

    def program(self, output_attentions: bool = False) -> ExpressionProgram:
        """The program that runs."""
        eager = output_attentions or self.config._attn_implementation == "eager"
        return self.reference if eager else self.lowered

    def pairwise_mask_problem(self) -> str | None:
        """Why it does not support a mask of tokens by tokens; None if it does."""
        return None if self.reference.supports_pairwise_mask else "reduces over tokens for no single token"

    def _projected(self, provides_values: bool) -> list[str]:
        used = {*self.lowered.inputs, *(["v"] if provides_values else [])}
        return [name for name in PROJECTIONS if name in used]

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: TokenLayout,
        output_attentions: bool = False,
        first_values: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """`first_values`: (batch, heads, tokens, head_size), the `v` of the first attention layer, if the genome uses `v1`.

        Returns: hidden states as given; weights (batch, heads, tokens, tokens) or None; the first values, which are its
            own if it provides them.
        """
        program = self.program(output_attentions)
        if self.provides_values:
            first_values = self._heads(self.value(hidden_states), layout)
        known = {FIRST_VALUES: first_values, **({"v": first_values} if self.provides_values else {})}
        values = [
            known[name]
            if known.get(name) is not None
            else self._heads(getattr(self, PROJECTIONS[name])(hidden_states), layout)
            for name in program.inputs
        ]
        # Products of products leave the range of float16, and so may everything computed from them.
        dtype = values[0].dtype
        widen = dtype == torch.float16 and not program.fp16_safe and not hidden_states.is_meta
        if not widen:
            mixed, weights = program(values, layout, self.head_size, self._dropout(), output_attentions)
            return self.dense(self._merge(mixed, layout)), weights, first_values
        device_type = hidden_states.device.type
        if torch.is_autocast_enabled(device_type):
            dtype = torch.float32  # that of the weights
        with torch.autocast(device_type, enabled=False):
            values = [x.float() for x in values]
            mixed, weights = program(values, layout, self.head_size, self._dropout(), output_attentions)
            mixed = self.dense(self._merge(mixed, layout).to(dtype))
            return mixed, None if weights is None else weights.to(dtype), first_values

    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def _merge(self, mixed: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        # from (batch, heads, tokens, head_size) to (batch, tokens, hidden) or packed
        return layout.pack(mixed.transpose(1, 2).flatten(2))

    def _heads(self, projected: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        # to (batch, heads, tokens, head_size)
        return layout.pad(projected).unflatten(-1, (-1, self.head_size)).transpose(1, 2)


class AutoBertZeroConvolution(nn.Module):
    """Mixes tokens by a depth-wise convolution between a gated linear unit and a linear map."""

    def __init__(self, config, gene: Convolution):
        super().__init__()
        self.gene = str(gene)
        self.gate = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        width, size = config.hidden_size, gene.kernel_size
        self.convolution = DepthwiseConvolution(width, width, size, padding=size // 2, groups=width)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: TokenLayout,
        output_attentions: bool = False,
        first_values: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None, torch.Tensor | None]:
        hidden_states = layout.pad(F.glu(self.gate(hidden_states)), zero_pads=True)
        mixed = self.convolution(hidden_states.transpose(1, 2), layout.attend_to).transpose(1, 2)
        return self.dense(layout.pack(mixed)), None, first_values

    def pairwise_mask_problem(self) -> None:
        """None: it supports a mask of tokens by tokens."""

    def program(self) -> str:
        """How it runs."""
        return "depth-wise convolution"


class AutoBertZeroCustomMixer(nn.Module):
    """Mixes tokens by the module of a custom layer kind (`register_custom_operations`)."""

    def __init__(self, config, gene: CustomLayer):
        super().__init__()
        self.gene = str(gene)
        self.module = _custom_functions(config)[gene.kind](config)
        for module in self.module.modules():
            module._is_hf_initialized = True  # it initializes its own weights

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: TokenLayout,
        output_attentions: bool = False,
        first_values: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None, torch.Tensor | None]:
        hidden_states = layout.pad(hidden_states, zero_pads=True)
        real = layout.real
        if real is None:
            real = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=hidden_states.device)
        return layout.pack(self.module(hidden_states, real).to(hidden_states.dtype)), None, first_values

    def pairwise_mask_problem(self) -> str:
        """Why it does not support a mask of tokens by tokens."""
        return "is of a custom kind, which only supports masks of padding"

    def program(self) -> str:
        """How it runs."""
        return type(self.module).__name__


MIXERS = {Attention: AutoBertZeroAttention, Convolution: AutoBertZeroConvolution, CustomLayer: AutoBertZeroCustomMixer}


class AutoBertZeroLayer(GradientCheckpointingLayer):
    """BERT's layer (post-LayerNorm) with the mixer of a gene."""

    def __init__(self, config, gene: Gene, provides_values: bool = False):
        super().__init__()
        self.provides_values = provides_values
        more = {"provides_values": True} if provides_values else {}
        self.mixer = MIXERS[type(gene)](config, gene, **more)
        self.mixer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: TokenLayout,
        output_attentions: bool = False,
        first_values: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Arguments as of the mixer, which may be on another device than other layers, or in shards: nothing outside a layer
        uses its weights.

        Returns: hidden states; with `output_attentions`, and if it provides the first values, a tuple of them, the weights
            (batch, heads, tokens, tokens) or None, and the first values or None.
        """
        # hidden_states: (batch, tokens, hidden) or packed
        mixed, weights, first_values = self.mixer(hidden_states, layout, output_attentions, first_values)
        hidden_states = self.mixer_norm(hidden_states + self.dropout(mixed))
        transformed = self.output(self.activation(self.intermediate(hidden_states)))
        hidden_states = self.output_norm(hidden_states + self.dropout(transformed))
        if output_attentions or self.provides_values:
            return hidden_states, weights, first_values
        return hidden_states


class AutoBertZeroEncoder(nn.Module):
    """The layers, and what they share."""

    def __init__(self, config):
        super().__init__()
        # Not `config.parsed_genome()`: the remote-code loader may run the configuration module twice, and genes of the
        # other copy would not be instances of the classes imported here.
        genome = Genome.from_list(config.genome, config.custom_operations)
        self.set_genome(genome)
        self.layer = nn.ModuleList(
            [AutoBertZeroLayer(config, gene, number == self.values_layer) for number, gene in enumerate(genome)]
        )

    def set_genome(self, genome: Genome) -> None:
        """Set what layers share: the first values, and the rotations of positions."""
        self.values_layer = genome.first_attention() if genome.shares_values() else None
        self.uses_rotary = "rotary" in genome.operations()

    def forward(self, hidden_states, layout: TokenLayout, output_hidden_states=False, output_attentions=False):
        all_hidden_states, attentions, first_values = (), (), None
        for layer in self.layer:
            if output_hidden_states:
                all_hidden_states += (hidden_states,)
            hidden_states = layer(hidden_states, layout, output_attentions, first_values)
            if isinstance(hidden_states, tuple):
                hidden_states, weights, first_values = hidden_states
                attentions += () if weights is None else (weights,)
        # Zeros at padding, so that padded and packed batches give equal outputs.
        hidden_states = layout.pad(hidden_states, zero_pads=True)
        return (
            hidden_states,
            (*all_hidden_states, hidden_states) if output_hidden_states else None,
            attentions if output_attentions else None,
        )

    def supports_pairwise_mask(self) -> bool:
        """Whether all layers accept a mask of tokens by tokens."""
        return all(layer.mixer.pairwise_mask_problem() is None for layer in self.layer)

    def needs_rows(self) -> bool:
        """Whether a module must see the rows of a batch: it carries a hook, or an adapter has replaced it."""
        if any(
            module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
            for module in self.modules()
        ):
            return True
        known = (nn.Linear, DepthwiseConvolution, nn.ModuleDict)
        parts = ((layer.intermediate, layer.output, *layer.mixer.children()) for layer in self.layer)
        return not all(
            isinstance(part, known)
            for layer, some in zip(self.layer, parts, strict=True)
            for part in some
            if part is not getattr(layer.mixer, "module", None)
        )


class AutoBertZeroPooler(nn.Module):
    """First *real* token through a dense layer and tanh."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        if layout.real is None:
            first = hidden_states[:, 0]
        else:
            rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)
            first = hidden_states[rows, layout.real.int().argmax(1).to(hidden_states.device)]
        return torch.tanh(self.dense(first))


class AutoBertZeroLMPredictionHead(nn.Module):
    """Dense, activation, LayerNorm and the decoder that shares the word embeddings."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.LayerNorm(self.activation(self.dense(hidden_states))))


# ---------------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------------


class OutputArguments(TypedDict, total=False):
    """Arguments that every head passes to the encoder: which values to return, and whether as a tuple."""

    output_attentions: bool | None
    output_hidden_states: bool | None
    return_dict: bool | None


class AutoBertZeroPreTrainedModel(PreTrainedModel):
    config_class = AutoBertZeroConfig
    base_model_prefix = "autobert_zero"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AutoBertZeroEmbeddings", "AutoBertZeroLayer"]
    _supports_sdpa = True
    # No loss here accepts Trainer's `num_items_in_batch`: Trainer must average over accumulated batches itself.
    accepts_loss_kwargs = False

    def _init_weights(self, module):
        if isinstance(module, TokenConvolution):
            init.normal_(module.weight, std=module.kernel_size[0] ** -0.5)  # keeps the variance of its input
        elif isinstance(module, Mix):
            init.zeros_(module.weight)
        else:
            super()._init_weights(module)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers looks in the source for one of its functions, which this model does not need. Layers read the
        # configuration at every call, so `set_attn_implementation` works.
        return True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, output_loading_info=False, **kwargs):
        """As `PreTrainedModel.from_pretrained`, but weights of another genome are an error.

        Raises: ValueError that names the layers in which the genome of `config` differs from the checkpoint's, or for
        which the checkpoint has no weights. Otherwise they would be initialized at random with only a warning.
        """
        path = pretrained_model_name_or_path
        if path is not None:
            hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            stored = cls.config_class.get_config_dict(path, **hub_arguments)[0]
            if isinstance(config, str | os.PathLike):
                wanted = cls.config_class.get_config_dict(config)[0]
            else:
                wanted = kwargs if config is None else config.to_dict()
            _check_checkpoint(stored, wanted)
        model, info = super().from_pretrained(path, *args, config=config, output_loading_info=True, **kwargs)
        # If no weight at all was found, transformers has warned: the checkpoint is not one of another genome.
        if len(info["missing_keys"]) < len(model.state_dict()):
            _check_missing(model, info["missing_keys"])
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, is_main_process=True, *args, **kwargs):
        """As `PreTrainedModel.save_pretrained`, with all code that the configuration names, also for a subclass."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            self.config.save_code(save_directory)

    def describe(self) -> str:
        """A table with one row per layer: its gene, how it runs and why."""
        lines = [f"{'layer':>5}  gene; runs as"]
        for number, layer in enumerate(self.base_model.encoder.layer, start=1):
            lines += [f"{number:>5}  {layer.mixer.gene}", f"{'':>5}    {layer.mixer.program()}"]
        return "\n".join(lines)


def _check_checkpoint(stored: dict, wanted: dict) -> None:
    """Raises ValueError if a checkpoint with the configuration `stored` has no weights for the genome of `wanted`."""
    if stored.get("model_type", AutoBertZeroConfig.model_type) != AutoBertZeroConfig.model_type:
        raise ValueError(f"model_type: expected {AutoBertZeroConfig.model_type}, got {stored['model_type']}")
    if wanted.get("genome") is None or stored.get("genome") is None:
        return
    wanted, found = (
        Genome.from_list(each["genome"], each.get("custom_operations") or stored.get("custom_operations"))
        for each in (wanted, stored)
    )
    if len(wanted) != len(found):
        raise ValueError(f"genome: expected the {len(found)} layers of the checkpoint, got {len(wanted)}")
    differing = [
        f"layer {number}: expected {b} as in the checkpoint, got {a}"
        for number, (a, b) in enumerate(zip(wanted, found, strict=True), start=1)
        if a != b
    ]
    if differing:
        raise ValueError("genome: " + "; ".join(differing))


def _check_missing(model: AutoBertZeroPreTrainedModel, missing: Collection[str]) -> None:
    """Raises ValueError if weights that the genome requires were missing in a checkpoint; a subclass may have others."""
    with torch.device("meta"):
        required = AutoBertZeroEncoder(model.config).state_dict()
    prefix = "encoder." if isinstance(model, AutoBertZeroModel) else f"{model.base_model_prefix}.encoder."
    if lacking := sorted(
        name for name in missing if name.removeprefix(prefix) in required and name.startswith(prefix)
    ):
        raise ValueError(
            f"weights: expected those of the genome {model.config.parsed_genome()}, got none for {', '.join(lacking)}"
        )


def _read_inputs(
    config: AutoBertZeroConfig,
    layout: TokenLayout,
    attention_mask: torch.Tensor | None,
    ids: Mapping[str, tuple[torch.Tensor | None, nn.Module, str]],
) -> int | None:
    """Check the values of the inputs, before a kernel fails on them: all in one transfer, because each synchronizes with
    an accelerator. Without a mask there is none, and ids are checked on CPUs only.

    Args:
        layout: of the mask.
        ids: by name of an argument its ids, their embedding and the configuration field of its size.

    Returns: the number of real tokens; None without a mask, or if Python code may not depend on it.

    Raises: ValueError for ids out of range, and for negative values of the mask.
    """
    has_mask = attention_mask is not None and _readable(attention_mask)
    given = {
        name: x
        for name, (x, _, _) in ids.items()
        if x is not None and x.numel() and _readable(x) and (has_mask or x.device.type == "cpu")
    }
    values = [extreme.long() for x in given.values() for extreme in x.aminmax()]
    if has_mask:
        values += [layout.real.sum(), (attention_mask < 0).sum()]
    if not values:
        return None
    *extremes, count, negative = [*torch.stack(values).tolist(), *([] if has_mask else (None, 0))]
    if negative:
        raise ValueError("attention_mask: expected 1 for real tokens and 0 for padding, got negative values")
    for name, minimum, maximum in zip(given, extremes[::2], extremes[1::2], strict=True):
        _, embedding, field = ids[name]
        size = getattr(embedding, "num_embeddings", None) or getattr(config, field)  # adapters wrap it
        if minimum < 0 or maximum >= size:
            got = minimum if minimum < 0 else maximum
            raise ValueError(f"{name}: expected ids from 0 to {size - 1} ({field}={size}), got {got}")
    return count


class AutoBertZeroModel(AutoBertZeroPreTrainedModel):
    """The bare encoder: hidden states of all tokens, and a pooled vector of the first one."""

    def __init__(self, config: AutoBertZeroConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = AutoBertZeroEmbeddings(config)
        self.encoder = AutoBertZeroEncoder(config)
        self.pooler = AutoBertZeroPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> tuple[torch.Tensor] | BaseModelOutputWithPooling:
        """
        Args:
            input_ids: (batch, tokens) token ids; or `inputs_embeds`: (batch, tokens, hidden).
            attention_mask: (batch, tokens), nonzero for real tokens, by default all; or (batch, tokens, tokens),
                nonzero where a token (row) attends to a token (column).
            token_type_ids: (batch, tokens), by default 0.
            position_ids: (batch, tokens) or (1, tokens); by default real tokens are counted from 0. Without a mask,
                positions that start again at 0 (as of `DataCollatorWithFlattening`) keep documents in one row apart.
            output_attentions: also return the token-by-token weights (batch, heads, tokens, tokens) of every layer that
                has them, as hybrid models of transformers do: the last softmax of that type in its expression, else the
                last value of that type. Convolutions and expressions without one are left out. Runs node by node.
            output_hidden_states: also return the embeddings and the output of every layer. Values at padding are
                undefined; those of the last layer, as of `last_hidden_state`, are 0.

        Raises: ValueError for both or neither of `input_ids` and `inputs_embeds`, ids out of range, a mask of another
        shape, a mask of tokens by tokens for a layer that reduces over tokens for no single token, or more tokens
        than positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        hidden_size = self.config.hidden_size
        if input_ids is not None and input_ids.ndim != 2:
            raise ValueError(f"input_ids: expected (batch, tokens), got {tuple(input_ids.shape)}")
        if inputs_embeds is not None and (inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != hidden_size):
            raise ValueError(
                f"inputs_embeds: expected (batch, tokens, {hidden_size}), got {tuple(inputs_embeds.shape)}"
            )
        batch, tokens = shape = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
        for name, ids in (("token_type_ids", token_type_ids), ("position_ids", position_ids)):
            if ids is not None and ids.shape != shape and ids.shape != (1, tokens):
                raise ValueError(f"{name}: expected shape ({batch}, {tokens}), got {tuple(ids.shape)}")
        if tokens == 0:
            raise ValueError("input_ids: expected at least one token, got none")
        has_table = self.config.position_embedding_type == "absolute"
        if has_table and position_ids is None and tokens > self.config.max_position_embeddings:
            raise ValueError(
                f"input_ids: expected at most max_position_embeddings={self.config.max_position_embeddings} tokens, "
                f"got {tokens}"
            )
        checked_ids = {
            "input_ids": (input_ids, self.embeddings.word_embeddings, "vocab_size"),
            "token_type_ids": (token_type_ids, self.embeddings.token_type_embeddings, "type_vocab_size"),
            "position_ids": (
                position_ids if has_table else None,
                getattr(self.embeddings, "position_embeddings", None),
                "max_position_embeddings",
            ),
        }
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        # Hidden states of all layers are returned padded, and hooks and adapters see padded ones.
        unpad = self.config.unpad_inputs and not output_hidden_states
        unpad = unpad and attention_mask is not None and _readable(attention_mask) and not self.encoder.needs_rows()
        if attention_mask is None:
            attention_mask = _mask_of_documents(position_ids, shape, self.encoder)
        layout = TokenLayout.from_mask(attention_mask, shape)
        if (count := _read_inputs(self.config, layout, attention_mask, checked_ids)) is not None:
            layout = layout.resolve(count, unpad)
        if layout.attend_to is not None:
            self._check_pairwise_mask()
        if position_ids is None and layout.real is not None:
            position_ids = (layout.real.long().cumsum(1) - 1).clamp(min=0)
        elif position_ids is None:
            # Not the device of the weights: offloaded weights are elsewhere.
            device = (input_ids if inputs_embeds is None else inputs_embeds).device
            position_ids = torch.arange(tokens, device=device)[None]
        embeddings = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds, layout)
        if self.encoder.uses_rotary:
            head_size = self.config.hidden_size // self.config.num_attention_heads
            layout = layout.with_rotations(position_ids, head_size, self.config.rope_theta, embeddings.dtype)
        sequence_output, hidden_states, attentions = self.encoder(
            layout.pack(embeddings), layout, output_hidden_states, output_attentions
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=sequence_output,
            pooler_output=None if self.pooler is None else self.pooler(sequence_output, layout),
            hidden_states=hidden_states,
            attentions=attentions,
        )

    def _check_pairwise_mask(self) -> None:
        for number, layer in enumerate(self.encoder.layer, start=1):
            if (reason := layer.mixer.pairwise_mask_problem()) is not None:
                raise ValueError(
                    "attention_mask: expected (batch, tokens), got (batch, tokens, tokens): "
                    f"layer {number}, {layer.mixer.gene}, {reason}"
                )


def _mask_of_documents(
    position_ids: torch.Tensor | None, shape: tuple[int, int], encoder: AutoBertZeroEncoder
) -> torch.Tensor | None:
    """(batch, tokens, tokens), which keeps documents in one row apart: positions that count from 0 and start again.

    None if there is a single document in each row, or positions of another kind. A graph that is recorded, which cannot look,
    has the mask in any case, if all layers support it.
    """
    if position_ids is None:
        return None
    is_recorded = not _readable(position_ids)
    if is_recorded and not encoder.supports_pairwise_mask():
        return None
    starts = position_ids == 0
    counts = (position_ids[:, 1:] == position_ids[:, :-1] + 1) | starts[:, 1:]
    if not is_recorded and not (starts[:, 0] & counts.all(1) & starts[:, 1:].any(1)).any():  # one transfer
        return None
    document = torch.where(counts.all(1, keepdim=True) & starts[:, :1], starts.long().cumsum(1), 0).expand(shape)
    return document[:, :, None] == document[:, None, :]


def _masked_lm(model, head, sequence_output, labels):
    """Logits and loss of masked language modelling; only at labelled tokens under `config.sparse_prediction`.

    Returns: logits (batch, tokens, vocab), or (labelled tokens, vocab) under `sparse_prediction`, and the mean loss in
    nats, or None without labels.
    """
    config = model.config
    if labels is not None and config.sparse_prediction:
        # Where the labels are: in main memory, that does not synchronize with an accelerator.
        labels = labels.reshape(-1)
        [labelled] = (labels != config.sparse_pred_ignore_index).nonzero(as_tuple=True)
        device = sequence_output.device
        labels = labels[labelled].to(device, non_blocking=True)
        sequence_output = sequence_output.reshape(-1, config.hidden_size)[labelled.to(device, non_blocking=True)]
    logits = head(sequence_output)
    if labels is None:
        return logits, None
    return logits, F.cross_entropy(
        logits.view(-1, logits.shape[-1]),
        labels.view(-1).to(logits.device),
        ignore_index=config.sparse_pred_ignore_index,
    )


class AutoBertZeroForMaskedLM(AutoBertZeroPreTrainedModel):
    """The encoder with a masked-language-model head."""

    _tied_weights_keys = {"predictions.decoder.weight": "autobert_zero.embeddings.word_embeddings.weight"}

    def __init__(self, config: AutoBertZeroConfig):
        super().__init__(config)
        self.autobert_zero = AutoBertZeroModel(config, add_pooling_layer=False)
        self.predictions = AutoBertZeroLMPredictionHead(config)
        self.post_init()

    def get_output_embeddings(self):
        return self.predictions.decoder

    def set_output_embeddings(self, new_embeddings):
        self.predictions.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[OutputArguments],
    ) -> tuple[torch.Tensor] | MaskedLMOutput:
        """`labels`: (batch, tokens), -100 for no label. Other arguments as `AutoBertZeroModel`."""
        outputs = self.autobert_zero(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits, loss = _masked_lm(self, self.predictions, outputs.last_hidden_state, labels)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@dataclass
class AutoBertZeroForPreTrainingOutput(ModelOutput):
    """Loss (sum of both), logits of both heads, hidden states, attentions; the fields of BERT's."""

    loss: torch.FloatTensor | None = None
    prediction_logits: torch.FloatTensor | None = None
    seq_relationship_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor | None, ...] | None = None


class AutoBertZeroForPreTraining(AutoBertZeroPreTrainedModel):
    """The encoder with a masked-language-model head and a two-way sentence-pair head (next sentence or order)."""

    _tied_weights_keys = {"predictions.decoder.weight": "autobert_zero.embeddings.word_embeddings.weight"}

    def __init__(self, config: AutoBertZeroConfig):
        super().__init__(config)
        self.autobert_zero = AutoBertZeroModel(config)
        self.predictions = AutoBertZeroLMPredictionHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def get_output_embeddings(self):
        return self.predictions.decoder

    def set_output_embeddings(self, new_embeddings):
        self.predictions.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        next_sentence_label: torch.Tensor | None = None,
        **kwargs: Unpack[OutputArguments],
    ) -> tuple[torch.Tensor] | AutoBertZeroForPreTrainingOutput:
        """`labels`: (batch, tokens), -100 for no label. `next_sentence_label`: (batch,), 0 if the second segment
        continues the first (next sentence) or both are in order (sentence order). The loss needs both."""
        outputs = self.autobert_zero(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits, loss = _masked_lm(self, self.predictions, outputs.last_hidden_state, labels)
        seq_relationship_logits = self.seq_relationship(outputs.pooler_output)
        if loss is not None and next_sentence_label is not None:
            next_sentence_label = next_sentence_label.view(-1).to(seq_relationship_logits.device)
            loss = loss + F.cross_entropy(seq_relationship_logits, next_sentence_label)
        else:
            loss = None
        return AutoBertZeroForPreTrainingOutput(
            loss=loss,
            prediction_logits=logits,
            seq_relationship_logits=seq_relationship_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _classifier_dropout(config: AutoBertZeroConfig) -> nn.Dropout:
    dropout = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)


class AutoBertZeroForSequenceClassification(AutoBertZeroPreTrainedModel):
    """The encoder with a linear head on the pooled output: classification or regression of sequences."""

    def __init__(self, config: AutoBertZeroConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.autobert_zero = AutoBertZeroModel(config)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[OutputArguments],
    ) -> tuple[torch.Tensor] | SequenceClassifierOutput:
        """`labels`: (batch,) class ids or, if `num_labels == 1`, values; (batch, num_labels) floats for multi-label
        classification. `config.problem_type`, if not set, is derived from them as BERT does."""
        outputs = self.autobert_zero(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            labels = labels.to(logits.device)  # of the last layer
            if self.config.problem_type is None:
                if self.num_labels == 1:
                    self.config.problem_type = "regression"
                elif labels.dtype in (torch.long, torch.int):
                    self.config.problem_type = "single_label_classification"
                else:
                    self.config.problem_type = "multi_label_classification"
            if self.config.problem_type == "regression":
                loss = F.mse_loss(logits.view(labels.shape), labels.to(logits.dtype))
            elif self.config.problem_type == "single_label_classification":
                loss = F.cross_entropy(logits, labels.view(-1))
            else:
                loss = F.binary_cross_entropy_with_logits(logits, labels)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class AutoBertZeroForNextSentencePrediction(AutoBertZeroPreTrainedModel):
    """The encoder with a two-way sentence-pair head."""

    def __init__(self, config: AutoBertZeroConfig):
        super().__init__(config)
        self.autobert_zero = AutoBertZeroModel(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[OutputArguments],
    ) -> tuple[torch.Tensor] | NextSentencePredictorOutput:
        """`labels`: (batch,), 0 if the second segment continues the first, 1 otherwise."""
        outputs = self.autobert_zero(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits = self.seq_relationship(outputs.pooler_output)
        loss = None if labels is None else F.cross_entropy(logits, labels.view(-1).to(logits.device))
        return NextSentencePredictorOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class AutoBertZeroForTokenClassification(AutoBertZeroPreTrainedModel):
    """The encoder with a linear head on every token."""

    def __init__(self, config: AutoBertZeroConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.autobert_zero = AutoBertZeroModel(config, add_pooling_layer=False)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[OutputArguments],
    ) -> tuple[torch.Tensor] | TokenClassifierOutput:
        """`labels`: (batch, tokens) class ids, -100 for no label."""
        outputs = self.autobert_zero(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.view(-1, self.num_labels), labels.view(-1).to(logits.device))
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class AutoBertZeroForQuestionAnswering(AutoBertZeroPreTrainedModel):
    """The encoder with a head for the first and the last token of an answer in the text."""

    def __init__(self, config: AutoBertZeroConfig):
        super().__init__(config)
        self.autobert_zero = AutoBertZeroModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs: Unpack[OutputArguments],
    ) -> tuple[torch.Tensor] | QuestionAnsweringModelOutput:
        """`start_positions`, `end_positions`: (batch,) token positions; those at padding and beyond the end of the
        sequence are ignored."""
        outputs = self.autobert_zero(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits = self.qa_outputs(outputs.last_hidden_state)
        real = TokenLayout.from_mask(attention_mask, logits.shape[:2]).real
        if real is not None:
            real = real.to(logits.device)
            # The loss is a softmax over tokens, from which padding is excluded, too.
            logits = logits.masked_fill(~real[..., None], torch.finfo(logits.dtype).min)
        start_logits, end_logits = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            tokens = start_logits.shape[1]
            start_positions, end_positions = (p.to(logits.device) for p in (start_positions, end_positions))
            if real is not None:  # an answer at padding is ignored
                start_positions, end_positions = (
                    torch.where(
                        F.pad(real, (0, 1)).gather(1, p.view(-1, 1).clamp(0, tokens)).squeeze(1), p.view(-1), tokens
                    )
                    for p in (start_positions, end_positions)
                )
            loss = sum(
                F.cross_entropy(logits, positions.view(-1).clamp(0, tokens), ignore_index=tokens)
                for logits, positions in ((start_logits, start_positions), (end_logits, end_positions))
            )
            loss = loss / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits.contiguous(),
            end_logits=end_logits.contiguous(),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class AutoBertZeroForMultipleChoice(AutoBertZeroPreTrainedModel):
    """The encoder with a head that scores each of several choices."""

    def __init__(self, config: AutoBertZeroConfig):
        super().__init__(config)
        self.autobert_zero = AutoBertZeroModel(config)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[OutputArguments],
    ) -> tuple[torch.Tensor] | MultipleChoiceModelOutput:
        """All inputs have a second axis of choices: (batch, choices, tokens). `labels`: (batch,)."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or given.ndim < 3:
            got = None if given is None else tuple(given.shape)
            raise ValueError(f"input_ids: expected (batch, choices, tokens), got {got}")
        choices = given.shape[1]
        # Positions may be (1, tokens), for all choices.
        flat = {name: v if v is None or v.ndim < 3 else v.flatten(0, 1) for name, v in inputs.items()}
        outputs = self.autobert_zero(**flat, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output)).view(-1, choices)
        loss = None if labels is None else F.cross_entropy(logits, labels.to(logits.device))
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


# Which Auto class builds which model; `AUTO_MAP` of the configuration is the same table for the remote-code loader.
AUTO_CLASSES = {
    AutoModel: AutoBertZeroModel,
    AutoModelForPreTraining: AutoBertZeroForPreTraining,
    AutoModelForMaskedLM: AutoBertZeroForMaskedLM,
    AutoModelForNextSentencePrediction: AutoBertZeroForNextSentencePrediction,
    AutoModelForSequenceClassification: AutoBertZeroForSequenceClassification,
    AutoModelForTokenClassification: AutoBertZeroForTokenClassification,
    AutoModelForQuestionAnswering: AutoBertZeroForQuestionAnswering,
    AutoModelForMultipleChoice: AutoBertZeroForMultipleChoice,
}
for _auto_class, _model_class in AUTO_CLASSES.items():
    _model_class.register_for_auto_class(_auto_class.__name__)
    # A module made by the remote-code loader must not register: every checkpoint has its own copy of the class.
    if not __name__.startswith("transformers_modules."):
        _auto_class.register(AutoBertZeroConfig, _model_class)

__all__ = [
    "AutoBertZeroForMaskedLM",
    "AutoBertZeroForMultipleChoice",
    "AutoBertZeroForNextSentencePrediction",
    "AutoBertZeroForPreTraining",
    "AutoBertZeroForQuestionAnswering",
    "AutoBertZeroForSequenceClassification",
    "AutoBertZeroForTokenClassification",
    "AutoBertZeroModel",
    "AutoBertZeroPreTrainedModel",
]
