"""Custom operations and layer kinds: in a search, exported with the model, and loaded without this package."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from autobert_zero.configuration_autobert_zero import (
    SELF_ATTENTION,
    Attention,
    AutoBertZeroConfig,
    Convolution,
    CustomLayer,
    Expression,
    Genome,
)
from autobert_zero.modeling_autobert_zero import (
    AutoBertZeroForMaskedLM,
    AutoBertZeroModel,
    ExpressionProgram,
    TokenLayout,
    register_custom_operations,
)
from autobert_zero.search import custom_operations
from autobert_zero.search.cli.main import main
from autobert_zero.search.custom_operations import CustomOperations
from autobert_zero.search.evaluation.measure import custom_layer_costs
from autobert_zero.search.evaluation.models import ModelBuilder
from autobert_zero.search.evaluation.supernet import SuperNetwork
from autobert_zero.search.report.drawing import Box, draw_backbone
from autobert_zero.search.report.notation import differences, genome_latex, genome_text
from autobert_zero.search.settings import ModelSettings, SearchSettings, flags
from autobert_zero.search.space.backbone import BackboneSpace
from autobert_zero.search.space.bounds import Bounds
from autobert_zero.search.space.costs import CostModel
from autobert_zero.search.space.functional_key import expression_key, genome_key
from autobert_zero.search.space.grammar import Grammar
from tests.conftest import TINY_RUN, run_without_package, tiny_config, write_corpus
from tests.evaluation.glue_files import write_task


FILE = Path(__file__).resolve().parent.parent / "examples" / "custom_operations.py"


POOLING = CustomLayer("average_pooling")


@pytest.fixture(scope="module")
def loaded() -> CustomOperations:
    return custom_operations.load(FILE)


def custom_space(custom: CustomOperations, num_layers: int) -> BackboneSpace:
    return BackboneSpace(
        Bounds(
            num_layers,
            (3, 5),
            12,
            1,
            grammar=Grammar(custom_operations=custom.operations),
            layer_kinds=custom.layer_kinds,
        ),
        functions=custom.array_functions,
    )


def custom_config(genome: Genome, custom: CustomOperations, **kwargs) -> AutoBertZeroConfig:
    return tiny_config(genome, custom_operations=dict(custom.rules), custom_operations_digest=custom.digest, **kwargs)


def make_supernet(settings: SearchSettings, custom: CustomOperations) -> SuperNetwork:
    return SuperNetwork(ModelBuilder(settings.model, 50, 0, custom), max(settings.space.kernel_sizes))


def test_the_value_of_a_file(loaded):
    assert dict(loaded.operations) == {
        "relu": "ab->ab",
        "square": "ab->ab",
        "multiply": "ab,ab->ab",
        "normalize": "ad->ad",
    }
    assert loaded.layer_kinds == (POOLING.kind,) and loaded.rules[POOLING.kind] == "layer"
    assert set(loaded.functions) == set(loaded.rules)
    nothing = CustomOperations()
    assert (nothing.operations, nothing.layer_kinds, nothing.array_functions, nothing.digest) == ((), (), (), None)


def test_they_are_chosen_and_mutated(loaded):
    space = custom_space(loaded, 3)
    genomes = [space.random(np.random.default_rng(i)) for i in range(150)]
    assert set(loaded.rules) == {name for genome in genomes for name in genome.custom_operations()}
    children = [space.mutate(genome, np.random.default_rng(i)) for i, genome in enumerate(genomes)]
    assert all(space.contains(child) for child in children)
    new = [b.custom_operations().keys() - a.custom_operations().keys() for a, b in zip(genomes, children, strict=True)]
    assert {"relu", POOLING.kind} <= set().union(*new)
    without = BackboneSpace(Bounds(3, (3, 5), 12, 1))
    assert not without.contains(Genome([SELF_ATTENTION, Convolution(3), POOLING]))


def test_they_compute_what_their_functions_do(loaded):
    expression = Expression.parse("multiply(relu(q), normalize(square(k)))", loaded.rules)
    q, k = torch.randn(2, 1, 2, 5, 3).unbind(0)
    expected = torch.relu(q) * F.normalize(k**2, dim=-1)
    for lower in (True, False):
        program = ExpressionProgram(expression, lower, loaded.functions)
        result, _ = program([q, k], TokenLayout.from_mask(None, (1, 5)), 3)
        assert torch.equal(result, expected)
    assert not ExpressionProgram(expression, functions=loaded.functions).fp16_safe


def test_equal_functions_have_equal_keys(loaded):
    keys = [
        expression_key(Expression.parse(text, loaded.rules), loaded.array_functions)
        for text in ("relu(relu(q))", "relu(q)", "square(q)", "square(neg(q))")
    ]
    assert keys[0] == keys[1] and keys[2] == keys[3] and keys[0] != keys[2]
    assert len({genome_key(Genome([SELF_ATTENTION, gene])) for gene in (POOLING, Convolution(3), Convolution(5))}) == 3


def test_type_rules(loaded):
    assert Expression.parse("matmul(matmul(q, transpose(k)), normalize(v))", loaded.rules).type == "nd"
    with pytest.raises(ValueError, match="normalize takes operands of type a×d, got n×n"):
        Expression.parse("matmul(normalize(matmul(q, transpose(k))), v)", loaded.rules)


def test_padding_changes_no_output(loaded):
    space = custom_space(loaded, 2)
    used = set()
    for number in range(60):
        genome = space.random(np.random.default_rng(number))
        used |= set(genome.custom_operations())
        if not genome.custom_operations():
            continue
        torch.manual_seed(0)
        model = AutoBertZeroModel(custom_config(genome, loaded, initializer_range=0.1)).eval()
        ids = torch.randint(1, 90, (2, 7))
        with torch.no_grad():
            short = model(ids).last_hidden_state
            mask = torch.tensor([[1] * 7 + [0] * 4] * 2)
            for unpad in (True, False):
                model.config.unpad_inputs = unpad
                long = model(F.pad(ids, (0, 4)), mask).last_hidden_state[:, :7]
                assert torch.allclose(short, long, rtol=1e-3, atol=1e-4), genome
    assert set(loaded.rules) == used


def test_a_custom_layer_runs_its_module(loaded):
    model = AutoBertZeroModel(custom_config(Genome([POOLING]), loaded)).eval()
    layer = model.encoder.layer[0]
    x = torch.randn(1, 6, model.config.hidden_size)
    mixed, *_ = layer.mixer(x, TokenLayout())
    window = x[:, 0:5].mean(1)  # around the third token
    assert torch.allclose(mixed[:, 2], layer.mixer.module.dense(window - x[:, 2]), atol=1e-6)
    assert "average_pooling\n         AveragePooling" in model.describe()
    with pytest.raises(
        ValueError, match="layer 1, average_pooling, is of a custom kind, which only supports masks of padding"
    ):
        model(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, 3))


def test_costs_are_those_of_the_model(loaded):
    genome = Genome([POOLING, Convolution(3), POOLING])
    config, tokens = custom_config(genome, loaded), 9
    sizes = (config.hidden_size, config.num_attention_heads, config.intermediate_size)
    settings = ModelSettings(
        **dict(zip(("hidden_size", "num_attention_heads", "intermediate_size"), sizes, strict=True)),
        sequence_length=tokens,
    )
    costs = CostModel(
        *(*sizes, config.vocab_size, config.max_position_embeddings, tokens),
        custom_layer_costs(loaded, settings, config.vocab_size),
    )
    model = AutoBertZeroForMaskedLM(config)
    assert costs.parameters(genome) == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter:
        model.autobert_zero.encoder(torch.randn(1, tokens, config.hidden_size), TokenLayout())
    assert costs.flops(genome) == counter.get_total_flops()


def test_a_super_network_has_a_branch_for_each_kind(loaded, tiny_settings):
    torch.manual_seed(0)
    supernet = make_supernet(tiny_settings, loaded).eval()
    assert not list(make_supernet(tiny_settings, CustomOperations()).custom)
    genome = Genome([POOLING, SELF_ATTENTION, *[Convolution(3)] * (tiny_settings.model.num_hidden_layers - 2)])
    ids, labels = torch.randint(1, 50, (2, 2, 8))
    loss = supernet(genome, ids, labels)
    assert torch.equal(supernet.candidate(genome).eval()(ids, labels=labels).loss, loss)
    loss.backward()
    first, *others = supernet.custom[0]
    assert all(parameter.grad is not None for parameter in first.parameters())
    assert all(parameter.grad is None for layer in others for parameter in layer.parameters())


def test_they_can_be_shown(loaded):
    genome = Genome([Attention(Expression.parse("multiply(relu(q), k)", loaded.rules)), POOLING, Convolution(3)])
    assert "multiply(relu(q), k)" in genome_text(genome) and "  2  average_pooling\n" in genome_text(genome)
    assert r"\operatorname{relu}\left(Q\right)" in genome_latex(genome)
    assert {"average_pooling", "conv 3", "A"} <= {b.text for b in draw_backbone(genome).shapes if isinstance(b, Box)}
    assert differences(genome, Genome([genome[0], Convolution(5), genome[2]])) == [
        "layer 2: average_pooling → convolution 5"
    ]


def test_the_configuration_names_what_it_needs(loaded):
    expression = Expression.parse("matmul(relu(matmul(q, transpose(k))), v)", loaded.rules)
    config = custom_config(Genome([Attention(expression), Convolution(3)]), loaded)
    assert config.custom_operations == {"relu": "ab->ab"} and config.custom_operations_digest == loaded.digest
    assert config.to_dict()["custom_operations"] == {"relu": "ab->ab"}
    without = custom_config(Genome([Convolution(3)]), loaded)
    assert without.custom_operations is None and without.custom_operations_digest is None
    config = custom_config(Genome([POOLING, Convolution(3)]), loaded)
    assert config.custom_operations == {"average_pooling": "layer"}
    assert Genome.from_list(config.genome, config.custom_operations) == Genome([POOLING, Convolution(3)])
    with pytest.raises(ValueError, match="layer 1: expected only the field 'kind'"):
        Genome.from_list([{"kind": "average_pooling", "window": 3}], loaded.rules)


def test_a_model_without_the_functions_is_an_error():
    genome = [{"kind": "attention", "expression": "matmul(gelu(matmul(q, transpose(k))), v)"}]
    config = AutoBertZeroConfig(
        genome=genome, custom_operations={"gelu": "ab->ab"}, hidden_size=12, num_attention_heads=3
    )
    with pytest.raises(ValueError, match="custom_operations: expected definitions of gelu, got none with digest None"):
        AutoBertZeroModel(config)
    config = AutoBertZeroConfig(genome=[{"kind": "pool"}], custom_operations={"pool": "layer"})
    with pytest.raises(ValueError, match="custom_operations: expected definitions of pool, got none with digest None"):
        AutoBertZeroModel(config)
    with pytest.raises(ValueError, match=r"kind: expected one of \['convolution', 'attention', 'pool'\], got 'mix'"):
        AutoBertZeroConfig(genome=[{"kind": "mix"}], custom_operations={"pool": "layer"})
    with pytest.raises(ValueError, match="unknown name 'selu'"):
        AutoBertZeroConfig(genome=[{"kind": "attention", "expression": "selu(q)"}])


_LAYER = """
import torch

