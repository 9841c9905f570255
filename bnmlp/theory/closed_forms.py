"""Closed forms that the measured curves of the book are compared with."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor


def haar_moment(entries: Sequence[tuple[int, int]], width: int) -> float:
    r"""Expected product of up to four entries of a Haar matrix.

    :math:`\E\prod_k W_{i_k j_k}`, zero for an odd number of entries. For four it is a sum over
    the pairings of rows and of columns with the orthogonal Weingarten function, derived by
    symmetry in :eq:`haar-moments-four`.

    Args:
        entries: Row and column of each factor, as ``[(0, 0), (0, 0), (1, 2), (1, 2)]``.
        width: :math:`d`, rows of the matrix.

    Returns:
        The moment.

    Raises:
        ValueError: If there are more than four entries or an index is outside the matrix.

    Examples:
        A row has unit length, and an entry's square is less than independent of its neighbour's:

        >>> haar_moment([(0, 0), (0, 0)], 10)
        0.1
        >>> same = haar_moment([(0, 0)] * 4, 10)  # 3 / (d (d + 2))
        >>> beside = haar_moment([(0, 0), (0, 0), (0, 1), (0, 1)], 10)
        >>> round(10 * (same + 9 * beside), 12)  # the squared length of a row, squared
        1.0
    """
    if len(entries) > 4:
        raise ValueError(f"haar_moment: at most four entries, got {len(entries)}")
    if any(not 0 <= index < width for entry in entries for index in entry):
        raise ValueError(f"haar_moment: indices must lie in 0..{width - 1}, got {list(entries)}")
    if len(entries) % 2:
        return 0.0
    if not entries or width == 1:  # one entry, plus or minus one
        return 1.0
    rows, columns = zip(*entries, strict=True)
    if len(entries) == 2:
        return float(rows[0] == rows[1] and columns[0] == columns[1]) / width
    row_pairings, column_pairings = _pairings(rows), _pairings(columns)
    same = sum(p in column_pairings for p in row_pairings)
    different = len(row_pairings) * len(column_pairings) - same
    return ((width + 1) * same - different) / (width * (width + 2) * (width - 1))


def _pairings(index: Sequence[int]) -> list[int]:
    """Pairings of four factors, named by the partner of the first, that match equal indices."""
    partners = ((1, 2, 3), (2, 1, 3), (3, 1, 2))
    return [p for p, a, b in partners if index[0] == index[p] and index[a] == index[b]]


def expected_gap_change(
    eigenvalues: Float[Tensor, "*batch d"] | Float[np.ndarray, "*batch d"] | Sequence[float],
) -> Float64[Tensor, "*batch"]:
    r"""Expected change of the isometry gap in one layer with a Haar matrix.

    :math:`\E[\phi(\mathrm{BN}(WX))\mid X]-\phi(X) = \E\log\sum_k\lambda_k g_k^2 -
    \E\log\sum_k g_k^2` with independent standard normal :math:`g_k`, by the one-dimensional
    integral :eq:`gap-change-integral` in the logarithm of its variable, where the trapezoidal
    rule converges exponentially. Never positive; finite for singular :math:`XX^\top` too.

    Args:
        eigenvalues: Eigenvalues :math:`\lambda_k` of :math:`XX^\top`, in any order and scale,
            not negative, not all zero. Shape ``(..., d)``.

    Returns:
        Change in nats, float64. Shape ``(...)``.

    Raises:
        ValueError: If an eigenvalue is negative or not finite, or all of a spectrum are zero.

    Examples:
        >>> abs(expected_gap_change([1.0, 1.0, 1.0]).item())  # an isometry stays one
        0.0
        >>> round(expected_gap_change([0.0, 1.0]).exp().item(), 6)  # of rank one, in the plane
        0.5
    """
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    if values.ndim == 0 or not values.isfinite().all() or (values < 0).any():
        raise ValueError(
            "expected_gap_change: give finite eigenvalues that are not negative, of shape "
            f"(..., d), got shape {tuple(values.shape)}"
        )
    mean = values.mean(-1, keepdim=True)
    if (mean == 0).any():
        raise ValueError("expected_gap_change: undefined for a matrix of zeros")
    values = values / mean
    excess, small = values - 1, values < 0.5
    excess = excess - excess.mean(-1, keepdim=True)  # rounding left it a little off zero
    # Integrand: below e^-45 for t = e^u outside this range, analytic in |Im u| < pi.
    u = torch.arange(-45.0, 95.0, 0.25, dtype=torch.float64, device=values.device)
    two_t = 2 * u.exp()
    change = torch.zeros_like(mean[..., 0])
    for t in two_t:
        # log of (1 + 2 t lambda) / (1 + 2 t), in the form that keeps its digits
        log_ratio = torch.where(
            small, torch.log1p(values * t) - torch.log1p(t), torch.log1p(excess * (t / (1 + t)))
        ).sum(-1)
        isotropic = -0.5 * values.shape[-1] * torch.log1p(t)
        change -= torch.where(
            log_ratio > -1,
            isotropic.exp() * torch.expm1(-0.5 * log_ratio.clamp(min=-1)),
            torch.exp(isotropic - 0.5 * log_ratio) - isotropic.exp(),
        )
    return (0.25 * change).clamp(max=0)


def gap_decay_factor(width: int) -> float:
    """Factor by which the expected isometry gap shrinks in one layer, near isometry.

    :math:`d/(d+2)`, derived in :eq:`gap-decay`; this book's sharpening of Theorem 1 of
    arXiv 2310.02012.

    Args:
        width: :math:`d`, both width and batch size.

    Returns:
        The factor, between 1/3 and 1.

    Raises:
        ValueError: If ``width`` is below 1.

    Examples:
        >>> gap_decay_factor(8)
        0.8

        Half a gap is left after about 0.35 d layers:

        >>> round(math.log(0.5) / math.log(gap_decay_factor(1000)) / 1000, 2)
        0.35
    """
    if width < 1:
        raise ValueError(f"gap_decay_factor: width must be at least 1, got {width}")
    return width / (width + 2)


def spectrum_flow(
    eigenvalues: Float[np.ndarray, " d"] | Sequence[float],
    layers: Float[np.ndarray, " layers"] | Sequence[float],
) -> Float64[np.ndarray, "layers d"]:
    r"""Eigenvalues of :math:`XX^\top` deeper in the network, in the limit of large width.

    Solves :eq:`spectrum-flow`, which closes the exact expectation of one layer by replacing
    eigenvectors with their Haar averages to the first order in :math:`1/d`.

    Args:
        eigenvalues: Distinct positive eigenvalues after a normalisation. Shape ``(d,)``.
        layers: Depths, counted from there, not decreasing, not negative.

    Returns:
        Eigenvalues in ascending order, of mean one. Shape ``(len(layers), d)``.

    Raises:
        ValueError: If an eigenvalue is not positive and finite, or layers decrease.

    Examples:
        >>> spectrum_flow([0.5, 1.5], [0, 40]).round(3).tolist()
        [[0.5, 1.5], [1.0, 1.0]]
    """
    start, depths = np.sort(np.asarray(eigenvalues, float)), np.asarray(layers, float)
    if start.ndim != 1 or not np.isfinite(start).all() or start[0] <= 0:
        raise ValueError("spectrum_flow: eigenvalues must be positive and finite, of shape (d,)")
    if depths.size == 0 or depths[0] < 0 or (np.diff(depths) < 0).any():
        raise ValueError("spectrum_flow: layers must not be negative nor decrease")
    d = len(start)
    times = depths / (d + 2)
    from scipy.integrate import solve_ivp  # takes longer to import than to solve

    solution = solve_ivp(
        lambda _, logs: _flow_of_logarithms(logs),
        (0, max(times[-1], 1e-9)),
        np.log(start / start.mean()),
        t_eval=times,
        method="LSODA",
        rtol=1e-6,
        atol=1e-9,
    )
    if not solution.success:
        raise ValueError(f"spectrum_flow: {solution.message}; are two eigenvalues equal?")
    values = np.exp(solution.y.T)  # (layers, d)
    return values / values.mean(1, keepdims=True)


def _flow_of_logarithms(logs: np.ndarray) -> np.ndarray:
    values = np.exp(logs)
    values /= values.mean()
    spread = np.mean((values - 1) ** 2)
    difference = values[:, None] - values
    np.fill_diagonal(difference, np.inf)
    repulsion = (values / difference).sum(1) / max(len(values) - 1, 1)
    return 2 * (1 - values) + 2 * spread * (1 + repulsion)


def amplification_budget(first_gap: float, last_gap: float = 0.0) -> float:
    r"""Mean log-factor by which normalisations scale gradient rows, summed over the layers.

    :math:`\frac12(\phi(X_0)-\phi(X_L))`, exact for orthogonal weights, :eq:`budget`.

    Args:
        first_gap: Gap of the representation that enters the first of the layers, in nats.
        last_gap: Gap after the last of them.

    Returns:
        Budget in nats; infinite for a batch of rank below the width.

    Raises:
        ValueError: If a gap is negative or nan.

    Examples:
        >>> amplification_budget(3.0, last_gap=1.0)
        1.0
        >>> amplification_budget(math.inf)
        inf
    """
    if not (first_gap >= 0 and last_gap >= 0):
        raise ValueError(f"amplification_budget: gaps are not negative: {first_gap}, {last_gap}")
    return math.inf if math.isinf(first_gap) else 0.5 * (first_gap - last_gap)


def expected_gradient_energy(
    antisymmetric: float | np.ndarray,
    symmetric: float | np.ndarray,
    width: int,
    steps: int | np.ndarray | Sequence[int],
) -> np.ndarray | np.float64:
    r"""Expected squared gradient norm in the isometric phase, :eq:`gradient-energy`.

    :math:`\lVert A\rVert^2 + \lVert S\rVert^2 (d/(d+2))^{k+1}` for the weights k layers before
    the last normalised layer.

    Args:
        antisymmetric: :math:`\lVert A\rVert_F^2`, squared norm of the antisymmetric part of
            :math:`M_L=(\partial\mathcal L/\partial X_L)X_L^\top`.
        symmetric: :math:`\lVert S\rVert_F^2` of its symmetric part without the trace.
        width: :math:`d`.
        steps: :math:`k`, layers between the weights and the loss, from 0.

    Returns:
        Expected squared norms, in the broadcast shape of the arguments.

    Examples:
        The symmetric part fades and the antisymmetric part stays:

        >>> expected_gradient_energy(1.0, 4.0, width=2, steps=[0, 1, 100]).round(9).tolist()
        [3.0, 2.0, 1.0]
    """
    decay = gap_decay_factor(width) ** (np.asarray(steps, float) + 1)
    return np.asarray(antisymmetric, float) + np.asarray(symmetric, float) * decay


def explosion_rate_bounds(width: int, rank: int) -> tuple[float, float]:
    r"""Bounds of the explosion rate for batches of rank below the width, orthogonal weights.

    :math:`\rho_+=\frac12\log\frac{n(d-2)}{d(n-2)}` and :math:`\rho_-=\rho_+ +
    \frac12\log(1-\frac1n)` for a linear network whose n columns are orthogonal, derived in
    :eq:`rate-bounds`. Both ends are heuristic: they take gradients as independent of the lengths
    of rows.

    Args:
        width: :math:`d`.
        rank: :math:`n`, linearly independent samples, one less than those given to a network with
            mean reduction.

    Returns:
        Lower and upper bound, in nats per layer.

    Raises:
        ValueError: If ``rank`` is below 3 or above ``width``.

    Examples:
        >>> low, high = explosion_rate_bounds(width=100, rank=50)
        >>> 0 < low < high
        True
        >>> explosion_rate_bounds(width=100, rank=100)[1]  # full rank: no growth
        0.0
    """
    if not 3 <= rank <= width:
        raise ValueError(f"explosion_rate_bounds: rank must lie in 3..{width}, got {rank}")
    high = 0.5 * math.log(rank * (width - 2) / (width * (rank - 2)))
    return high + 0.5 * math.log(1 - 1 / rank), high


def stationary_spread(width: int, rank: int) -> float:
    r"""Mean squared deviation from one of the eigenvalues of a deep batch of deficient rank.

    :math:`\frac{2(1-r)}{r(2-r)}` with :math:`r=n/d`: the mean of :math:`(\lambda_k-1)^2` over
    all d eigenvalues where the flow :eq:`spectrum-flow` stands still.

    Args:
        width: :math:`d`.
        rank: :math:`n`, number of eigenvalues that are not zero.

    Returns:
        The spread; zero for full rank.

    Raises:
        ValueError: If ``rank`` is below 1 or above ``width``.

    Examples:
        >>> stationary_spread(width=100, rank=100)
        0.0
        >>> stationary_spread(width=100, rank=50) == 2 * 0.5 / (0.5 * 1.5)
        True
    """
    if not 1 <= rank <= width:
        raise ValueError(f"stationary_spread: rank must lie in 1..{width}, got {rank}")
    share = rank / width
    return 2 * (1 - share) / (share * (2 - share))


def gaussian_explosion_rate(
    batch_size: int, *, activation: str = "identity", center: bool = True
) -> float:
    r"""Explosion rate of an infinitely wide batch-normalised network with Gaussian weights.

    Identity: :math:`\frac12\log\frac{n-1}{n-2}` without mean reduction; mean reduction costs one
    sample, :math:`\frac12\log\frac{n-2}{n-3}` (Yang et al. 2019 for the centred case). ReLU with
    mean reduction: :eq:`relu-rate`, which tends to :math:`\frac12\log\frac{\pi}{\pi-1}` for
    large batches.

    Args:
        batch_size: :math:`n`, distinct samples in the batch.
        activation: ``"identity"`` or ``"relu"``.
        center: Whether batch normalisation subtracts the mean.

    Returns:
        Growth of the log gradient norm per layer towards the input, in nats.

    Raises:
        ValueError: If the batch is too small for the rate to be finite, or for ReLU without mean
            reduction, whose samples collapse onto one direction instead.

    Examples:
        Mean reduction costs one sample:

        >>> gaussian_explosion_rate(11) == gaussian_explosion_rate(10, center=False)
        True
        >>> limit = 0.5 * math.log(math.pi / (math.pi - 1))  # of ReLU in large batches
        >>> round(gaussian_explosion_rate(10**6, activation="relu") - limit, 4)
        0.0
    """
    if activation not in ("identity", "relu") or (activation == "relu" and not center):
        raise ValueError(
            "gaussian_explosion_rate: known for identity, and for relu with mean reduction, "
            f"not for {activation!r} with center={center}"
        )
    free = batch_size - 1 if center else batch_size
    if free < 3:
        raise ValueError(
            f"gaussian_explosion_rate: infinite for {batch_size} samples; "
            f"give at least {4 if center else 3}"
        )
    if activation == "identity":
        return 0.5 * math.log((free - 1) / (free - 2))
    n, correlation = batch_size, -1 / (batch_size - 1)
    angle = math.acos(correlation)
    both_active = (math.pi - angle) / (2 * math.pi)
    product = (math.sin(angle) + (math.pi - angle) * correlation) / (2 * math.pi)
    through = (
        (n - 1) / 2 - (n - 1) / n * (0.5 - both_active) - 0.5 + 1 / (2 * n) + (n - 1) / n * product
    )
    return 0.5 * math.log(n * through / ((n - 1) * (n - 3) * (0.5 - product)))
