"""Convert a checkpoint of another model into one of AutoBERT-Zero.

    python examples/convert_checkpoint.py bert-base-uncased converted/
    python examples/convert_checkpoint.py path/to/AutoBERT-Zero-pytorch converted/

Two layouts are supported:

- BERT, as transformers saves it. The result has self-attention in every layer and the same outputs as BERT.
- The community port JunnYu/AutoBERT-Zero-pytorch with light convolutions: the published architecture at any size. It has
  three differences: all channels of a head share a kernel (the kernel is repeated), a softmax may be applied to a kernel
  (`weight_softmax`; it is applied once), and the feed-forward half of a convolution layer adds its input twice,
  LayerNorm(2x + f(x)), which is LayerNorm(x + f(x)/2) (the last map is halved). The port masks query rows instead of key
  columns, so its outputs on padded batches differ, deliberately; without padding they agree.

The head of the class that saved the checkpoint is kept. A tokenizer saved with the checkpoint is copied.
"""

import argparse
import os
import pickle
import re
from collections.abc import Callable

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, PretrainedConfig
from transformers.utils import cached_file

from autobert_zero import modeling_autobert_zero
from autobert_zero.configuration_autobert_zero import (
    PUBLISHED_GENOME,
    SELF_ATTENTION,
    AutoBertZeroConfig,
    Convolution,
    Genome,
)
from autobert_zero.modeling_autobert_zero import AutoBertZeroModel, AutoBertZeroPreTrainedModel
from autobert_zero.search.cli.arguments import path
from autobert_zero.search.files import one_line
from autobert_zero.search.text.tokens import expect_vocabulary


Weights = dict[str, torch.Tensor]

# Fields with the same meaning in all three configurations.
SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "classifier_dropout",
    "tie_word_embeddings",
    "problem_type",
    "id2label",
    "label2id",
)

# Parts of parameter names, in the order of replacement.
BERT_NAMES = {
    r"^bert\.": "autobert_zero.",
    r"\.attention\.self\.": ".mixer.",
    r"\.attention\.output\.dense\.": ".mixer.dense.",
    r"\.attention\.output\.LayerNorm\.": ".mixer_norm.",
    r"\.intermediate\.dense\.": ".intermediate.",
    r"\.output\.dense\.": ".output.",
    r"\.output\.LayerNorm\.": ".output_norm.",
    r"^cls\.": "",
    r"^predictions\.transform\.": "predictions.",
    # Names in checkpoints converted from TensorFlow.
    r"\.gamma$": ".weight",
    r"\.beta$": ".bias",
}
PORT_NAMES = {
    r"^autobert\.layer\.": "autobert_zero.encoder.layer.",
    r"^autobert\.": "autobert_zero.",
    r"\.Linear1\.": ".mixer.gate.",
    r"\.conv\.": ".mixer.convolution.",
    r"\.Linear2\.": ".mixer.dense.",
    r"\.layer_norms\.0\.": ".mixer_norm.",
    r"\.layer_norms\.1\.": ".output_norm.",
    r"\.fc1\.": ".intermediate.",
    r"\.fc2\.": ".output.",
    r"\.self_attention\.": ".mixer.",
    r"\.self_output\.dense\.": ".mixer.dense.",
    r"\.self_output\.LayerNorm\.": ".mixer_norm.",
    r"\.intermediate_output\.dense\.": ".output.",
    r"\.intermediate_output\.LayerNorm\.": ".output_norm.",
    r"\.intermediate\.dense\.": ".intermediate.",
    r"^pooler\.": "autobert_zero.pooler.",
    r"^cls\.": "",
    r"^predictions\.transform\.": "predictions.",
}
# The decoder's bias under a second name, and constant buffers.
IGNORED = re.compile(r"(^|\.)(predictions\.bias|position_ids|token_type_ids)$")


def rename(weights: Weights, names: dict[str, str]) -> Weights:
    renamed = {}
    for name, weight in weights.items():
        if name.endswith("predictions.bias"):
            renamed["predictions.decoder.bias"] = weight  # its other name may be missing
        if IGNORED.search(name):
            continue
        for old, new in names.items():
            name = re.sub(old, new, name)
        renamed[name] = weight
    return renamed


def convert_bert(config: dict, weights: Weights) -> tuple[Genome, Weights]:
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"position_embedding_type: expected absolute, got {config['position_embedding_type']}")
    if config.get("is_decoder", False):
        raise ValueError("is_decoder: expected false, got true")
    prefixed = any(name.startswith(("bert.", "cls.")) for name in weights)
    if not prefixed:  # saved from BertModel: no head
        weights = {f"bert.{name}": weight for name, weight in weights.items()}
    return Genome([SELF_ATTENTION] * config["num_hidden_layers"]), rename(weights, BERT_NAMES)


