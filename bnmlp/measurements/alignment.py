"""How alike the samples or tokens of a representation are."""

import torch.nn.functional as F
from torch import Tensor


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
