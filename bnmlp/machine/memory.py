"""Large fresh tensors without the price of touching them."""

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

SMALL = 2**22  # bytes; below, malloc reuses memory by itself
KEPT = 2**30  # bytes of idle blocks that are not given back to the system
_idle: dict[int, np.ndarray] = {}  # oldest first; every access is one atomic operation


def fresh(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str | None = None
) -> Tensor:
    """An uninitialised tensor, like ``torch.empty``, on a CPU in memory that was touched before.

    Linux hands memory out page by page when it is first written, and that takes several times as
    long as the writing. So blocks of tensors that are gone are kept, a gigabyte at most, and used
    again; new ones come from NumPy, which asks for pages of 2 MiB instead of 4 KiB.

    Args:
        shape: Shape of the tensor.
        dtype: Its type.
        device: Where it lives, the CPU if omitted.

    Returns:
        The tensor, on a CPU aligned to 64 bytes.
    """
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device or "cpu").type != "cpu" or size < SMALL:
        return torch.empty(*shape, dtype=dtype, device=device or "cpu")
    block = _take(size + 64)
    start = -block.ctypes.data % 64
    part = block[start : start + size]
    weakref.finalize(part, _put, block).atexit = False  # called when the tensor is gone
    return torch.from_numpy(part).view(dtype).view(*shape)


def _take(size: int) -> np.ndarray:
    """An idle block of at most twice the size, or a new one."""
    fitting = {k: b.nbytes for k, b in list(_idle.items()) if size <= b.nbytes <= 2 * size}
    block = _idle.pop(min(fitting, key=fitting.__getitem__), None) if fitting else None
    return np.empty(size, np.uint8) if block is None else block


def _put(block: np.ndarray) -> None:
    """Keep a block; the oldest ones go where there are too many."""
    _idle[id(block)] = block
    while sum(idle.nbytes for idle in list(_idle.values())) > KEPT:
        for oldest in list(_idle)[:1]:
            _idle.pop(oldest, None)
