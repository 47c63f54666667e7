"""A found model for the Hub: the folder, its card, and the upload, to a stand-in for the Hub's HTTP interface."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from autobert_zero.configuration_autobert_zero import SELF_ATTENTION, Convolution, Genome
from autobert_zero.modeling_autobert_zero import AutoBertZeroForMaskedLM
from autobert_zero.search.cli.main import main
from autobert_zero.search.evolution.archive import Outcome, Record
from autobert_zero.search.files import write_json
from autobert_zero.search.report.drawing import draw_genome, to_svg
from autobert_zero.search.report.model_card import describe
from autobert_zero.search.text.tokens import train_tokenizer
from tests.conftest import run_without_package, tiny_config
from tests.report.conftest import summary_of


GENOME = Genome([Convolution(3), SELF_ATTENTION])
SUMMARY = {
    **summary_of(Record(3, "", GENOME, 0).evaluated(Outcome(score=-3.5)), count=17),
    "results": {
        "AutoBERT-Zero (found)": {"loss": 3.25, "perplexity": 25.79, "parameters": 12345},
        "BERT": {"loss": None, "perplexity": None, "parameters": 23456},
        "unigram": {"loss": 5.5, "perplexity": 244.69, "parameters": None},
    },
    "tokens": {"train": 1000, "validation": 200, "test": 300, "final_each": 987654},
    "seed": 5,
    "machine": {"device": "2 cores of a machine", "processes": 2, "threads": 1},
    "command": "python -m autobert_zero.search --seed 5",
    "versions": {"torch": "2.13.0"},
    "data": {"source": "novels.txt"},
    "settings": {"num_hidden_layers": 2, "sequence_length": 16, "mixed_precision": "no"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    tokenizer = train_tokenizer(["the cat meows near a house . the dog barks ."] * 3, 64, 16)
    config = tiny_config(GENOME, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    model = AutoBertZeroForMaskedLM(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    files = sorted(path.name for path in (folder / "model").iterdir())
    describe(folder / "model", SUMMARY, "mine")
    found = {**SUMMARY["results"]["AutoBERT-Zero (found)"], "parameters": model.num_parameters()}
    results = {**SUMMARY["results"], "AutoBERT-Zero (found)": found}
    write_json(folder / "summary.json", {**SUMMARY, "results": results, "model_files": files})
    return folder


class Hub(BaseHTTPRequestHandler):
    """The requests of an upload: create a repository, how to send files, commit them."""

    requests: list[tuple[str, bytes]]
    refuse = False
    private = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append((self.path, body, self.headers.get("Authorization")))
        if self.refuse:
            return self.answer(403, {"error": "You have no right to do this."})
        if self.path == "/api/repos/create":
            return self.answer(200, {"url": f"http://{self.headers['Host']}/me/model"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.path == "/api/models/me/model/preupload/main":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            return self.answer(200, {"files": modes})
        if self.path == "/api/models/me/model/commit/main":
            oid = "0123456789abcdef0123456789abcdef01234567"
            url = f"http://{self.headers['Host']}/me/model/commit/{oid}"
            return self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url})
        return self.answer(404, {"error": f"unexpected {self.path}"})

    def do_GET(self):
        self.requests.append((self.path, b"", self.headers.get("Authorization")))
        if self.path.startswith("/api/models/me/model"):
            return self.answer(200, {"id": "me/model", "private": self.private})
        self.answer(404, {"error": f"unexpected {self.path}"})

    def answer(self, status: int, value: dict) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub():
    handler = type("Handler", (Hub,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def export(hub, home: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_TOKEN": "hf_secret",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-c", "from autobert_zero.search.cli.main import main; main()", "export", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_the_folder_and_its_card(capsys, run, tmp_path):
    output = tmp_path / "exported"
    main(["export", str(run), "--output", str(output), "--license", "mit", "--language", "en", "de"])
    assert capsys.readouterr().out.strip() == str(output)
    assert {file.name for file in output.iterdir()} >= {
        "README.md",
        "backbone.svg",
        "config.json",
        "configuration_autobert_zero.py",
        "model.safetensors",
        "modeling_autobert_zero.py",
        "tokenizer.json",
    }
    assert (output / "backbone.svg").read_text(encoding="utf-8") == to_svg(draw_genome(GENOME))
    card = ModelCard.load(output / "README.md")
    assert (
        card.data.license == "mit" and card.data.language == ["en", "de"] and card.data.library_name == "transformers"
    )
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "loss": 3.25,
        "perplexity": 25.79,
    }
    assert all(result.dataset_name == "held-out part of novels.txt" for result in card.data.eval_results)
    for file in output.glob("*.py"):
        assert f"- `{file.name}`: `{hashlib.sha256(file.read_bytes()).hexdigest()}`" in card.text
    rows = [line for line in card.text.splitlines() if line.startswith("|")]
    parameters = AutoBertZeroForMaskedLM.from_pretrained(run / "model").num_parameters()
    assert (
        f"| AutoBERT-Zero (found) | {parameters:,} | 3.2500 | 25.8 |" in rows
        and "| BERT | 23,456 | diverged |  |" in rows
    )
    assert "| machine | 2 cores of a machine, 2 processes of 1 thread |" in rows and "| seed | 5 |" in rows
    assert not any("commit |" in row for row in rows)  # it is not known
    assert (
        "![" in card.text
        and "(backbone.svg)" in card.text
        and "revision" in card.text
        and "@inproceedings" in card.text
    )
    assert (
        '"USER/NAME"' in card.text
        and "It was trained on sequences of 16 tokens" in card.text
        and "{" not in card.text.partition("## Citation")[0]
    )


def test_the_folder_in_a_process_without_the_package(run, tmp_path):
    main(["export", str(run), "--output", str(tmp_path / "exported")])
    code = """
