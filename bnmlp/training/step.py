"""One step of training for all replicas at once."""

import math
import weakref
from typing import Any

import torch
from torch import Tensor

from bnmlp.machine.modes import outside_modes
from bnmlp.networks import engine
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import labels_like


def sgd_step(model: BNMLP, x: Tensor, y: Tensor, learning_rate: float) -> Tensor:
    r"""One step of stochastic gradient descent on the mean cross entropy of every replica.

    The same as ``torch.optim.SGD`` without momentum on ``model.parameters()``, running averages
    included, several times faster for deep stacks (module ``bnmlp.networks.engine``). Frozen
    parameters
    stay. Computed in the type of the weights, also where ``torch.autocast`` is on.

    Args:
        model: R networks; their parameters change in place.
        x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
        y: Class labels, integers. Shape ``(n,)`` or ``(R, n)``.
        learning_rate: Step size.

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
    return scored_step(model, x, y, learning_rate)[0]


@outside_modes
def scored_step(model: BNMLP, x: Tensor, y: Tensor, learning_rate: float) -> tuple[Tensor, Tensor]:
    """:func:`sgd_step` for arguments known to be sound, and how many samples were right.

    Args:
        model: R networks; their parameters change in place.
        x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
        y: Class labels, int64. Shape ``(R, n)``.
        learning_rate: Step size.

    Returns:
        Losses before the step, and numbers of samples whose largest logit was the label's. Both
        of shape ``(R,)``.
    """
    if x.device.type == "cuda":
        return _graphed_step(model, x, y, learning_rate)
    return _step_by_hand(model, x, y, torch.tensor(learning_rate, dtype=x.dtype, device=x.device))


def _parameters(model: BNMLP) -> list[tuple[str, Tensor]]:
    """As ``model.named_parameters()``, in a tenth of the time."""
    return [(name, p) for name, p in model._parameters.items() if p is not None]


@torch.no_grad()
def _step_by_hand(
    model: BNMLP, x: Tensor, y: Tensor, learning_rate: Tensor
) -> tuple[Tensor, Tensor]:
    stack, weights = engine.stack_of(model, x), model.layer_weights()
    free = {name for name, p in _parameters(model) if p.requires_grad}
    columns = x.mT.expand(model.replicas, -1, -1)  # (R, in, n)
    h = stack.forward(weights, columns)
    logits = model.head(h)
    correct = (logits.argmax(-1) == y).sum(-1)
    losses, grad = engine.cross_entropy(logits, y)  # (R,), (R, n, out)
    # The way back is linear: a gradient scaled here is a step everywhere.
    step = grad.mul_(learning_rate).mT  # (R, out, n)
    below = torch.bmm(model.output_weight.mT, step)  # (R, width, n)
    if "output_weight" in free:
        model.output_weight.baddbmm_(step, h.mT, alpha=-1)

    def descend(layer: int, weight: Tensor, step: Tensor, h: Tensor) -> None:
        if ("hidden_weight" if layer else "input_weight") in free:
            weight.baddbmm_(step, h.mT, alpha=-1)

    stack.backward(weights, columns, below, descend)
    steps = {
        "output_bias": step.sum(-1), "layer_bias": stack.bias_grad,
        "norm_weight": stack.norm_weight_grad, "norm_bias": stack.norm_bias_grad,
    }  # fmt: skip
    for name, change in steps.items():
        if name in free and change is not None:
            getattr(model, name).sub_(change)
    stack.update_averages()
    return losses, correct


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
