"""What `accelerate launch` and `accelerate config` request: honoured, or an error."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend

from autobert_zero.search.report.tables import PRECISIONS
from autobert_zero.search.run.errors import UsageError
from autobert_zero.search.settings import SearchSettings


def check_precision(settings: SearchSettings) -> None:
    """Check the precision that the settings or the launcher ask for, before an Accelerator is created.

    Raises: UsageError for one that a search does not honour, or not on this machine.
    """
    precision = settings.training.mixed_precision
    if precision == "no":
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in PRECISIONS:
        raise UsageError(f"mixed_precision: expected one of {list(PRECISIONS)}, got {precision!r}")
    if precision == "fp16" and not torch.accelerator.is_available():
        raise UsageError("mixed_precision: expected no or bf16 on a CPU, got 'fp16'")


def apply_requests(settings: SearchSettings, accelerator: Accelerator) -> SearchSettings:
    """The settings with what the launcher requests.

    Raises: UsageError for a request that a search does not honour: of sharded models (FSDP, DeepSpeed, Megatron-LM, tensor
        or context parallel), of gradient accumulation, of another backend of torch.compile than inductor.
    """
    launched = int(os.environ.get("WORLD_SIZE", accelerator.num_processes))
    if accelerator.num_processes != launched:
        raise UsageError(
            f"the launcher started {launched} processes, but they run as {accelerator.num_processes}: "
            "set ACCELERATE_USE_CPU=true to run several on CPUs"
        )
    kind = accelerator.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise UsageError(
            f"distributed_type: expected one model per process, whose processes share the work, got {kind}: "
            "a search does not shard models"
        )
    parallel = accelerator.parallelism_config
    if parallel is not None and (sharded := parallel.total_size // parallel.dp_replicate_size) > 1:
        raise UsageError(
            f"parallelism_config: expected models that are not sharded, got shards over {sharded} processes"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise UsageError(
            f"gradient_accumulation_steps: expected 1, got {accelerator.gradient_accumulation_steps}: "
            "micro_batch_size divides a batch"
        )
    requested = {}
    plugin = accelerator.state.dynamo_plugin
    if plugin.backend != DynamoBackend.NO:
        if plugin.backend != DynamoBackend.INDUCTOR:
            raise UsageError(f"dynamo_backend: expected no or inductor, got {plugin.backend.value.lower()}")
        for option in ("mode", "fullgraph", "dynamic"):
            value = getattr(plugin, option)
            if value not in ("default", None, False):
                raise UsageError(f"dynamo_{option}: expected its default, got {value!r}")
        requested["compile"] = True
    if accelerator.mixed_precision != "no":
        requested["mixed_precision"] = accelerator.mixed_precision
    return settings.replace(**requested)
