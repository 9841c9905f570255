"""One root for every random number of the package and the book: ``BNMLP_SEED``."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch

from bnmlp.machine.settings import base_seed

# Keeps streams of another base apart, whatever the number of integers that name them.
MARK = 0x626E6D6C

_stored: ContextVar[bool] = ContextVar("stored", default=False)


def seed_of(*numbers: int) -> int:
    """The seed of the stream that some integers name, moved by ``BNMLP_SEED``.

    With base seed 0, the default, one integer is its own seed and several are hashed. With any
    other base all streams are others, independent of those.

    Args:
        *numbers: Name of the stream, as seed and replica; integers from 0 on.

    Returns:
        The seed, at least 0.
    """
    base = 0 if _stored.get() else base_seed()
    if base:
        numbers = (*numbers, base, MARK)
    return numbers[0] if len(numbers) == 1 else _hash(numbers)


def random_source(*numbers: int) -> torch.Generator:
    """A generator on the CPU at the start of the stream that some integers name.

    Args:
        *numbers: As for :func:`seed_of`.

    Returns:
        The generator.
    """
    return torch.Generator("cpu").manual_seed(seed_of(*numbers))


def random_order(samples: int, *numbers: int) -> torch.Tensor:
    """A permutation at the start of the stream that some integers name.

    Args:
        samples: How many.
        *numbers: As for :func:`seed_of`.

    Returns:
        Indices on the CPU, int64. Shape ``(samples,)``.
    """
    return torch.randperm(samples, generator=random_source(*numbers), device="cpu")


@contextmanager
def stored_streams() -> Iterator[None]:
    """Draw as stored results were drawn, with base seed 0: to recount one, or to make one."""
    token = _stored.set(True)
    try:
        yield
    finally:
        _stored.reset(token)


def _hash(numbers: tuple[int, ...]) -> int:
    """32 bits: PyTorch's generator on the CPU uses no more of a seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
