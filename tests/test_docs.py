"""Runs every command and code block of the documentation, and follows every link.

Commands run page by page and in order, in a folder with text, tasks and entities of a few lines. Those that would take
minutes get more flags, which make them small. Files for other machines are parsed by the tools that read them there.
"""

import dataclasses
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from transformers import TrainingArguments

from autobert_zero.configuration_autobert_zero import Expression
from autobert_zero.search.cli import main as cli
from autobert_zero.search.cli.search import parse
from autobert_zero.search.settings import GROUP_OF, SearchSettings, flags
from tests.conftest import TINY_RUN, write_corpus
from tests.evaluation.glue_files import write_task
from tests.examples.test_run_blimp import write_set
from tests.examples.test_run_ner import conll


ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SMALL_SIZE = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20}
SMALL_TRAINING = {
    "config_overrides": ",".join(f"{name}={value}" for name, value in SMALL_SIZE.items()),
    "vocab_size": 150,
    "max_seq_length": 16,
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "report_to": "none",
}
SMALL_TUNING = {"data_dir": "glue", "max_steps": 2, "max_seq_length": 16, "seeds": 1, "report_to": "none"}
# Flags that make a script small, by its name.
SMALL = {
    "search": {**TINY_RUN, "max_nodes": 16, "kernel_sizes": [3, 7, 9]},  # with room for known designs
    "run_pretraining.py": SMALL_TRAINING,
    "run_glue.py": SMALL_TUNING,
    "run_ner.py": {"max_steps": 2, "max_seq_length": 16, "report_to": "none"},
    "run_blimp.py": {"data_dir": "blimp"},
}
# Commands that are not run here, and the reason or the test that covers them.
ELSEWHERE = {
    "pip": "the environment exists",
    "make": "test_commands_that_are_not_run_exist",
    "sbatch": "test_the_job_script",
    "convert_checkpoint.py": "tests/examples/test_convert_checkpoint.py: weights of the Hub",
    "run_squad.py": "tests/examples/test_run_squad.py: the official files",
    "analyze.py": "tests/examples/test_analyze.py: weights of the Hub",
    "compare.py": "tests/examples/test_compare.py: minutes",
}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of the fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands_of(block: str) -> list[list[str]]:
    """The commands of a block without a language or of bash; an empty list for output and formulas."""
    lines = block.replace("\\\n", " ").splitlines()
    if not re.match(r"(autobert-zero|accelerate|torchrun|python|make|pip) ", lines[0]):
        return []
    return [shlex.split(line) for line in lines]


def name_of(command: list[str]) -> str:
    """`search` for every command that starts one, else the script or the first word."""
    if "autobert_zero.search" in command or command[:2] == ["autobert-zero", "search"]:
        return "search"
    return next((Path(word).name for word in command if word.endswith(".py")), command[0])


def made_small(command: list[str]) -> list[str]:
    """The command with the flags that make it small; a search keeps its flags, because later commands use it."""
    small = SMALL.get(name_of(command), {})
    if name_of(command) == "search":
        given = {word.removeprefix("--") for word in command}
        given |= {"max_evaluations"} if "config" in given else set()
        small = {name: value for name, value in small.items() if name not in given}
    return [*command, *flags(small)]


def run(command: list[str], monkeypatch) -> None:
    command = [word.replace("multi_gpu.yaml", "cpu.yaml") for word in made_small(command)]
    if "--multi_gpu" in command:  # the CPU as the one device that four processes share
        command = ["torchrun", "--nproc_per_node", "4", *command[command.index("-m") :]]
    if command[0] == "autobert-zero":
        cli.main(command[1:])
    elif command[0] == "python":
        monkeypatch.setattr(sys, "argv", command[1:])
        monkeypatch.syspath_prepend(str(Path(command[1]).resolve().parent))
        runpy.run_path(command[1], run_name="__main__")
    else:
        program = Path(sys.executable).with_name(command[0])
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=200, env=environment)
        assert done.returncode == 0, done.stderr
        if command[0] == "torchrun":
            assert f"{command[command.index('--nproc_per_node') + 1]} processes on cpu" in done.stdout


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with all files that the pages start with."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "text.txt", documents=120)
    for task in ("rte", "mrpc"):
        write_task(tmp_path / "glue", task)
    (tmp_path / "blimp").mkdir()
    write_set(tmp_path / "blimp", "number")
    for name in ("train", "valid"):
        conll(tmp_path / f"{name}.txt", count=8)
    model = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    code = ("configuration_autobert_zero.py", "modeling_autobert_zero.py")
    for name in ("examples", "docs", *model, *code):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


