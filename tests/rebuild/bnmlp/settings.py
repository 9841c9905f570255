"""What the toolchain asks of the package."""

from types import SimpleNamespace


def scale():
    """The scale that judges claims."""
    return "laptop"


def default_device():
    """A device that needs no import of torch."""
    return SimpleNamespace(type="cpu")
