r"""The rate at which a quantity grows from layer to layer, with an interval that is honest.

Logarithms of gradients are not a line plus independent errors. In a chain each layer multiplies by
a random factor, so the logarithm is a random walk with drift, and the residuals of a fitted line
are correlated over its whole length: the textbook interval of a slope is too narrow. In networks
of blocks, layers of different roles lie at different levels, and successive differences are mostly
jumps between roles.

One estimate serves both. Cut the L layers into B groups of neighbours and take the mean of each.
The slopes between neighbouring means, B - 1 of them, are the sample. Jumps between roles average
out within a group, at least where a group holds a block. For a random walk the variance of the
difference of two such means is two thirds of that of the walk over the same distance, and
neighbouring differences are correlated by one quarter (Working, 1960), so their mean varies by
3/2 of what the sample says; for independent errors by less than it says. The interval is that of
Student's t with B - 2 degrees of freedom, widened by the root of 3/2.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

LEAST = 6  # layers below which no interval is given
GROUPS = 4, 20  # fewest and most groups
WORKING = math.sqrt(1.5)
# Quantiles 0.975 of Student's t with 1 to 20 degrees of freedom; NumPy has none.
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


@dataclass(frozen=True)
class Rate:
    """Growth in nats per layer with its 95 % interval.

    Attributes:
        value: The rate.
        low: Lower end of the interval, minus infinity where there are too few layers.
        high: Upper end.
        layers: Layers that it was measured over.
        left_out: Layers without a finite number.
        total: Growth over these layers in nats, ``value (layers - 1)``.
    """

    value: float
    low: float
    high: float
    layers: int
    left_out: int
    total: float

    def __contains__(self, rate: object) -> bool:
        return isinstance(rate, (int, float)) and self.low <= rate <= self.high

    def __str__(self) -> str:
        half = (self.high - self.low) / 2
        error = f" ± {half:.4f}" if math.isfinite(half) else " (too few layers for an interval)"
        return f"{self.value:+.4f}{error} nats per layer"

    def to_dict(self) -> dict[str, float | int]:
        """The numbers by name."""
        return asdict(self)


def rate_of(logs: np.ndarray | Sequence[np.ndarray]) -> Rate | None:
    """Growth of a logarithm along the layers.

    Args:
        logs: Logarithms in the order of execution, of one network, or of several that are
            independent and alike. What is not finite is left out.

    Returns:
        The rate with its interval; None with fewer than two finite numbers.
    """
    series = [np.atleast_1d(np.asarray(logs, float))] if _is_one(logs) else list(logs)
    slopes: list[float] = []
    values: list[float] = []
    layers = left = 0
    for one in series:
        index = np.flatnonzero(np.isfinite(one))
        left += len(one) - len(index)
        if len(index) < 2:
            continue
        layers = max(layers, len(index))
        if len(index) < LEAST:
            values.append((one[index[-1]] - one[index[0]]) / (index[-1] - index[0]))
            continue
        found = _slopes(index, one[index])
        slopes.extend(found)
        values.append(float(found.mean()))
    if not values:
        return None
    value = float(np.mean(values))
    half = _half_width(np.array(slopes)) if slopes else math.inf
    return Rate(value, value - half, value + half, layers, left, value * (layers - 1))


def _is_one(logs: np.ndarray | Sequence[np.ndarray]) -> bool:
    return isinstance(logs, np.ndarray) and logs.ndim == 1


def _slopes(index: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Slopes between the means of neighbouring groups, equal groups but for one layer."""
    groups = min(GROUPS[1], max(GROUPS[0], round(math.sqrt(len(logs)))))
    means = np.array([part.mean() for part in np.array_split(logs, groups)])
    centres = np.array([part.mean() for part in np.array_split(index, groups)])
    return np.diff(means) / np.diff(centres)


def _half_width(slopes: np.ndarray) -> float:
    freedom = len(slopes) - 1
    quantile = STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.96 + 2.5 / freedom
    return float(quantile * WORKING * slopes.std(ddof=1) / math.sqrt(len(slopes)))