class Plain(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function

def layer(function):
    return lambda config: Plain(function)

def only_whole(x, real):
    if not real.all():
        raise NotImplementedError
    return x

class Mean(torch.nn.Module):  # of all positions; at first multiplied by 0
    def __init__(self):
        super().__init__()
        self.share = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, real):
        return self.share * x.mean(1, keepdim=True).expand_as(x)

class Buffer(torch.nn.Module):
    def __init__(self, persistent):
        super().__init__()
        self.register_buffer("scale", torch.full((12,), 0.5), persistent)

    def forward(self, x, real):
        return self.scale * x

class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = torch.nn.Linear(12, 12), torch.nn.Linear(12, 12)
        self.one.weight = self.other.weight

    def forward(self, x, real):
        return self.one(self.other(x))

SHARED = torch.nn.Linear(12, 12)
"""


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{}", "expected a table OPERATIONS"),
        ("{'relu': torch.relu}", "operation 'relu': expected a rule and a function"),
        ("{'neg': ('ab->ab', torch.neg)}", "operation 'neg': expected a new name"),
        ("{'Q': ('ab->ab', torch.neg)}", "expected a lower-case identifier"),
        ("{'f': ('ab->ac', torch.neg)}", "operation 'f': expected axes of the operands in the result, got 'ab->ac'"),
        ("{'f': ('ab', torch.neg)}", "operation 'f': expected a rule such as"),
        (
            "{'f': ('ab->ba', torch.neg)}",
            "expected torch.float64 (2, 2, 3, 5) for operands nd, got torch.float64 (2, 2, 5, 3)",
        ),
        ("{'f': ('ab->ab', lambda x: x.sum())}", "got torch.float64 ()"),
        ("{'f': ('ab->ab', torch.log)}", "operation 'f': expected finite numbers"),
        ("{'f': ('ab->ab', torch.rand_like)}", "expected the same result every time"),
        ("{'f': ('ab->ab', torch.Tensor.relu_)}", "expected unchanged operands"),
        (
            "{'f': ('ab->ab', lambda x: x.softmax(-1))}",
            "to depend on that token alone (or padding would change it) for operands nn",
        ),
        ("{'f': ('nd->nd', lambda x: x - x.mean(-2, keepdim=True))}", "to depend on that token alone"),
        ("{'f': ('ab->ab', lambda x: x - x.mean(0))}", "expected independent sequences"),
        ("{'f': ('ab,ab->ab', torch.relu)}", "operation 'f': expected a tensor (2, 2, 5, 5) for operands nn, nn"),
        ("{'attention': ('layer', torch.nn.Identity)}", "operation 'attention': expected a new name"),
        ("{'f': ('layer', torch.relu)}", "layer kind 'f': expected a function from a configuration to a module"),
        ("{'f': ('layer', lambda config: torch.relu)}", "got builtin_function_or_method"),
        (
            "{'f': ('layer', lambda config: torch.nn.Linear(12, 12))}",
            "layer kind 'f': expected a tensor (2, 5, 12), got TypeError",
        ),
        ("{'f': ('layer', layer(lambda x, real: x[..., :3]))}", "got torch.float64 (2, 5, 3)"),
        ("{'f': ('layer', layer(lambda x, real: x.add_(1)))}", "expected unchanged operands"),
        ("{'f': ('layer', layer(lambda x, real: torch.rand_like(x)))}", "expected the same result every time"),
        (
            "{'f': ('layer', layer(lambda x, real: x - x.mean(1, keepdim=True)))}",
            "another one with padding on the right",
        ),
        ("{'f': ('layer', layer(lambda x, real: x * torch.arange(x.shape[1])[:, None]))}", "with padding on the left"),
        ("{'f': ('layer', layer(lambda x, real: x - x.mean(0)))}", "expected independent sequences"),
        (
            "{'f': ('layer', layer(only_whole))}",
            "layer kind 'f': expected no state but parameters, and calls with padding",
        ),
        ("{'f': ('layer', lambda config: Mean())}", "another one with padding on the right"),
        ("{'f': ('layer', lambda config: Buffer(True))}", "expected no state but parameters"),
        ("{'f': ('layer', lambda config: Buffer(False))}", "expected no state but parameters"),
        ("{'f': ('layer', lambda config: Tied())}", "expected every parameter under one name, got one under two"),
        ("{'f': ('layer', lambda config: SHARED)}", "expected separate parameters in each layer"),
        ("{'f': ('layer', lambda config: Plain(torch.ones(1).item()))}", "also on the meta device"),
        (
            "{'f': ('layer', layer(lambda x, real: x if real.all() else x * real[..., None]))}",
            "layer kind 'f': expected calls on any device, and without values",
        ),
        (
            "{'f': ('ab->ab', lambda x: x if x.isfinite().all() else x)}",
            "operation 'f': expected calls on any device, and without values",
        ),
        ("nothing", "it cannot be run: NameError"),
        ("exit(0)", "it cannot be run: SystemExit: 0"),
        ("{'f': ('ab->ab', lambda x: exit(0))}", "operands nn, got SystemExit: 0"),
    ],
)  # fmt: skip
def test_bad_operations(tmp_path, table, message):
    file = tmp_path / "operations.py"
    file.write_text(f"{_LAYER}OPERATIONS = {table}\n")
    with pytest.raises(ValueError) as error:
        custom_operations.load(file)
    assert message in str(error.value)
    with pytest.raises(ValueError, match="expected a Python file, got none"):
        custom_operations.load(tmp_path / "nowhere.py")


_LOAD = """
import sys
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, pipeline

