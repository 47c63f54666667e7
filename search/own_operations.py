"""Operations and layer kinds of one's own: a file with a table `OPERATIONS`, of names, rules and torch functions.

```python
import torch

OPERATIONS = {"relu": ("ab->ab", torch.relu)}
```

It is all that a search needs to use them, and travels with the model that is found. `examples/own_operations.py` has more.
"""

import functools
import hashlib
import itertools
import json
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig
from transformers.utils import cached_file

from autobert_zero.configuration_autobert_zero import LAYER_RULE, AutoBertZeroConfig
from autobert_zero.configuration_autobert_zero import add_operation as add_rule
from autobert_zero.modeling_autobert_zero import AUTO_CLASSES, add_operation
from autobert_zero.search import costs, functional_key, grammar
from autobert_zero.search.reporting import write_json


# Names of the files in a saved model: the user's, and the one that the Auto classes load.
TABLE, ENTRY = "operations_autobert_zero.py", "own_autobert_zero.py"
_ENTRY = '''"""AutoBERT-Zero with the operations of the file beside this one. Written with the model."""

from .modeling_autobert_zero import AUTO_CLASSES, add_operation
from .operations_autobert_zero import OPERATIONS


for _name, (_rule, _function) in OPERATIONS.items():
    add_operation(_name, _rule, _function)

# Classes of this module, so that a model that is saved again takes this module along.
for _auto_class, _base in AUTO_CLASSES.items():
    _class = type(_base.__name__, (_base,), {"__module__": __name__, "__doc__": _base.__doc__})
    _class.register_for_auto_class(_auto_class.__name__)
    globals()[_base.__name__] = _class
'''
# The source that each operation of this process came from, as it was then: a file may change while a search runs.
_SOURCES: dict[str, bytes] = {}
# Numbers of tokens and of a head's dimensions that functions are tried with; different, so that a swapped axis shows.
TRIAL = {"n": 5, "d": 3}


class Fail(Protocol):
    """Raises ValueError that says what is tried, what was expected and what came."""

    def __call__(self, expected: str, got: object) -> NoReturn: ...


def load(path: str | Path) -> dict[str, str]:
    """Run a file, try its operations, make them part of the language of this process, and let random expressions use them.

    Returns: their type rules by name.

    Raises: ValueError that names the operation, what was expected and what came.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError("expected a Python file, got none")
    module = sys.modules[Path(TABLE).stem] = types.ModuleType(Path(TABLE).stem)  # where data classes look for it
    source = path.read_bytes()
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except Exception as error:
        raise ValueError(f"it cannot be run: {type(error).__name__}: {error}") from error
    table = getattr(module, "OPERATIONS", None)
    if not isinstance(table, dict) or not table:
        raise ValueError(f"expected a table OPERATIONS, got {table!r:.200}")
    for name, entry in table.items():
        if not isinstance(entry, tuple) or len(entry) != 2 or not callable(entry[1]):
            raise ValueError(f"operation {name!r}: expected a rule and a function, got {entry!r:.200}")
        rule, function = entry
        add_rule(name, rule)
        with torch.random.fork_rng(devices=[]):
            if rule == LAYER_RULE:
                _try_layer(name, function)
            else:
                _try(name, rule, function)
    for name, (rule, function) in table.items():
        add_operation(name, rule, function)
        if rule == LAYER_RULE:
            costs.OWN_LAYERS[name] = _costs_of(function)
        else:
            functional_key.OPERATIONS[name] = _on_arrays(function)
        _SOURCES[name] = source
    rules = {name: rule for name, (rule, _) in table.items()}
    grammar.draw_from(name for name, rule in rules.items() if rule != LAYER_RULE)
    return rules


def load_beside(config: PretrainedConfig, model: str, revision: str = "main") -> None:
    """Load the file beside a model, in its folder or on the Hub, if the model has any: where this package is, a model is
    built by it, and not by the code beside the model."""
    if getattr(config, "own_operations", None):
        load(str(cached_file(model, TABLE, revision=revision)))  # raises where there is none


def digest(name: str) -> str:
    """16 hexadecimal digits of the source that an operation came from."""
    return hashlib.sha256(_SOURCES[name]).hexdigest()[:16]


def carry(folder: Path) -> None:
    """Let a saved model take along the file that its operations came from, if it has any: the Auto classes then load it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = config.get("own_operations") or {}
    sources = {_SOURCES[name] for name in names}
    if not sources:
        return
    if len(sources) > 1:
        raise ValueError(f"own_operations: expected {', '.join(names)} of one file, got them of {len(sources)}")
    (folder / TABLE).write_bytes(sources.pop())
    (folder / ENTRY).write_text(_ENTRY, encoding="utf-8")
    for auto_class, model_class in AUTO_CLASSES.items():
        config["auto_map"][auto_class.__name__] = f"{Path(ENTRY).stem}.{model_class.__name__}"
    write_json(folder / "config.json", config)


