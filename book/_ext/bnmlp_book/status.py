"""The directive ``{build-info}``: what this copy of the book was built from, with and on."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from .cache import device_name
from .execution import results
from .sources import pages
from .tables import list_table

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "jupyter-book")


class BuildInfo(SphinxDirective):
    """Three tables: the build, the datasets present with their checksums, and the chapters."""

    def run(self) -> list[nodes.Node]:
        """Write the tables, and note the commit so that another one outdates the page."""
        root = Path(self.env.srcdir)
        now = commit(root)
        self.env.metadata[self.env.docname]["commit"] = now
        build = list_table("build-info", ("What", "Value"), build_rows(now))
        datasets = list_table("build-info", ("Dataset", "Source", "SHA-256"), dataset_rows())
        chapters = list_table(
            "build-info", ("Chapter", "Seconds", "Executed", "Claims"), chapter_rows(self.env)
        )
        return self.parse_text_to_nodes(f"{build}\n\n{datasets}\n\n{chapters}")


def build_rows(now: str) -> list[tuple[str, ...]]:
    """The commit, then date, scale, device and versions."""
    import torch

    from bnmlp.machine.settings import base_seed, scale

    return [
        ("Commit", now),
        ("Built", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        ("Scale", scale()),
        ("Seed", f"{base_seed()} (`BNMLP_SEED`)"),
        ("Device", device_name()),
        ("Threads of each chapter", os.environ.get("OMP_NUM_THREADS", "all")),
        ("Processor", f"{platform.machine()}, {os.cpu_count()} cores"),
        ("Instruction set", torch.backends.cpu.get_cpu_capability()),
        ("System", platform.platform(terse=True)),
        ("Python", platform.python_version()),
        *((name, version(name)) for name in PACKAGES),
    ]


def dataset_rows() -> list[tuple[str, ...]]:
    """Name, source and checksum of every dataset that is present, or what is wrong with it."""
    from bnmlp.data import LOADERS, load_dataset

    rows = []
    for name in LOADERS:
        try:
            data = load_dataset(name)
            rows.append((name, data.source, f"`{data.checksum}`"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            rows.append((name, f"damaged: {error}", ""))
    return rows


def chapter_rows(env) -> list[tuple[str, ...]]:
    """How long each page took, when it was executed, and how many of its claims hold."""
    rows = []
    for page in pages(Path(env.srcdir)):
        name = page.relative_to(env.srcdir).with_suffix("").as_posix()
        result = results(env).get(name)
        if result is None:
            continue
        held = sum(claim["holds"] for claim in result.claims)
        counted = f"{held} of {len(result.claims)} hold" if result.claims else "none"
        if any(not claim["judged"] for claim in result.claims):
            counted = f"{len(result.claims)}, not judged"
        when = f"{datetime.fromtimestamp(result.made, UTC):%Y-%m-%d %H:%M} UTC"
        state = "a cell failed" if result.state == "failed" else counted
        rows.append((f"[](/{name}.md)", f"{result.seconds:.1f}", when, state))
    return rows


def commit(root: Path) -> str:
    """The commit checked out in ``root``, and whether files differ from it.

    A repository around ``root`` is not asked: its commits say nothing of this book.

    Args:
        root: The clone.

    Returns:
        Name of the commit, marked where files differ; ``"unknown"`` without one.
    """
    inside = {**os.environ, "GIT_CEILING_DIRECTORIES": str(root.resolve().parent)}
    try:
        name, changes = (
            subprocess.run(
                ["git", "-C", root, *command],
                capture_output=True, text=True, check=True, env=inside,
            ).stdout.strip()
            for command in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain"])
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name} with changes" if changes else name
