"""How curvature and gradient noise of a small network lie to each other: dense matrices."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bnmlp.measurements.curvature import gauss_newton, hessian
from bnmlp.measurements.noise import sample_gradients

if TYPE_CHECKING:
    from curvlinops import GGNLinearOperator, HessianLinearOperator


def dense(operator: "HessianLinearOperator | GGNLinearOperator", columns: int = 48) -> Tensor:
    """The matrix of a linear operator of curvlinops.

    Args:
        operator: Of size P.
        columns: How many to compute at a time.

    Returns:
        Of the operator's type. Shape ``(P, P)``.
    """
    identity = torch.eye(operator.shape[1], dtype=operator.dtype, device=operator.device)
    return torch.cat([operator @ part for part in identity.split(columns, 1)], 1)


def trace_estimate(
    operator: "HessianLinearOperator | GGNLinearOperator", vectors: int, generator: torch.Generator
) -> float:
    r"""Mean of :math:`v^\top Av` over random vectors of signs, whose expectation is the trace."""
    signs = torch.randint(2, (operator.shape[1], vectors), generator=generator)
    signs = signs.to(operator.dtype) * 2 - 1
    return (signs * (operator @ signs)).sum(0).mean().item()


def matrix_cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two matrices as vectors; 1 for positive multiples."""
    return ((a * b).sum() / (a.norm() * b.norm())).item()


def leading_vectors(matrix: Tensor, count: int) -> Tensor:
    """Eigenvectors of the largest eigenvalues of a symmetric matrix, in columns, ascending."""
    return torch.linalg.eigh(matrix)[1][:, -count:]


def subspace_overlap(a: Tensor, b: Tensor) -> float:
    """Mean squared cosine of two spaces of one dimension k, given by orthonormal columns.

    Returns:
        One where they are equal, zero where they are orthogonal, k/P on average for random ones.
    """
    return ((a.mT @ b).square().sum() / a.shape[1]).item()


def noise_alignment(
    model: nn.Module, x: Tensor, y: Tensor, leading: int, generator: torch.Generator
) -> tuple[dict[str, float], Tensor, Tensor]:
    """Hessian H, Gauss-Newton matrix G and covariance K of sample gradients at one point.

    Args:
        model: One network of few parameters whose samples share nothing.
        x: Samples. Shape ``(n, ...)``.
        y: Labels. Shape ``(n,)``.
        leading: Number of largest eigenvalues whose spaces are compared.
        generator: Draws labels from what the network says, for the covariance with own labels,
            which is G but for the mean gradient and chance.

    Returns:
        ``sharpness``, ``trace`` of H, ``trace_newton``, ``trace_covariance``, ``trace_own``; the
        norm of the ``gradient``; cosines of H and K, of G and K (``newton``), of H and G (``both``)
        and of G and K with own labels (``own``); ``overlap`` of the leading spaces of H and K;
        shares of the absolute eigenvalues that are leading (``leading_share``) or ``negative``, and
        of the trace of K that lies in the leading space of H (``noise_share``). Then H, and its
        leading eigenvectors in columns.
    """
    h, g = dense(hessian(model, [(x, y)])), dense(gauss_newton(model, [(x, y)]))
    each = sample_gradients(model, x, y)
    k = torch.cov(each.mT, correction=0)
    with torch.no_grad():
        drawn = torch.multinomial(model(x)[0].softmax(-1), 1, generator=generator)
    own = torch.cov(sample_gradients(model, x, drawn[:, 0]).mT, correction=0)
    values, vectors = torch.linalg.eigh(h)
    top, size = vectors[:, -leading:], values.abs().sum()
    found = {
        "sharpness": values[-1].item(), "trace": values.sum().item(),
        "trace_newton": g.trace().item(), "trace_covariance": k.trace().item(),
        "trace_own": own.trace().item(), "gradient": each.mean(0).norm().item(),
        "cosine": matrix_cosine(h, k), "cosine_newton": matrix_cosine(g, k),
        "cosine_both": matrix_cosine(h, g), "cosine_own": matrix_cosine(g, own),
        "overlap": subspace_overlap(top, leading_vectors(k, leading)),
        "leading_share": (values[-leading:].sum() / size).item(),
        "noise_share": ((top * (k @ top)).sum() / k.trace()).item(),
        "negative": (-values[values < 0].sum() / size).item(),
    }  # fmt: skip
    return found, h, top
