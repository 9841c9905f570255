"""One step of training for all replicas at once."""

import functools
import math
import os
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bnmlp.machine.modes import outside_modes
from bnmlp.networks import engine
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import labels_like

MEMORY = 0.25  # share of the machine's that buffers take before representations are recomputed


def sgd_step(
    model: BNMLP, x: Tensor, y: Tensor, learning_rate: float, *, recompute: bool | None = None
) -> Tensor:
    r"""One step of stochastic gradient descent on the mean cross entropy of every replica.

    The same as ``torch.optim.SGD`` without momentum on ``model.parameters()``, running averages
    included, several times faster for deep stacks (module ``bnmlp.networks.engine``). Frozen
    parameters stay. Computed in the type of the weights, also where ``torch.autocast`` is on.

    Args:
        model: R networks; their parameters change in place.
        x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
        y: Class labels, integers. Shape ``(n,)`` or ``(R, n)``.
        learning_rate: Step size.
        recompute: Keep representations of :math:`\sqrt{\mathrm{depth}}` layers only and compute
            the others twice: a third slower, with the same numbers. On a CPU by default where
            they would take a quarter of the memory.

    Returns:
        Losses before the step. Shape ``(R,)``.

    Raises:
        ValueError: If the learning rate is not finite and >= 0, samples or labels do not fit, or
            batch normalisation would centre a single sample. Nothing has changed then.
    """
    if not (learning_rate >= 0 and math.isfinite(learning_rate)):
        raise ValueError(f"learning_rate must be a finite number >= 0, got {learning_rate}")
    model.check_input(x)
    model.check_batch_size(x)
    y = labels_like(model.output_weight, x, y)
    return scored_step(model, x, y, learning_rate, recompute=recompute)[0]


