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
from .tables import list_table

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "jupyter-book")


class BuildInfo(SphinxDirective):
    """Two tables: the build, and the datasets present with their checksums."""

    def run(self) -> list[nodes.Node]:
        """Write the tables, and note the commit so that another one outdates the page."""
        now = commit(Path(self.env.srcdir))
        self.env.metadata[self.env.docname]["commit"] = now
        build = list_table("build-info", ("What", "Value"), build_rows(now))
        datasets = list_table("build-info", ("Dataset", "Source", "SHA-256"), dataset_rows())
        return self.parse_text_to_nodes(f"{build}\n\n{datasets}")


def build_rows(now: str) -> list[tuple[str, ...]]:
    """The commit, then date, scale, device and versions."""
    import torch

    from bnmlp.settings import scale

    return [
        ("Commit", now),
        ("Built", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        ("Scale", scale()),
        ("Device", device_name()),
        ("Threads", str(torch.get_num_threads())),
        ("Processor", f"{platform.machine()}, {os.cpu_count()} cores"),
        ("System", platform.platform(terse=True)),
        ("Python", platform.python_version()),
        *((name, version(name)) for name in PACKAGES),
    ]


def dataset_rows() -> list[tuple[str, ...]]:
    """Name, source and checksum of every dataset that is present."""
    from bnmlp.data import available_datasets

    return [(data.name, data.source, f"`{data.checksum}`") for data in available_datasets()]


def commit(root: Path) -> str:
    """The commit checked out in ``root``, and whether files differ from it."""
    try:
        name, changes = (
            subprocess.run(
                ["git", "-C", root, *command], capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name} with changes" if changes else name
