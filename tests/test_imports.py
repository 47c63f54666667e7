"""Who may import whom. The rule keeps the pure side free of torch, and the root files fit for the remote-code loader."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "autobert_zero."

# What each module may import of the project; all of it, transitively.
ALLOWED = {
    "configuration_autobert_zero": set(),
    "modeling_autobert_zero": {"configuration_autobert_zero"},
    "search.settings": {"configuration_autobert_zero"},
    "search.functional_key": {"configuration_autobert_zero"},
    "search.grammar": {"configuration_autobert_zero"},
    "search.mutation": {"configuration_autobert_zero", "search.grammar", "search.space"},  # space: for types only
    "search.space": {"configuration_autobert_zero", "search.functional_key", "search.grammar", "search.mutation"},
    "search.pareto": set(),
    "search.records": {"search.pareto"},
    "search.priority": {"search.records"},
    "search.strategies": {"search.priority", "search.records"},
    "search.evolution": {"search.costs", "search.records", "search.settings", "search.strategies"},
    "search.history": {"configuration_autobert_zero", "search.records"},
    "search.costs": {"configuration_autobert_zero"},
    "search.factory": {
        "configuration_autobert_zero",
        "search.costs",
        "search.settings",
        "search.space",
        "search.strategies",
    },
    "search.stopping": set(),
    "search.masking": set(),
    "search.text": {"search.reporting", "search.settings"},
    "search.data": {"search.masking", "search.settings", "search.text"},
    "search.training": {"search.settings", "search.stopping"},
    "search.supernet": {
        "configuration_autobert_zero",
        "modeling_autobert_zero",
        "search.costs",
        "search.data",
        "search.settings",
        "search.space",
        "search.stopping",
        "search.training",
    },
    "search.proxy": {
        "configuration_autobert_zero",
        "modeling_autobert_zero",
        "search.data",
        "search.masking",
        "search.settings",
        "search.stopping",
        "search.supernet",
        "search.training",
    },
    "search.notation": {"configuration_autobert_zero"},
    "search.drawing": {"configuration_autobert_zero", "search.notation"},
    "search.glue": set(),
    "search.glue_proxy": {
        "configuration_autobert_zero",
        "modeling_autobert_zero",
        "search.data",
        "search.glue",
        "search.proxy",
        "search.settings",
        "search.stopping",
        "search.training",
    },
    "search.workers": {"search.reporting", "search.stopping"},
    "search.reporting": {"configuration_autobert_zero"},
    "search.charts": set(),
    "search.own_operations": {
        "configuration_autobert_zero",
        "modeling_autobert_zero",
        "search.costs",
        "search.functional_key",
        "search.grammar",
        "search.reporting",
    },
    "search.publishing": {
        "configuration_autobert_zero",
        "search.drawing",
        "search.notation",
        "search.reporting",
    },
    "search.report": {
        "configuration_autobert_zero",
        "search.charts",
        "search.drawing",
        "search.history",
        "search.notation",
        "search.pareto",
        "search.priority",
        "search.records",
        "search.reporting",
        "search.settings",
        "search.space",
    },
    "search.progress": {"search.history", "search.report", "search.reporting"},
    "search.__init__": set(),
    "search.__main__": {"search.cli"},
}
PURE = [
    "settings",
    "functional_key",
    "grammar",
    "mutation",
    "space",
    "costs",
    "pareto",
    "records",
    "priority",
    "strategies",
    "evolution",
    "factory",
    "history",
    "stopping",
    "notation",
    "drawing",
    "charts",
    "publishing",
    "report",
]


def modules() -> dict[str, Path]:
    files = [*ROOT.glob("*_autobert_zero.py"), *ROOT.glob("search/*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "autobert_zero" if node.level else node.module
            module = f"{base}.{node.module}" if node.level else base
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def test_modules_import_what_they_may():
    names = modules()
    assert set(names) == {*ALLOWED, "search.cli", "search.commands", "search.run"}
    for name, allowed in ALLOWED.items():
        project = {i.removeprefix(PACKAGE) for i in imported(names[name]) if i.startswith(PACKAGE)} & set(names)
        assert project <= allowed, name
        assert not imported(names[name]) & {"examples", "tests"}


def test_only_the_command_line_prints():
    for name, file in modules().items():
        calls = [n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        if name not in ("search.cli", "search.commands"):
            assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], name


@pytest.mark.parametrize("name", PURE)
def test_the_pure_side_does_not_load_torch(name):
    """transformers' configuration base loads it where it is installed, so it is taken away here."""
    code = f"import sys; sys.modules['torch'] = None; import autobert_zero.search.{name}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", ["configuration_autobert_zero", "modeling_autobert_zero"])
def test_root_files_fit_the_remote_code_loader(name):
    file = ROOT / f"{name}.py"
    assert set(get_imports(file)) - set(sys.stdlib_module_names) <= {"huggingface_hub", "torch", "transformers"}
    assert set(get_relative_imports(file)) <= {"configuration_autobert_zero"}


def test_the_root_is_no_package():
    assert not (ROOT / "__init__.py").exists()


def test_readme_names_the_files_that_are_there():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:search/|tests/|examples/|benchmarks/)?\w+\.py)`", readme):
        assert (ROOT / name).exists(), name
    for target in re.findall(r"\]\(([^)]+)\)", readme):
        assert target.startswith("https://") or (ROOT / target.split("#")[0]).exists(), target
