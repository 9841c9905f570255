"""What the environment decides: scale of experiments, base seed, device, where datasets live."""

import os
from pathlib import Path
from typing import TypeVar

import torch

SCALES = ("smoke", "laptop", "paper")
T = TypeVar("T")


def scale() -> str:
    """Size of the book's experiments, from ``BNMLP_SCALE``: smoke, laptop (default) or paper.

    Returns:
        The name.

    Raises:
        ValueError: If the variable holds anything else.
    """
    name = os.environ.get("BNMLP_SCALE") or "laptop"
    if name not in SCALES:
        raise ValueError(f"BNMLP_SCALE is {name!r}; set it to one of {', '.join(SCALES)}")
    return name


def at_scale(*, smoke: T, laptop: T, paper: T) -> T:
    """The value for the current scale: ``depth = at_scale(smoke=20, laptop=1000, paper=1000)``.

    Args:
        smoke: Value that runs every code path in seconds.
        laptop: Value that shows the phenomenon on two CPU cores in minutes.
        paper: Value of the source that is reproduced.

    Returns:
        One of the three.
    """
    return {"smoke": smoke, "laptop": laptop, "paper": paper}[scale()]


def base_seed() -> int:
    """What moves every random number of the book, from ``BNMLP_SEED``: 0 (default) or above.

    Returns:
        The seed.

    Raises:
        ValueError: If the variable holds anything else.
    """
    text = os.environ.get("BNMLP_SEED") or "0"
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise ValueError(f"BNMLP_SEED is {text!r}; set it to an integer from 0 to 4294967295")
    return int(text)


def default_device(dtype: torch.dtype | None = None) -> torch.device:
    """Device of the book's experiments, from ``BNMLP_DEVICE``: auto (default), cpu, cuda, mps.

    Args:
        dtype: Type that the device must have. MPS has no float64; the CPU stands in for it.

    Returns:
        The device.

    Raises:
        ValueError: If the variable holds anything else.
        RuntimeError: If the device asked for is not on this machine.
    """
    name = os.environ.get("BNMLP_DEVICE") or "auto"
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        # Measurements need float64, which MPS lacks: it is used only when asked for.
        return torch.device("cuda" if present["cuda"] else "cpu")
    if name not in present:
        raise ValueError(f"BNMLP_DEVICE is {name!r}; set it to auto, cpu, cuda or mps")
    if not present[name]:
        raise RuntimeError(f"BNMLP_DEVICE is {name}, but PyTorch finds none here; set it to auto")
    return torch.device("cpu" if name == "mps" and dtype == torch.float64 else name)


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Folder of the datasets: ``root``, else ``BNMLP_DATA``, else ``~/.cache/bnmlp``.

    Args:
        root: A folder, or None.

    Returns:
        The folder, which need not exist.

    Raises:
        FileNotFoundError: If the folder lies in a home that this user does not have.
    """
    folder = Path(root or os.environ.get("BNMLP_DATA") or "~/.cache/bnmlp")
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(
            f"no home folder is known for {folder}; set BNMLP_DATA, or pass root="
        ) from error
