"""Gradient norms of every layer and the rate at which they grow towards the input."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bnmlp.model import BNMLP


def gradient_norms(model: BNMLP, x: Tensor, y: Tensor) -> Tensor:
    r"""Frobenius norms of the gradients of the mean cross entropy for every weight matrix.

    Args:
        model: R networks.
        x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
        y: Class labels, int64. Shape ``(n,)`` or ``(R, n)``.

    Returns:
        :math:`\lVert\partial\mathcal L/\partial W\rVert_F`, input layer first, output layer last,
        float64. Shape ``(depth + 1, R)``.

    Raises:
        ValueError: If labels do not fit the samples or the logits, or a gradient is not finite.
    """
    logits = model.logits(x)  # (R, n, out)
    loss = _mean_cross_entropy(logits, y).sum()
    weights = (model.input_weight, model.hidden_weight, model.output_weight)
    first, hidden, last = torch.autograd.grad(loss, weights, materialize_grads=True)
    norms = torch.cat([_norm(first)[None], _norm(hidden), _norm(last)[None]])
    if not norms.isfinite().all():
        raise ValueError(
            f"gradient_norms: {int((~norms.isfinite()).sum())} of {norms.numel()} norms are not "
            "finite; gradients have left the range of the model's type, use dtype=torch.float64"
        )
    return norms


def explosion_rate(norms: Tensor, layers: Sequence[int] | None = None) -> Tensor:
    r"""Minus the least-squares slope of log gradient norm against layer index.

    Positive where gradients grow towards the input: a rate :math:`\rho` multiplies the norm by
    :math:`e^\rho` for every layer passed on the way back. Defined in :eq:`explosion-rate`.

    Args:
        norms: Gradient norms, as :func:`gradient_norms` returns them. Shape ``(depth + 1, R)``.
        layers: Rows of ``norms`` to fit; all but the first and the last if omitted, since the
            rectangular input and output matrices are not comparable with the others.

    Returns:
        Rate in nats per layer, float64. Shape ``(R,)``.

    Raises:
        ValueError: If fewer than two layers remain, an index is outside the network, or a norm
            is not positive and finite.
    """
    if norms.ndim != 2:
        raise ValueError(
            f"explosion_rate: expected norms of shape (depth + 1, R), got {tuple(norms.shape)}"
        )
    rows = range(1, len(norms) - 1) if layers is None else list(layers)
    if len(set(rows)) < 2:
        raise ValueError(
            f"explosion_rate: a slope needs two layers, got {len(set(rows))}; "
            "use a deeper network or name the layers"
        )
    if min(rows) < 0 or max(rows) >= len(norms):
        raise ValueError(
            f"explosion_rate: layers must lie in 0..{len(norms) - 1}, got {min(rows)}..{max(rows)}"
        )
    index = torch.tensor(list(rows), dtype=torch.float64, device=norms.device)
    log = norms[list(rows)].to(torch.float64).log()  # (layers, R)
    if not log.isfinite().all():
        raise ValueError(
            "explosion_rate: norms must be positive and finite; where gradients leave the range "
            "of float32 build the model with dtype=torch.float64"
        )
    centred = index - index.mean()
    return -(centred @ (log - log.mean(0))) / centred.square().sum()


def _mean_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over samples of each replica's cross entropy. Shape ``(R,)``."""
    replicas, n, classes = logits.shape
    if y.shape not in ((n,), (replicas, n)):
        raise ValueError(
            f"expected labels of shape ({n},) or ({replicas}, {n}), got {tuple(y.shape)}"
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {y.dtype}; call y.long()")
    if y.device != logits.device:
        raise ValueError(f"labels are on {y.device}, logits on {logits.device}; move one of them")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(
            f"labels must lie in 0..{classes - 1}, got {int(y.min())}..{int(y.max())}; "
            "out_features of the model is the number of classes"
        )
    losses = F.cross_entropy(
        logits.flatten(0, 1), y.long().expand(replicas, n).flatten(), reduction="none"
    )
    return losses.view(replicas, n).mean(1)


def _norm(gradient: Tensor) -> Tensor:
    # The square of a float32 overflows near 1e19: scale by the largest entry first.
    peak = gradient.abs().amax((-2, -1), keepdim=True)
    scaled = torch.linalg.vector_norm(gradient / torch.where(peak > 0, peak, 1), dim=(-2, -1))
    return scaled.double() * peak[..., 0, 0].double()
