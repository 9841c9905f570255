"""One step of training for all replicas at once."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bnmlp import engine
from bnmlp.model import BNMLP


def sgd_step(model: BNMLP, x: Tensor, y: Tensor, learning_rate: float) -> Tensor:
    r"""One step of stochastic gradient descent on the mean cross entropy of every replica.

    The same as ``torch.optim.SGD`` without momentum on ``model.parameters()``, running averages
    included, several times faster for deep stacks (module ``bnmlp.engine``).

    Args:
        model: R networks; their parameters change in place.
        x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
        y: Class labels, int64. Shape ``(n,)`` or ``(R, n)``.
        learning_rate: Step size.

    Returns:
        Losses before the step. Shape ``(R,)``.

    Raises:
        ValueError: If the learning rate is not finite and >= 0, or samples or labels do not fit.
    """
    if not (learning_rate >= 0 and math.isfinite(learning_rate)):
        raise ValueError(f"learning_rate must be a finite number >= 0, got {learning_rate}")
    if not engine.supports(model):
        return _autograd_step(model, x, y, learning_rate)
    return _step_by_hand(model, x, y, learning_rate)


@torch.no_grad()
def _step_by_hand(model: BNMLP, x: Tensor, y: Tensor, learning_rate: float) -> Tensor:
    model.check_input(x)
    stack, weights = engine.stack_of(model, x), model.layer_weights()
    columns = x.mT.expand(model.replicas, -1, -1)  # (R, in, n)
    h = stack.forward(weights, columns)
    logits = model.head(h)  # (R, n, out)
    losses, grad = engine.cross_entropy(logits, engine.labels_like(logits, y))
    below = torch.bmm(model.output_weight.mT, grad.mT)  # (R, width, n)
    model.output_weight.baddbmm_(grad.mT, h.mT, alpha=-learning_rate)

    def descend(layer: int, weight: Tensor, grad: Tensor, h: Tensor) -> None:
        weight.baddbmm_(grad, h.mT, alpha=-learning_rate)
        if model.layer_bias is not None:
            model.layer_bias[layer].sub_(grad.sum(-1), alpha=learning_rate)

    stack.backward(weights, columns, below, descend)
    if model.output_bias is not None:
        model.output_bias.sub_(grad.sum(1), alpha=learning_rate)
    if model.affine and model.norm == "batch":
        model.norm_weight.sub_(stack.norm_weight_grad, alpha=learning_rate)
        model.norm_bias.sub_(stack.norm_bias_grad, alpha=learning_rate)
    stack.update_averages()
    return losses


def _autograd_step(model: BNMLP, x: Tensor, y: Tensor, learning_rate: float) -> Tensor:
    logits = model(x)
    labels = engine.labels_like(logits, y)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    losses = losses.view_as(labels).mean(1)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(losses.sum(), parameters, materialize_grads=True)
    with torch.no_grad():
        torch._foreach_add_(parameters, gradients, alpha=-learning_rate)
    return losses.detach()
