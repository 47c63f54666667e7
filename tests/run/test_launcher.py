"""What a launcher requests is done, or is an error: never silently ignored."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate.utils import DistributedType, DynamoBackend
from accelerate.utils.dataclasses import TorchDynamoPlugin

from autobert_zero.search.run.errors import UsageError
from autobert_zero.search.run.launcher import (
    CONTEXT_BYTES,
    apply_requests,
    check_precision,
    check_shared_memory,
    check_sharing,
    communication,
)
from autobert_zero.search.settings import SearchSettings
from tests.conftest import TINY_RUN, command_line, write_corpus


def launched(**changes) -> SimpleNamespace:
    """An Accelerator of one process without requests, but for the changes."""
    options = {name: changes.pop(name) for name in ("backend", "mode", "fullgraph") if name in changes}
    plugin = TorchDynamoPlugin(**{"backend": DynamoBackend.NO, **options})
    return SimpleNamespace(
        **{
            "num_processes": 1,
            "distributed_type": DistributedType.NO,
            "parallelism_config": None,
            "gradient_accumulation_steps": 1,
            "mixed_precision": "no",
            "state": SimpleNamespace(dynamo_plugin=plugin),
            **changes,
        }
    )


def test_requests_become_settings():
    settings = SearchSettings()
    assert apply_requests(settings, launched()) == settings
    assert apply_requests(settings, launched(distributed_type=DistributedType.MULTI_GPU)) == settings
    assert apply_requests(settings, launched(mixed_precision="bf16")) == settings.replace(mixed_precision="bf16")
    assert apply_requests(settings, launched(backend="INDUCTOR")) == settings.replace(compile=True)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"distributed_type": DistributedType.FSDP}, "distributed_type: expected one model per process.*got FSDP"),
        ({"distributed_type": DistributedType.DEEPSPEED}, "distributed_type: .*got DEEPSPEED"),
        (
            {"parallelism_config": SimpleNamespace(total_size=8, dp_replicate_size=2)},
            "parallelism_config: expected models that are not sharded, got shards over 4 processes",
        ),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps: expected 1, got 4"),
        ({"backend": "INDUCTOR", "mode": "max-autotune"}, "dynamo_mode: expected its default, got 'max-autotune'"),
        ({"backend": "INDUCTOR", "fullgraph": True}, "dynamo_fullgraph: expected its default, got True"),
        ({"backend": "AOT_EAGER"}, "dynamo_backend: expected no or inductor, got aot_eager"),
    ],
)
def test_requests_that_cannot_be_honoured(request_, message):
    with pytest.raises(UsageError, match=message):
        apply_requests(SearchSettings(), launched(**request_))


@pytest.mark.parametrize("given", ["setting", "launcher"])
def test_precisions_that_cannot_be_honoured(monkeypatch, given):
    def check(name):
        if given == "launcher":
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", name)
        check_precision(SearchSettings.from_dict({"mixed_precision": name if given == "setting" else "no"}))

    check("bf16")
    with pytest.raises(UsageError, match="mixed_precision: expected no or bf16 on a CPU, got 'fp16'"):
        check("fp16")
    if given == "launcher":
        with pytest.raises(UsageError, match=r"mixed_precision: expected one of .*got 'fp8'"):
            check("fp8")


@pytest.mark.parametrize(
    ("device", "devices", "each", "started", "message"),
    [
        ("cuda", 2, 1, 2, None),
        ("cuda", 2, 1, 1, None),
        ("cuda", 2, 4, 8, None),
        ("cuda", 1, 1, 4, "1 for each of 1 cuda device is 1 in all, but the launcher started 4"),
        ("cuda", 2, 4, 4, "4 for each of 2 cuda devices is 8 in all, but the launcher started 4"),
        ("cpu", 0, 1, 4, None),
        ("cpu", 0, 2, 2, None),
        ("cpu", 0, 2, 1, "2 for each of 1 cpu device is 2 in all, but the launcher started 1"),
    ],
)
def test_processes_that_share_a_device(monkeypatch, device, devices, each, started, message):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(started))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: devices)
    settings = SearchSettings.from_dict({"processes_per_device": each})
    [handler] = communication(settings)
    assert handler.to_kwargs().get("backend") == (None if each == 1 else "gloo")
    assert handler.timeout > timedelta(hours=1)  # the others wait while one tokenizes the text
    if message is None:
        check_sharing(settings, torch.device(device))
    else:
        with pytest.raises(UsageError, match=f"processes_per_device: {message} on this machine"):
            check_sharing(settings, torch.device(device))


def test_memory_of_processes_that_share_a_device(monkeypatch):
    memory = 10 << 30
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=memory))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, memory))
    two, one = (SearchSettings.from_dict({"processes_per_device": each}) for each in (2, 1))
    for device in map(torch.device, ("cpu", "cuda")):
        check_shared_memory(two, device, memory // 2 - CONTEXT_BYTES)
        check_shared_memory(one, device, 2 * memory)  # its own business
        with pytest.raises(UsageError, match="processes_per_device: 2 need 10,240 MiB of memory, a device has 10,240"):
            check_shared_memory(two, device, memory // 2 - CONTEXT_BYTES + 1)


def run(settings: SearchSettings, *launch: str, code: int = 0) -> str:
    command = [sys.executable, "-m", *launch, "-m", "autobert_zero.search", *command_line(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == code, done.stderr
    return done.stderr


def records(settings: SearchSettings) -> list[dict]:
    lines = Path(settings.run.output_dir, "history.jsonl").read_text().splitlines()[1:]
    return [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "digest")} for line in lines]


ONE = ("accelerate.commands.launch", "--cpu", "--num_processes", "1", "--mixed_precision")
TWO = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--mixed_precision")


@pytest.mark.slow
def test_a_search_in_bfloat16(tmp_path):
    """What `accelerate launch --mixed_precision bf16` asks for is done, recorded, and resumed on any number of processes."""
    corpus = write_corpus(tmp_path / "corpus.txt")
    settings = SearchSettings.from_dict({"train_file": [corpus], **TINY_RUN, "dropout": 0.0, "initializer_range": 0.3})
    folders = {name: settings.replace(output_dir=str(tmp_path / name)) for name in ("bf16", "float32", "interrupted")}
    run(folders["bf16"], *ONE, "bf16")
    run(folders["float32"], *ONE, "no")
    found = records(folders["bf16"])
    assert found != records(folders["float32"])
    for name in ("history.jsonl", "summary.json"):
        first = (tmp_path / "bf16" / name).read_text()
        value = json.loads(first.splitlines()[0] if name.endswith("l") else first)
        assert value["settings"]["mixed_precision"] == "bf16"
    assert "| arithmetic | bfloat16, by autocast |" in (tmp_path / "bf16" / "model" / "README.md").read_text()
    assert "bfloat16, by autocast" in (tmp_path / "bf16" / "report.html").read_text()
    # Interrupted after some candidates, and continued in two processes.
    run(folders["interrupted"].replace(max_evaluations=5), *ONE, "bf16")
    run(folders["interrupted"], *TWO, "bf16")
    assert records(folders["interrupted"]) == found
    # A run does not change its precision.
    error = run(folders["bf16"].replace(max_evaluations=20), *ONE, "no", code=1)  # the launcher's code
    assert "mixed_precision='bf16' (got 'no')" in error
