"""AutoBERT-Zero model: BERT's layer with the self-attention replaced by what the layer's gene says.

The method is that of "AutoBERT-Zero: Evolving BERT Backbone from Scratch" (Gao et al., AAAI 2022, arXiv 2107.07445);
the frame (embeddings, residuals, feed-forward, heads, names of arguments and outputs) is BERT's as in transformers.

Departures from BERT:

1. A pad token never changes what is said of a real one, whatever the genome: every contraction over tokens leaves
   pads out, and positions count real tokens only, so that padding on the left equals padding on the right. In a row
   without any real token all tokens count, which keeps its numbers finite.
2. The logits of an answer's first and last token are the least finite number at pads.
3. `sparse_prediction` computes masked-language-model logits and loss only where a label stands.

Shapes in comments: `(batch, tokens, hidden)` for hidden states; inside an attention `(batch, heads, *type)`, where the
type of a node is n×d, d×n, n×n or d×d with n tokens and d = head size.
"""

import math
from dataclasses import dataclass

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
from transformers.utils import can_return_tuple

from .configuration_autobert_zero import Attention, AutoBertZeroConfig, Convolution, Expression, Genome


# The modules that project the layer input, by the name that expressions use.
PROJECTIONS = {"q": "query", "k": "key", "v": "value", "p": "extra"}

# Small enough to leave any real row alone, large enough that neither it nor its inverse leaves half precision.
COSINE_EPSILON = 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# Executor: runs an attention expression
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FusedAttention:
    """`matmul(softmax(± scaled matmul(A, transpose(B))), C)` with A, B, C of type n×d, as one fused kernel.

    Attributes:
        operands: the nodes that hold A, B and C; A and B as they stand in the expression or transposed.
        transposed: whether A and B are the transposes of their nodes.
        negative: whether the scores carry a minus.
        scalings: how many times the scores are divided by the root of the head size.
    """

    operands: tuple[Expression, Expression, Expression]
    transposed: tuple[bool, bool]
    negative: bool
    scalings: int

    @classmethod
    def match(cls, node: Expression) -> "FusedAttention | None":
        """The fused form of `node`, or None where it has none."""
        if node.name != "matmul" or node.type != "nd":
            return None
        weights, value = node.operands
        if weights.name != "softmax" or weights.type != "nn":
            return None
        scores = weights.operands[0]
        unary = []
        while scores.name in ("neg", "scale", "transpose"):
            unary.append(scores.name)
            scores = scores.operands[0]
        if scores.name != "matmul" or scores.operands[0].type != "nd":
            return None
        left, right = scores.operands
        # (left right)ᵀ = rightᵀ leftᵀ: A is then rightᵀ and B is left.
        swapped = unary.count("transpose") % 2 == 1
        return cls(
            operands=(right, left, value) if swapped else (left, right, value),
            transposed=(True, False) if swapped else (False, True),
            negative=unary.count("neg") % 2 == 1,
            scalings=unary.count("scale"),
        )

    def __call__(self, a, b, c, real_tokens, head_size, dropout):
        a, b = (x.mT if transposed else x for x, transposed in zip((a, b), self.transposed, strict=True))
        # The minus goes into A: kernels take the maximum of the raw scores and need a positive scale to stay finite.
        return F.scaled_dot_product_attention(
            -a if self.negative else a,
            b,
            c,
            attn_mask=None if real_tokens is None else real_tokens[:, None, None, :],
            dropout_p=dropout,
            scale=head_size ** (-self.scalings / 2),
        )


def _zero_pads(x: torch.Tensor, axis: int, real_tokens: torch.Tensor | None) -> torch.Tensor:
    """`x` of shape (batch, heads, ., .) with zeros where `axis` (-1 or -2), an axis of tokens, holds a pad."""
    if real_tokens is None:
        return x
    real = real_tokens[:, None, None, :] if axis == -1 else real_tokens[:, None, :, None]
    return x.masked_fill(~real, 0)