import sys
from transformers import pipeline
fill_mask = pipeline("fill-mask", model=sys.argv[1], trust_remote_code=True)
print(len(fill_mask("the cat [MASK] .")))
"""
    out, _ = run_without_package(code, str(tmp_path / "exported"), cwd=tmp_path)
    assert out.split()[-1] == "5"


def test_the_upload(run, hub, tmp_path):
    output = tmp_path / "exported"
    done = export(hub, tmp_path, str(run), "--output", str(output), "--push_to_hub", "me/model", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("/me/model/commit/0123456789abcdef0123456789abcdef01234567")
    requests = hub.RequestHandlerClass.requests
    assert all(token == "Bearer hf_secret" for path, _, token in requests if path.endswith(("/create", "/main")))
    [created] = [json.loads(body) for path, body, _ in requests if path == "/api/repos/create"]
    assert created["name"] == "model" and created["organization"] == "me"
    assert created.get("private") is True or created.get("visibility") == "private"
    [commit] = [body for path, body, _ in requests if path.endswith("/commit/main")]
    sent = [json.loads(line) for line in commit.splitlines()]
    files = {
        entry["value"]["path"]: base64.b64decode(entry["value"]["content"]) for entry in sent if entry["key"] == "file"
    }
    assert files == {file.name: file.read_bytes() for file in output.iterdir()}
    assert b'model="me/model"' in files["README.md"]


def test_nothing_private_is_uploaded_to_a_public_repository(run, hub, tmp_path):
    """One that exists, which creating it again does not change."""
    hub.RequestHandlerClass.private = False
    output = tmp_path / "exported"
    done = export(hub, tmp_path, str(run), "--output", str(output), "--push_to_hub", "me/model", "--private")
    assert done.returncode == 1
    assert "error: not uploaded: private: expected a private repository, got me/model" in done.stderr
    assert not any(path.endswith("/commit/main") for path, *_ in hub.RequestHandlerClass.requests)


def test_a_name_that_no_repository_has(run, tmp_path, capsys):
    """Before anything is written."""
    with pytest.raises(SystemExit):
        main(["export", str(run), "--output", str(tmp_path / "exported"), "--push_to_hub", "me/my model"])
    assert "me/my model" in capsys.readouterr().err and not (tmp_path / "exported").exists()


def test_a_refused_upload_leaves_the_folder(run, hub, tmp_path):
    hub.RequestHandlerClass.refuse = True
    output = tmp_path / "exported"
    done = export(hub, tmp_path, str(run), "--output", str(output), "--push_to_hub", "me/model")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: not uploaded: " in done.stderr and f"{output} is ready" in done.stderr
    assert (output / "README.md").exists()


def test_an_export_is_replaced_by_one_of_the_same_run_only(capsys, run, tmp_path):
    output = tmp_path / "exported"
    for name in ("apache-2.0", "mit"):
        main(["export", str(run), "--output", str(output), "--license", name])
        assert f"license: {name}" in (output / "README.md").read_text()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        main(["export", str(run), "--output", str(output)])
    assert "output: expected a new or an empty folder" in capsys.readouterr().err
    assert (output / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["model.safetensors", "modeling_autobert_zero.py", "tokenizer.json"])
def test_a_model_with_a_missing_file_is_not_exported(capsys, run, tmp_path, name):
    damaged = shutil.copytree(run, tmp_path / "run")
    (damaged / "model" / name).unlink()
    with pytest.raises(SystemExit):
        main(["export", str(damaged), "--output", str(tmp_path / "new")])
    assert f"run: expected a model in '{damaged / 'model'}', got none of its {name}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_damaged_model_is_not_exported(capsys, run, tmp_path):
    def refusal(damage):
        damaged = shutil.copytree(run, tmp_path / "run")
        damage(damaged / "model")
        with pytest.raises(SystemExit):
            main(["export", str(damaged), "--output", str(tmp_path / "new")])
        shutil.rmtree(damaged)
        assert not list(tmp_path.iterdir())
        return capsys.readouterr().err

    def other_genome(model):
        genome = Genome([Convolution(5), SELF_ATTENTION]).to_list()
        config = json.loads((model / "config.json").read_text())
        write_json(model / "config.json", {**config, "genome": genome})

    def other_weights(model):
        AutoBertZeroForMaskedLM(tiny_config(GENOME, vocab_size=50)).save_pretrained(model)

    def half(model):
        os.truncate(model / "model.safetensors", (model / "model.safetensors").stat().st_size // 2)

    assert "run: expected the genome of summary.json" in refusal(other_genome)
    assert re.search(r"run: expected [\d,]+ parameters in .*, got [\d,]+", refusal(other_weights))
    assert "run: cannot read " in refusal(half)
    assert "run: cannot read " in refusal(lambda model: (model / "model.safetensors").write_bytes(b""))


def test_an_export_replaces_a_link_by_a_folder(run, tmp_path):
    main(["export", str(run), "--output", str(tmp_path / "place")])
    (tmp_path / "link").symlink_to(tmp_path / "place")
    main(["export", str(run), "--output", str(tmp_path / "link")])
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "place" / "config.json").exists()


def test_a_failed_copy_leaves_nothing(capsys, run, tmp_path, monkeypatch):
    def fail(source, target):
        raise shutil.Error([(str(source), str(target), "disk full")])

    monkeypatch.setattr(shutil, "copytree", fail)
    with pytest.raises(SystemExit):
        main(["export", str(run), "--output", str(tmp_path / "new")])
    assert f"cannot copy '{run / 'model'}': disk full" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}", "--output", "{tmp}/new"], "run: expected the folder of a finished run"),
        (["{run}", "--output", "{run}"], "output: expected a new or an empty folder"),
        (["{run}", "--output", "{run}/summary.json"], "output: expected a new or an empty folder"),
        (["{run}", "--output", "{tmp}/new", "--private"], "--private: expected --push_to_hub"),
    ],
)
def test_bad_input(capsys, run, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(["export", *(argument.format(run=run, tmp=tmp_path) for argument in arguments)])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
