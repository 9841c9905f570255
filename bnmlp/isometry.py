"""How far a representation is from an isometry: gaps and rank, in float64."""

import torch
from torch import Tensor


def isometry_gap(x: Tensor) -> Tensor:
    """Log-ratio of arithmetic to geometric mean of the squared singular values of ``x``.

    Zero exactly when the rows of ``x`` are orthogonal and equally long, infinite when they are
    linearly dependent, unchanged by rescaling and rotation. Defined in :eq:`isometry-gap`.

    Computed in float64 from a triangular factor of ``x``, or from its singular values where the
    factor leaves doubt; never from the Gram matrix, which would square the condition number. The
    entries are taken as exact, whatever their type.

    Args:
        x: Representations, one row per feature. Shape ``(..., d, n)``.

    Returns:
        Gap in nats, float64. Shape ``(...)``.

    Raises:
        ValueError: If ``x`` has fewer than two axes, or holds a value that is not finite.
    """
    x = _matrix(x, "isometry_gap")
    d, n = x.shape[-2:]
    if d > n:
        return torch.full(x.shape[:-2], torch.inf, dtype=torch.float64, device=x.device)
    flat = x.reshape(-1, d, n)
    gap = torch.empty(len(flat), dtype=torch.float64, device=x.device)
    doubtful = torch.empty(len(flat), dtype=torch.bool, device=x.device)
    for i in range(0, len(flat), 64):  # few enough matrices at a time to stay in the cache
        gap[i : i + 64], doubtful[i : i + 64] = _gap_by_elimination(flat[i : i + 64])
    if doubtful.any():
        gap[doubtful] = _gap_by_singular_values(flat[doubtful])
    return gap.view(x.shape[:-2])


def _gap_by_elimination(x: Tensor) -> tuple[Tensor, Tensor]:
    """Gap from a triangular factor, and where it may miss nine digits. Both ``(m,)``."""
    d, n = x.shape[-2:]
    factor = torch.linalg.lu_factor_ex(x)[0] if d == n else torch.linalg.qr(x.mT, mode="r")[1]
    pivots = factor.diagonal(dim1=-2, dim2=-1).abs()  # product: the volume of the rows
    mean = x.square().sum((-2, -1)) / d
    gap = mean.log() - 2 * pivots.log().mean(-1)
    # Small pivots lose digits in the determinant, small gaps in the difference of the logarithms.
    doubtful = ~(gap > 1e-5) | ~(pivots.amin(-1) > 1e-5 * pivots.amax(-1))
    return gap, doubtful


def _gap_by_singular_values(x: Tensor) -> Tensor:
    s = torch.linalg.svdvals(x)
    d = x.shape[-2]
    energy = s.square()
    ratio = d * energy / energy.sum(-1, keepdim=True)  # mean one
    r = ratio - 1  # mean zero: subtracting it keeps the digits of small gaps
    log = torch.where(r.abs() < 0.5, torch.log1p(r), ratio.log())
    return torch.where(_rank(s, x) < d, torch.inf, (r - log).mean(-1).clamp(min=0))


def orthogonality_gap(x: Tensor) -> Tensor:
    r"""Distance of the normalised Gram matrix of the rows of ``x`` from the identity's.

    :math:`\lVert XX^\top/\lVert X\rVert_F^2 - I_d/d\rVert_F`: zero exactly when the rows are
    orthogonal and equally long; finite also where the isometry gap is infinite.

    Args:
        x: Representations, one row per feature. Shape ``(..., d, n)``.

    Returns:
        Gap, between 0 and 1, float64. Shape ``(...)``.

    Raises:
        ValueError: If ``x`` has fewer than two axes, is zero, or holds a value that is not finite.
    """
    s = torch.linalg.svdvals(_matrix(x, "orthogonality_gap"))
    d = x.shape[-2]
    total = s.square().sum(-1, keepdim=True)
    if (total == 0).any():
        raise ValueError("orthogonality_gap: undefined for a matrix of zeros")
    share = s.square() / total  # (..., min(d, n)); the other d - n shares are zero
    missing = d - s.shape[-1]
    return ((share - 1 / d).square().sum(-1) + missing / d**2).sqrt()


def numerical_rank(x: Tensor) -> Tensor:
    r"""Number of singular values above :math:`\max(d, n)\,\varepsilon\, s_1` in float64.

    The entries are taken as exact, so float32 input is not blurred to float32's resolution.

    Args:
        x: Representations, one row per feature. Shape ``(..., d, n)``.

    Returns:
        Rank, int64. Shape ``(...)``.

    Raises:
        ValueError: If ``x`` has fewer than two axes, or holds a value that is not finite.
    """
    return _rank(torch.linalg.svdvals(_matrix(x, "numerical_rank")), x)


def _matrix(x: Tensor, name: str) -> Tensor:
    """Check ``x`` and bring it to float64, with entries of at most one."""
    if x.ndim < 2 or x.shape[-1] == 0 or x.shape[-2] == 0:
        raise ValueError(
            f"{name}: expected non-empty representations of shape (..., d, n), got "
            f"{tuple(x.shape)}; put features on the rows and samples on the columns"
        )
    if x.is_complex():
        raise ValueError(f"{name}: expected real values, got {x.dtype}")
    x = x.detach().to("cpu" if x.device.type == "mps" else x.device, torch.float64)
    if not x.isfinite().all():
        raise ValueError(
            f"{name}: {int((~x.isfinite()).sum())} of {x.numel()} values are not finite; "
            "look for the first layer that overflows, or compute in float64"
        )
    # Scaling by the largest entry keeps the squares away from over- and underflow.
    peak = x.abs().amax((-2, -1), keepdim=True)
    return x / torch.where(peak > 0, peak, 1)


def _rank(s: Tensor, x: Tensor) -> Tensor:
    tolerance = max(x.shape[-2:]) * torch.finfo(s.dtype).eps * s[..., :1]
    return (s > tolerance).sum(-1)
