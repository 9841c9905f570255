"""Losses and their gradients in all matrices of any network."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import Network, batch_of, without_dropout


def scored_losses(network: Network, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy of every replica, for autograd, and how many samples are right.

    Args:
        network: R networks, called as they are, so averages move in training mode.
        x: Samples. Shape ``(n, ...)`` or ``(R, n, ...)``.
        y: Class labels, int64. Shape ``(R, n)``.

    Returns:
        Losses and numbers of samples. Both of shape ``(R,)``.
    """
    logits = network(x)
    losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    return losses.view_as(y).mean(1), (logits.argmax(-1) == y).sum(-1)


def parameter_gradients(
    network: Network, x: Tensor, y: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Gradients of each network's mean cross entropy in all parameters that require them.

    Args:
        network: R networks, called as they are, so averages move in training mode.
        x: Samples. Shape ``(n, ...)`` or ``(R, n, ...)``.
        y: Labels. Shape ``(n,)`` or ``(R, n)``.

    Returns:
        Gradients by the names and in the shapes of the parameters, zero where the loss does not
        depend on one; losses and numbers of samples that were right, of shape ``(R,)``.

    Raises:
        ValueError: If samples and labels do not fit.
    """
    x, y = batch_of(network, x, y)
    named = {k: p for k, p in network.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        losses, correct = scored_losses(network, x, y)
        found = torch.autograd.grad(losses.sum(), list(named.values()), materialize_grads=True)
    return dict(zip(named, found, strict=True)), losses.detach(), correct


def matrix_gradients(network: Network, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients of each network's mean cross entropy in its weight matrices, and that loss.

    Args:
        network: R networks; modes and averages stay as they are, dropout is off.
        x: Samples. Shape ``(n, ...)`` or ``(R, n, ...)``.
        y: Labels. Shape ``(n,)`` or ``(R, n)``.

    Returns:
        Gradients as :meth:`bnmlp.networks.protocol.Network.weight_matrices`, and losses of shape
        ``(R,)``.

    Raises:
        ValueError: If samples and labels do not fit.
    """
    with without_dropout(network):
        found, losses, _ = parameter_gradients(network, x, y)
    return network.weight_matrices(found), losses


def head_losses(model: BNMLP, h: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy of every replica, from the last representation.

    Args:
        model: R networks.
        h: Last representations. Shape ``(R, width, n)``.
        y: Class labels. Shape ``(R, n)``.

    Returns:
        Losses. Shape ``(R,)``.
    """
    return F.cross_entropy(model.head(h).mT, y, reduction="none").mean(1)


def head_gradient(model: BNMLP, h: Tensor, y: Tensor) -> Tensor:
    """Gradient of each network's mean cross entropy for its last representation.

    Args:
        model: R networks.
        h: Last representations. Shape ``(R, width, n)``.
        y: Class labels. Shape ``(R, n)``.

    Returns:
        Gradients. Shape ``(R, width, n)``.
    """
    h = h.detach().requires_grad_()
    return torch.autograd.grad(head_losses(model, h, y).sum(), h)[0]
