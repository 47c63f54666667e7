"""Custom operations and layer kinds: a file with a table `OPERATIONS` of names, type rules and torch functions::

    import torch

    OPERATIONS = {"relu": ("ab->ab", torch.relu)}

The file is all that a search needs to use them, and it is saved with the found model. A longer example is
`examples/custom_operations.py`.
"""

import itertools
import json
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import PretrainedConfig
from transformers.utils import cached_file

from autobert_zero.configuration_autobert_zero import (
    LAYER_RULE,
    AutoBertZeroConfig,
    check_custom_operations,
    stamp_code,
)
from autobert_zero.modeling_autobert_zero import AUTO_CLASSES, register_custom_operations
from autobert_zero.search.files import bytes_digest, write_json


# Names of the files in a saved model: the user's file, and the one that the Auto classes load.
TABLE_FILE, ENTRY_FILE = "operations_autobert_zero.py", "custom_autobert_zero.py"
_ENTRY = '''"""AutoBERT-Zero with the custom operations of operations_autobert_zero.py. Generated with the model."""

from .modeling_autobert_zero import AUTO_CLASSES, register_custom_operations
from .operations_autobert_zero import OPERATIONS


register_custom_operations("{digest}", OPERATIONS)

# Subclasses in this module, so that saving the model again saves this module, too.
for _auto_class, _base in AUTO_CLASSES.items():
    _class = type(_base.__name__, (_base,), {{"__module__": __name__, "__doc__": _base.__doc__}})
    _class.register_for_auto_class(_auto_class.__name__)
    globals()[_base.__name__] = _class
'''
# Sources of the files loaded in this process, by digest: a file may change while a search runs.
_SOURCES: dict[str, bytes] = {}
# Numbers of tokens and of head dimensions that functions are tested with; distinct, so that a swapped axis fails.
TRIAL_SIZES = {"n": 5, "d": 3}


@dataclass(frozen=True)
class CustomOperations:
    """The operations and layer kinds of a file; none by default.

    Attributes:
        rules: type rules by name; `layer` for layer kinds.
        functions: by name, functions of tensors, and for layer kinds functions from a configuration to a module.
        digest: 16 hexadecimal digits of the file; None without one.
    """

    rules: Mapping[str, str] = field(default_factory=dict)
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    digest: str | None = None

    @property
    def operations(self) -> tuple[tuple[str, str], ...]:
        """Names and type rules of the operations."""
        return tuple((name, rule) for name, rule in self.rules.items() if rule != LAYER_RULE)

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """Names of the layer kinds, sorted."""
        return tuple(sorted(name for name, rule in self.rules.items() if rule == LAYER_RULE))

    @property
    def array_functions(self) -> tuple[tuple[str, Callable[..., np.ndarray]], ...]:
        """Names and functions of the operations, on matrices of numpy."""
        return tuple((name, _on_arrays(self.functions[name])) for name, _ in self.operations)


class Fail(Protocol):
    """Raises ValueError that says what was tested, what was expected and what came."""

    def __call__(self, expected: str, got: object) -> NoReturn: ...


