"""Many small independent matrices: one single-threaded worker for each core."""

import ctypes
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


def keep_threads() -> int:
    """PyTorch's number of threads in the calling thread, fixed from here on.

    A thread takes the default number when it first computes and keeps it: ``set_num_threads`` in
    other threads does not reach this one any more, so the bits of what it computes are its own
    affair.

    Returns:
        The number.
    """
    return torch.get_num_threads()


def map_in_threads(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """``[function(item) for item in items]``, as many at a time as PyTorch has threads.

    PyTorch's own threads are held at one in the workers: a hundred rows are too few to share, and
    workers that each share them out wait for each other most of the time. Where they cannot be
    held, the items are computed one after the other.

    Args:
        function: Releases Python's lock most of the time, as PyTorch's operators do.
        items: What to call it with.

    Returns:
        The results, in order.
    """
    items, threads = list(items), keep_threads()
    if threads == 1 or len(items) < 2 or not _libraries():
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items)), initializer=_hold_at_one) as pool:
        return list(pool.map(function, items))


def _hold_at_one() -> None:
    """Hold the calling thread at one of PyTorch's threads.

    ``torch.set_num_threads`` would also change the default of new threads, and switch off for
    good that MKL adapts its number of threads, whereupon its factors of large matrices may be
    wrong.
    """
    keep_threads()  # takes the default, which would else replace the one set below
    for set_number in _libraries():
        set_number(1)


@cache
def _libraries() -> list[Callable[[int], object]]:
    """Functions of OpenMP and MKL that set the calling thread's number; none without OpenMP."""
    folder = Path(torch.__file__).parent / "lib"
    library = next(iter(sorted(folder.glob("libtorch_cpu.*"))), None)
    if library is None:
        return []
    loaded = ctypes.CDLL(str(library))
    names = "omp_set_num_threads", "MKL_Set_Num_Threads_Local"
    openmp, mkl = (getattr(loaded, name, None) for name in names)
    return [f for f in (openmp, mkl) if f] if openmp else []
