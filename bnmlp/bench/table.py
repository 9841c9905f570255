"""Timing jobs in turn, with one thread or several, and the table that comes of it."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import torch

from bnmlp.bench import jobs
from bnmlp.machine.storage import write_text
from bnmlp.networks.engine import step_bytes
from bnmlp.networks.fused import library

COLUMNS = ("threads", "job", "way", "networks", "seconds", "low", "high")
# What is compared: name of the ratio, job, numerator, denominator.
RATIOS = (
    ("plain over ours, one network", "training step", "plain", "ours, one"),
    ("plain over ours, ten", "training step", "plain", "ours, ten"),
    ("JAX over ours, one network", "training step", "jax, one", "ours, one"),
    ("JAX over ours, ten", "training step", "jax, ten", "ours, ten"),
    ("ours over the floor, one network", "training step", "ours, one", "floor, one"),
    ("ours over the floor, ten", "training step", "ours, ten", "floor, ten"),
    *(("plain over ours", job, "plain", "ours, ten") for job in (
        "initialise, all gradient norms", "ResNet, ten networks", "SkipMLP, ten networks",
        "Transformer, ten networks",
    )),
    *(("plain over ours", f"isometry gaps, {kind}", "plain", "ours") for kind in (
        "orthogonal weights", "Gaussian weights", "representations",
    )),
)  # fmt: skip


def all_jobs(quick: bool) -> Iterator[jobs.Job]:
    """What is timed, one job after the other, so that only one is in memory.

    Args:
        quick: Twenty layers instead of a thousand.

    Yields:
        The jobs.
    """
    depth = 20 if quick else 1000
    yield jobs.training_step(depth)
    yield jobs.initialisation(depth)
    yield from jobs.gaps(depth)
    yield from jobs.other_networks(quick)
    yield jobs.trainer(20 if quick else 100, 1 if quick else 4)


def timed(job: jobs.Job, rounds: int) -> Iterator[tuple[str, int, float, float, float]]:
    """Seconds of each way for one network: the median of some rounds, and the quartiles.

    A round runs every way once, so that a slow moment of the machine hits all of them; one more
    round goes ahead and is not counted.

    Args:
        job: What to time.
        rounds: How many.

    Yields:
        Name of the way, networks that it treats at once, median, lower and upper quartile.
    """
    seconds = {name: [_duration(way) for _ in range(1)] for name, way in job.ways.items()}
    for _ in range(rounds):
        for name, way in job.ways.items():
            seconds[name].append(_duration(way))
    for name, found in seconds.items():
        networks = job.networks.get(name, 1)
        each = [s / networks for s in found[1:]]
        quartiles = statistics.quantiles(each, n=4) if rounds > 1 else each * 3
        yield name, networks, statistics.median(each), quartiles[0], quartiles[2]


def _duration(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def time_here(quick: bool, rounds: int) -> Iterator[dict[str, object]]:
    """Rows of the table for the threads that this process has."""
    for job in all_jobs(quick):
        for row in timed(job, rounds):
            yield dict(zip(COLUMNS, (torch.get_num_threads(), job.name, *row), strict=True))


def bench(
    threads: list[int], *, quick: bool = False, rounds: int = 5, say: Callable[[str], None] = print
) -> pd.DataFrame:
    """Time everything with each number of threads, in a process of its own.

    Args:
        threads: Numbers, each at least 1.
        quick: Twenty layers instead of a thousand: for trying it.
        rounds: How often each way is timed.
        say: Called with what is being timed.

    Returns:
        A row for each job and way; ``seconds`` for one network are the median, ``low`` and
        ``high`` the quartiles.

    Raises:
        RuntimeError: If a process ends with an error.
    """
    tables = []
    for number in threads:
        say(f"timing with {_threads(number)} ...")
        arguments = [str(rounds), "quick" if quick else "whole"]
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        # JAX computes with as many threads as the process may use cores.
        command = [sys.executable, "-m", "bnmlp.bench.table", *arguments]
        done = subprocess.run(
            command, env=os.environ | dict.fromkeys(names, str(number)), text=True,
            stdout=subprocess.PIPE, check=False, preexec_fn=_on_cores(number),
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"bench: the process with {number} threads failed")
        rows = [line.split(";") for line in done.stdout.splitlines()]
        tables.append(pd.DataFrame(rows, columns=list(COLUMNS)))
    table = pd.concat(tables, ignore_index=True)
    numbers = ["threads", "networks", "seconds", "low", "high"]
    return table.assign(**{name: pd.to_numeric(table[name]) for name in numbers})


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _on_cores(number: int) -> Callable[[], None] | None:
    """What holds a process to some cores, where the system can; None elsewhere."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    held = cores()[:number]
    return lambda: os.sched_setaffinity(0, held)


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Ratios of medians, a column for each number of threads.

    Args:
        table: As :func:`bench` returns it.

    Returns:
        Rows named by job and ratio; those whose ways were not timed are missing.
    """
    medians = table.set_index(["threads", "job", "way"])["seconds"]
    found: dict[tuple[str, str], dict[str, float]] = {}
    for number in table["threads"].unique().tolist():
        times, column = medians[number], _threads(number)
        for name, job, above, below in RATIOS:
            if (job, above) in times.index and (job, below) in times.index:
                ratio = times[job, above] / times[job, below]
                found.setdefault((job, name), {})[column] = ratio
        if ("trainer", "long") in times.index:
            steps = times["trainer", "long"] - times["trainer", "short"]
            share = steps / times["trainer", "floor"]
            found.setdefault(("trainer", "an epoch over its steps and evaluation"), {})[column] = (
                share
            )
    return pd.DataFrame.from_dict(found, orient="index").round(2)


def machine() -> str:
    """What computes here: processor, versions, and whether there is a compiler."""
    names = [line.split(":")[1].strip() for line in _lines() if line.startswith("model name")]
    between = "C" if library(torch.zeros(1)) is not None else "PyTorch"
    try:
        jax = version("jax")
    except PackageNotFoundError:
        jax = "not installed"
    each = step_bytes(jobs.networks(1, 2), jobs.BATCH)
    return (
        f"{names[0] if names else 'processor unknown'}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}, JAX {jax}, between matrix products: {between}; "
        f"a training step holds {each / 1024:.0f} KiB for each layer and network"
    )


def store(table: pd.DataFrame, path: Path) -> None:
    """Write a table with what it was measured on in its first lines.

    Args:
        table: As :func:`bench` returns it.
        path: Of a CSV file.

    Raises:
        StorageError: If the folder does not take it.
    """
    head = f"# Seconds for each network: median, quartiles\n# {machine()}\n# command: bnmlp bench\n"
    write_text(path, head + table.to_csv(index=False, float_format="%.4g"))


def _lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for row in time_here(sys.argv[2] == "quick", int(sys.argv[1])):
        print(*row.values(), sep=";", flush=True)