@outside_modes
def scored_step(
    model: BNMLP, x: Tensor, y: Tensor, learning_rate: float, *, recompute: bool | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`sgd_step` for arguments known to be sound, and how many samples were right.

    Args:
        model: R networks; their parameters change in place.
        x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
        y: Class labels, int64. Shape ``(R, n)``.
        learning_rate: Step size.
        recompute: See :func:`sgd_step`.

    Returns:
        Losses before the step, and numbers of samples whose largest logit was the label's. Both
        of shape ``(R,)``.
    """
    if recompute is None:
        needed = engine.step_bytes(model, x.shape[-2]) * model.depth * model.replicas
        recompute = x.device.type == "cpu" and needed > MEMORY * _memory()
    if x.device.type == "cuda" and not recompute:
        return _graphed_step(model, x, y, learning_rate)
    rate = torch.tensor(learning_rate, dtype=x.dtype, device=x.device)
    return (_step_in_segments if recompute else _step_by_hand)(model, x, y, rate)


@functools.cache
def _memory() -> float:
    """Bytes of this machine, infinite where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def _parameters(model: BNMLP) -> list[tuple[str, Tensor]]:
    """As ``model.named_parameters()``, in a tenth of the time."""
    return [(name, p) for name, p in model._parameters.items() if p is not None]


def _free(model: BNMLP) -> dict[str, Tensor]:
    """Parameters that are not frozen."""
    return {name: p for name, p in _parameters(model) if p.requires_grad}


@torch.no_grad()
def _step_by_hand(
    model: BNMLP, x: Tensor, y: Tensor, learning_rate: Tensor
) -> tuple[Tensor, Tensor]:
    stack, weights = engine.stack_of(model, x), model.layer_weights()
    free, columns = _free(model), x.mT.expand(model.replicas, -1, -1)  # (R, in, n)
    h = stack.forward(weights, columns)
    logits = model.head(h)
    correct = (logits.argmax(-1) == y).sum(-1)
    losses, grad = engine.cross_entropy(logits, y)  # (R,), (R, n, out)
    # The way back is linear: a gradient scaled here is a step everywhere.
    step = grad.mul_(learning_rate).mT  # (R, out, n)
    below = torch.bmm(model.output_weight.mT, step)  # (R, width, n)
    _descend_at_the_end(free, step, h)

    def descend(layer: int, weight: Tensor, step: Tensor, h: Tensor) -> None:
        if ("hidden_weight" if layer else "input_weight") in free:
            weight.baddbmm_(step, h.mT, alpha=-1)

    stack.backward(weights, columns, below, descend)
    _descend_in_units(free, stack, slice(0, model.depth))
    return losses, correct


@torch.no_grad()
def _step_in_segments(
    model: BNMLP, x: Tensor, y: Tensor, learning_rate: Tensor
) -> tuple[Tensor, Tensor]:
    """The same numbers with memory for the representations of the root of the depth."""
    free, weights = _free(model), (*model.layer_weights(), model.output_weight)

    def descend(layer: int, step: Tensor, h: Tensor, log2_scale: Tensor) -> None:
        if layer == model.depth:
            _descend_at_the_end(free, step, h)
        elif ("hidden_weight" if layer else "input_weight") in free:
            step = torch.ldexp(step, log2_scale[:, None, None])
            weights[layer].baddbmm_(step, h.mT, alpha=-1)

    def finish(stack: engine.Stack, layers: range, log2_scale: Tensor) -> None:
        _descend_in_units(free, stack, slice(layers.start, layers.stop), log2_scale[:, None])

    def weights_of(layers: range) -> Sequence[Tensor]:
        return weights[layers.start : layers.stop]

    return engine.backward_in_segments(
        model, x, y, weights_of, descend, finish=finish, factor=learning_rate
    )


def _descend_at_the_end(free: dict[str, Tensor], step: Tensor, h: Tensor) -> None:
    """Move the parameters of the map to the logits. Shapes ``(R, out, n)``, ``(R, width, n)``."""
    if "output_weight" in free:
        free["output_weight"].baddbmm_(step, h.mT, alpha=-1)
    if "output_bias" in free:
        free["output_bias"].sub_(step.sum(-1))


def _descend_in_units(
    free: dict[str, Tensor], stack: engine.Stack, layers: slice, log2_scale: Tensor | None = None
) -> None:
    """Move biases, affine parts and averages of the layers that a stack has gone back through."""
    steps = {
        "layer_bias": stack.bias_grad, "norm_weight": stack.norm_weight_grad,
        "norm_bias": stack.norm_bias_grad,
    }  # fmt: skip
    for name, step in steps.items():
        if name in free and step is not None:
            change = step[layers]
            change = change if log2_scale is None else torch.ldexp(change, log2_scale)
            free[name][layers].sub_(change)
    stack.update_averages(layers)


_GRAPHS: "weakref.WeakKeyDictionary[BNMLP, tuple[Any, ...]]" = weakref.WeakKeyDictionary()


@torch.no_grad()
def _graphed_step(
    model: BNMLP, x: Tensor, y: Tensor, learning_rate: float
) -> tuple[Tensor, Tensor]:
    """One step replayed from a CUDA graph: thousands of launches for the price of one."""
    key = _graph_key(model, x)
    if model not in _GRAPHS or _GRAPHS[model][0] != key:
        _GRAPHS.pop(model, None)
        _GRAPHS[model] = (key, *_capture(model, x, y))
    _, graph, static, results = _GRAPHS[model]
    for buffer, value in zip(static, (x, y), strict=False):
        buffer.copy_(value)
    static[2].fill_(learning_rate)
    graph.replay()
    losses, correct = results
    return losses.clone(), correct.clone()


def _graph_key(model: BNMLP, x: Tensor) -> tuple[Any, ...]:
    """All that a graph has fixed: sizes, choices, and where it reads and writes."""
    tensors = (*(p for _, p in _parameters(model)), *model.buffers(recurse=False))
    places = tuple((t.data_ptr(), t.requires_grad) for t in tensors)
    return x.shape, engine.key_of(model, x), model.momentum, places


@torch.no_grad()
def _capture(
    model: BNMLP, x: Tensor, y: Tensor
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    rate = torch.zeros((), dtype=x.dtype, device=x.device)  # a step of zero changes no weight
    static = (x.clone(), y.clone(), rate)
    averages = [b.clone() for b in model.buffers()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up outside the capture
        _step_by_hand(model, *static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = _step_by_hand(model, *static)
    for buffer, before in zip(model.buffers(), averages, strict=True):
        buffer.copy_(before)
    return graph, static, results