first, again = sys.argv[1:]
model = AutoModelForMaskedLM.from_pretrained(first, trust_remote_code=True).eval()
assert model.config.custom_operations, model.config
model.save_pretrained(again)
ids = torch.tensor([[5, 6, 7, 8]])
twice = AutoModelForMaskedLM.from_pretrained(again, trust_remote_code=True).eval()
with torch.no_grad():
    assert torch.equal(model(ids).logits, twice(ids).logits)
for auto_class in (AutoModel, AutoModelForSequenceClassification):
    auto_class.from_pretrained(again, trust_remote_code=True)
print(len(pipeline("fill-mask", model=first, trust_remote_code=True)("the cat [MASK] .")))
"""


def test_from_a_search_to_a_process_without_the_package(tmp_path, capsys):
    """The only candidate is the seed genome, so the winner has custom operations."""
    expression = "matmul(relu(matmul(q, transpose(k))), normalize(v))"
    seed = [{"kind": "attention", "expression": expression}, {"kind": "average_pooling"}]
    (tmp_path / "seed.json").write_text(json.dumps(seed))
    folder = tmp_path / "run"
    values = {**TINY_RUN, "train_file": [write_corpus(tmp_path / "text.txt")], "output_dir": str(folder)}
    values |= {"max_evaluations": 1, "seed_genomes": [str(tmp_path / "seed.json")], "custom_operations": str(FILE)}
    (tmp_path / "settings.json").write_text(json.dumps(values))
    search = [sys.executable, "-m", "autobert_zero.search", "--config", str(tmp_path / "settings.json")]
    done = subprocess.run(search, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "summary.json").read_text())["best"]["genome"] == seed
    assert ">average_pooling<" in (folder / "report.html").read_text()
    # Showing the run needs no functions.
    exported = tmp_path / "exported"
    show = """
