"""Many runs, one folder each: through any executor, stopped and taken up at will."""

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from pathlib import Path

import pandas as pd
import torch

from bnmlp.configuration import TrainingRun
from bnmlp.training import read_metrics, read_run, read_status, train


class SweepError(RuntimeError):
    """Some runs failed; all others were finished, and each folder holds what was reached."""


def read_runs(path: Path | str) -> list[TrainingRun]:
    """Read a list of runs from JSON.

    Args:
        path: File with a list of objects, or with an object of ``"defaults"`` (fields that all
            runs share) and ``"runs"``.

    Returns:
        The runs, in order.

    Raises:
        ValueError: If the file is no such JSON, a field is unknown or out of range, or two runs
            have one name.
    """
    try:
        content = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    defaults, entries = {}, content
    if isinstance(content, dict) and set(content) <= {"defaults", "runs"} and "runs" in content:
        defaults, entries = content.get("defaults", {}), content["runs"]
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise ValueError(f'{path}: expected a list of runs, or {{"defaults": ..., "runs": [...]}}')
    runs = [TrainingRun(**{**defaults, **entry}) for entry in entries]
    _check_names(runs)
    return runs


def train_all(
    runs: Sequence[TrainingRun],
    directory: Path | str,
    *,
    executor: Executor | None = None,
    jobs: int = 1,
    root: Path | str | None = None,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Train many runs, each in the folder ``directory/name``; finished ones are left alone.

    Args:
        runs: What to train; names differ.
        directory: Parent of the folders. Workers on other machines must share it.
        executor: Anything with the interface of ``concurrent.futures.Executor``; Dask's is
            ``Client.get_executor(pure=False)``.
        jobs: Processes on this machine if there is no executor, sharing its cores.
        root: Folder of the datasets.
        progress: Called with one line for each run that ends, and with one job also for each
            epoch.

    Returns:
        As :func:`gather`.

    Raises:
        bnmlp.sweep.SweepError: If some runs failed, after all others have ended.
        ValueError: If two runs have one name, or ``jobs`` is not positive.
    """
    _check_names(runs)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    directory, say = Path(directory), progress or (lambda line: None)
    folders = {run.name: (directory / run.name).absolute() for run in runs}
    if executor is None and jobs > 1:
        threads = max(1, torch.get_num_threads() // jobs)
        context = multiprocessing.get_context("spawn")  # forked processes and threads do not mix
        with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool:
            failures = _through(pool, runs, folders, root, say)
    elif executor is not None:
        failures = _through(executor, runs, folders, root, say)
    else:
        failures = {}
        for run in runs:
            try:
                train(run, folders[run.name], root=root, progress=_prefixed(run.name, progress))
                say(f"{run.name}: {_outcome(folders[run.name])}")
            except (ValueError, OSError) as error:
                failures[run.name] = str(error)
                say(f"{run.name}: failed: {error}")
    if failures:
        listed = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise SweepError(f"{len(failures)} of {len(runs)} runs failed: {listed}")
    return gather(directory)


def gather(directory: Path | str) -> pd.DataFrame:
    """Metrics of all runs below a folder, finished or not, as one table.

    Args:
        directory: Parent of the runs' folders.

    Returns:
        The rows of :func:`read_metrics` behind the columns ``name`` and every field of
        :class:`TrainingRun` that differs between the runs; the rate of each row is
        ``current_learning_rate``.

    Raises:
        FileNotFoundError: If there is no run.
    """
    folders = run_folders(directory)
    if not folders:
        raise FileNotFoundError(f"no run in {directory}")
    fields = pd.DataFrame([read_run(folder).model_dump() for folder in folders])
    varied = [c for c in fields if c != "name" and fields[c].astype(str).nunique() > 1]
    tables = []
    for folder, (_, row) in zip(folders, fields.iterrows(), strict=True):
        table = read_metrics(folder).rename(columns={"learning_rate": "current_learning_rate"})
        for position, column in enumerate(["name", *varied]):
            table.insert(position, column, row[column])
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def run_folders(directory: Path | str) -> list[Path]:
    """Folders of runs below ``directory``, itself included, in the order of their names."""
    directory = Path(directory)
    found = [path.parent for path in directory.glob("*/run.json")]
    return [directory] if (directory / "run.json").exists() else sorted(found)


def _through(
    executor: Executor,
    runs: Sequence[TrainingRun],
    folders: dict[str, Path],
    root: Path | str | None,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Submit all runs and wait; names and reasons of those that failed."""
    futures = {
        executor.submit(_train_quietly, run.model_dump(), folders[run.name], root): run.name
        for run in runs
    }
    failures = {}
    for future in as_completed(futures):
        name = futures[future]
        try:
            future.result()
            say(f"{name}: {_outcome(folders[name])}")
        except BrokenExecutor:
            failures[name] = (
                "a worker process died, killed or out of memory; the same call goes on from its "
                "last checkpoint"
            )
            say(f"{name}: {failures[name]}")
        except Exception as error:
            failures[name] = str(error)
            say(f"{name}: failed: {error}")
    return failures


def _train_quietly(fields: dict, folder: Path, root: Path | str | None) -> None:
    train(TrainingRun(**fields), folder, root=root, progress=False)


def _outcome(folder: Path) -> str:
    status, metrics = read_status(folder), read_metrics(folder)
    last = metrics[metrics["step"] == metrics["step"].max()].median(numeric_only=True)
    stopped = sum(map(bool, status["stopped"]))
    parts = [f"done after {status['epoch']:g} epochs, {status['seconds'] / 60:.1f} min"]
    if len(metrics):
        parts.append(
            f"train accuracy {last['train_accuracy']:.3f}, test {last['test_accuracy_batch']:.3f} "
            f"(batch), {last['test_accuracy_running']:.3f} (running), "
            f"{last['test_accuracy_recalibrated']:.3f} (recalibrated)"
        )
    if stopped:
        parts.append(f"{stopped} of {len(status['stopped'])} networks stopped early")
    return ", ".join(parts)


def _prefixed(name: str, progress: Callable[[str], None] | None) -> Callable[[str], None] | None:
    return None if progress is None else lambda line: progress(f"{name}: {line}")


def _check_names(runs: Sequence[TrainingRun]) -> None:
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"names of runs must differ, these do not: {', '.join(twice)}")
