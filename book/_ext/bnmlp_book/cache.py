"""Keep results of different code, data, pins and settings in execution caches of their own."""

import hashlib
import os
import platform
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sphinx.application import Sphinx

from .dependencies import Package, data_files
from .sources import code_cells

KEPT = 4  # results of each page


def settings(root: Path) -> tuple[object, ...]:
    """What decides all results: scale, seed, device, data, compiler, Python, the pinned versions.

    Args:
        root: Folder of ``_config.yml``.

    Returns:
        Values, whose ``repr`` tells them apart.
    """
    from bnmlp.machine.settings import base_seed, scale

    pins = hashlib.sha256((root / "requirements.txt").read_bytes()).hexdigest()
    named = (os.environ.get("BNMLP_DATA"), os.environ.get("BNMLP_COMPILER"))
    return scale(), base_seed(), device_name(), *named, platform.python_version(), pins


@cache
def device_name() -> str:
    """The device of the experiments, with its model where it is a GPU."""
    from bnmlp.machine.settings import default_device

    device = default_device()
    if device.type != "cuda":
        return device.type
    import torch

    return f"cuda, {torch.cuda.get_device_name(device)}"


class Keys:
    """A key for the results of each page: the same as long as nothing that decides them changes.

    Args:
        root: Folder of ``_config.yml``.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.settings = root, repr(settings(root))
        self.package = Package(Path(find_spec("bnmlp").origin).parent)
        self.found: dict[Path, str | None] = {}

    def key(self, page: Path) -> str | None:
        """The key of a page.

        Args:
            page: Its source.

        Returns:
            The key; None if the page has no code.
        """
        if page not in self.found:
            self.found[page] = self._key(page)
        return self.found[page]

    def _key(self, page: Path) -> str | None:
        code = "\n# %%\n".join(cell.source for cell in code_cells(page))
        if not code:
            return None
        try:
            digest = hashlib.sha256(
                f"{self.settings}\n{code}\n{self.package.digest(code)}".encode()
            )
        except SyntaxError:  # it will say so on its page
            return hashlib.sha256(f"{self.settings}\n{code}".encode()).hexdigest()[:16]
        for path in data_files(code, self.root / "book" / "data", page.stem):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()[:16]


def folder(app: Sphinx, docname: str) -> Path:
    """Where all results of a page are kept."""
    return Path(app.outdir).parent / ".jupyter_cache" / docname.replace("/", ".")


def forget_old(app: Sphinx, docname: str) -> None:
    """Keep the newest results of a page only."""
    kept = [path for path in folder(app, docname).iterdir() if path.suffix == ""]
    for old in sorted(kept, key=os.path.getmtime, reverse=True)[KEPT:]:
        shutil.rmtree(old)
