"""What the programs beside the stored tables have in common: how they are told, kept, resumed."""

import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnmlp.book import tables
from bnmlp.machine.storage import read_text
from bnmlp.training.folder import read_run, read_status, run_folders

Cell = Mapping[str, "float | str"]
SIZES = (int, float, str, tuple, dict, SimpleNamespace)
RUNS = re.compile(  # a line of a docstring that runs something, up to a remark
    r"^(?:[A-Z_]+=\S+ )*(?:nice|python|bnmlp) .*?(?=  |$)", re.MULTILINE
)
OF_TABLES = re.compile(r"`\S+\.csv`(?:, `\S+\.csv`)*: ")
NUMBER = re.compile(r"-\d+(?=$|\.csv)")  # a size at the end of a name


class Maker:
    """A program that makes the tables of its folder; its clock starts here.

    The second paragraph of its docstring holds the commands. What tables tell about themselves is
    the section of their folder in the README of all stored results, a comment line for each
    paragraph; one that begins with names of tables in backquotes and a colon is for these only,
    whatever number is at their end. Sizes come from the constants of the program, but for lists,
    which name columns.

    Args:
        program: ``globals()`` of the program.
    """

    def __init__(self, program: Mapping[str, Any]) -> None:
        path = Path(program["__file__"])
        self.folder, self.start = path.parent.name, time.perf_counter()
        self.command = "; ".join(RUNS.findall(program["__doc__"].split("\n\n")[1]))
        self.paragraphs = section(read_text(path.parents[1] / "README.md"), self.folder)
        sizes = {k: v for k, v in program.items() if k.isupper() and isinstance(v, SIZES)}
        self.sizes = "; ".join(f"{k} {v}" for k, v in sizes.items())

    def about(self, name: str) -> list[str]:
        """Comment lines of a table."""
        lines = []
        for paragraph in self.paragraphs:
            names = OF_TABLES.match(paragraph)
            if not names or f"`{NUMBER.sub('', name)}.csv`" in NUMBER.sub("", names[0]):
                lines.append(OF_TABLES.sub("", paragraph))
        return [*lines, *([self.sizes] if self.sizes else [])]

    def store(
        self,
        name: str,
        table: pd.DataFrame,
        *about: str,
        file: str | None = None,
        minutes: float | None = None,
        float_format: str | None = "%.4g",
    ) -> None:
        """Write a table with its provenance, see :func:`bnmlp.book.tables.store_table`.

        Args:
            name: By which the README tells it.
            table: The result; its index comes first.
            *about: Comment lines besides those of the README.
            file: Name of the file without ending, where that is another one.
            minutes: How long it took; since the program began if omitted.
            float_format: Of the numbers.
        """
        minutes = (time.perf_counter() - self.start) / 60 if minutes is None else minutes
        tables.store_table(
            table, f"{self.folder}/{file or name}.csv", [*self.about(name), *about],
            command=self.command, minutes=minutes, float_format=float_format,
        )  # fmt: skip

    def make(
        self, *functions: Callable[[], pd.DataFrame], about: Sequence[str] = (), **options: Any
    ) -> None:
        """Make and store tables, or those that the command line names.

        Args:
            *functions: Each makes the table of its name, with hyphens for underscores.
            about: Comment lines besides those of the README.
            **options: Of :meth:`store`.
        """
        for function in functions:
            name = function.__name__.replace("_", "-")
            if name in (sys.argv[1:] or [name]):
                self.start = time.perf_counter()
                self.store(name, function(), *about, **options)
                print(name, flush=True)

    def stored(self, name: str, columns: Sequence[str]) -> pd.DataFrame:
        """What a table holds already, without index; no rows if there is none."""
        path = tables.DATA / self.folder / f"{name}.csv"
        return pd.read_csv(path, comment="#") if path.is_file() else pd.DataFrame(columns=columns)

    def grow(
        self,
        names: Sequence[str],
        cells: Iterable[Cell],
        record: Callable[..., Mapping[str, pd.DataFrame]],
        suffix: str = "",
        **options: Any,
    ) -> None:
        """Record what tables lack, cell by cell, and write them after each.

        So a program goes on after an interruption where it was.

        Args:
            names: Of the tables. The last one is written last and tells which cells are done.
            cells: What tells the rows of one recording from others, by columns.
            record: From a cell, as keywords, to rows by the names of tables. Those that it leaves
                out get none; the columns of the cell are put in front.
            suffix: Behind the names, of files.
            **options: Of :meth:`store`.
        """
        kept: dict[str, pd.DataFrame] = {}
        for cell in cells:
            kept = kept or {name: self.stored(name + suffix, [*cell]) for name in names}
            if holds(kept[names[-1]], cell).any():
                continue
            for name, rows in record(**cell).items():
                rows = rows.reset_index().rename(columns=str)
                for place, (column, value) in enumerate(cell.items()):
                    rows.insert(place, column, value)
                others = kept[name][~holds(kept[name], cell)]
                kept[name] = pd.concat([others, rows]) if len(others) else rows
            for name in names:
                table = kept[name].set_index(next(iter(cell)))
                self.store(name, table, file=name + suffix, **options)
            print(kept[names[-1]].tail(1).to_string(index=False), flush=True)


