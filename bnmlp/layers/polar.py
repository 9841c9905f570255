"""Orthogonal factors of stacks of matrices: exactly, and as Muon finds them."""

import torch
from jaxtyping import Float
from torch import Tensor

MUON = (3.4445, -4.7750, 2.0315)  # coefficients of torch.optim.Muon
STEPS = 5
NEAR = 0.5  # largest ||W W^T - I|| from which the cubic iteration converges fast


def newton_schulz(
    m: Float[Tensor, "*batch rows columns"], steps: int = STEPS
) -> Float[Tensor, "*batch rows columns"]:
    """Muon's approximate orthogonal factor, whose singular values lie between 0.7 and 1.2.

    The quintic iteration of :class:`torch.optim.Muon`, there in bfloat16 and for one matrix; here
    in the type of the matrices and for all of a stack at once. A matrix of zeros stays zero, and
    singular values far below :math:`10^{-3}` of the norm come out smaller than 0.7.

    Args:
        m: Matrices. Shape ``(..., rows, columns)``.
        steps: Iterations.

    Returns:
        Matrices of the same singular vectors. Shape ``(..., rows, columns)``.
    """
    if m.shape[-2] > m.shape[-1]:
        return newton_schulz(m.mT, steps).mT
    a, b, c = MUON
    x = m / torch.linalg.matrix_norm(m, keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def polar_factor(m: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """The nearest orthogonal matrices, :math:`UV^T` of the singular value decomposition.

    Matrices that are nearly orthogonal already take two or three steps of Newton and Schulz, a
    tenth of the cost of a decomposition.

    Args:
        m: Square matrices of full rank. Shape ``(..., d, d)``.

    Returns:
        Orthogonal matrices, up to rounding. Shape ``(..., d, d)``.
    """
    one = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
    rounding = 4 * torch.finfo(m.dtype).eps * m.shape[-1]
    for _ in range(10):
        off = one - m @ m.mT
        size = torch.linalg.matrix_norm(off).max().item()
        if size < rounding:
            return m
        if not size < NEAR:
            break
        m = m + 0.5 * off @ m
    u, _, v = torch.linalg.svd(m, full_matrices=False)
    return u @ v
