"""Which modules may import which, what stays free of torch, and files that the remote-code loader accepts."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "autobert_zero."

# The parts of the project, lowest layer first. A module may import modules of its own part and of lower layers.
LAYERS = [
    {"configuration_autobert_zero"},
    {"modeling_autobert_zero"},
    {"seeding", "files", "provenance", "stopping"},
    {"settings"},
    {"space"},
    {"evolution", "text", "custom_operations"},
    {"genomes"},
    {"evaluation", "report"},
    {"run"},
    {"cli"},
    {"__main__"},
]
LEVELS = {part: level for level, parts in enumerate(LAYERS) for part in parts}
# Lower parts that a part must not import all the same: strategies know nothing of BERT.
FORBIDDEN = {"evolution": {"space", "configuration_autobert_zero", "modeling_autobert_zero"}}

# Need numpy and, for genomes, the configuration.
PURE = ["space", "evolution"]
WITHOUT_TORCH = [*PURE, "report", "genomes", "settings", "seeding", "files", "provenance", "stopping"]


def modules() -> dict[str, Path]:
    """Files by module: `configuration_autobert_zero`, `search.settings`, `search.space.bounds`, `search.space`."""
    found = {}
    for file in (*ROOT.glob("*_autobert_zero.py"), *ROOT.glob("search/**/*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def part_of(module: str) -> str:
    """`space` for `search.space.bounds`, `settings` for `search.settings`."""
    return module.removeprefix("search.").partition(".")[0]


def imported(file: Path) -> set[str]:
    """Everything that a file imports anywhere; `from a import b` imports `a` and `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = f"{PACKAGE}{node.module or ''}" if node.level else str(node.module)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def project_imports() -> dict[str, set[str]]:
    """The imports of each module among the modules of the project, without those of the empty package `search`."""
    names = modules()
    targets = set(names) - {"search"}
    return {
        name: {each.removeprefix(PACKAGE) for each in imported(file) if each.startswith(PACKAGE)} & targets
        for name, file in names.items()
    }


def violations(imports: Mapping[str, set[str]]) -> list[str]:
    """Imports that the layers do not allow, and one circle of imports if there is any.

    Args:
        imports: the modules that each module imports.
    """
    found = []
    for module, targets in sorted(imports.items()):
        part = part_of(module)
        for target in sorted(targets):
            other = part_of(target)
            allowed = LEVELS[other] < LEVELS[part] and other not in FORBIDDEN.get(part, ())
            if part != other and not allowed:
                found.append(f"{module} imports {target}")
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        found.append(f"circle: {' imports '.join(reversed(error.args[1]))}")
    return found


def test_modules_import_lower_layers_only():
    imports = project_imports()
    assert {part_of(module) for module in imports} - {"search"} == set(LEVELS)
    assert not imported(modules()["search"]) and not imports.pop("search")
    assert violations(imports) == []
    for file in modules().values():
        assert not {name.partition(".")[0] for name in imported(file)} & {"examples", "tests"}, file


@pytest.mark.parametrize(
    ("module", "target", "expected"),
    [
        ("search.space.costs", "search.settings", []),
        ("search.space.backbone", "search.space.bounds", []),
        ("search.settings", "search.space.bounds", ["search.settings imports search.space.bounds"]),
        ("configuration_autobert_zero", "search.files", ["configuration_autobert_zero imports search.files"]),
        ("search.report.page", "search.run.run", ["search.report.page imports search.run.run"]),
        (
            "search.report.page",
            "search.evaluation.proxy",
            ["search.report.page imports search.evaluation.proxy"],
        ),
        ("search.files", "search.seeding", ["search.files imports search.seeding"]),
        ("search.evolution.loop", "search.space.bounds", ["search.evolution.loop imports search.space.bounds"]),
        (
            "search.space.grammar",
            "search.space.mutation",
            ["circle: search.space.grammar imports search.space.mutation imports search.space.grammar"],
        ),
    ],
)
def test_the_check_finds_upward_and_sideways_imports_and_circles(module, target, expected):
    imports = {"search.space.mutation": {"search.space.grammar"}, "search.space.bounds": {"search.settings"}}
    if module == "search.settings":
        del imports["search.space.bounds"]  # or there is a circle as well
    assert violations(imports) == []
    found = violations({**imports, module: imports.get(module, set()) | {target}})
    # A circle may be reported from any of its modules.
    if expected and expected[0].startswith("circle"):
        assert len(found) == 1 and {*re.findall(r"search\S+", found[0])} == {module, target}
    else:
        assert found == expected


def test_strategies_and_space_need_numpy_only():
    for name, file in modules().items():
        if part_of(name) in PURE:
            others = {each.partition(".")[0] for each in imported(file)} - set(sys.stdlib_module_names)
            assert others <= {"numpy", "autobert_zero"}, name


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_parts_that_do_not_load_torch(part):
    """The base class of configurations loads torch if it is installed, so it is hidden here."""
    names = [f"{PACKAGE}{name}" for name in modules() if name != "search" and part_of(name) == part]
    code = f"import sys; sys.modules['torch'] = None; import {', '.join(names)}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)


def test_only_the_command_line_prints():
    for name, file in modules().items():
        calls = [n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        if part_of(name) != "cli":
            assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], name


@pytest.mark.parametrize("name", ["configuration_autobert_zero", "modeling_autobert_zero"])
def test_root_files_fit_the_remote_code_loader(name):
    file = ROOT / f"{name}.py"
    assert set(get_imports(file)) - set(sys.stdlib_module_names) <= {"huggingface_hub", "torch", "transformers"}
    assert set(get_relative_imports(file)) <= {"configuration_autobert_zero"}


def test_the_root_is_not_a_package():
    assert not (ROOT / "__init__.py").exists()


def test_the_readme_names_existing_files():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    folders = "search|tests|examples|benchmarks|docs|results"
    for name in re.findall(rf"`((?:(?:{folders})/(?:\w+/)*)?\w+\.py|(?:{folders})/(?:\w+/)*)`", readme):
        assert (ROOT / name).exists(), name
    for target in re.findall(r"\]\(([^)]+)\)", readme):
        assert target.startswith("https://") or (ROOT / target.split("#")[0]).exists(), target


def test_the_wheel(tmp_path):
    """It holds the package, all of it, and nothing else."""
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    code = "import setuptools.build_meta as backend; print(backend.build_wheel('dist'))"  # as a front end does
    built = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(copy / "dist" / built.stdout.splitlines()[-1]) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = [path for path in (ROOT / "search").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    names = ["configuration_autobert_zero.py", "modeling_autobert_zero.py", "py.typed"]
    names += [str(path.relative_to(ROOT)) for path in expected]
    assert files == {f"autobert_zero/{name}" for name in names}
    assert "absent" not in built.stderr