def _on_arrays(function: Callable[..., torch.Tensor]) -> Callable[..., np.ndarray]:
    """The function on matrices of numpy, for functional keys."""

    def call(*arrays: np.ndarray) -> np.ndarray:
        return function(*(torch.from_numpy(np.ascontiguousarray(a))[None, None] for a in arrays))[0, 0].numpy()

    return call


def _try(name: str, rule: str, function: Callable[..., torch.Tensor]) -> None:
    """Raise ValueError unless a function keeps its rule, for all types that it may have, and tokens and sentences apart."""
    generator = torch.Generator().manual_seed(0)
    for axes in itertools.product("nd", repeat=len(set(rule) & set("abc"))):
        binding = dict(zip(sorted(set(rule) & set("abc")), axes, strict=True))
        *types, result_type = (
            "".join(binding.get(x, x) for x in letters) for letters in rule.replace("->", ",").split(",")
        )

        def shape(type_: str) -> tuple[int, ...]:
            return (2, 2, *(TRIAL[axis] for axis in type_))

        def random(type_: str) -> torch.Tensor:
            return torch.randn(shape(type_), generator=generator, dtype=torch.float64)

        def fail(expected: str, got: object, types: list[str] = types) -> NoReturn:
            raise ValueError(f"operation {name!r}: expected {expected} for operands {', '.join(types)}, got {got}")

        operands = [random(type_) for type_ in types]
        result = _run(function, operands, shape(result_type), fail)
        # Another last token, or another second sentence, must change nothing else.
        others = [_with_other_last(x, type_, random(type_)) for x, type_ in zip(operands, types, strict=True)]
        if not torch.equal(_without_last(function(*others), result_type), _without_last(result, result_type)):
            fail("what is said of a token to depend on it alone (pads would show)", "a dependence on others")
        others = [torch.cat([x[:1], random(type_)[1:]]) for x, type_ in zip(operands, types, strict=True)]
        if not torch.equal(function(*others)[:1], result[:1]):
            fail("sentences kept apart", "a dependence on others of the batch")