# Runs that a page presupposes, left by an earlier page.
PRESUPPOSED = {
    "docs/how-to.md": ["runs/mine", "runs/second"],
    "examples/README.md": ["runs/mine"],
}


# The longest page runs with the slow tests.
RUN_PAGES = [pytest.param(p, marks=pytest.mark.slow if p.name == "how-to.md" else ()) for p in PAGES]


@pytest.mark.filterwarnings("ignore:.pin_memory.:UserWarning")  # of Trainer on a CPU
@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_code(page, place, monkeypatch, capfd):
    for number, folder in enumerate(PRESUPPOSED.get(str(page.relative_to(ROOT)), [])):
        run(
            shlex.split(f"autobert-zero search --train_file text.txt --output_dir {folder} --seed {42 + number}"),
            monkeypatch,
        )
    count = 0
    for language, block in blocks(page):
        count += 1
        found: list[list[str]] = []
        if language == "text":  # a drawing, or output that varies
            continue
        if language == "python":
            capfd.readouterr()
            exec(compile(block, str(page), "exec"), {"__name__": "block"})
            printed = capfd.readouterr().out
        elif language == "yaml":
            name = re.match(r"# (\S+)\n", block)[1]
            SearchSettings.from_dict(yaml.safe_load(block))
            Path(name).write_text(block, encoding="utf-8")
        elif block.startswith("["):  # what the code above prints
            assert printed == block
        elif not (found := commands_of(block)):
            # An expression, or the output of a command.
            assert block.startswith(("Best of", "matmul")) and (
                block.startswith("Best") or Expression.parse(block.strip())
            )
        for command in found:
            if name_of(command) not in ELSEWHERE:
                run(command, monkeypatch)
    assert count or page.name in ("explanation.md", "README.md")


