"""Effective learning rates and their spread over layers."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from bnmlp.machine.precision import float64
from bnmlp.measurements.gradients import gradient_norms
from bnmlp.networks.protocol import Network, as_network


def effective_rates(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    r"""Gradient norm over weight norm, :math:`E_\ell`, of every weight matrix but the last.

    Args:
        model: R networks, or any module that maps samples to logits.
        x: Samples. Shape ``(n, ...)`` or ``(R, n, ...)``.
        y: Class labels. Shape ``(n,)`` or ``(R, n)``.

    Returns:
        Rates, float64, where the gradient norms are. For a BNMLP of shape ``(depth, R)``.

    Raises:
        ValueError: As :func:`bnmlp.gradient_norms`.
    """
    weights = as_network(model).weight_matrices()
    norms = gradient_norms(model, x, y)
    return norms[:-1] / lengths(list(weights.values())[:-1]).to(norms.device)


def matrix_rates(network: Network, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""Effective learning rates :math:`\lVert g\rVert/\lVert W\rVert` of all weight matrices.

    Args:
        network: R networks.
        gradients: As :func:`bnmlp.networks.losses.matrix_gradients` returns them.

    Returns:
        By the names of the matrices, float64. Each of shape ``(R,)``.
    """
    weights = network.weight_matrices()
    rates = lengths(gradients.values()) / lengths(weights[k] for k in gradients)
    return dict(zip(gradients, rates, strict=True))


def lengths(matrices: Iterable[Tensor]) -> Tensor:
    """Frobenius norms of matrices of R networks each, float64. Shape ``(matrices, R)``."""
    return torch.stack([float64(m.detach()).square().sum((-2, -1)).sqrt() for m in matrices])


def spread(rates: Tensor) -> Tensor:
    """Log-ratio of the largest to the smallest rate over the layers, in nats.

    Args:
        rates: Positive. Shape ``(layers, ...)``.

    Returns:
        Zero where all layers have one rate. Shape ``(...)``.
    """
    return (rates.amax(0) / rates.amin(0)).log()


def tilt(rates: Tensor, ends: int = 4) -> Tensor:
    """How much larger the first rates are than the last: difference of mean logarithms, in nats.

    Args:
        rates: Positive. Shape ``(..., layers, R)``.
        ends: Layers at each end.

    Returns:
        Shape ``(..., R)``.
    """
    logs = rates.log()
    return logs[..., :ends, :].mean(-2) - logs[..., -ends:, :].mean(-2)
