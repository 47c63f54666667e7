"""Saved models in a process with transformers but without this package, head by head and tensor by tensor."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from autobert_zero.configuration_autobert_zero import (
    PUBLISHED_GENOME,
    Attention,
    Expression,
    Genome,
)
from autobert_zero.modeling_autobert_zero import (
    AUTO_CLASSES,
    AutoBertZeroForSequenceClassification,
    AutoBertZeroModel,
)
from autobert_zero.search import custom_operations
from tests.conftest import run_without_package, tiny_config


pytestmark = pytest.mark.model

_LOAD = """
import json, sys
from pathlib import Path
import torch, transformers
from safetensors.torch import load_file

transformers.logging.set_verbosity_info()
for name, folder in json.loads(sys.argv[1]).items():
    auto_class = getattr(transformers, name)
    model, info = auto_class.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values()), info
    assert type(model).__module__.startswith("transformers_modules.")
    files = {file.name for file in Path(folder).iterdir()}
    assert files == {"config.json", "model.safetensors", "configuration_autobert_zero.py", "modeling_autobert_zero.py"}, files
    stored, tensors = load_file(Path(folder) / "model.safetensors"), model.state_dict()
    # A tied tensor is stored once; every tensor that is not stored shares memory with a stored one.
    places = {tensors[key].data_ptr() for key in stored}
    assert all(tensor.data_ptr() in places for tensor in tensors.values())
    for key, value in stored.items():
        assert torch.equal(tensors[key], value), key
    model.eval().save_pretrained(folder + "-again")
    again = auto_class.from_pretrained(folder + "-again", trust_remote_code=True).eval()
    shape = (3, 2, 7) if name == "AutoModelForMultipleChoice" else (3, 7)
    ids = torch.randint(99, shape, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, ..., 4:] = 0
    with torch.no_grad():
        outputs = [m(input_ids=ids, attention_mask=mask, return_dict=False)[0] for m in (model, again)]
    assert torch.equal(*outputs)
    print("SUM", name, outputs[0].double().abs().clamp(max=1e3).sum().item())
"""


def test_every_head_in_a_process_without_the_package(tmp_path):
    import torch

    reference = Attention(Expression.parse("matmul(cosine_similarity(q, k), add(v, p))"))
    config = tiny_config(Genome([PUBLISHED_GENOME[2], PUBLISHED_GENOME[9], reference]))
    folders, sums = {}, {}
    for auto_class, model_class in AUTO_CLASSES.items():
        name = auto_class.__name__
        model = model_class(config).eval()
        for parameter in model.parameters():  # biases and norms, too, away from their initial values
            torch.nn.init.normal_(parameter, std=0.3)
        folders[name] = str(tmp_path / name)
        model.save_pretrained(folders[name])
        shape = (3, 2, 7) if name == "AutoModelForMultipleChoice" else (3, 7)
        ids = torch.randint(99, shape, generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[0, ..., 4:] = 0
        output = model(input_ids=ids, attention_mask=mask, return_dict=False)[0]
        sums[name] = output.double().abs().clamp(max=1e3).sum().item()
    out, messages = run_without_package(_LOAD, json.dumps(folders), cwd=tmp_path)
    assert "It has no effect here and is ignored" not in messages and "loading weights" in messages.lower()
    printed = {line.split()[1]: float(line.split()[2]) for line in out.splitlines() if line.startswith("SUM ")}
    assert printed == pytest.approx(sums, rel=1e-5) and len(printed) == 8


_TWO_RUNS = """
import sys, torch
from transformers import AutoModel

folders = sys.argv[1:]
ids = torch.tensor([[5, 6, 7, 8]])
for order in (folders, folders[::-1]):
    for folder in order:
        model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        print(folder, model(ids).last_hidden_state.double().sum().item())
"""


def test_models_of_two_runs_in_one_process(tmp_path):
    """Folders of one name, with other operations of one name: each model computes with its own, in any order."""
    import torch

    expected = {}
    for function in ("relu", "tanh"):
        file = tmp_path / f"{function}.py"
        file.write_text(f"import torch\nOPERATIONS = {{'act': ('ab->ab', torch.{function})}}\n")
        custom = custom_operations.load(file)
        genome = Genome([Attention(Expression.parse("matmul(act(q), matmul(transpose(k), v))", custom.rules))])
        config = tiny_config(genome, custom_operations=dict(custom.rules), custom_operations_digest=custom.digest)
        torch.manual_seed(0)
        model, folder = AutoBertZeroModel(config).eval(), tmp_path / f"run_{function}" / "model"
        model.save_pretrained(folder)
        custom_operations.save_with_model(folder)
        expected[str(folder)] = model(torch.tensor([[5, 6, 7, 8]])).last_hidden_state.double().sum().item()
    assert len(set(expected.values())) == 2
    out, _ = run_without_package(_TWO_RUNS, *expected, cwd=tmp_path)
    lines = [line.split() for line in out.splitlines()]
    assert len(lines) == 4
    for folder, total in lines:
        assert float(total) == pytest.approx(expected[folder], rel=1e-5), folder


_SUBCLASS = """
import sys, torch
from transformers import AutoModelForSequenceClassification
from autobert_zero.modeling_autobert_zero import AutoBertZeroForSequenceClassification