def _softmax(node, x, real_tokens, head_size, dropout):
    if node.type[1] == "d":
        return x.softmax(-1)
    if real_tokens is not None:
        x = x.masked_fill(~real_tokens[:, None, None, :], -math.inf)
    return F.dropout(x.softmax(-1), dropout)


def _matmul(node, x, y, real_tokens, head_size, dropout):
    if node.contracts_tokens():
        x, y = _zero_pads(x, -1, real_tokens), _zero_pads(y, -2, real_tokens)
    return x @ y


def _rows(node, x, y, real_tokens):
    """Operands of an operation between rows, with pads zeroed where a row runs over tokens."""
    if node.contracts_tokens():
        x, y = _zero_pads(x, -1, real_tokens), _zero_pads(y, -1, real_tokens)
    return x, y


def _cosine_similarity(node, x, y, real_tokens, head_size, dropout):
    x, y = _rows(node, x, y, real_tokens)
    return F.normalize(x, dim=-1, eps=COSINE_EPSILON) @ F.normalize(y, dim=-1, eps=COSINE_EPSILON).mT


def _euclidean_distance(node, x, y, real_tokens, head_size, dropout):
    x, y = _rows(node, x, y, real_tokens)
    # The exact mode: the one by matrix product loses small distances to cancellation. No half-precision kernel exists.
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.cdist(x.to(wide), y.to(wide), compute_mode="donot_use_mm_for_euclid_dist").to(x.dtype)


# What each operation of the language does. Every function takes the node, its operands, the mask of real tokens
# (batch, tokens) or None, the head size and the dropout of attention weights.
EXECUTORS = {
    "neg": lambda node, x, *_: -x,
    "transpose": lambda node, x, *_: x.mT,
    "scale": lambda node, x, real_tokens, head_size, dropout: x / math.sqrt(head_size),
    "softmax": _softmax,
    "logsigmoid": lambda node, x, *_: F.logsigmoid(x),
    "softsign": lambda node, x, *_: F.softsign(x),
    "add": lambda node, x, y, *_: x + y,
    "matmul": _matmul,
    "cosine_similarity": _cosine_similarity,
    "euclidean_distance": _euclidean_distance,
}


class ExpressionProgram:
    """An expression as steps in order: every node once, dead values freed.

    Args:
        expression: of type n×d.
        lower: hand what has the form of softmax attention to `scaled_dot_product_attention`. Without it every node
            runs by itself: that is the reference, the meaning of an expression.
    """

    def __init__(self, expression: Expression, lower: bool = True):
        self.expression = expression
        self.steps: list[tuple[Expression, FusedAttention | None, tuple[Expression, ...]]] = []
        planned = set()

        def plan(node: Expression) -> None:
            if node in planned:
                return
            planned.add(node)
            fused = FusedAttention.match(node) if lower else None
            operands = node.operands if fused is None else fused.operands
            for operand in operands:
                plan(operand)
            if operands:
                self.steps.append((node, fused, operands))

        plan(expression)
        last_use = {operand: i for i, (_, _, operands) in enumerate(self.steps) for operand in operands}
        self.dead = [[node for node, last in last_use.items() if last == i] for i in range(len(self.steps))]

    def __call__(
        self,
        inputs: dict[str, torch.Tensor],
        real_tokens: torch.Tensor | None,
        head_size: int,
        dropout: float = 0.0,
    ) -> torch.Tensor:
        """Run it.

        Args:
            inputs: `q k v p` (those used), each (batch, heads, tokens, head_size).
            real_tokens: (batch, tokens) bool, True for real tokens, at least one a row; None where all are.
            head_size: d of `scale`.
            dropout: probability with which an attention weight (an entry of a softmax over tokens) is dropped.

        Returns: (batch, heads, tokens, head_size).
        """
        values = {Expression(name): value for name, value in inputs.items()}
        for (node, fused, operands), dead in zip(self.steps, self.dead, strict=True):
            arguments = [values[operand] for operand in operands]
            if fused is None:
                values[node] = EXECUTORS[node.name](node, *arguments, real_tokens, head_size, dropout)
            else:
                values[node] = fused(*arguments, real_tokens, head_size, dropout)
            for done in dead:
                del values[done]
        return values[self.expression]


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings, mixers, layers
# ---------------------------------------------------------------------------------------------------------------------


