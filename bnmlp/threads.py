"""Many small independent matrices: one single-threaded worker for each core."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


def map_in_threads(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """``[function(item) for item in items]``, as many at a time as PyTorch has threads.

    PyTorch's own threads are held at one meanwhile: a hundred rows are too few to share, and
    workers that each share them out wait for each other most of the time.

    Args:
        function: Releases Python's lock most of the time, as PyTorch's operators do.
        items: What to call it with.

    Returns:
        The results, in order.
    """
    items, threads = list(items), torch.get_num_threads()
    if threads == 1 or len(items) < 2:
        return [function(item) for item in items]
    try:
        with ThreadPoolExecutor(threads, None, torch.set_num_threads, (1,)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)
