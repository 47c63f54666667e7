"""Genomes from presets, expressions, files, folders and the Hub."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from autobert_zero.configuration_autobert_zero import (
    PUBLISHED_GENOME,
    SELF_ATTENTION,
    AutoBertZeroConfig,
    Convolution,
    CustomLayer,
    Genome,
)
from autobert_zero.search.genomes import decode_genome, read_genome
from autobert_zero.search.report.notation import genome_text
from tests.conftest import random_genome


def test_sources_of_genomes(tmp_path):
    genome = random_genome(3)
    (tmp_path / "genome.json").write_text(json.dumps(genome.to_list()))
    assert read_genome(str(tmp_path / "genome.json")) == genome
    for name, value in (
        ("config.json", {"genome": genome.to_list()}),
        ("summary.json", {"best": {"genome": genome.to_list()}}),
    ):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text(json.dumps(value))
        assert read_genome(str(folder)) == genome
    assert read_genome("bert-small") == Genome([SELF_ATTENTION] * 12)
    assert read_genome(str(SELF_ATTENTION.expression)) == Genome([SELF_ATTENTION])


class Hub(BaseHTTPRequestHandler):
    """A Hub with two models."""

    found = random_genome(1)
    models = {
        "me/found": AutoBertZeroConfig(genome=found.to_list()).to_dict(),
        "me/bert": {"model_type": "bert"},
    }

    def do_HEAD(self):
        self.server.requests.append(f"{self.command} {self.path}")
        config = self.models.get(self.path.removeprefix("/").removesuffix("/resolve/main/config.json"))
        config = config or self.models.get(self.path.removeprefix("/").partition("/resolve/")[0])
        content = json.dumps(config).encode() if config else b""
        self.send_response(200 if config else 503)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{len(content)}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD

    def log_message(self, *args) -> None:
        pass


def test_models_of_the_hub(tmp_path):
    """Read from the Hub, then from the cache; a model that cannot be loaded is asked for once."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"

    def show(name: str, **environment: str) -> subprocess.CompletedProcess:
        command = [Path(sys.executable).with_name("autobert-zero"), "show", name]
        environment = (
            os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"} | environment
        )
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)

    try:
        first = show("me/found")
        assert first.returncode == 0 and first.stdout.strip() == genome_text(Hub.found).strip(), first.stderr
        assert show("me/found", HF_HUB_OFFLINE="1").stdout == first.stdout
        bert = show("me/bert")
        assert bert.returncode == 2 and "a model of type 'bert' has no genome: 'me/bert'" in bert.stderr
        server.requests.clear()
        missing = show("me/missing")
        assert missing.returncode == 2 and "cannot load 'me/missing' from the Hub: " in missing.stderr
        asked = [request for request in server.requests if "/me/missing/" in request]
        assert asked == ["HEAD /me/missing/resolve/main/config.json"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    gone = show("me/missing")
    assert gone.returncode == 2 and "cannot load 'me/missing' from the Hub: " in gone.stderr


def test_files_with_a_required_number_of_layers(tmp_path):
    genome = random_genome(1)
    values = {
        "list": genome.to_list(),
        "config": {"genome": genome.to_list()},
        "summary": {"best": {"genome": genome.to_list(), "score": 1.0}},
    }
    for name, value in values.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(value))
        assert read_genome(str(path), len(genome)) == genome
        with pytest.raises(ValueError, match=f"expected 7 layers, got {len(genome)} in "):
            read_genome(str(path), 7)
    assert list(read_genome("published", 14)) == [*PUBLISHED_GENOME, *PUBLISHED_GENOME[:2]]
    assert read_genome("bert", 2) == Genome([SELF_ATTENTION] * 2)


def test_custom_operations_of_files(tmp_path):
    """The rules are stored with the genome: no functions are needed to read it."""
    genes = [{"kind": "attention", "expression": "act(q)"}, {"kind": "pool"}]
    rules = {"act": "ab->ab", "pool": "layer"}
    values = {
        "summary": {"best": {"genome": genes}, "custom_operations": rules},
        "config": AutoBertZeroConfig(genome=genes, custom_operations=rules).to_dict(),
    }
    for name, value in values.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
        genome = read_genome(str(tmp_path / f"{name}.json"))
        assert genome == decode_genome(genes, {"custom_operations": rules})
        assert genome.custom_operations() == rules and genome[1] == CustomLayer("pool")
    (tmp_path / "list.json").write_text(json.dumps(genes))
    with pytest.raises(ValueError, match="unknown name 'act'"):
        read_genome(str(tmp_path / "list.json"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/genome.json", "expected a file, a folder, or a model of the Hub"),
        ("publishd", "got 'publishd'; did you mean published"),
        ("me/my/model", "expected a file, a folder, or a model of the Hub"),
        ("{folder}", "expected a summary.json, config.json or history.jsonl in "),
        ("{folder}/empty.json", "expected a JSON file with a genome, got "),
        ("softmax(q", "expression: expected"),
        ("{folder}/size.json", "expected a configuration in .*hidden_size"),
        ("{folder}/layers.json", "expected a configuration in "),
        ("{folder}/expression.json", "expected a configuration in "),
    ],
)
def test_bad_sources(tmp_path, source, message):
    (tmp_path / "empty.json").write_text("{}")
    for name, fields in {
        "size": {"hidden_size": "x"},
        "layers": {"genome": 3},
        "expression": {"genome": [{"kind": "attention", "expression": 3}]},
    }.items():
        config = {"model_type": "autobert_zero", "genome": [{"kind": "convolution", "kernel_size": 3}], **fields}
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        read_genome(source.format(folder=tmp_path))


def test_paths_with_parentheses_and_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a (1).json").write_text('[{"kind": "convolution", "kernel_size": 3}]')
    expression = "v"
    while len(expression) < 300:
        expression = f"add({expression}, sigmoid(rotary(q)))"
    assert read_genome(expression)[0].expression is not None  # longer than the name of a file may be
    for source in (str(tmp_path / "a (1).json"), "~/a (1).json"):
        assert read_genome(source) == (Convolution(3),)


def test_the_genome_of_a_running_search_is_its_best_so_far(tmp_path):
    run = Path(__file__).resolve().parent / "fixtures" / "run-0.1"
    (tmp_path / "history.jsonl").write_bytes((run / "history.jsonl").read_bytes())
    records = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()[1:]]
    best = max((record for record in records if record["score"] is not None), key=lambda record: record["score"])
    assert read_genome(str(tmp_path)) == Genome.from_list(best["genome"])
    winner = [{"kind": "convolution", "kernel_size": 65}]
    for evaluated, expected in ((len(records), winner), (len(records) - 1, best["genome"])):  # extended since
        summary = {"best": {"genome": winner}, "counts": {"evaluated": evaluated}}
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        assert read_genome(str(tmp_path)) == Genome.from_list(expected)