def convert_port(config: dict, weights: Weights) -> tuple[Genome, Weights]:
    if not config.get("use_glu", True):
        raise ValueError("use_glu: expected true, got false")
    sizes, layers = config.get("kernel_size_list", [65, 9, 3, 7, 7, 3]), config.get("num_hidden_layers", 12)
    if not 0 < layers <= min(len(PUBLISHED_GENOME), 2 * len(sizes)):
        raise ValueError(
            f"num_hidden_layers: expected up to {min(len(PUBLISHED_GENOME), 2 * len(sizes))}, got {layers}"
        )
    genome = Genome(
        Convolution(sizes[layer // 2]) if layer % 2 == 0 else PUBLISHED_GENOME[layer] for layer in range(layers)
    )
    if not any(name.startswith("autobert.") for name in weights):
        weights = {f"autobert.{name}": weight for name, weight in weights.items()}
    weights = rename(weights, PORT_NAMES)
    for layer, gene in enumerate(genome):
        if not isinstance(gene, Convolution):
            continue
        prefix = f"autobert_zero.encoder.layer.{layer}."
        kernel = weights[prefix + "mixer.convolution.weight"]  # (heads, 1, kernel size)
        if config.get("weight_softmax", False):
            kernel = kernel.softmax(-1)
        channels = config["hidden_size"] // len(kernel)
        weights[prefix + "mixer.convolution.weight"] = kernel.repeat_interleave(channels, 0)
        weights[prefix + "mixer.convolution.bias"] = torch.zeros(config["hidden_size"])
        for name in ("output.weight", "output.bias"):
            weights[prefix + name] = weights[prefix + name] / 2
    return genome, weights


LAYOUTS: dict[str, Callable[[dict, Weights], tuple[Genome, Weights]]] = {
    "bert": convert_bert,
    "autobert": convert_port,
}


def model_class(config: dict) -> type[AutoBertZeroPreTrainedModel]:
    """The class with the head of the class that saved the checkpoint: BertForMaskedLM gives AutoBertZeroForMaskedLM."""
    architectures = config.get("architectures") or ["Model"]
    if len(architectures) != 1:
        raise ValueError(f"architectures: expected one, got {architectures}")
    [saved] = architectures
    head = re.search(r"For[A-Z]\w+$", saved)
    name = f"AutoBertZero{head.group() if head else 'Model'}"
    if not hasattr(modeling_autobert_zero, name):
        raise ValueError(f"architectures: expected a head of BERT, got {saved}")
    return getattr(modeling_autobert_zero, name)


def read_weights(name: str) -> Weights:
    safetensors = cached_file(name, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    file = safetensors or cached_file(name, "pytorch_model.bin")
    try:
        return load_file(file) if safetensors else torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"weights: cannot read {str(file)!r}: {one_line(error)}") from None


def convert(name: str) -> AutoBertZeroPreTrainedModel:
    """The converted model.

    Args:
        name: folder or Hub name of the checkpoint.

    Raises: ValueError if its layout is unknown, its weights do not fit, or a file is damaged; OSError if one is missing.
    """
    config, _ = PretrainedConfig.get_config_dict(name)
    if config.get("model_type") not in LAYOUTS:
        raise ValueError(f"model_type: expected one of {list(LAYOUTS)}, got {config.get('model_type')}")
    weights = read_weights(name)
    try:
        genome, weights = LAYOUTS[config["model_type"]](config, weights)
    except KeyError as error:
        raise ValueError(f"config.json, weights: expected {error}, got none") from None
    except TypeError as error:
        raise ValueError(f"config.json: expected a configuration, got one with {one_line(error)}") from None
    try:
        fields = {field: config[field] for field in SHARED_FIELDS if field in config}
        model = model_class(config)(AutoBertZeroConfig(genome=genome.to_list(), **fields))
    except (StrictDataclassError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"config.json: expected a configuration, got one with {one_line(error)}") from None
    if isinstance(model, AutoBertZeroModel):
        weights = {key.removeprefix("autobert_zero."): weight for key, weight in weights.items()}
    try:
        missing, unknown = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"weights: {one_line(error)}") from None
    # A checkpoint may lack the tied decoder, and may have the pooler and the sentence-pair head of BERT's pre-training.
    # The port's bare encoder has no pooler; its weights remain random.
    if model.config.tie_word_embeddings:
        missing = [key for key in missing if key != "predictions.decoder.weight"]
    if isinstance(model, AutoBertZeroModel):
        missing = [key for key in missing if not key.startswith("pooler.")]
    unknown = [key for key in unknown if "pooler." not in key and not key.startswith("seq_relationship.")]
    if missing or unknown:
        raise ValueError(f"weights: missing {missing}, unexpected {unknown}")
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder, or name on the Hub")
    parser.add_argument("output_dir", type=path, help="folder to save the model in: a new or an empty one")
    args = parser.parse_args(arguments)
    checkpoint = os.path.expanduser(args.checkpoint)
    try:
        if args.output_dir.exists() and (not args.output_dir.is_dir() or any(args.output_dir.iterdir())):
            raise ValueError(f"output_dir: expected a new or an empty folder, got {str(args.output_dir)!r}")
        model = convert(checkpoint)
        model.save_pretrained(args.output_dir)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        expect_vocabulary(tokenizer, checkpoint)
        tokenizer.save_pretrained(args.output_dir)
    except Exception as error:  # transformers raises many kinds for damaged files
        print(f"no tokenizer was copied: {one_line(error)}")
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters in {args.output_dir}")
    print(model.describe())


if __name__ == "__main__":
    main()
