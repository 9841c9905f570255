"""What an optimiser's next step would do, without taking it."""

import copy
import inspect
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn


@torch.no_grad()
def update_norms(
    named: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    gradients: Mapping[str, Tensor | None],
    scale: float,
) -> np.ndarray:
    """Euclidean length of the optimiser's next step, for each parameter.

    The step is taken by a copy of the optimiser, its state included, on copies of the parameters:
    momentum, decay and adaptive rates count as they would.

    Args:
        named: Parameters by name, in the order of the result.
        optimizer: Of these parameters; it does not change.
        gradients: By the names of parameters.
        scale: Factor on the gradients, which is taken off.

    Returns:
        Lengths, nan for parameters that the optimiser does not have. Shape ``(P,)``.

    Raises:
        ValueError: If it has none of the module's parameters, or its step takes a closure.
    """
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"measure: a step of {type(optimizer).__name__} evaluates the loss several times "
            "through a closure, so it has no length before it is taken; leave optimizer= out"
        )
    memo: dict[int, object] = {}
    trial = copy.deepcopy(optimizer, memo)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in named.values()):
        raise ValueError("measure: the optimiser holds none of the model's parameters")
    for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        if hasattr(trial, hooks):
            setattr(trial, hooks, OrderedDict())  # a user's, which may have effects elsewhere
    copies: dict[str, Tensor] = {}
    for name, p in named.items():
        if id(p) in held and isinstance(twin := memo.get(id(p)), Tensor):
            gradient = gradients.get(name)
            twin.grad = None if gradient is None else (gradient / scale).to(p.dtype)
            copies[name] = twin
    type(trial).step(trial)
    lengths = np.full(len(named), np.nan)
    for i, (name, p) in enumerate(named.items()):
        if name in copies:
            change = copies[name] - p
            lengths[i] = float(
                torch.linalg.vector_norm(change.float() if change.dtype.itemsize < 4 else change)
            )
    return lengths
