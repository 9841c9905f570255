"""What the toolchain asks of the package."""

import os
from types import SimpleNamespace


def scale():
    """The scale that judges claims."""
    return "laptop"


def base_seed():
    """The seed of all random numbers."""
    return int(os.environ.get("BNMLP_SEED") or 0)


def default_device():
    """A device that needs no import of torch."""
    return SimpleNamespace(type="cpu")
