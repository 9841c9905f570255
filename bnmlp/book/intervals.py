"""Intervals around medians of a few networks."""

import numpy as np
from scipy.stats import binom
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
