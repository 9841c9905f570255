"""How much of a matrix turns and how much deforms."""

import torch
from torch import Tensor


def energies(matrix: Tensor) -> Tensor:
    """Squared norms of the antisymmetric, the traceless symmetric part and the trace.

    They add up to the squared norm of the matrix. The first is that of a rotation, where the
    matrix is a small change of the identity.

    Args:
        matrix: Shape ``(..., d, d)``.

    Returns:
        Shape ``(3, ...)``.
    """
    symmetric = (matrix + matrix.mT) / 2
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1) ** 2 / matrix.shape[-1]
    turn, both = (m.square().sum((-2, -1)) for m in (matrix - symmetric, symmetric))
    return torch.stack([turn, both - trace, trace])