class Weighted(AutoBertZeroForSequenceClassification):
    pass

class Larger(AutoBertZeroForSequenceClassification):
    # With an adapter, a second encoder, and a head that has an attribute called `layer`.
    def __init__(self, config):
        super().__init__(config)
        self.adapters = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in config.genome])
        self.second = type(self.autobert_zero)(config)
        self.layer = torch.nn.Linear(config.hidden_size, 2)
        self.post_init()

plain, folder = sys.argv[1:]
model = Weighted.from_pretrained(plain)
model.save_pretrained(folder + "/weighted")
model.config.save_pretrained(folder + "/config")
larger = Larger.from_pretrained(plain)
larger.save_pretrained(folder + "/larger")
assert torch.equal(Larger.from_pretrained(folder + "/larger").layer.weight, larger.layer.weight)
ids = torch.tensor([[5, 6, 7]])
print(*(m.eval()(ids).logits.double().sum().item() for m in (model, larger)))
"""
_LOAD_SUBCLASS = """
import sys, torch, transformers
ids = torch.tensor([[5, 6, 7]])
for name in ("weighted", "larger"):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1] + "/" + name, trust_remote_code=True)
    print(model.eval()(ids).logits.double().sum().item())
config = transformers.AutoConfig.from_pretrained(sys.argv[1] + "/config", trust_remote_code=True)
transformers.AutoModel.from_config(config, trust_remote_code=True)
"""


def test_subclasses_of_a_user(tmp_path):
    """Defined in a script: saved with code that loads without it, and loaded from a plain checkpoint with more weights."""
    model = AutoBertZeroForSequenceClassification(tiny_config(Genome([PUBLISHED_GENOME[2], PUBLISHED_GENOME[9]])))
    model.save_pretrained(tmp_path / "plain")
    (tmp_path / "script.py").write_text(_SUBCLASS)
    command = [sys.executable, "script.py", str(tmp_path / "plain"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out, _ = run_without_package(_LOAD_SUBCLASS, str(tmp_path), cwd=tmp_path)
    assert [float(x) for x in out.split()] == pytest.approx([float(x) for x in done.stdout.split()], rel=1e-5)


_CHECKOUT = """
import sys, torch, transformers
fill_mask = transformers.pipeline("fill-mask", model=sys.argv[1], trust_remote_code=True)
answers = fill_mask("she opened the [MASK] and looked out.")
model = fill_mask.model
print(type(model).__module__.split(".")[0], model.dtype, sum(p.numel() for p in model.parameters()))
print(*[answer["token_str"] for answer in answers])
torch.manual_seed(0)
classifier = transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True, num_labels=3)
batch = fill_mask.tokenizer(["a good film", "a bad film, and long", "it rains"], padding=True, return_tensors="pt")
optimizer, losses = torch.optim.AdamW(classifier.parameters(), lr=3e-4), []
for _ in range(20):
    losses.append(classifier(**batch, labels=torch.arange(3)).loss)
    losses[-1].backward()
    optimizer.step()
    optimizer.zero_grad()
print(losses[0].item() > 5 * losses[-1].item())
import sentence_transformers
encoder = sentence_transformers.SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
encoded = encoder.encode(["The dog barks in the garden.", "A dog is barking.", "Parliament will vote on taxes."])
near, far = (encoder.similarity(encoded[:1], encoded[i:i + 1]).item() for i in (1, 2))
print(encoded.shape == (3, model.config.hidden_size) and near > far, encoder.max_seq_length)
"""


def test_a_checkout_is_a_model(tmp_path):
    """Loaded from the folder itself, as from a repository of the Hub, in a process without this package."""
    root = Path(__file__).resolve().parents[2]
    files = {
        name: root / name for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
    }
    assert files["model.safetensors"].stat().st_size <= 16 * 2**20
    output, _ = run_without_package(_CHECKOUT, str(root), cwd=tmp_path)
    facts, words, learns, encodes = output.splitlines()
    remote, dtype, parameters = facts.split()
    assert (remote, dtype) == ("transformers_modules", "torch.float32") and int(parameters) <= 7e6
    assert learns == "True"
    assert encodes == "True 512"  # longer texts than it was trained on
    assert {"door", "window"} & set(words.split())  # it has learned something
    front = (root / "README.md").read_text().split("---\n")[1]
    card = ModelCard((root / "README.md").read_text())
    assert card.data.license == "apache-2.0" and "pipeline_tag: fill-mask" in front
