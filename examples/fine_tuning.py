"""What the fine-tuning scripts share: defaults of Trainer, and whether a model takes what it will be given."""

from dataclasses import dataclass, field

from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers import TrainingArguments as TransformersArguments


@dataclass
class FineTuningArguments(TransformersArguments):
    """transformers' own, with defaults for fine-tuning."""

    learning_rate: float = field(default=5e-5, metadata={"help": "Peak learning rate, if there is no grid."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Updates, or their share, in which the rate rises."})
    weight_decay: float = field(default=0.01, metadata={"help": "Of all but biases and norms."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows of a device in an update."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows of a device in an evaluation."})


def check_fit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> None:
    """Raises: ValueError for a tokenizer larger than the model's vocabulary, and more tokens than it has positions."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"model: expected a tokenizer of at most {config.vocab_size} tokens, the vocabulary of the model, "
            f"got one of {len(tokenizer)}"
        )
    if max_seq_length > config.max_position_embeddings:
        raise ValueError(
            f"max_seq_length: expected at most {config.max_position_embeddings}, the positions of the model, "
            f"got {max_seq_length}"
        )
