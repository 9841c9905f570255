"""Results as tables: those that the book keeps, and those that a page offers for download."""

import base64
import html
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from bnmlp.machine.settings import default_device
from bnmlp.machine.storage import read_text, write_text

CLONE = Path(__file__).parents[2] / "book" / "data"
DATA = CLONE if CLONE.is_dir() else Path(__file__).parent / "data"  # which a wheel has


def stored_table(name: str) -> pd.DataFrame:
    """A result of a long run that the book keeps, with the comment lines that tell its making.

    Args:
        name: File below ``book/data``, as ``"what-it-costs/depth-100000.csv"``.

    Returns:
        The table, first column as index; its comment lines, joined, in ``attrs["provenance"]``.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    path = DATA / name
    if not path.is_file():
        raise FileNotFoundError(
            f"stored_table: no {name} in {DATA}; stored results are named FOLDER/TABLE.csv"
        )
    table = pd.read_csv(path, comment="#", index_col=0)
    lines = [line for line in read_text(path).splitlines() if line.startswith("#")]
    table.attrs["provenance"] = " ".join(line.lstrip("# ") for line in lines)
    return table


def store_table(
    table: pd.DataFrame,
    name: str,
    about: Sequence[str],
    *,
    command: str,
    minutes: float | None = None,
    float_format: str | None = None,
) -> None:
    """Keep the result of a long run for :func:`stored_table`, with what it took to make it.

    Args:
        table: The result; its index comes first.
        name: File below ``book/data``.
        about: Comment lines: what the columns are, sizes, data, seeds.
        command: What was run.
        minutes: How long it took.
        float_format: Of the numbers, as in ``DataFrame.to_csv``.

    Raises:
        ValueError: If the file would weigh more than 150 KB.
        bnmlp.machine.storage.StorageError: If it cannot be written.
    """
    device = default_device()
    threads = torch.get_num_threads()
    lines = [
        *about,
        f"command: {command}; commit {commit()}",
        f"device: {device.type}, {platform.machine()}, {threads} thread{'s' * (threads > 1)}, "
        f"torch {torch.__version__}" + ("" if minutes is None else f"; minutes: {minutes:.1f}"),
    ]
    text = "".join(f"# {line}\n" for line in lines) + table.to_csv(float_format=float_format)
    if len(text) > 150_000:
        raise ValueError(f"store_table: {name} has {len(text)} bytes, at most 150,000; thin it out")
    write_text(DATA / name, text)


def commit(root: Path = DATA.parents[1]) -> str:
    """Short name of the commit checked out in a folder, marked where a tracked file differs.

    Args:
        root: The clone; that of this package if omitted. A repository around it does not count.

    Returns:
        The name, or ``"unknown"`` without a clone or without git.
    """
    command = ["git", "-C", str(root), "describe", "--always", "--dirty= with changes"]
    inside = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.resolve().parent)}
    try:
        return subprocess.check_output(
            command, env=inside, text=True, stderr=subprocess.DEVNULL
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def offer_csv(table: pd.DataFrame, name: str) -> None:
    """Show a link in the page that downloads a table, from the page itself.

    Args:
        table: Raw results, index included.
        name: File name, as ``"explosion-against-gain.csv"``.

    Raises:
        ValueError: If the file would weigh more than 60 KB.
    """
    from IPython.display import HTML, display

    text = table.to_csv(float_format="%.6g")
    if len(text) > 60_000:
        raise ValueError(f"offer_csv: {name} has {len(text)} bytes, at most 60,000; thin it out")
    address = "data:text/csv;base64," + base64.b64encode(text.encode()).decode()
    label = f"{html.escape(name)} ({len(table)} rows, {max(1, len(text) // 1000)} KB)"
    display(
        HTML(
            f'<p class="offer-csv"><a download="{html.escape(name)}" href="{address}">'
            f"Raw results: {label}</a></p>"
        )
    )
