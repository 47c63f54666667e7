"""`autobert-zero env`: what a bug report needs to say about the installation."""

import argparse
import platform


SUMMARY = "print versions, device and commit, for bug reports"
DESCRIPTION = (
    "Print what a bug report needs to say about this installation: versions, processor or accelerator, and commit."
)
EXAMPLE = "autobert-zero env"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    import torch

    from autobert_zero.search.evaluation.measure import default_device
    from autobert_zero.search.provenance import commit, machine, versions

    device = default_device()
    facts = {
        **versions(),
        "commit": commit() or "none: not a checkout",
        "system": platform.platform(),
        "device": f"{device.type}: {machine(device.type)}",
        "threads": str(torch.get_num_threads()),
    }
    for name, value in facts.items():
        print(f"{name:14} {value}")