def load(path: str | Path) -> CustomOperations:
    """Run a file, test its operations, and make them available to models of this process.

    Raises: ValueError that names the operation, what was expected and what came.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError("expected a Python file, got none")
    module = sys.modules[Path(TABLE_FILE).stem] = types.ModuleType(Path(TABLE_FILE).stem)  # data classes look it up
    source = path.read_bytes()
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        raise ValueError(f"it cannot be run: {type(error).__name__}: {error}") from error
    table = getattr(module, "OPERATIONS", None)
    if not isinstance(table, dict) or not table:
        raise ValueError(f"expected a table OPERATIONS, got {table!r:.200}")
    for name, entry in table.items():
        if not isinstance(entry, tuple) or len(entry) != 2 or not callable(entry[1]):
            raise ValueError(f"operation {name!r}: expected a rule and a function, got {entry!r:.200}")
        rule, function = entry
        check_custom_operations({name: rule})
        with torch.random.fork_rng(devices=[]):
            if rule == LAYER_RULE:
                _test_layer(name, function)
            else:
                _test_operation(name, rule, function)
    digest = bytes_digest([source])
    register_custom_operations(digest, table)
    _SOURCES[digest] = source
    rules = {name: rule for name, (rule, _) in table.items()}
    return CustomOperations(rules, {name: function for name, (_, function) in table.items()}, digest)


def load_for_model(config: PretrainedConfig, model: str, revision: str = "main") -> None:
    """Load the file saved with a model, in its folder or on the Hub, if there is one: where this package is installed,
    it builds the model, not the code saved with the model."""
    if getattr(config, "custom_operations", None):
        load(str(cached_file(model, TABLE_FILE, revision=revision)))  # raises if it is missing


def save_with_model(folder: Path) -> None:
    """Add the file of its custom operations to a saved model, if it uses any, and let the Auto classes load it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    digest = config.get("custom_operations_digest")
    if digest is None:
        return
    (folder / TABLE_FILE).write_bytes(_SOURCES[digest])
    (folder / ENTRY_FILE).write_text(_ENTRY.format(digest=digest), encoding="utf-8")
    for auto_class, model_class in AUTO_CLASSES.items():
        config["auto_map"][auto_class.__name__] = f"{Path(ENTRY_FILE).stem}.{model_class.__name__}"
    write_json(folder / "config.json", config)
    stamp_code(folder)


def _on_arrays(function: Callable[..., torch.Tensor]) -> Callable[..., np.ndarray]:
    """A function of tensors as one of matrices of numpy."""

    def call(*arrays: np.ndarray) -> np.ndarray:
        return function(*(torch.from_numpy(np.ascontiguousarray(a))[None, None] for a in arrays))[0, 0].numpy()

    return call


def _test_operation(name: str, rule: str, function: Callable[..., torch.Tensor]) -> None:
    """Raise ValueError unless a function keeps its rule, for all types that it may have, and does not mix tokens or
    sequences."""
    generator = torch.Generator().manual_seed(0)
    for axes in itertools.product("nd", repeat=len(set(rule) & set("abc"))):
        binding = dict(zip(sorted(set(rule) & set("abc")), axes, strict=True))
        *types, result_type = (
            "".join(binding.get(x, x) for x in letters) for letters in rule.replace("->", ",").split(",")
        )

        def shape(type_: str) -> tuple[int, ...]:
            return (2, 2, *(TRIAL_SIZES[axis] for axis in type_))

        def random(type_: str) -> torch.Tensor:
            return torch.randn(shape(type_), generator=generator, dtype=torch.float64)

        def fail(expected: str, got: object, types: list[str] = types) -> NoReturn:
            raise ValueError(f"operation {name!r}: expected {expected} for operands {', '.join(types)}, got {got}")

        operands = [random(type_) for type_ in types]
        result = _call(function, operands, shape(result_type), fail)
        # Another last token, or another second sequence, must change nothing else.
        others = [_with_other_last(x, type_, random(type_)) for x, type_ in zip(operands, types, strict=True)]
        if not torch.equal(_without_last(function(*others), result_type), _without_last(result, result_type)):
            fail("the output for a token to depend on that token alone (or padding would change it)", "a dependence")
        others = [torch.cat([x[:1], random(type_)[1:]]) for x, type_ in zip(operands, types, strict=True)]
        if not torch.equal(function(*others)[:1], result[:1]):
            fail("independent sequences", "a dependence on others of the batch")
        _call_without_memory(function, operands, fail)


