"""How far a representation is from an isometry: gaps and rank, in float64."""

from collections.abc import Callable

import torch
from jaxtyping import Float64, Int64, Real
from torch import Tensor

from bnmlp.machine.modes import outside_modes
from bnmlp.machine.threads import map_in_threads


@outside_modes
def isometry_gap(x: Real[Tensor, "*batch d n"]) -> Float64[Tensor, "*batch"]:
    """Log-ratio of arithmetic to geometric mean of the squared singular values of ``x``.

    Zero exactly when the rows of ``x`` are orthogonal and equally long, infinite when they are
    linearly dependent, unchanged by rescaling and rotation. Defined in :eq:`isometry-gap`.

    Computed in float64 from a triangular factor of ``x``, or from its singular values where the
    factor leaves doubt; from the Gram matrix, which squares the condition number, only where that
    number is one to three digits. The entries are taken as exact, whatever their type.

    Args:
        x: Representations, one row per feature. Shape ``(..., d, n)``.

    Returns:
        Gap in nats, float64. Shape ``(...)``.

    Raises:
        ValueError: If ``x`` has fewer than two axes, or holds a value that is not finite.

    Examples:
        Squared singular values of one and four have the means 5/2 and 2:

        >>> gap = isometry_gap(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        >>> round(gap.exp().item(), 12)
        1.25
        >>> isometry_gap(torch.ones(2, 2)).item()  # the control: dependent rows
        inf
    """
    x = _checked(x, "isometry_gap")
    d, n = x.shape[-2:]
    if d > n:
        return torch.full(x.shape[:-2], torch.inf, dtype=torch.float64, device=x.device)
    flat = x.reshape(-1, d, n)
    size = len(flat) if x.is_cuda else 16  # few enough matrices at a time to stay in the cache
    gaps = map_in_threads(lambda part: _gap(part.double()), flat.split(size))
    return torch.cat(gaps).view(x.shape[:-2])


def _gap(x: Tensor) -> Tensor:
    """Gap of some matrices, each by the cheapest way that keeps nine digits. Shape ``(m,)``."""
    # The first row of the Gram matrix tells for a thousandth of the price if a series may do.
    first = torch.linalg.vecdot(x, x[:, :1])  # (m, d)
    near = x.shape[-2] * first[:, 1:].square().sum(-1) < 1e-3 * first[:, 0] ** 2
    gap = torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device)
    gap = _fill(gap, near, _gap_by_series, x)
    gap = _fill(gap, gap.isnan(), _gap_by_elimination, x)
    return _fill(gap, gap.isnan(), _gap_by_singular_values, x)


