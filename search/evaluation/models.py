"""From a genome to the model of a run."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from autobert_zero.configuration_autobert_zero import AutoBertZeroConfig, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.custom_operations import CustomOperations
from autobert_zero.search.settings import ModelSettings


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let a model compute the activations inside its layers again in the backward pass, instead of storing them."""
    # The second name is that of older versions of transformers.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


@dataclass(frozen=True)
class ModelBuilder:
    """Makes the masked language models of a run, all of one size.

    Args:
        settings: sizes and dropout.
        vocab_size, pad_token_id: of the tokenizer.
        custom_operations: that genomes may use.
    """

    settings: ModelSettings
    vocab_size: int
    pad_token_id: int
    custom_operations: CustomOperations = CustomOperations()

    def config(self, genome: Genome) -> AutoBertZeroConfig:
        settings, custom = self.settings, self.custom_operations
        return AutoBertZeroConfig(
            genome=genome.to_list(),
            custom_operations=dict(custom.rules) or None,
            custom_operations_digest=custom.digest,
            vocab_size=self.vocab_size,
            hidden_size=settings.hidden_size,
            num_attention_heads=settings.num_attention_heads,
            intermediate_size=settings.intermediate_size,
            initializer_range=settings.initializer_range,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.dropout,
            max_position_embeddings=settings.sequence_length,
            position_embedding_type=settings.position_embedding_type,
            rope_theta=settings.rope_theta,
            pad_token_id=self.pad_token_id,
            sparse_prediction=True,
        )

    def model(self, genome: Genome) -> AutoBertZeroForMaskedLM:
        """The model with random weights."""
        return AutoBertZeroForMaskedLM(self.config(genome))