def test_commands_that_are_not_run_exist():
    for page in PAGES:
        for command in (c for language, block in blocks(page) if language in ("", "bash") for c in commands_of(block)):
            script = next((word for word in command if word.endswith(".py")), None)
            assert script is None or (ROOT / script).exists(), command
            if command[0] == "make":
                assert re.search(rf"^{re.escape(command[1])}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command


def test_flags_of_the_benchmarks_exist():
    """Settings of a search, options of the benchmark, and those of the script that it measures."""
    known = {*GROUP_OF, *(field.name for field in dataclasses.fields(TrainingArguments))}
    measured = (ROOT / "examples" / "run_pretraining.py").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in makefile.splitlines():
        if script := re.search(r"benchmarks/\w+\.py", line):
            text = (ROOT / script[0]).read_text(encoding="utf-8") + measured
            for flag in re.findall(r" --(\w+)", line):
                assert flag in known or re.search(rf"\b{flag}\b", text), (script[0], flag)


def test_options_in_the_text_exist():
    """Flags such as `--lookahead` in sentences."""
    known = set(SearchSettings().to_dict()) | {
        "config",
        "output",
        "latex",
        "json",
        "help",
        "license",
        "language",
        "private",
        "estimate",
    }
    launcher = launch_command_parser()._option_string_actions
    known |= {"push_to_hub", *(option.removeprefix("--") for option in launcher)}
    scripts = "".join(path.read_text() for path in (ROOT / "examples").rglob("*.py"))
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for name in set(re.findall(r"`[^`]*?--(\w+)", text)) - known:
            trainer = ("bf16", "gradient_accumulation_steps", "torch_compile", "report_to")
            assert name in trainer or re.search(rf"\b{name}\b", scripts), f"{page.name}: --{name}"


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "results" / "README.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links(page):
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_the_configurations(file):
    config = load_config_from_file(str(file))
    assert config.num_processes == {"cpu": 1, "one_gpu": 1, "multi_gpu": 8, "multi_node": 16}[file.stem]
    assert config.use_cpu == (file.stem == "cpu")


def test_the_job_script(tmp_path):
    """Bash runs it, and it starts a search with existing options."""
    script = ROOT / "docs" / "slurm.sh"
    # Stand-ins for SLURM's commands: `srun` runs its command here, and `accelerate` prints what it would launch.
    for name, body in {
        "scontrol": "echo node-a; echo node-b",
        "srun": 'shift; "$@"',  # without its own option
        "accelerate": 'printf "%s\\n" "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": "7"}
    environment["SLURM_CPUS_PER_TASK"] = "32"
    environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.split()
    for option, value in {"machine_rank": "1", "num_processes": "16", "main_process_ip": "node-a"}.items():
        assert words[words.index(f"--{option}") + 1] == value
    arguments = words[words.index("autobert_zero.search") + 1 :]
    assert arguments == ["--train_file", "text.txt", "--output_dir", "runs/mine"]
    (tmp_path / "accelerate").write_text("#!/bin/bash\nexit 3\n")
    assert subprocess.run(["bash", script], env=environment).returncode == 3  # a failed search is a failed job


@pytest.mark.slow
def test_the_site(tmp_path):
    """Built without warnings: links hold, and every module has a page."""
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".*", "runs", "build", "reference", "__pycache__", "*.egg-info", "site")
    shutil.copytree(ROOT, copy, ignore=ignored)
    [command] = re.findall(
        r"^docs:(?:.*\n\t)+\$\(BIN\)/sphinx-build (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    command = [sys.executable, "-m", "sphinx", *shlex.split(command)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in (copy / "build" / "site").rglob("*.html")}
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "search").rglob("*.py")]
    assert pages >= {f"autobert_zero.{name}".removesuffix(".__init__") for name in modules if "__main__" not in name}
    assert pages >= {"README", "tutorial", "how-to", "explanation", "LOG"}
    page = copy / "docs" / "explanation.md"
    page.write_text(page.read_text() + "\n[broken](no-such-page.md#nowhere)\n")
    assert subprocess.run(command, cwd=copy, capture_output=True).returncode


def test_the_notebook_is_the_tutorial():
    module = runpy.run_path(str(ROOT / "docs" / "notebook.py"))
    assert module["NOTEBOOK"].read_text(encoding="utf-8") == module["notebook"](), "make docs writes it"


@pytest.mark.slow
def test_the_notebook(place, monkeypatch):
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.source.startswith("%%bash"):
            commands = map(shlex.split, cell.source.splitlines()[1:])
            small = [shlex.join(made_small(command)) for command in commands if command[0] != "pip"]
            cell.source = "\n".join(["%%bash", "set -e", *small])
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    nbclient.NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": place}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "Best of" in printed and "ahead by" in printed and "exported" in printed
    assert (place / "runs" / "classifier" / "model.safetensors").exists()
    shutil.rmtree(place / "runs")


def test_workflows_and_templates():
    """They are YAML, and what they run exists."""
    makefile = (ROOT / "Makefile").read_text()
    files = [ROOT / ".pre-commit-config.yaml", *(ROOT / ".github").rglob("*.yml")]
    assert len(files) > 3
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert yaml.safe_load(text)
        for target in re.findall(r"\bmake ([\w-]+)", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (file.name, target)
        for line in re.findall(r"^ *autobert-zero (.+)$", text, re.MULTILINE):
            command, *rest = shlex.split(line)
            assert command in cli.COMMANDS
            if command == "search":
                parse(rest)
