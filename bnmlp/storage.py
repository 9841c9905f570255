"""Files that are either the old version or the new one, never half of it."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pandas as pd
import torch


class StorageError(OSError):
    """A run's folder cannot be written or read; what it held is untouched."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
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


def write_json(path: Path, content: dict) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict:
    """Read what :func:`write_json` wrote; an empty dict if there is no such file."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise StorageError(f"{path} is damaged ({error}); remove it and start again") from error


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index atomically, with all digits of float64."""
    write_text(path, table.to_csv(index=False))


def save_tensors(path: Path, content: dict) -> None:
    """Write tensors, numbers and text in dicts and lists atomically."""
    write_atomically(path, lambda file: torch.save(content, file))


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict:
    """Read what :func:`save_tensors` wrote; nothing in the file is executed.

    Args:
        path: The file.
        device: Where the tensors go.

    Raises:
        StorageError: If the file is truncated or not of this kind.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch reports damage in a dozen ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StorageError(
            f"{path} is truncated or no checkpoint ({reason}); restore it from a copy, "
            "or remove it to start this run again from the first step"
        ) from error