def _try_layer(name: str, make: Callable[[AutoBertZeroConfig], nn.Module]) -> None:
    """Raise ValueError unless a layer kind gives what it takes, keeps pads and sentences out of what it says of others, and
    is all in its parameters: those are what is shared, saved and loaded."""

    def fail(expected: str, got: object) -> NoReturn:
        raise ValueError(f"layer kind {name!r}: expected {expected}, got {got}")

    config = AutoBertZeroConfig(hidden_size=12, num_attention_heads=3, intermediate_size=20)
    try:
        module, other = make(config), make(config)
        with torch.device("meta"):
            without_memory = make(config)
    except Exception as error:
        fail(
            "a function that makes a module of a configuration, also without memory",
            f"{type(error).__name__}: {error}",
        )
    if not isinstance(module, nn.Module):
        fail("a function that makes a module of a configuration", type(module).__name__)
    if {*map(id, module.parameters())} & {*map(id, other.parameters())}:
        fail("parameters of its own in each layer", "the same ones twice")
    if len(list(module.parameters())) < len(list(module.named_parameters(remove_duplicate=False))):
        fail("every parameter under one name", "one under two")

    generator = torch.Generator().manual_seed(0)
    module, without_memory = module.double().eval(), without_memory.double().eval()
    x = torch.randn(2, TRIAL["n"], config.hidden_size, generator=generator, dtype=torch.float64)
    real = torch.ones(x.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        for parameter in module.parameters():  # one that begins at 0 would hide what comes after it
            parameter.copy_(0.1 + torch.rand(parameter.shape, generator=generator))
        result = _run(module, [x, real], x.shape, fail)
        try:
            loaded = functional_call(without_memory, dict(module.named_parameters()), (x, real))
            padded = {
                side: module(F.pad(x, (0, 0, *pads)), F.pad(real, pads))[F.pad(real, pads)].view_as(x)
                for side, pads in {"right": (0, 4), "left": (4, 0)}.items()
            }
            alone = module(x[:1], real[:1])
        except Exception as error:
            fail(
                "no state but parameters, and calls with pads and with one sentence",
                f"{type(error).__name__}: {error}",
            )
        if not torch.equal(loaded, result):
            fail("no state but parameters", "another result by the same parameters")
        for side, values in padded.items():
            if not torch.allclose(values, result):
                fail("what is said of real tokens to be the same with pads", f"something else with pads on the {side}")
        if not torch.allclose(alone, result[:1]):
            fail("sentences kept apart", "a dependence on others of the batch")


def _run(
    function: Callable[..., torch.Tensor], operands: list[torch.Tensor], shape: Sequence[int], fail: Fail
) -> torch.Tensor:
    """The result of a function, which must be of a shape, finite, the same every time, and leave operands alone."""
    shape = tuple(shape)
    kept = [x.clone() for x in operands]
    try:
        result = function(*operands)
    except Exception as error:
        fail(f"a tensor {shape}", f"{type(error).__name__}: {error}")
    if not isinstance(result, torch.Tensor):
        fail(f"a tensor {shape}", type(result).__name__)
    if result.shape != shape or result.dtype != torch.float64:
        fail(f"{torch.float64} {shape}", f"{result.dtype} {tuple(result.shape)}")
    if not result.isfinite().all():
        fail("finite numbers", "others")
    if any(not torch.equal(x, y) for x, y in zip(operands, kept, strict=True)):
        fail("operands left as they are", "changed ones")
    if not torch.equal(function(*operands), result):
        fail("the same result every time", "another one")
    return result


def _costs_of(function: Callable[[AutoBertZeroConfig], nn.Module]) -> Callable[[costs.Sizes], tuple[int, int]]:
    """What counts the parameters and the FLOPs of a layer kind, as `costs` counts them."""

    @functools.cache
    def count(sizes: costs.Sizes) -> tuple[int, int]:
        config = AutoBertZeroConfig(
            hidden_size=sizes.hidden_size,
            num_attention_heads=sizes.num_attention_heads,
            intermediate_size=sizes.intermediate_size,
            vocab_size=sizes.vocab_size,
            max_position_embeddings=sizes.max_position_embeddings,
        )
        with torch.random.fork_rng(devices=[]):
            module = function(config).eval()
        x = torch.zeros(1, sizes.tokens, sizes.hidden_size)
        # By plain products: the counter does not know what fused attention is made of. With gradients, or a module of
        # torch's own would be fused as well.
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), FlopCounterMode(display=False) as counter:
            module(x, torch.ones(x.shape[:2], dtype=torch.bool))
        return sum(parameter.numel() for parameter in module.parameters()), counter.get_total_flops()

    return count


def _with_other_last(x: torch.Tensor, type_: str, other: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    if type_[0] == "n":
        x[..., -1, :] = other[..., -1, :]
    if type_[1] == "n":
        x[..., :, -1] = other[..., :, -1]
    return x


def _without_last(x: torch.Tensor, type_: str) -> torch.Tensor:
    return x[..., : x.shape[-2] - (type_[0] == "n"), : x.shape[-1] - (type_[1] == "n")]