class AutoBertZeroEmbeddings(nn.Module):
    """Word, position and token-type embeddings, as BERT's."""

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids=None, token_type_ids=None, position_ids=None, inputs_embeds=None, real_tokens=None):
        # real_tokens: (batch, tokens) bool or None
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        tokens = inputs_embeds.shape[1]
        if position_ids is None:
            if real_tokens is None:
                position_ids = torch.arange(tokens, device=inputs_embeds.device)[None]
            else:
                position_ids = (real_tokens.cumsum(1) - 1).clamp(min=0)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        embeddings = (
            inputs_embeds + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)
        )
        embeddings = self.dropout(self.LayerNorm(embeddings))
        if real_tokens is not None:
            # Even a pad that is not finite says nothing: 0 times infinity would, in a kernel that only weights it by 0.
            embeddings = embeddings.masked_fill(~real_tokens[..., None], 0)
        return embeddings


class AutoBertZeroAttention(nn.Module):
    """Mixes tokens by an attention expression: projections, the expression per head, output projection."""

    def __init__(self, config, gene: Attention):
        super().__init__()
        self.head_size = config.hidden_size // config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.program = ExpressionProgram(gene.expression)
        self.inputs = gene.expression.inputs()
        for name in self.inputs:
            setattr(self, PROJECTIONS[name], nn.Linear(config.hidden_size, config.hidden_size))
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def extra_repr(self) -> str:
        return str(self.program.expression)

    def forward(self, hidden_states: torch.Tensor, real_tokens: torch.Tensor | None = None) -> torch.Tensor:
        batch, tokens, _ = hidden_states.shape
        inputs = {
            name: getattr(self, PROJECTIONS[name])(hidden_states)
            .view(batch, tokens, -1, self.head_size)
            .transpose(1, 2)
            for name in self.inputs
        }
        mixed = self.program(inputs, real_tokens, self.head_size, self.dropout if self.training else 0.0)
        return self.dense(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class AutoBertZeroConvolution(nn.Module):
    """Mixes tokens by a depth-wise convolution between a gated and a plain linear map."""

    def __init__(self, config, gene: Convolution):
        super().__init__()
        size, kernel_size = config.hidden_size, gene.kernel_size
        self.gate = nn.Linear(size, 2 * size)
        self.convolution = nn.Conv1d(size, size, kernel_size, padding=kernel_size // 2, groups=size)
        self.dense = nn.Linear(size, size)

    def forward(self, hidden_states: torch.Tensor, real_tokens: torch.Tensor | None = None) -> torch.Tensor:
        hidden_states = F.glu(self.gate(hidden_states))
        if real_tokens is not None:
            hidden_states = hidden_states.masked_fill(~real_tokens[..., None], 0)
        # A convolution over (batch, hidden, 1, tokens) whose memory is still (batch, tokens, hidden): on a CPU this
        # channels-last form is many times as fast as conv1d on the transposed tensor, and nothing is copied.
        convolution = self.convolution
        hidden_states = F.conv2d(
            hidden_states.transpose(1, 2).unsqueeze(2),
            convolution.weight.unsqueeze(2),
            convolution.bias,
            padding=(0, convolution.padding[0]),
            groups=convolution.groups,
        )
        return self.dense(hidden_states.squeeze(2).transpose(1, 2))


class AutoBertZeroLayer(GradientCheckpointingLayer):
    """BERT's layer (post-LayerNorm) with the mixer of a gene."""

    def __init__(self, config, gene: Attention | Convolution):
        super().__init__()
        mixer = AutoBertZeroAttention if isinstance(gene, Attention) else AutoBertZeroConvolution
        self.mixer = mixer(config, gene)
        self.mixer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, real_tokens: torch.Tensor | None = None) -> torch.Tensor:
        # hidden_states: (batch, tokens, hidden); real_tokens: (batch, tokens) bool or None
        mixed = self.mixer(hidden_states, real_tokens)
        hidden_states = self.mixer_norm(hidden_states + self.dropout(mixed))
        transformed = self.output(self.activation(self.intermediate(hidden_states)))
        return self.output_norm(hidden_states + self.dropout(transformed))


class AutoBertZeroEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        # Not `config.parsed_genome()`: the remote-code loader may run the configuration module twice, and genes of the
        # other copy would not be of the classes that are imported here.
        genome = Genome.from_list(config.genome)
        self.layer = nn.ModuleList([AutoBertZeroLayer(config, gene) for gene in genome])

    def forward(self, hidden_states, real_tokens=None, output_hidden_states=False):
        all_hidden_states = (hidden_states,)
        for layer in self.layer:
            hidden_states = layer(hidden_states, real_tokens)
            if output_hidden_states:
                all_hidden_states += (hidden_states,)
        return hidden_states, all_hidden_states if output_hidden_states else None


class AutoBertZeroPooler(nn.Module):
    """First *real* token through a dense layer and tanh."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, real_tokens: torch.Tensor | None = None) -> torch.Tensor:
        if real_tokens is None:
            first = hidden_states[:, 0]
        else:
            rows = torch.arange(len(hidden_states), device=hidden_states.device)
            first = hidden_states[rows, real_tokens.int().argmax(1)]
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


class AutoBertZeroPreTrainedModel(PreTrainedModel):
    config_class = AutoBertZeroConfig
    base_model_prefix = "autobert_zero"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AutoBertZeroEmbeddings", "AutoBertZeroLayer"]
    _supports_sdpa = True
    # No loss here takes Trainer's `num_items_in_batch`: Trainer must average over accumulated batches itself.
    accepts_loss_kwargs = False


class AutoBertZeroModel(AutoBertZeroPreTrainedModel):
    """The bare encoder: hidden states of every token, and a pooled vector of the first one."""

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
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor] | BaseModelOutputWithPooling:
        """
        Args:
            input_ids: (batch, tokens) token ids; or `inputs_embeds`: (batch, tokens, hidden).
            attention_mask: (batch, tokens), nonzero for real tokens; all are real without it.
            token_type_ids: (batch, tokens), 0 without it.
            position_ids: (batch, tokens); without it real tokens count from 0.
            output_hidden_states: also return the embeddings and the output of every layer.

        Raises: ValueError for both or neither of `input_ids` and `inputs_embeds`, a mask of another shape, or more
        tokens than positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        shape = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
        if position_ids is None and shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"input_ids: expected at most max_position_embeddings={self.config.max_position_embeddings} tokens, "
                f"got {shape[1]}"
            )
        real_tokens = None
        if attention_mask is not None:
            if attention_mask.shape != shape:
                raise ValueError(f"attention_mask: expected shape {tuple(shape)}, got {tuple(attention_mask.shape)}")
            real_tokens = attention_mask.bool()
            if not torch.compiler.is_compiling() and real_tokens.all():
                real_tokens = None  # nothing is padded: take the kernels without a mask
            else:
                real_tokens = real_tokens | ~real_tokens.any(1, keepdim=True)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        embeddings = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds, real_tokens)
        sequence_output, hidden_states = self.encoder(embeddings, real_tokens, output_hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=sequence_output,
            pooler_output=None if self.pooler is None else self.pooler(sequence_output, real_tokens),
            hidden_states=hidden_states,
        )