def _fill(gap: Tensor, where: Tensor, method: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if where.all():
        return method(x)  # the usual case, without a copy
    if where.any():
        gap[where] = method(x[where])
    return gap


def _gap_by_series(x: Tensor) -> Tensor:
    """Gap near isometry, nan where that is not near enough.

    With the normalised Gram matrix I + E and Tr E = 0, the gap is -Tr log(I + E) / d, that is
    (Tr E^2 / 2 - Tr E^3 / 3 + Tr E^4 / 4 - ...) / d. What is left out is below 1e-9 of the sum.

    Args:
        x: Representations, float64. Shape ``(m, d, n)``.

    Returns:
        Gaps, float64. Shape ``(m,)``.
    """
    d = x.shape[-2]
    e = x @ x.mT
    e *= (d / e.diagonal(dim1=-2, dim2=-1).sum(-1))[:, None, None]
    e.diagonal(dim1=-2, dim2=-1).sub_(1)
    second = torch.linalg.vector_norm(e, dim=(-2, -1)).square()
    e = e if e.is_cuda else e.float()  # the other terms are below 1e-2 of the first
    square = e @ e
    third = torch.linalg.vecdot(e, square).sum(-1)
    fourth = torch.linalg.vector_norm(square, dim=(-2, -1)).square()
    series = second / 2 - third / 3 + fourth / 4
    if (second > 1e-6).any():
        cube = e @ square
        fifth = torch.linalg.vecdot(square, cube).sum(-1)
        series += torch.linalg.vector_norm(cube, dim=(-2, -1)).square() / 6 - fifth / 5
    return torch.where(second < 2.5e-4, series / d, torch.nan)


def _gap_by_elimination(x: Tensor) -> Tensor:
    """Gap from a triangular factor, nan where that may miss nine digits. Shape ``(m,)``."""
    d, n = x.shape[-2:]
    # MKL's elimination on several threads is wrong for large matrices after set_num_threads.
    elimination = d == n and (x.is_cuda or torch.get_num_threads() == 1)
    factor = torch.linalg.lu_factor_ex(x)[0] if elimination else torch.linalg.qr(x.mT, mode="r")[1]
    pivots = factor.diagonal(dim1=-2, dim2=-1).abs()  # product: the volume of the rows
    mean = torch.linalg.vecdot(x, x).sum(-1) / d
    gap = mean.log() - 2 * pivots.log().mean(-1)
    # Small pivots lose digits in the determinant, small gaps in the difference of the logarithms,
    # tiny and huge entries in the squares; the smallest pivots might hide a rank below d.
    relative = pivots / pivots.amax(-1, keepdim=True)
    error = torch.finfo(torch.float64).eps * relative.reciprocal().norm(dim=-1) / d
    sound = (error < 2e-10 * gap) & (relative.amin(-1) > 1e-10)
    return torch.where(sound & (mean > 1e-200) & (mean < 1e200), gap, torch.nan)


def _gap_by_singular_values(x: Tensor) -> Tensor:
    ratio, full = _shares(x)
    r = ratio - 1  # mean zero: subtracting it keeps the digits of small gaps
    log = torch.where(r.abs() < 0.5, torch.log1p(r), ratio.log())
    return torch.where(full, (r - log).mean(-1).clamp(min=0), torch.inf)


def _shares(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the Gram matrix over their mean, and whether the rank is full."""
    s = torch.linalg.svdvals(_unit_peak(x))
    d = x.shape[-2]
    energy = s.square()
    return d * energy / energy.sum(-1, keepdim=True), _rank(s, x) == d


def harmonic_gap(x: Real[Tensor, "*batch d n"]) -> Float64[Tensor, "*batch"]:
    r"""Arithmetic over harmonic mean of the squared singular values of ``x``, less one.

    Zero, infinite and invariant as :func:`isometry_gap`, and never smaller. One layer with a Haar
    matrix multiplies its expectation by :math:`d/(d+2)` exactly, :eq:`harmonic-law`. Defined in
    :eq:`harmonic-gap`.

    Args:
        x: Representations, one row per feature. Shape ``(..., d, n)``.

    Returns:
        Gap, float64. Shape ``(...)``.

    Raises:
        ValueError: If ``x`` has fewer than two axes, or holds a value that is not finite.

    Examples:
        Squared singular values of one and four: arithmetic mean 5/2, harmonic mean 8/5.

        >>> round(harmonic_gap(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).item(), 12)  # 25/16 - 1
        0.5625
    """
    x = _checked(x, "harmonic_gap").double()
    if x.shape[-2] > x.shape[-1]:
        return torch.full(x.shape[:-2], torch.inf, dtype=torch.float64, device=x.device)
    ratio, full = _shares(x)
    # mean(1/ratio) - 1, as a sum of squares since ratio has mean one
    return torch.where(full, ((ratio - 1).square() / ratio).mean(-1), torch.inf)


def orthogonality_gap(x: Real[Tensor, "*batch d n"]) -> Float64[Tensor, "*batch"]:
    r"""Distance of the normalised Gram matrix of the rows of ``x`` from the identity's.

    :math:`\lVert XX^\top/\lVert X\rVert_F^2 - I_d/d\rVert_F`: zero exactly when the rows are
    orthogonal and equally long; finite also where the isometry gap is infinite.

    Args:
        x: Representations, one row per feature. Shape ``(..., d, n)``.

    Returns:
        Gap, between 0 and 1, float64. Shape ``(...)``.

    Raises:
        ValueError: If ``x`` has fewer than two axes, is zero, or holds a value that is not finite.

    Examples:
        >>> orthogonality_gap(3 * torch.eye(4)).item()
        0.0
        >>> round(orthogonality_gap(torch.ones(2, 2)).item() ** 2, 12)  # of rank one: 1 - 1/d
        0.5
    """
    s = _singular_values(x, "orthogonality_gap")
    d = x.shape[-2]
    total = s.square().sum(-1, keepdim=True)
    if (total == 0).any():
        raise ValueError("orthogonality_gap: undefined for a matrix of zeros")
    share = s.square() / total  # (..., min(d, n)); the other d - n shares are zero
    missing = d - s.shape[-1]
    return ((share - 1 / d).square().sum(-1) + missing / d**2).sqrt()


def numerical_rank(x: Real[Tensor, "*batch d n"]) -> Int64[Tensor, "*batch"]:
    r"""Number of singular values above :math:`\max(d, n)\,\varepsilon\, s_1` in float64.

    The entries are taken as exact, so float32 input is not blurred to float32's resolution.

    Args:
        x: Representations, one row per feature. Shape ``(..., d, n)``.

    Returns:
        Rank, int64. Shape ``(...)``.

    Raises:
        ValueError: If ``x`` has fewer than two axes, or holds a value that is not finite.

    Examples:
        >>> row = torch.arange(1.0, 4.0)
        >>> numerical_rank(torch.stack([torch.outer(row, row), torch.eye(3)])).tolist()
        [1, 3]
    """
    return _rank(_singular_values(x, "numerical_rank"), x)


def _checked(x: Tensor, name: str) -> Tensor:
    if x.ndim < 2 or x.shape[-1] == 0 or x.shape[-2] == 0:
        raise ValueError(
            f"{name}: expected non-empty representations of shape (..., d, n), got "
            f"{tuple(x.shape)}; put features on the rows and samples on the columns"
        )
    if x.is_complex():
        raise ValueError(f"{name}: expected real values, got {x.dtype}")
    x = x.detach().cpu() if x.device.type == "mps" else x.detach()  # MPS has no float64
    # The sum, a tenth of the price, is finite unless a value is not or it overflows.
    if not (x.double() if x.dtype.itemsize < 4 else x).sum().isfinite() and not x.isfinite().all():
        raise ValueError(
            f"{name}: {int((~x.isfinite()).sum())} of {x.numel()} values are not finite; "
            "look for the first layer that overflows, or compute in float64"
        )
    return x


def _unit_peak(x: Tensor) -> Tensor:
    """Scale each matrix to a largest entry of one, away from over- and underflow of squares."""
    peak = x.abs().amax((-2, -1), keepdim=True)
    return x / torch.where(peak > 0, peak, 1)


def _singular_values(x: Tensor, name: str) -> Tensor:
    return torch.linalg.svdvals(_unit_peak(_checked(x, name).double()))


def _rank(s: Tensor, x: Tensor) -> Tensor:
    tolerance = max(x.shape[-2:]) * torch.finfo(s.dtype).eps * s[..., :1]
    return (s > tolerance).sum(-1)