import json, sys
from autobert_zero.search.cli.main import main
for arguments in json.loads(sys.argv[1]):
    main(arguments)
"""
    commands = [["show", str(folder)], ["report", str(folder)], ["export", str(folder), "--output", str(exported)]]
    done = subprocess.run([sys.executable, "-c", show, json.dumps(commands)], capture_output=True, text=True)
    assert done.returncode == 0 and "normalize" in done.stdout, done.stderr
    assert (exported / "operations_autobert_zero.py").read_bytes() == FILE.read_bytes()
    assert "operations_autobert_zero.py`: `" in (exported / "README.md").read_text()
    out, _ = run_without_package(_LOAD, str(exported), str(tmp_path / "again"), cwd=tmp_path)
    assert out.split()[-1] == "5"
    # Another file belongs to another run.
    other = tmp_path / "other.py"
    other.write_text(FILE.read_text() + "\n")
    with pytest.raises(SystemExit):
        main(["search", "--config", str(tmp_path / "settings.json"), "--custom_operations", str(other)])
    assert "is the history of another run: expected custom_operations=" in capsys.readouterr().err


def test_a_model_is_saved_with_the_file_that_was_loaded(tmp_path):
    """Not with what the file contains after a search."""
    file = tmp_path / "operations.py"
    file.write_text("import torch\nOPERATIONS = {'f': ('ab->ab', torch.relu)}\n")
    before = file.read_bytes()
    custom = custom_operations.load(file)
    file.write_text("nothing")
    genome = Genome([Attention(Expression.parse("f(q)", custom.rules))])
    AutoBertZeroModel(custom_config(genome, custom)).save_pretrained(tmp_path / "model")
    custom_operations.save_with_model(tmp_path / "model")
    assert (tmp_path / "model" / custom_operations.TABLE_FILE).read_bytes() == before


def test_two_files_that_define_the_same_name(tmp_path):
    """Each model computes with the functions of its own file, also after it is saved and loaded."""
    customs = {}
    for function in ("relu", "tanh"):
        file = tmp_path / f"{function}.py"
        file.write_text(f"import torch\nOPERATIONS = {{'act': ('ab->ab', torch.{function})}}\n")
        customs[function] = custom_operations.load(file)
    assert customs["relu"].digest != customs["tanh"].digest
    keys, models = set(), {}
    for function, custom in customs.items():
        genome = Genome([Attention(Expression.parse("act(q)", custom.rules))])
        keys.add(genome_key(genome, custom.array_functions))
        torch.manual_seed(0)
        models[function] = AutoBertZeroModel(custom_config(genome, custom)).eval()
    assert len(keys) == 2
    for function, model in models.items():
        model.save_pretrained(tmp_path / function)
        custom_operations.save_with_model(tmp_path / function)
    x, ids = torch.randn(1, 6, models["relu"].config.hidden_size), torch.tensor([[5, 6, 7]])
    for function, model in models.items():
        loaded = AutoBertZeroModel.from_pretrained(tmp_path / function).eval()
        for each in (model, loaded):
            mixer = each.encoder.layer[0].mixer
            mixed, *_ = mixer(x, TokenLayout())
            assert torch.allclose(mixed, mixer.dense(getattr(torch, function)(mixer.query(x))), atol=1e-6)
        assert torch.equal(loaded(ids).last_hidden_state, model(ids).last_hidden_state)
    assert not torch.allclose(models["relu"](ids).last_hidden_state, models["tanh"](ids).last_hidden_state)


class Depth(torch.nn.Module):
    """Depends on the depth of its model, starts as the identity, and uses the attention of torch."""

    def __init__(self, config):
        super().__init__()
        self.factor = config.num_hidden_layers
        self.map = torch.nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        torch.nn.init.eye_(self.map.weight)
        self.attention = torch.nn.MultiheadAttention(config.hidden_size, 2, batch_first=True)

    def forward(self, x, real):
        x = self.map(x)
        return self.factor * self.attention(x, x, x, key_padding_mask=~real, need_weights=False)[0]


def test_a_layer_kind_is_consistent_everywhere(tiny_settings):
    """The super-network equals the candidate; the module initializes its own weights; FLOPs of its attention are
    counted; a model in half precision accepts its float32 output."""
    custom = CustomOperations({"deep": "layer"}, {"deep": Depth}, "digest of Depth")
    register_custom_operations(custom.digest, {"deep": ("layer", Depth)})
    genome = Genome([CustomLayer("deep")] * tiny_settings.model.num_hidden_layers)
    supernet = make_supernet(tiny_settings, custom).eval()
    layer = supernet.candidate(genome).autobert_zero.encoder.layer[0]
    assert torch.equal(layer.mixer.module.map.weight, torch.eye(tiny_settings.model.hidden_size))
    ids, labels = torch.randint(1, 50, (2, 2, 8))
    assert torch.equal(supernet(genome, ids, labels), supernet.candidate(genome).eval()(ids, labels=labels).loss)
    width, tokens = 24, 9
    settings = ModelSettings(hidden_size=width, num_attention_heads=2, intermediate_size=48, sequence_length=tokens)
    flops = custom_layer_costs(custom, settings, 50)["deep"][1]
    assert flops == 2 * tokens * width * (5 * width + 2 * tokens)
    model = supernet.candidate(genome).to(torch.bfloat16).eval()
    layer = model.autobert_zero.encoder.layer[0].mixer
    layer.module.forward = lambda x, real: x.float()
    x = torch.randn(1, 4, tiny_settings.model.hidden_size, dtype=torch.bfloat16)
    assert layer(x, TokenLayout())[0].dtype == torch.bfloat16


def test_custom_operations_of_one_run_are_not_used_by_the_next(tmp_path, capsys):
    """A genome of a run with custom operations that does not use them is a seed for a run without them."""
    corpus = write_corpus(tmp_path / "text.txt")
    rules = dict(custom_operations.load(FILE).rules)
    relu = {"kind": "attention", "expression": "matmul(relu(q), matmul(transpose(k), v))"}
    for name, gene in {"operation.json": relu, "layer.json": {"kind": "average_pooling"}}.items():
        genes = [SELF_ATTENTION.to_dict(), gene]
        (tmp_path / name).write_text(json.dumps({"genome": genes, "custom_operations": rules}))
        (tmp_path / f"without-rules-{name}").write_text(json.dumps(genes))
    other = [{"kind": "convolution", "kernel_size": 3}, SELF_ATTENTION.to_dict()]
    summary = {"genome": other, "custom_operations": rules}
    (tmp_path / "unused.json").write_text(json.dumps(summary))
    values = {**TINY_RUN, "train_file": [corpus], "max_evaluations": 8, "output_dir": str(tmp_path / "run")}
    values["position_embedding_type"] = "absolute"
    for name, message in {
        "operation.json": "expected genomes in the space of this run",
        "layer.json": "expected genomes in the space of this run",
        "without-rules-operation.json": "unknown name 'relu'",
        "without-rules-layer.json": "kind: expected one of ['convolution', 'attention'], got 'average_pooling'",
    }.items():
        with pytest.raises(SystemExit):
            main(["search", *flags({**values, "seed_genomes": [str(tmp_path / name)]})])
        error = capsys.readouterr().err
        assert "seed_genomes: " in error and message in error
    main(["search", *flags({**values, "seed_genomes": [str(tmp_path / "unused.json")]})])
    records = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()[1:]]
    assert len(records) == 8
    assert not any(Genome.from_list(record["genome"]).custom_operations() for record in records)


@pytest.mark.slow
def test_a_model_keeps_them_in_pre_training_and_fine_tuning(tmp_path):
    genome = [{"kind": "attention", "expression": "matmul(relu(matmul(q, transpose(k))), v)"}]
    (tmp_path / "genome.json").write_text(json.dumps({"genome": genome, "custom_operations": {"relu": "ab->ab"}}))
    values = {"max_seq_length": 16, "per_device_train_batch_size": 4, "report_to": "none", "max_steps": 2}
    pretraining = {"train_file": write_corpus(tmp_path / "text.txt"), "custom_operations": FILE, "vocab_size": 150}
    pretraining |= {"genome": tmp_path / "genome.json", "output_dir": tmp_path / "pretrained"}
    pretraining |= {"config_overrides": "hidden_size=12,num_attention_heads=3"}
    tuning = {"model": tmp_path / "pretrained", "trust_remote_code": True, "output_dir": tmp_path / "tuned"}
    tuning |= {"task_name": "rte", "data_dir": write_task(tmp_path / "glue", "rte"), "seeds": 1, "save_models": True}
    for script, arguments in (("run_pretraining.py", pretraining), ("run_glue.py", tuning)):
        command = [sys.executable, str(FILE.with_name(script)), *flags({**values, **arguments})]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    tables = list(tmp_path.glob("pretrained/operations_*.py")) + list(tmp_path.glob("tuned/**/operations_*.py"))
    assert len(tables) == 2 and all(table.read_bytes() == FILE.read_bytes() for table in tables)


def test_a_bad_file_ends_a_search_at_once(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["search", "--output_dir", str(tmp_path / "run"), "--custom_operations", "nowhere.py"])
    assert (
        stopped.value.code == 2
        and "custom_operations: nowhere.py: expected a Python file, got none" in capsys.readouterr().err
    )


_KINDS = """
import torch
from torch import nn