def _masked_lm(model, head, sequence_output, labels):
    """Logits and loss of masked language modelling, only where a label stands if the config says so.

    Returns logits (batch, tokens, vocab), or (labelled tokens, vocab) under `sparse_prediction`, and the mean loss in
    nats, or None without labels.
    """
    config = model.config
    if labels is not None and config.sparse_prediction:
        labels = labels.reshape(-1)
        labelled = labels != config.sparse_pred_ignore_index
        sequence_output = sequence_output.reshape(-1, config.hidden_size)[labelled]
        labels = labels[labelled]
    logits = head(sequence_output)
    if labels is None:
        return logits, None
    return logits, F.cross_entropy(
        logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=config.sparse_pred_ignore_index
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
        **kwargs,
    ) -> tuple[torch.Tensor] | MaskedLMOutput:
        """`labels`: (batch, tokens), -100 where there is none. Other arguments as `AutoBertZeroModel`."""
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
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


@dataclass
class AutoBertZeroForPreTrainingOutput(ModelOutput):
    """Loss (sum of both), logits of both heads, hidden states; the fields of BERT's."""

    loss: torch.FloatTensor | None = None
    prediction_logits: torch.FloatTensor | None = None
    seq_relationship_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


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
        **kwargs,
    ) -> tuple[torch.Tensor] | AutoBertZeroForPreTrainingOutput:
        """`labels`: (batch, tokens), -100 where there is none. `next_sentence_label`: (batch,), 0 where the second
        segment continues the first (next sentence) or both are in order (sentence order). The loss needs both."""
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
            loss = loss + F.cross_entropy(seq_relationship_logits, next_sentence_label.view(-1))
        else:
            loss = None
        return AutoBertZeroForPreTrainingOutput(
            loss=loss,
            prediction_logits=logits,
            seq_relationship_logits=seq_relationship_logits,
            hidden_states=outputs.hidden_states,
        )


