"""What a training that goes on in a folder needs to know: that it is the same one, where it was, and when all of it is over."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from autobert_zero.search import reporting
from autobert_zero.search.text import file_digest


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Of the scripts' own description as it stands, and with the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default == []
        return action.help if says_nothing else super()._get_help_string(action)


# Arguments of Trainer that its steps depend on.
STEPS_DEPEND_ON = (
    *("seed", "max_steps", "num_train_epochs", "learning_rate", "weight_decay", "warmup_steps", "lr_scheduler_type"),
    *("max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon", "optim", "bf16", "fp16", "label_smoothing_factor"),
)
# Others, which count where they are not at their defaults.
STEPS_MAY_DEPEND_ON = (
    *("lr_scheduler_kwargs", "optim_args", "data_seed", "dataloader_drop_last", "neftune_noise_alpha"),
    "train_sampling_strategy",
)


def model_identity(model: str, revision: str) -> dict[str, str]:
    """Of a folder the digests of configuration and weights; of a model of the Hub its name and revision."""
    if not Path(model).is_dir():
        return {"name": model, "revision": revision}
    files = sorted(p for p in Path(model).iterdir() if p.name == "config.json" or p.suffix in (".safetensors", ".bin"))
    return {path.name: file_digest(path) for path in files}


def steps_identity(args: TrainingArguments) -> dict[str, Any]:
    """Of the arguments of Trainer; `batch` is all that makes one update."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    defaults = {each.name: each.default for each in dataclasses.fields(args)}
    others = [
        name
        for name in STEPS_MAY_DEPEND_ON
        if name in defaults and getattr(args, name) not in (defaults[name], None, {})
    ]
    return {**{name: str(getattr(args, name)) for name in (*STEPS_DEPEND_ON, *others)}, "batch": batch}


def differences(found: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    """Names under which two identities differ."""
    identity = json.loads(json.dumps(identity))
    return sorted(name for name in {*found, *identity} if found.get(name) != identity.get(name))


def hold_settings(args: TrainingArguments, identity: dict[str, Any]) -> None:
    """Write down what is trained in the output folder. Raises: ValueError where something else is, by the names that differ."""
    with args.main_process_first(desc="settings"):
        if args.process_index == 0:
            _hold_settings(Path(args.output_dir), identity)


def _hold_settings(folder: Path, identity: dict[str, Any]) -> None:
    path = folder / "training.json"
    if path.exists():
        if different := differences(json.loads(path.read_text(encoding="utf-8")), identity):
            raise ValueError(f"output_dir: {folder} holds a training that differs in {', '.join(different)}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
        raise ValueError(f"output_dir: {folder} holds checkpoints of something else")
    reporting.write_json(path, identity)


def last_checkpoint(folder: Path) -> str | None:
    """The last whole one: the state of the trainer is what is written last."""
    for path in sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda p: -int(p.name.split("-")[-1])):
        try:
            TrainerState.load_from_json(str(path / "trainer_state.json"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def end_together() -> None:
    """The last call of a script of several processes: one that ends while another still listens to it can abort both."""
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