def section(text: str, heading: str) -> list[str]:
    """Paragraphs below a heading of the second level, each as one line."""
    _, below = f"\n{text}".split(f"\n## {heading}\n")
    return [" ".join(p.split()) for p in below.split("\n## ")[0].strip().split("\n\n")]


def holds(table: pd.DataFrame, cell: Cell) -> pd.Series:
    """Which rows are those of a cell, numbers taken as tables write them, with four digits."""
    found = pd.Series(True, table.index)
    for column, value in cell.items():
        found &= table[column].map(_written) == _written(value)
    return found


def _written(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def rows_table(
    rows: Mapping[tuple[Any, ...], object],
    names: Sequence[str],
    columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Rows by the labels that tell them apart.

    Args:
        rows: Of each a sequence of values, or values by columns.
        names: Of the labels.
        columns: Of sequences.

    Returns:
        A table indexed by the labels.
    """
    index = pd.MultiIndex.from_tuples(rows, names=names)
    return pd.DataFrame(list(rows.values()), index, columns)


def long_table(columns: Mapping[str, Tensor | np.ndarray], **axes: object) -> pd.DataFrame:
    """Arrays over the same axes as rows, the last axis fastest.

    Args:
        columns: By name, each of the shape that the axes make together.
        **axes: Labels of every axis in turn; a single label needs no list.

    Returns:
        A column for each array, indexed by the labels.

    Examples:
        >>> long_table({"gap": np.array([1.0, 2.0])}, step=5, replica=range(2)).reset_index()
           step  replica  gap
        0     5        0  1.0
        1     5        1  2.0
    """
    labels = [[a] if isinstance(a, str | int | float) else a for a in axes.values()]
    index = pd.MultiIndex.from_product(labels, names=axes)
    return pd.DataFrame({k: np.asarray(v).ravel() for k, v in columns.items()}, index)


def growth_table(logs: Tensor, layers: Sequence[int], digits: int) -> pd.DataFrame:
    """How much larger gradients are in the first hidden layer than in others.

    Args:
        logs: Log gradient norms, as :func:`bnmlp.gradient_norms` returns them.
        layers: Which to compare with, the first being number 0.
        digits: To round to.

    Returns:
        Differences in nats, a row for each layer and a column for each network.
    """
    growth = (logs[1] - logs[list(layers)]).cpu().numpy()
    return pd.DataFrame(growth, pd.Index(layers, name="layer")).round(digits)


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Median time of one call, on whichever device it works, after a warm-up of two.

    Args:
        call: What to time.
        repeats: How often.

    Returns:
        Seconds.
    """
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        call()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def runs_about(folder: str | Path) -> list[str]:
    """Comment lines on the runs below a folder: what is common to them, and how far they came."""
    paths = [path for path in run_folders(folder) if read_status(path)]
    states = {path.name: read_status(path) for path in paths}
    first, last = read_run(paths[0]), states[paths[-1].name]
    reached = ", ".join(
        f"{name} {int(s['epoch'])} of {s['epochs']} epochs in {s['seconds'] / 60:.1f} min"
        + (f" ({', '.join(filter(None, s['stopped']))})" if any(s["stopped"]) else "")
        for name, s in states.items()
    )
    run = first.model_dump_json(include={"dataset", "width", "seed", "dtype", "replicas"})
    made = f"made on: {last['device']}, {last['threads']} threads, torch {last['torch']}"
    return [f"each run: {run}", made, f"reached: {reached}"]
