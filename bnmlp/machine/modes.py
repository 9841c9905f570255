"""Computations that do not depend on the modes of PyTorch they are called in."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")
AUTOCAST = ("cpu", "cuda", "mps")  # devices


def autocast_devices() -> list[str]:
    """Where ``torch.autocast`` is on."""
    return [device for device in AUTOCAST if torch.is_autocast_enabled(device)]


def ordinary(x: Tensor) -> Tensor:
    """A tensor that autograd can keep, also if it was made in inference mode."""
    return x.clone() if x.is_inference() else x


def outside_modes(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function compute as it would outside ``torch.autocast`` and ``torch.inference_mode``.

    Autocasting would round the factors of every matrix product to three digits, so that a
    measurement depended on where it is called; weights and buffers made in inference mode could
    never be trained or written outside.

    Args:
        function: What to call so.

    Returns:
        A function of the same signature.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        devices, inference = autocast_devices(), torch.is_inference_mode_enabled()
        if not devices and not inference:
            return function(*args, **kwargs)
        with ExitStack() as stack:
            if inference:
                stack.enter_context(torch.inference_mode(False))
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return call
