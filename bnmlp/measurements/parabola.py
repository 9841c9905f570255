"""The noisy quadratic model of a network at one point."""

import torch
from torch import Tensor, nn

from bnmlp.measurements.curvature import dense_hessian
from bnmlp.measurements.noise import sample_gradients


def local_parabola(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian of the mean loss, and slope and noise of the gradient along its eigenvectors.

    Args:
        network: One network of few parameters whose samples share nothing.
        x: Samples. Shape ``(n, ...)``.
        y: Labels. Shape ``(n,)``.

    Returns:
        Curvatures, ascending, slopes, and variances of the gradient of one sample, as
        :class:`bnmlp.theory.quadratic.Parabola` takes them. Each of shape ``(P,)``.
    """
    values, vectors = torch.linalg.eigh(dense_hessian(network, [(x, y)]))
    each = sample_gradients(network, x, y) @ vectors  # (n, P)
    return values, each.mean(0), each.var(0, correction=0)
