"""What `accelerate launch` and `accelerate config` request: honoured, or an error; and processes that share a device."""

import os
from datetime import timedelta

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, InitProcessGroupKwargs, KwargsHandler

from autobert_zero.search.report.tables import PRECISIONS
from autobert_zero.search.run.errors import UsageError
from autobert_zero.search.settings import SearchSettings


# Memory of a process beside its tensors: the context of the device, and kernels.
CONTEXT_BYTES = 512 << 20
# How long processes wait for each other: while the first of them tokenizes the text.
WAITING = timedelta(hours=2)


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


def communication(settings: SearchSettings) -> list[KwargsHandler]:
    """How the processes communicate, for an Accelerator: by gloo if they share devices, because NCCL refuses that."""
    shared = {"backend": "gloo"} if settings.run.processes_per_device > 1 else {}
    return [InitProcessGroupKwargs(timeout=WAITING, **shared)]


def check_sharing(settings: SearchSettings, device: torch.device) -> None:
    """Check that this machine runs as many processes as the setting says; of those on CPUs there may be any number.

    Raises: UsageError if not.
    """
    each, started = settings.run.processes_per_device, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    devices = 1 if device.type == "cpu" else torch.accelerator.device_count()
    if each == 1 and (started <= devices or device.type == "cpu"):
        return
    if started != each * devices:
        raise UsageError(
            f"processes_per_device: {each} for each of {devices} {device.type} device{'s'[: devices > 1]} is "
            f"{each * devices} in all, but the launcher started {started} on this machine"
        )


def check_shared_memory(settings: SearchSettings, device: torch.device, required: int) -> None:
    """Check that the memory of a device suffices for the processes that share it.

    Args:
        required: bytes of the tensors of one process.

    Raises: UsageError if not.
    """
    each = settings.run.processes_per_device
    if each == 1:
        return
    if device.type == "cpu":
        memory = psutil.virtual_memory().total
    else:
        memory = torch.get_device_module(device).mem_get_info(device)[1]
    if (total := each * (required + CONTEXT_BYTES)) > memory:
        raise UsageError(
            f"processes_per_device: {each} need {total >> 20:,} MiB of memory, a device has {memory >> 20:,} MiB; "
            "expected fewer of them, a smaller micro_batch_size or gradient_checkpointing"
        )