def _classifier_dropout(config: AutoBertZeroConfig) -> nn.Dropout:
    own = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if own is None else own)


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
        **kwargs,
    ) -> tuple[torch.Tensor] | SequenceClassifierOutput:
        """`labels`: (batch,) class ids or, for `num_labels == 1`, values; (batch, num_labels) floats for several
        labels at once. `config.problem_type` is found from them where it is not set, as BERT does."""
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
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


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
        **kwargs,
    ) -> tuple[torch.Tensor] | NextSentencePredictorOutput:
        """`labels`: (batch,), 0 where the second segment continues the first, 1 where it does not."""
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
        loss = None if labels is None else F.cross_entropy(logits, labels.view(-1))
        return NextSentencePredictorOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


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
        **kwargs,
    ) -> tuple[torch.Tensor] | TokenClassifierOutput:
        """`labels`: (batch, tokens) class ids, -100 where there is none."""
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
        loss = None if labels is None else F.cross_entropy(logits.view(-1, self.num_labels), labels.view(-1))
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


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
        **kwargs,
    ) -> tuple[torch.Tensor] | QuestionAnsweringModelOutput:
        """`start_positions`, `end_positions`: (batch,) token positions; outside the sequence they are ignored."""
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
        if attention_mask is not None:
            # The loss sums over tokens, and so does whoever takes a softmax: pads must not count there, either.
            logits = logits.masked_fill(attention_mask[..., None] == 0, torch.finfo(logits.dtype).min)
        start_logits, end_logits = logits.unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            tokens = start_logits.shape[1]
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
        **kwargs,
    ) -> tuple[torch.Tensor] | MultipleChoiceModelOutput:
        """All inputs have an axis of choices behind the batch: (batch, choices, tokens). `labels`: (batch,)."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        choices = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        flat = {name: None if value is None else value.flatten(0, 1) for name, value in inputs.items()}
        outputs = self.autobert_zero(**flat, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output)).view(-1, choices)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


# Which Auto class builds which model; `AUTO_MAP` of the configuration says the same to the remote-code loader.
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
    # A module that the remote-code loader made must not register: every checkpoint brings its own copy of the class.
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