def _test_layer(name: str, make: Callable[[AutoBertZeroConfig], nn.Module]) -> None:
    """Raise ValueError unless a layer kind keeps shapes, does not mix padding or other sequences into its output, and
    has no state but its parameters, which are shared, saved and loaded."""

    def fail(expected: str, got: object) -> NoReturn:
        raise ValueError(f"layer kind {name!r}: expected {expected}, got {got}")

    config = AutoBertZeroConfig(hidden_size=12, num_attention_heads=3, intermediate_size=20)
    try:
        module, other = make(config), make(config)
        with torch.device("meta"):
            without_memory = make(config)
    except Exception as error:
        fail(
            "a function from a configuration to a module, also on the meta device",
            f"{type(error).__name__}: {error}",
        )
    if not isinstance(module, nn.Module):
        fail("a function from a configuration to a module", type(module).__name__)
    if {*map(id, module.parameters())} & {*map(id, other.parameters())}:
        fail("separate parameters in each layer", "shared ones")
    if len(list(module.parameters())) < len(list(module.named_parameters(remove_duplicate=False))):
        fail("every parameter under one name", "one under two")

    generator = torch.Generator().manual_seed(0)
    module, without_memory = module.double().eval(), without_memory.double().eval()
    x = torch.randn(2, TRIAL_SIZES["n"], config.hidden_size, generator=generator, dtype=torch.float64)
    real = torch.ones(x.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        for parameter in module.parameters():  # a parameter that is 0 would hide what it multiplies
            parameter.copy_(0.1 + torch.rand(parameter.shape, generator=generator))
        result = _call(module, [x, real], x.shape, fail)
        try:
            loaded = functional_call(without_memory, dict(module.named_parameters()), (x, real))
            padded = {
                side: module(F.pad(x, (0, 0, *pads)), F.pad(real, pads))[F.pad(real, pads)].view_as(x)
                for side, pads in {"right": (0, 4), "left": (4, 0)}.items()
            }
            alone = module(x[:1], real[:1])
        except Exception as error:
            fail(
                "no state but parameters, and calls with padding and with one sequence",
                f"{type(error).__name__}: {error}",
            )
        if not torch.equal(loaded, result):
            fail("no state but parameters", "another result with the same parameters")
        for side, values in padded.items():
            if not torch.allclose(values, result):
                fail("the same output for real tokens with padding", f"another one with padding on the {side}")
        if not torch.allclose(alone, result[:1]):
            fail("independent sequences", "a dependence on others of the batch")
        _call_without_memory(without_memory, [x, real], fail)


def _call(
    function: Callable[..., torch.Tensor], operands: list[torch.Tensor], shape: Sequence[int], fail: Fail
) -> torch.Tensor:
    """The result of a function, which must have a shape, be finite and deterministic, and not change its operands."""
    shape = tuple(shape)
    before = [x.clone() for x in operands]
    try:
        result = function(*operands)
    except (Exception, SystemExit) as error:
        fail(f"a tensor {shape}", f"{type(error).__name__}: {error}")
    if not isinstance(result, torch.Tensor):
        fail(f"a tensor {shape}", type(result).__name__)
    if result.shape != shape or result.dtype != torch.float64:
        fail(f"{torch.float64} {shape}", f"{result.dtype} {tuple(result.shape)}")
    if not result.isfinite().all():
        fail("finite numbers", "others")
    if any(not torch.equal(x, y) for x, y in zip(operands, before, strict=True)):
        fail("unchanged operands", "changed ones")
    if not torch.equal(function(*operands), result):
        fail("the same result every time", "another one")
    return result


def _call_without_memory(function: Callable[..., torch.Tensor], operands: list[torch.Tensor], fail: Fail) -> None:
    """A function must run on the meta device, on which the memory of a search is estimated."""
    try:
        function(*(x.to("meta") for x in operands))
    except Exception as error:
        fail("calls on any device, and without values (the meta device)", f"{type(error).__name__}: {error}")


def _with_other_last(x: torch.Tensor, type_: str, other: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    if type_[0] == "n":
        x[..., -1, :] = other[..., -1, :]
    if type_[1] == "n":
        x[..., :, -1] = other[..., :, -1]
    return x


def _without_last(x: torch.Tensor, type_: str) -> torch.Tensor:
    return x[..., : x.shape[-2] - (type_[0] == "n"), : x.shape[-1] - (type_[1] == "n")]
