"""The noisy quadratic model of a network at one point."""

import torch
from torch import Tensor, nn

from bnmlp.measurements.curvature import dense_hessian
from bnmlp.measurements.noise import sample_gradients
from bnmlp.theory.quadratic import Parabola


def local_parabola(network: nn.Module, x: Tensor, y: Tensor) -> Parabola:
    """Hessian of the mean loss, and slope and noise of the gradient along its eigenvectors.

    Args:
        network: One network of few parameters whose samples share nothing.
        x: Samples. Shape ``(n, ...)``.
        y: Labels. Shape ``(n,)``.

    Returns:
        Of all P directions, curvatures ascending.
    """
    values, vectors = torch.linalg.eigh(dense_hessian(network, [(x, y)]))
    each = sample_gradients(network, x, y) @ vectors  # (n, P)
    return Parabola(values, each.mean(0), each.var(0, correction=0))
