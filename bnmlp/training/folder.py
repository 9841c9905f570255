"""The folder of a run: what it holds, and who may write."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from pydantic import ValidationError

from bnmlp.machine import storage
from bnmlp.networks.protocol import Network
from bnmlp.training.configuration import METRICS, TrainingRun, complaints
from bnmlp.training.networks import as_module


def load_model(directory: Path | str, *, best: bool = False) -> Network:
    """The networks of a run's folder as they were last saved.

    Args:
        directory: Folder of the run.
        best: Each network at its best evaluation, if the run has ``save_best``.

    Returns:
        The networks, on the CPU.

    Raises:
        FileNotFoundError: If the folder has no such checkpoint.
        bnmlp.machine.storage.StorageError: If the checkpoint is damaged.
    """
    directory = Path(directory)
    path = directory / ("best.pt" if best else "checkpoint.pt")
    if not path.exists():
        remedy = "train with save_best" if best else "train() writes one"
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    model = read_run(directory).build("meta")
    state = storage.load_tensors(path, needed=["model"])["model"]
    as_module(model).load_state_dict(state, assign=True)
    return model


def read_run(directory: Path | str) -> TrainingRun:
    """The configuration of a run's folder.

    Args:
        directory: The folder.

    Returns:
        The run that is trained there.

    Raises:
        FileNotFoundError: If the folder is not that of a run.
        bnmlp.machine.storage.StorageError: If the configuration is damaged.
    """
    path = Path(directory) / "run.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {directory} is not the folder of a run")
    try:
        return TrainingRun.model_validate_json(storage.read_text(path))
    except ValueError as error:
        why = "; ".join(complaints(error)) if isinstance(error, ValidationError) else error
        raise storage.StorageError(f"{path} is damaged ({why}); restore it from a copy") from error


def read_metrics(directory: Path | str) -> pd.DataFrame:
    """The metrics of a run's folder, see :func:`train`; an empty table before the first."""
    path = Path(directory) / "metrics.csv"
    return storage.read_csv(path) if path.exists() else pd.DataFrame(columns=COLUMNS, dtype=float)


def read_layers(directory: Path | str) -> pd.DataFrame:
    """All measurements of layers in a run's folder.

    Returns:
        As :func:`bnmlp.measurements.layer_table.layer_table`, indexed by epoch, layer and replica
        too.
    """
    return _read_parts(Path(directory) / "layers").set_index(["epoch", "layer", "replica"])


def read_curvature(directory: Path | str) -> pd.DataFrame:
    """All measurements of the loss's shape in the folder of a run with ``quantities``.

    Returns:
        As :func:`bnmlp.measurements.curvature.curvature_table`, indexed by epoch and replica.
    """
    return _read_parts(Path(directory) / "curvature").set_index(["epoch", "replica"])


def read_rates(directory: Path | str) -> pd.DataFrame:
    """Effective rates in the folder of a run with ``rates_every``.

    Returns:
        The log-ratio ``spread`` of the largest to the smallest rate, these two, and the critical
        learning rate, indexed by step and replica.

    Raises:
        FileNotFoundError: If the run has recorded none.
    """
    path = Path(directory) / "rates.csv"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: train with rates_every")
    return storage.read_csv(path).set_index(["step", "replica"])


def _read_parts(folder: Path) -> pd.DataFrame:
    parts = sorted(folder.glob("epoch-*.csv"))
    if not parts:
        raise FileNotFoundError(f"no measurements in {folder}; the run has not made any")
    return pd.concat([storage.read_csv(part) for part in parts])


def read_status(directory: Path | str) -> dict[str, Any]:
    """How far the run of a folder is: ``status.json``, empty if there is none."""
    needed = ("state", "epoch", "stopped", "seconds")
    return storage.read_json(Path(directory) / "status.json", needed)


@contextlib.contextmanager
def claimed(run: TrainingRun, directory: Path) -> Iterator[None]:
    """Hold the folder for this process, with this configuration in it."""
    try:
        (directory / "layers").mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise storage.StorageError(
            f"another process trains in {directory}; wait for it or choose another folder"
        ) from error
    except OSError as error:
        raise storage.StorageError(f"cannot use {directory}: {error}") from error
    with lock:
        if (directory / "run.json").exists():
            refuse_other(run, directory)
        else:
            storage.write_text(directory / "run.json", run.model_dump_json(indent=2) + "\n")
        yield


def refuse_other(run: TrainingRun, directory: Path) -> None:
    """Refuse a folder that holds a run with another configuration."""
    before, now = read_run(directory).model_dump(), run.model_dump()
    fields = before | now
    pairs = {k: (before.get(k), now.get(k)) for k in fields}
    changed = [f"{k}: {old!r} -> {new!r}" for k, (old, new) in pairs.items() if old != new]
    if changed:
        raise ValueError(
            f"{directory} holds a run with another configuration ({'; '.join(changed)}); "
            "choose another folder, or remove this one to lose its results"
        )


COLUMNS = ("epoch", "step", "replica", "learning_rate", *METRICS)


def run_folders(directory: Path | str) -> list[Path]:
    """Folders of runs below ``directory``, itself included, in the order of their names."""
    directory = Path(directory)
    found = [path.parent for path in directory.glob("*/run.json")]
    return [directory] if (directory / "run.json").exists() else sorted(found)
