"""Keep results of different code, pins, scales or devices in different execution caches."""

import hashlib
import os
import platform
import shutil
from importlib.util import find_spec
from pathlib import Path

from sphinx.application import Sphinx

KEPT = 4


def fingerprint(root: Path) -> str:
    """Hash of everything outside a chapter that its results depend on.

    Args:
        root: Folder of ``_config.yml``.
    """
    from bnmlp.settings import scale

    package = Path(find_spec("bnmlp").origin).parent
    settings = (scale(), device_name(), os.environ.get("BNMLP_DATA"), platform.python_version())
    digest = hashlib.sha256(repr(settings).encode())
    for folder in (package, root / "book" / "data"):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.relative_to(folder).as_posix().encode())
                digest.update(path.read_bytes())
    digest.update((root / "requirements.txt").read_bytes())
    return digest.hexdigest()[:16]


def device_name() -> str:
    """The device of the experiments, with its model where it is a GPU."""
    from bnmlp.settings import default_device

    device = default_device()
    if device.type != "cuda":
        return device.type
    import torch

    return f"cuda, {torch.cuda.get_device_name(device)}"


def key_by_fingerprint(app: Sphinx, config) -> None:
    """Choose the execution cache; another choice than last time makes Sphinx re-read every page."""
    caches = Path(app.outdir).parent / ".jupyter_cache"
    chosen = caches / fingerprint(Path(app.srcdir))
    chosen.mkdir(parents=True, exist_ok=True)
    os.utime(chosen)
    config.nb_execution_cache_path = str(chosen)
    for old in sorted(caches.iterdir(), key=os.path.getmtime, reverse=True)[KEPT:]:
        shutil.rmtree(old)