class Gate(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(1.0))
    def forward(self, x, real):
        return self.strength * x

class Norm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm = nn.GroupNorm(3, config.hidden_size)
    def forward(self, x, real):
        return self.norm(x.reshape(-1, x.shape[-1])).view_as(x)

OPERATIONS = {"KIND": ("layer", CLASS)}
"""


def test_kinds_at_the_sizes_of_a_run(tmp_path, capsys):
    """A parameter may be a single number; a kind that does not support these sizes is an error before any training."""
    file = tmp_path / "kinds.py"
    tiny = {**TINY_RUN, "hidden_size": 16, "num_attention_heads": 2, "max_evaluations": 4}
    settings = {**tiny, "train_file": write_corpus(tmp_path / "c.txt"), "custom_operations": str(file)}
    file.write_text(_KINDS.replace("KIND", "gate").replace("CLASS", "Gate"))
    main(["search", *flags({**settings, "output_dir": str(tmp_path / "run")})])
    assert (tmp_path / "run" / "summary.json").exists()
    file.write_text(_KINDS.replace("KIND", "norm").replace("CLASS", "Norm"))
    with pytest.raises(SystemExit, match="2"):
        main(["search", *flags({**settings, "output_dir": str(tmp_path / "other")})])
    error = capsys.readouterr().err
    assert "custom_operations: 'norm' makes no layer of hidden_size=16, num_attention_heads=2: ValueError" in error
    assert not (tmp_path / "other" / "supernet.safetensors").exists()
