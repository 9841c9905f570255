"""Intervals around means and medians of a few networks."""

import math

import numpy as np
import torch
from scipy.stats import binom, t
from torch import Tensor


def median_interval(values: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median over the last axis with its 95 % interval by the sign test.

    The interval is that of two order statistics and assumes nothing about the distribution; of
    ten values, the second and the ninth. Of fewer than six, smallest and largest, which cover the
    median with less than 95 %.

    Args:
        values: One value for each network. Shape ``(..., R)``.

    Returns:
        Median, lower end, upper end; all nan where a value is. Each of shape ``(...)``.
    """
    values = np.asarray(values)
    ordered = np.sort(np.where(np.isnan(values).any(-1, keepdims=True), np.nan, values), -1)
    k = max(int(binom.ppf(0.025, ordered.shape[-1], 0.5)), 1)
    return np.median(ordered, -1), ordered[..., k - 1], ordered[..., -k]


def half_width(values: np.ndarray | Tensor) -> Tensor:
    """Half the 95 % interval of the mean over networks, by Student's distribution.

    Exact for normal values, however few; close for others.

    Args:
        values: One value for each network. Shape ``(..., R)``.

    Returns:
        A multiple of the standard error, 2.26 of ten values; nan of a single one. Float64, shape
        ``(...)``.
    """
    values = (values if isinstance(values, Tensor) else torch.tensor(values)).double()
    count = values.shape[-1]
    if count < 2:
        return torch.full(values.shape[:-1], math.nan, dtype=torch.float64)
    return t.ppf(0.975, count - 1) * values.std(-1) / math.sqrt(count)


def ranged(values: np.ndarray | Tensor, fmt: str = ".2f") -> str:
    """Median, smallest and largest value, for a table.

    Args:
        values: One value for each network.
        fmt: Format of each number.

    Returns:
        Such as "2.0 (1.0 to 3.0)".

    Examples:
        >>> ranged([3.0, 1.0, 2.0], ".1f")
        '2.0 (1.0 to 3.0)'
    """
    v = np.asarray(values, dtype=float)
    return f"{np.median(v):{fmt}} ({v.min():{fmt}} to {v.max():{fmt}})"


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean over networks and its standard error.

    Args:
        values: One value for each network. Shape ``(R,)``.

    Returns:
        Mean, and deviation over the root of R.
    """
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def bracketed(values: np.ndarray | Tensor, fmt: str = ".2f") -> str:
    """Median with its interval, for a table.

    Args:
        values: One value for each network.
        fmt: Format of each number.

    Returns:
        Such as "5.50 (2.00, 9.00)".

    Examples:
        >>> bracketed(np.arange(1.0, 11.0))
        '5.50 (2.00, 9.00)'
    """
    middle, low, high = (float(v) for v in median_interval(values))
    return f"{middle:{fmt}} ({low:{fmt}}, {high:{fmt}})"
