"""A found model as a repository of the Hub: weights, configuration, tokenizer, code, picture, and a model card."""

import hashlib
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open

from autobert_zero.search.files import file_digest, read_json, replace_folder
from autobert_zero.search.report import notation, tables
from autobert_zero.search.report.drawing import draw_genome, to_svg
from autobert_zero.search.report.recorded_run import Summary, read_summary


TEMPLATE = Path(__file__).with_name("templates") / "model_card.md"
PICTURE = "backbone.svg"


def missing_files(folder: Path, summary: Summary) -> list[str]:
    """Files that the model of a run was saved with, and its folder lacks."""
    expected = summary.get("model_files", ["config.json", "model.safetensors"])  # not in those of earlier versions
    return [name for name in expected if not (folder / name).is_file()]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the Python files of a folder, which `trust_remote_code` runs."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.py"))}


def model_card(
    summary: dict[str, Any],
    code: dict[str, str],
    name: str,
    repository: str | None = None,
    license: str | None = None,
    language: list[str] | None = None,
) -> ModelCard:
    """The card of a found model.

    Args:
        summary: `summary.json` of the run.
        code: the files that `trust_remote_code` runs, with their SHA-256.
        name: its title, and its name in the list of results.
        repository: `USER/NAME` on the Hub; None for this placeholder.
        license, language: codes of the Hub, such as `apache-2.0` and `en`.
    """
    results, tokens = summary["results"], summary["tokens"]
    found = next(iter(results.values()))
    evaluated = [
        EvalResult(
            task_type="fill-mask",
            task_name="Masked language modelling",
            dataset_type="held-out",
            dataset_name=f"held-out part of {summary['data']['source']}",
            metric_type=metric,
            metric_value=round(found[metric], 4),
        )
        for metric in ("loss", "perplexity")
        if found[metric] is not None
    ]
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["autobert-zero", "neural-architecture-search", "masked-lm"],
        license=license,
        language=language,
        model_name=name,
        eval_results=evaluated,
    )
    genome = tables.summary_genome(summary)
    names = notation.layer_names(genome)
    attentions = found.get("attention_by_distance", {})
    training = {
        "text": summary["data"]["source"],
        "train, validation and test tokens": ", ".join(
            f"{tokens[part]:,}" for part in ("train", "validation", "test")
        ),
        "training tokens of this model, and of BERT": f"{tokens['final_each']:,}",
        "candidates evaluated": f"{summary['counts']['evaluated']:,}",
        "seed": summary["seed"],
        "machine": tables.machine_text(summary["machine"]),
        "arithmetic": tables.PRECISIONS[summary["settings"]["mixed_precision"]],
        "command": f"`{summary['command']}`",
        "commit": summary["commit"],
        "versions": ", ".join(f"{package} {version}" for package, version in summary["versions"].items()),
    }
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        name=name,
        repository=repository or "USER/NAME",
        picture=PICTURE,
        code=code,
        backbone=notation.genome_text(genome),
        training={fact: value for fact, value in training.items() if value is not None},
        results=tables.result_rows(summary),
        layer_rows=tables.layer_rows(summary, names),
        layers_note=tables.layers_note(summary, names),
        unweighted_note=tables.unweighted_note(summary, names),
        measured_models=list(tables.layer_importance(summary)),
        attentions={layer: tables.attention_text(heads) for layer, heads in attentions.items()},
        note=tables.learning_note(summary),
        positions=summary["settings"]["sequence_length"],
    )


def describe(folder: Path, summary: dict[str, Any], name: str, **card: Any) -> None:
    """Write the picture and the card of a model into its folder."""
    genome = tables.summary_genome(summary)
    (folder / PICTURE).write_text(to_svg(draw_genome(notation.simplified(genome))), encoding="utf-8")
    model_card(summary, digests(folder), name, **card).save(folder / "README.md")


def _is_export_of(run: Path, output: Path) -> bool:
    """Whether a folder holds the model of a run and nothing else, so that it can be exported again."""
    expected = {path.name for path in (run / "model").iterdir()} | {PICTURE, "README.md"}
    weights = (run / "model" / "model.safetensors", output / "model.safetensors")
    return (
        {path.name for path in output.iterdir()} <= expected
        and weights[1].exists()
        and file_digest(weights[0]) == file_digest(weights[1])
    )


def _check_model(folder: Path, summary: Summary) -> None:
    """Raise a ValueError unless a folder holds the model of a summary, as far as its files show."""
    if missing := missing_files(folder, summary):
        raise ValueError(f"run: expected a model in {str(folder)!r}, got none of its {', '.join(missing)}")
    if read_json(folder / "config.json", dict[str, Any]).get("genome") != summary["best"]["genome"]:
        raise ValueError(f"run: expected the genome of summary.json in {str(folder / 'config.json')!r}, got another")
    weights = folder / "model.safetensors"
    try:
        with safe_open(weights, framework="pt") as file:
            count = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"run: cannot read {str(weights)!r}: {error}") from None
    expected = next(iter(summary["results"].values())).get("parameters")
    if expected is not None and count != expected:
        raise ValueError(f"run: expected {expected:,} parameters in {str(weights)!r}, got {count:,}")


def export(run: Path, output: Path, repository: str | None = None, **card: Any) -> None:
    """Copy the model of a finished run to a new folder that is ready for the Hub; completely or not at all.

    Raises: ValueError if the run is not finished, its model is damaged or that of another run, or `output` holds anything
        but an earlier export of it; OSError, with nothing left behind, if a file cannot be copied.
    """
    if not (run / "summary.json").exists() or not (run / "model").is_dir():
        raise ValueError(f"run: expected the folder of a finished run, got {str(run)!r}")
    summary = read_summary(run / "summary.json")
    _check_model(run / "model", summary)
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not _is_export_of(run, output))):
        raise ValueError(f"output: expected a new or an empty folder, got {str(output)!r}")
    output.parent.mkdir(parents=True, exist_ok=True)
    name = (repository or output.resolve().name).rpartition("/")[2]
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.") as place:
        copy = Path(place, "model")
        try:
            shutil.copytree(run / "model", copy)
        except shutil.Error as error:
            [(source, _, why), *_] = error.args[0]
            raise OSError(f"cannot copy {source!r}: {why}") from None
        describe(copy, summary, name, repository=repository, **card)
        replace_folder(copy, output)


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder to the Hub as one commit. Returns the URL of the commit, whose hash is a `revision` to pin.

    Raises: ValueError for a public repository, if it is to be private; huggingface_hub's errors; OSError without a network.
    """
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    if private and not api.repo_info(repository).private:  # it existed
        raise ValueError(f"private: expected a private repository, got {repository}, which is public")
    return api.upload_folder(
        folder_path=folder, repo_id=repository, commit_message="Model found by AutoBERT-Zero"
    ).commit_url
