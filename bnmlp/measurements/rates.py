"""Effective learning rates and their spread over layers."""

import torch
from torch import Tensor

from bnmlp.machine.precision import float64
from bnmlp.measurements.gradients import gradient_norms
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.transformer import MATRICES, Transformer


def matrix_rates(model: Transformer, gradients: dict[str, Tensor]) -> Tensor:
    r"""Effective learning rates :math:`\lVert g\rVert/\lVert W\rVert` of all matrices of blocks.

    Args:
        model: R networks.
        gradients: As :func:`matrix_gradients` returns them.

    Returns:
        In the order of ``MATRICES``, float64. Shape ``(6, depth, R)``.
    """
    sizes = [
        [t[k].detach().double().square().sum((-2, -1)).sqrt() for k in MATRICES]
        for t in (gradients, model.matrices)
    ]
    return torch.stack(sizes[0]) / torch.stack(sizes[1])


def effective_rates(model: BNMLP, x: Tensor, y: Tensor) -> Tensor:
    r"""Gradient norm over weight norm, :math:`E_\ell`, of every normalised layer.

    Args:
        model: R networks.
        x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
        y: Class labels. Shape ``(n,)`` or ``(R, n)``.

    Returns:
        Rates, float64. Shape ``(depth, R)``.

    Raises:
        ValueError: As :func:`bnmlp.gradient_norms`.
    """
    gradients = gradient_norms(model, x, y)[:-1]
    norms = [float64(w.detach()).square().sum((-2, -1)).sqrt() for w in model.layer_weights()]
    return gradients / torch.stack(norms).to(gradients.device)


def spread(rates: Tensor) -> Tensor:
    """Log-ratio of the largest to the smallest rate over the layers, in nats.

    Args:
        rates: Positive. Shape ``(layers, ...)``.

    Returns:
        Zero where all layers have one rate. Shape ``(...)``.
    """
    return (rates.amax(0) / rates.amin(0)).log()
