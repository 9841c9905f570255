"""Losses and their gradients in all matrices of any network."""

from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import Network, batch_of, without_dropout

IGNORED = -100  # the label that PyTorch's cross entropy leaves out


def default_loss(output: Tensor, y: Any) -> tuple[Tensor, str]:
    """The loss that targets suggest: mean cross entropy of labels, mean squared error of numbers.

    Args:
        output: Logits, their classes on the last or the second axis, or numbers.
        y: Labels, of which -100 is left out; or numbers, as many as in the output.

    Returns:
        A number, for autograd, and what it is.

    Raises:
        ValueError: If the targets suggest none, shapes do not fit, or a label is no class.
    """
    if not isinstance(y, Tensor) or y.dtype == torch.bool or y.is_complex():
        kind = y.dtype if isinstance(y, Tensor) else f"type {type(y).__name__}"
        raise ValueError(
            f"no loss is known for targets of {kind}; pass loss_fn=, which is called with output "
            "and targets"
        )
    if not y.is_floating_point():
        rows, labels = class_rows(output, y)
        _refuse_labels(labels, rows.shape[-1])
        wide = rows.float() if rows.dtype.itemsize < 4 else rows
        return F.cross_entropy(wide, labels), "mean cross entropy"
    if output.numel() != y.numel() or len(output) != len(y):
        _refuse_shapes(output, y, "pass loss_fn=, or integer labels for cross entropy")
    return F.mse_loss(output, y.reshape(output.shape).to(output)), "mean squared error"


def _refuse_labels(labels: Tensor, classes: int) -> None:
    """Refuse what cross entropy has no class for; on a GPU the process would not survive it."""
    if classes < 2:
        raise ValueError(
            "integer targets are class labels, and the output has one class only; pass "
            "loss_fn=nn.BCEWithLogitsLoss() for two classes by one logit, or targets of floating "
            "point for regression"
        )
    known = labels[labels != IGNORED]
    if not len(known):
        return
    low, high = torch.stack(torch.aminmax(known)).tolist()
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels lie in {low}..{high}, but the output has {classes} classes, 0..{classes - 1}; "
            f"{IGNORED} is a label that is left out"
        )


def class_rows(output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``(N, classes)`` and labels ``(N,)`` of whatever has so many labels.

    Args:
        output: Logits, their classes on the last axis, as of tokens, or on the second, as of
            pixels; also of one replica, with an axis in front.
        y: Labels, with the other axes.

    Returns:
        Both flat.

    Raises:
        ValueError: If shapes do not fit.
    """
    labels = y.long().reshape(-1)
    if output.shape[:-1] == y.shape:
        return output.flatten(0, -2) if output.ndim > 1 else output[None], labels
    if output.ndim > 1 and (output.shape[0], *output.shape[2:]) == tuple(y.shape):
        return output.movedim(1, -1).flatten(0, -2), labels
    if output.ndim == y.ndim + 2 and len(output) == 1 and output.shape[1:-1] == y.shape:
        return output[0].flatten(0, -2), labels
    remedy = "classes are the last or the second axis. Pass loss_fn= for another loss"
    if output.shape == y.shape:
        remedy = "integers are class labels; pass y.float() for regression, y.argmax(-1) if one-hot"
    return _refuse_shapes(output, y, remedy)


def right_labels(output: Tensor, y: Any) -> Tensor | None:
    """Whether the largest logit is the label's; labels below 0, which losses leave out, are not.

    Args:
        output: See :func:`class_rows`.
        y: Labels.

    Returns:
        One bool for each label; None where targets are no labels of these logits.
    """
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex():
        return None
    try:
        rows, labels = class_rows(output.detach(), y)
    except ValueError:  # a loss of one's own may know what to do with them
        return None
    return (rows.argmax(-1) == labels)[labels >= 0]


def _refuse_shapes(output: Tensor, y: Tensor, remedy: str) -> NoReturn:
    raise ValueError(
        f"an output of shape {tuple(output.shape)} and targets of shape {tuple(y.shape)} do not "
        f"fit; {remedy}"
    )


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
