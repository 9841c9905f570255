"""Losses and their gradients in all matrices of any network."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.skip import SkipMLP
from bnmlp.networks.transformer import Transformer


def scored_losses(model: BNMLP, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of every replica, for autograd, and how many samples are right.

    Args:
        model: R networks, called as they are, so averages move in training mode.
        x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
        y: Class labels, int64. Shape ``(R, n)``.

    Returns:
        Losses and numbers of samples. Both of shape ``(R,)``.
    """
    logits = model(x)
    losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    return losses.view_as(y).mean(1), (logits.argmax(-1) == y).sum(-1)


def weight_gradients(model: SkipMLP, x: Tensor, y: Tensor) -> list[Tensor]:
    """Gradients of each network's mean cross entropy for its weight matrices.

    Args:
        model: R networks; their running averages move in training mode.
        x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
        y: Labels, int64. Shape ``(R, n)``.

    Returns:
        One tensor for each linear layer, first layer first. Shapes ``(R, rows, columns)``.
    """
    weights = (model.input_weight, model.hidden_weight, model.output_weight)
    loss = scored_losses(model, x, y)[0].sum()
    first, hidden, last = torch.autograd.grad(loss, weights)
    return [first, *hidden.unbind(), last]


def matrix_gradients(model: Transformer, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of each network's mean cross entropy, and that loss.

    Args:
        model: R networks.
        x: Tokens. Shape ``(n, T, in)`` or ``(R, n, T, in)``.
        y: Labels. Shape ``(n,)`` or ``(R, n)``.

    Returns:
        Gradients by name, those of ``MATRICES`` and ``"embedding"`` and ``"last"``, in the shapes
        of the weights, and losses of shape ``(R,)``.

    Raises:
        ValueError: If the tokens do not fit.
    """
    named = {**model.matrices, "embedding": model.embedding, "last": model.last}
    logits = model(x)
    labels = y.expand(logits.shape[:2])
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    losses = losses.view_as(labels).mean(-1)
    found = torch.autograd.grad(losses.sum(), list(named.values()))
    return dict(zip(named, found, strict=True)), losses.detach()
