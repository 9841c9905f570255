"""Many small independent matrices: one single-threaded worker for each core."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")

# A thread takes PyTorch's default number of threads when it first computes and keeps it; setting
# a number sets that default too. Who sets one to put it back holds this lock meanwhile.
_DEFAULT = threading.Lock()


def keep_threads() -> int:
    """PyTorch's number of threads in the calling thread, fixed from here on.

    ``torch.set_num_threads`` in other threads does not reach this one any more, so the bits of
    what it computes are its own affair.

    Returns:
        The number.
    """
    with _DEFAULT:
        return torch.get_num_threads()


def map_in_threads(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """``[function(item) for item in items]``, as many at a time as PyTorch has threads.

    PyTorch's own threads are held at one meanwhile: a hundred rows are too few to share, and
    workers that each share them out wait for each other most of the time. Only the workers are
    held: the number of every other thread, and the default for new ones, are as before while they
    compute.

    Args:
        function: Releases Python's lock most of the time, as PyTorch's operators do.
        items: What to call it with.

    Returns:
        The results, in order.
    """
    items, threads = list(items), keep_threads()
    if threads == 1 or len(items) < 2:
        return [function(item) for item in items]
    with _single_threaded(min(threads, len(items))) as pool:
        return list(pool.map(function, items))


def _single_threaded(workers: int) -> ThreadPoolExecutor:
    """Workers that have all started, each with one of PyTorch's threads."""
    started = threading.Barrier(workers + 1)

    def start() -> None:
        torch.get_num_threads()  # takes the default, which would else replace the one set below
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(workers, initializer=start)
    with _DEFAULT:
        default = _in_new_thread(torch.get_num_threads)
        try:
            for _ in range(workers):
                pool.submit(int)  # starts a thread each time: none is idle before all have started
            started.wait()
        except BaseException:
            started.abort()
            raise
        finally:
            _in_new_thread(torch.set_num_threads, default)
    return pool


def _in_new_thread(function: Callable[..., B], *args: object) -> B:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()
