"""How files are written and read: replaced as a whole, appended line by line, identified by digests, locked."""

import contextlib
import errno
import gc
import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import filelock


MAX_LINE_BYTES = 1 << 20
MAX_FIRST_LINE_BYTES = 1 << 26  # that of a history names all files of the text


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a file as a whole: the old one remains until the new one is on disk."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # `report` may write the page of a running search
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a JSON file as a whole."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike, hint: Any = Any) -> Any:
    """The value in a JSON file, checked by `check_shape`. Raises: OSError; ValueError that names the file."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse)
        check_shape(value, hint, "content")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    return value


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(error: BaseException) -> str:
    """All of an error's message in one line, or its type."""
    return " ".join(str(error).split()) or type(error).__name__


def replace_folder(new: Path, old: Path) -> None:
    """Move a folder to the place of another folder, link or file, if there is one."""
    if old.is_symlink() or old.is_file():
        old.unlink()
    elif old.exists():
        shutil.rmtree(old)
    os.replace(new, old)


def file_digest(path: str | os.PathLike) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def bytes_digest(parts: Iterable[bytes]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the concatenated parts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def json_digest(value: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a JSON value; the order of keys does not matter."""
    return bytes_digest([json.dumps(value, sort_keys=True).encode()])


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Sorted keys of two mappings, one of them read from a JSON file, whose values differ."""
    new = json.loads(json.dumps(new))
    return sorted(key for key in {*old, *new} if old.get(key) != new.get(key))


def check_shape(value: Any, hint: Any, where: str) -> None:
    """Check a value that was read from a file against a type hint: of simple types, lists, mappings, typed dictionaries,
    choices, unions. An integer is a float, too.

    Args:
        where: name of the value in the message.

    Raises: ValueError that names the part of the value, what was expected, and what came.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return
    if origin is Annotated:
        return check_shape(value, arguments[0], where)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return
        [hint] = set(arguments) - {NoneType}
        return check_shape(value, hint, where)
    if origin is Literal:
        holds, expected = value in arguments, f"one of {list(arguments)}"
    elif is_typeddict(hint) or origin is dict:
        holds, expected = isinstance(value, dict) and all(isinstance(name, str) for name in value), "a mapping"
    elif origin is list:
        holds, expected = isinstance(value, list), "a list"
    elif hint is float:
        holds = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        expected = "a finite number"
    else:
        holds = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
        expected = {int: "an integer", str: "a string", bool: "true or false"}[hint]
    if not holds:
        raise ValueError(f"{where}: expected {expected}, got {value!r:.200}")
    if is_typeddict(hint):
        for name, each in get_type_hints(hint).items():
            if name in value:
                check_shape(value[name], each, f"{where}, {name}")
            elif name in hint.__required_keys__:
                raise ValueError(f"{where}, {name}: expected a value, got none")
    elif origin in (list, dict):
        for key, each in value.items() if origin is dict else enumerate(value):
            check_shape(each, arguments[-1], f"{where}, {key}")


def lock_output_dir(folder: str | os.PathLike) -> contextlib.AbstractContextManager:
    """Create the output folder of a run, check that it is writable, and lock it against a second run.

    Returns: a context manager that holds the lock.

    Raises: ValueError if the folder is in use or cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", timeout=0).acquire()
        probe = folder / ".probe"
        probe.write_bytes(bytes(1 << 16))
        probe.unlink()
    except filelock.Timeout:
        raise ValueError(f"output_dir: {folder} is in use by another run") from None
    except OSError as error:
        raise ValueError(f"output_dir: cannot write to {folder}: {error.strerror}") from None
    except ValueError as error:  # a name that no file can have
        raise ValueError(f"output_dir: expected the name of a folder, got {str(folder)!r}: {error}") from None
    return lock


def remove_lock(folder: Path) -> None:
    """Remove a folder that `lock_output_dir` created, if it contains nothing else."""
    with contextlib.suppress(OSError):
        (folder / ".lock").unlink()
        folder.rmdir()


def _refuse(constant: str) -> Any:
    raise ValueError(f"expected a finite number, got {constant}")


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector while many long-lived objects are created: it would visit them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class JsonLines:
    """An append-only file with one JSON value per line: `append` returns when the line is on disk.

    A last line without a line break, torn by a crash, is ignored when reading and removed by the first `append`.

    Args:
        path: of the file; created by the first `append`.

    Attributes:
        values: of the complete lines when the file was read.

    Raises: ValueError that names the line if the file is damaged elsewhere than in a torn last line.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file: Any = None
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        self._size = sum(map(len, lines))
        self.values: list[Any] = []
        with collector_paused():
            for number, line in enumerate(lines, start=1):
                try:
                    most = MAX_FIRST_LINE_BYTES if number == 1 else MAX_LINE_BYTES
                    if len(line) > most:
                        raise ValueError(f"expected at most {most} bytes, got {len(line)}")
                    self.values.append(json.loads(line, parse_constant=_refuse))
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{self.path}, line {number}: {error}") from None

    def open(self) -> None:
        """Open the file for appending. Raises: OSError if it cannot be written."""
        if self._file is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")  # noqa: SIM115 (closed by `close`)
        if self._size < self.path.stat().st_size:
            if self.values:
                warnings.warn(f"{self.path}: dropped a torn last line", stacklevel=3)
            self._file.truncate(self._size)

    def append(self, value: Any) -> None:
        self.open()
        self._size += self._file.write(json.dumps(value, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
