"""Many runs, one folder each: through any executor, stopped and taken up at will."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pandas as pd
import torch

from bnmlp.machine import storage
from bnmlp.machine.threads import keep_threads
from bnmlp.training.configuration import TrainingRun
from bnmlp.training.folder import read_metrics, read_run, read_status, run_folders
from bnmlp.training.loop import train

End = tuple[bool, str]  # whether a run failed, and why or how it ended
KILLED = "a worker process died, killed or out of memory"
DIED = True, f"{KILLED}; the same call goes on from its last checkpoint"


class SweepError(RuntimeError):
    """Some runs failed; all others were finished, and each folder holds what was reached.

    Or no worker process could start, and nothing was trained.
    """


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
    content = storage.parse_json(Path(path))
    defaults, entries = {}, content
    if isinstance(content, dict) and set(content) <= {"defaults", "runs"} and "runs" in content:
        defaults, entries = content.get("defaults", {}), content["runs"]
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in [defaults, *entries]):
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

    Whatever a run raises, in this process or in another, fails that run alone; so does a worker
    process that dies.

    Args:
        runs: What to train; names differ.
        directory: Parent of the folders. Workers on other machines must share it.
        executor: Anything with the interface of ``concurrent.futures.Executor``; Dask's is
            ``Client.get_executor(pure=False)``.
        jobs: Processes on this machine if there is no executor, sharing its cores. They import
            the script that calls this function, which therefore needs
            ``if __name__ == "__main__":`` around the call.
        root: Folder of the datasets.
        progress: Called with one line for each run that ends, and with one job also for each
            epoch.

    Returns:
        As :func:`gather`.

    Raises:
        bnmlp.training.sweep.SweepError: If some runs failed, after all others have ended;
            or if processes
            cannot start.
        ValueError: If two runs have one name, or ``jobs`` is not positive.
    """
    _check_names(runs)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    directory, say = Path(directory), progress or (lambda line: None)
    folders = {run.name: (directory / run.name).absolute() for run in runs}
    if executor is not None:
        failures = _through(executor, _attempt, runs, folders, root, say)
    elif jobs > 1:
        with _Processes(jobs) as processes, ThreadPoolExecutor(jobs) as waiting:
            failures = _through(waiting, processes.attempt, runs, folders, root, say)
    else:
        failures = {}
        for run in runs:
            shown = _prefixed(run.name, progress)
            end = _attempt(run.model_dump(), folders[run.name], root, shown)
            _report(run.name, end, failures, say)
    if failures:
        listed = "; ".join(f"{name}: {why}" for name, why in failures.items())
        raise SweepError(f"{len(failures)} of {len(runs)} runs failed: {listed}")
    return gather(directory)


def gather(directory: Path | str, fields: Sequence[str] | None = None) -> pd.DataFrame:
    """Metrics of all runs below a folder, finished or not, as one table.

    Args:
        directory: Parent of the runs' folders.
        fields: Of :class:`TrainingRun`, to tell the runs apart; if omitted, those that differ
            between them.

    Returns:
        The rows of :func:`read_metrics` behind the columns ``name`` and the fields; the rate of
        each row is ``current_learning_rate``. Where networks of one run differ in a field, it is
        that of the row.

    Raises:
        FileNotFoundError: If there is no run.
    """
    folders = run_folders(directory)
    if not folders:
        raise FileNotFoundError(f"no run in {directory}")
    runs = pd.DataFrame([read_run(folder).model_dump() for folder in folders])
    if fields is None:
        fields = [c for c in runs if c != "name" and runs[c].astype(str).nunique() > 1]
    tables = []
    for folder, (_, row) in zip(folders, runs.iterrows(), strict=True):
        table = read_metrics(folder).rename(columns={"learning_rate": "current_learning_rate"})
        given = {name: row[name] for name in ("name", *fields) if name not in table}
        # A run of networks that differ says in its rows what each of them has.
        table = table.assign(**{name: [value] * len(table) for name, value in given.items()})
        first = ["name", *fields]
        tables.append(table[[*first, *(c for c in table if c not in first)]])
    measured = [table for table in tables if len(table)]  # empty ones would change the types
    return pd.concat(measured or tables[:1], ignore_index=True)


class _Processes:
    """Worker processes of one run each at a time; one that dies is replaced."""

    def __init__(self, jobs: int) -> None:
        self.threads = max(1, keep_threads() // jobs)
        self.workers = [self._worker() for _ in range(jobs)]
        self.idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()

    def __enter__(self) -> "_Processes":
        try:
            for started in [worker.submit(int) for worker in self.workers]:
                started.result()
        except BrokenExecutor as error:
            self.__exit__()
            raise SweepError(
                "no run was started: the worker processes ended as they began, see their messages "
                "above. They import the script that called train_all; put that call under "
                '`if __name__ == "__main__":`, or use jobs=1'
            ) from error
        for worker in self.workers:
            self.idle.put(worker)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.shutdown()

    def _worker(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # forked processes and threads do not mix
        return ProcessPoolExecutor(1, context, torch.set_num_threads, (self.threads,))

    def attempt(self, *arguments: Any) -> End:
        """:func:`_attempt` in an idle process."""
        worker = self.idle.get()
        try:
            return worker.submit(_attempt, *arguments).result()
        except BrokenExecutor:
            worker = self._worker()
            self.workers.append(worker)
            return DIED
        finally:
            self.idle.put(worker)


def _through(
    executor: Executor,
    attempt: Callable[..., End],
    runs: Sequence[TrainingRun],
    folders: dict[str, Path],
    root: Path | str | None,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Submit all runs and wait; names and reasons of those that failed."""
    futures: dict[Future[End], str] = {}
    failures: dict[str, str] = {}
    try:
        for run in runs:
            try:
                future = executor.submit(attempt, run.model_dump(), folders[run.name], root)
                futures[future] = run.name
            except BrokenExecutor:
                _report(run.name, DIED, failures, say)
        for future in as_completed(futures):
            try:
                end = future.result()
            except BrokenExecutor:
                end = DIED
            except Exception as error:  # of the executor: a lost worker, a call that was cancelled
                end = True, storage.reason(error)
            _report(futures[future], end, failures, say)
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    return failures


def _attempt(
    fields: dict[str, Any],
    folder: Path,
    root: Path | str | None,
    progress: Callable[[str], None] | bool | None = False,
) -> End:
    """Train a run; how it ended is text, as not every exception can be sent to another process."""
    try:
        train(TrainingRun(**fields), folder, root=root, progress=progress)
        return False, _outcome(folder)
    except (Exception, SystemExit) as error:
        return True, storage.reason(error)


def _report(name: str, end: End, failures: dict[str, str], say: Callable[[str], None]) -> None:
    failed, text = end
    if failed:
        failures[name] = text
    say(f"{name}: {'failed: ' if failed else ''}{text}")


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
    if status.get("unmeasured"):
        parts.append(f"{len(status['unmeasured'])} measurements without a value")
    return ", ".join(parts)


def _prefixed(name: str, progress: Callable[[str], None] | None) -> Callable[[str], None] | None:
    return None if progress is None else lambda line: progress(f"{name}: {line}")


def _check_names(runs: Sequence[TrainingRun]) -> None:
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"names of runs must differ, these do not: {', '.join(twice)}")
