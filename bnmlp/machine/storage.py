"""Files that are either the old version or the new one, never half of it."""

import contextlib
import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Any

import pandas as pd
import torch


class StorageError(OSError):
    """A run's folder cannot be written or read; what it held is untouched."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its place, force it to the disk, then rename it.

    Args:
        path: The file.
        write: Called with a binary file to fill.

    Raises:
        StorageError: If the folder or the disk does not take it; an old version stays as it was.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # torch.save reports a full disk as a RuntimeError of its zip writer.
        if isinstance(error, OSError) or (
            isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error)
        ):
            raise StorageError(
                f"cannot write {path}: {error}; make room or mend the folder and start again: "
                "the run goes on from its last checkpoint"
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_text(path: Path) -> str:
    """Read UTF-8 in any locale, with or without a byte-order mark."""
    return path.read_text(encoding="utf-8-sig")


def parse_json(path: Path) -> object:
    """Read JSON that a person wrote.

    Args:
        path: The file.

    Returns:
        Whatever it holds.

    Raises:
        ValueError: If the file is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON in UTF-8: {error}") from error


def read_json(path: Path, needed: Collection[str] = ()) -> dict[str, Any]:
    """Read what :func:`write_json` wrote; an empty dict if there is no such file.

    Args:
        path: The file.
        needed: Keys without which the file is damaged.

    Returns:
        The object in the file.

    Raises:
        StorageError: If the file is damaged.
    """
    try:
        content = json.loads(read_text(path))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError) as error:
        raise StorageError(_damage(path, error)) from error
    if not isinstance(content, dict):
        raise StorageError(_damage(path, f"not an object but a {type(content).__name__}"))
    if missing := sorted(set(needed) - set(content)):
        raise StorageError(_damage(path, f"without {', '.join(missing)}"))
    return content


def _damage(path: Path, reason: object) -> str:
    return f"{path} is damaged ({reason}); remove it and start again"


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index atomically, with all digits of float64."""
    write_text(path, table.to_csv(index=False))


def read_csv(path: Path) -> pd.DataFrame:
    """Read what :func:`write_csv` wrote.

    Args:
        path: The file.

    Returns:
        The table.

    Raises:
        StorageError: If the file is damaged.
    """
    try:
        return pd.read_csv(path)
    except ValueError as error:
        raise StorageError(_damage(path, error)) from error


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers and text in dicts and lists atomically."""
    write_atomically(path, lambda file: torch.save(content, file))


def load_tensors(
    path: Path, device: torch.device | str = "cpu", needed: Collection[str] = ()
) -> dict[str, Any]:
    """Read what :func:`save_tensors` wrote; nothing in the file is executed.

    Args:
        path: The file.
        device: Where the tensors go.
        needed: Keys without which the file is of another kind.

    Returns:
        What was saved.

    Raises:
        FileNotFoundError: If there is no such file.
        StorageError: If the file is truncated or not of this kind.
    """  # noqa: DOC501 (the ValueError does not leave)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(content, dict) or set(needed) - set(content):
            raise ValueError(f"a file without {', '.join(needed)}")
    except FileNotFoundError:
        raise
    except Exception as error:  # torch reports damage in a dozen ways
        raise StorageError(
            f"{path} is truncated or no checkpoint ({reason(error)}); restore it from a copy, "
            "or remove it to start this run again from the first step"
        ) from error
    return content


def reason(error: BaseException) -> str:
    """What went wrong, in one line: the first of the message, with the kind where it needs it."""
    line = next(iter(str(error).splitlines()), "")
    explained = line and isinstance(error, (ValueError, OSError, RuntimeError))
    return line if explained else f"{type(error).__name__}: {line}".rstrip(": ")
