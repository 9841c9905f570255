"""How alike the samples or tokens of a representation are."""

import torch.nn.functional as F
from torch import Tensor

from bnmlp.machine.precision import float64


def token_dispersion(x: Tensor) -> Tensor:
    r"""How far the tokens of a sample are from pointing the same way, exact near zero.

    :math:`\eta = \lVert PCP\rVert_F/T` with the cosines :math:`C` of T tokens and the projection
    :math:`P` that subtracts their mean: equation :eq:`transformer-dispersion`.

    Args:
        x: Shape ``(..., T, d)``.

    Returns:
        Zero where all tokens of a sample point the same way, below one. Shape ``(...)``.
    """
    u = F.normalize(x, dim=-1)
    u = u - u.mean(-2, keepdim=True)  # no cancellation
    return (u @ u.mT).square().sum((-2, -1)).sqrt() / x.shape[-2]


def mean_cosine(x: Tensor) -> Tensor:
    """Mean cosine of all pairs of samples.

    Args:
        x: Representations, one column per sample. Shape ``(..., d, n)``.

    Returns:
        Zero on average where directions are random, one where all samples point the same way,
        float64. Shape ``(...)``.
    """
    unit, n = F.normalize(float64(x), dim=-2, eps=0.0), x.shape[-1]
    return (unit.sum(-1).square().sum(-1) - n) / (n * (n - 1))
