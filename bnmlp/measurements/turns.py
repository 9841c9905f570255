"""How much of a matrix turns and how much deforms."""

import torch
from torch import Tensor

from bnmlp.machine.precision import float64


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


def change_energies(change: Tensor, weight: Tensor) -> Tensor:
    r"""Squared norms of a change of weights, and of the symmetric part of :math:`\Delta W^\top`.

    A change that only turns the weights has no symmetric part.

    Args:
        change: :math:`\Delta`. Shape ``(..., d, d)``.
        weight: :math:`W`, of the same shape.

    Returns:
        Float64. Shape ``(2, ...)``.
    """
    _, deformation, trace = energies(float64(change @ weight.mT))
    return torch.stack([float64(change).square().sum((-2, -1)), deformation + trace])
