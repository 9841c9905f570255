"""Measurements that leave nothing behind: averages, gradients, modes, random numbers."""

import contextlib
import gc
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from bnmlp.machine.randomness import random_state_kept
from bnmlp.networks.protocol import averages_kept

_measuring: ContextVar[bool] = ContextVar("measuring", default=False)


def measuring() -> bool:
    """Whether what runs now is a measurement, and no step of training."""
    return _measuring.get()


@contextlib.contextmanager
def everything_kept(
    module: nn.Module, training: bool | None = None, parts: Sequence[nn.Module] | None = None
) -> Iterator[None]:
    """Leave a module and all random numbers as they were, bit for bit, also after an error.

    Kept are modes, buffers (the tensors themselves and their values), ``.grad`` and
    ``requires_grad`` of parameters, attributes that modules of one's own set in a pass, such as a
    cache, whether modules were compiled in place, and the random state of PyTorch on all devices,
    of NumPy and of Python. Inside, every parameter that can have a gradient has one, ``.grad`` is
    None, inference mode is off, and compiled modules run as written.

    Args:
        module: Any module.
        training: Mode inside the ``with`` statement; as it is if omitted.
        parts: The module's parts, where these are known.
    """
    parts = list(module.modules()) if parts is None else parts
    with contextlib.ExitStack() as stack:
        stack.callback(_measuring.reset, _measuring.set(True))
        recording = torch.is_grad_enabled()  # which leaving inference mode would turn on
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(recording))
        stack.enter_context(random_state_kept())
        stack.enter_context(averages_kept(module))
        for keep in (_attributes, _gradients, _compiled):
            stack.enter_context(keep(parts))
        if training is not None and any(part.training != training for part in parts):
            module.train(training)
        yield


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Let Python not search its memory for cycles, of which many short-lived objects have none."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextlib.contextmanager
def _gradients(parts: Sequence[nn.Module]) -> Iterator[None]:
    found = {id(p): p for part in parts for p in part._parameters.values() if p is not None}
    kept = [(p, p.grad) for p in found.values()]
    frozen = [p for p, _ in kept if not p.requires_grad and p.is_leaf and p.is_floating_point()]
    try:
        for p in frozen:
            p.requires_grad_(True)
        for p, gradient in kept:
            if gradient is not None:
                p.grad = None
        yield
    finally:
        for p, gradient in kept:
            if p.grad is not gradient:
                p.grad = gradient
        for p in frozen:
            p.requires_grad_(False)


@contextlib.contextmanager
def _attributes(parts: Sequence[nn.Module]) -> Iterator[None]:
    """What a pass may set or register in modules that are none of PyTorch's."""
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (values, dict(values))
        for part in parts
        if not type(part).__module__.startswith("torch.nn.modules.")
        for values in (vars(part), part._parameters, part._buffers, part._modules)
    ]
    try:
        yield
    finally:
        for now, before in kept:
            for name in now.keys() - before.keys():
                del now[name]
            for name, value in before.items():
                if name not in now or now[name] is not value:
                    now[name] = value


@contextlib.contextmanager
def _compiled(parts: Sequence[nn.Module]) -> Iterator[None]:
    """``module.compile()`` puts a compiled call beside the written one, which ignores new hooks."""
    calls = [(part, part._compiled_call_impl) for part in parts if part._compiled_call_impl]
    try:
        for part, _ in calls:
            part._compiled_call_impl = None
        yield
    finally:
        for part, call in calls:
            part._compiled_call_impl = call
