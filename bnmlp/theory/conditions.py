"""Condition numbers of orthogonal matrices that were changed at random, and of Gaussian ones."""

import math

import numpy as np


def condition_after(moved: float | np.ndarray) -> np.ndarray | np.float64:
    r"""Condition number of a wide orthogonal matrix after a random change, :eq:`muon-edges`.

    Args:
        moved: :math:`s`, length of the change over that of the matrix.

    Returns:
        Largest over least singular value, in the shape of the argument; infinite from 1 on.

    Examples:
        >>> condition_after([0.0, 0.1, 1.0]).round(3).tolist()
        [1.0, 1.328, inf]
    """
    s = np.asarray(moved, float)
    root = np.sqrt(s**2 + 8)
    upper = np.sqrt(1 + s * (s + root) / 2) * (1 + 2 * s / (s + root))
    with np.errstate(invalid="ignore", divide="ignore"):
        lower = np.sqrt(1 + s * (s - root) / 2) * (1 + 2 * s / (s - root))
        return np.where(s < 1, upper / lower, np.inf)[()]


def muon_displacement(rate: float, steps: int, momentum: float = 0.95) -> float:
    r"""How far Muon takes weights whose gradients are noise, over their root mean square of one.

    Steps of one length whose directions share gradients through the momentum,
    :eq:`muon-walk`.

    Args:
        rate: Learning rate.
        steps: How many.
        momentum: :math:`\beta`, with Nesterov's look ahead.

    Returns:
        Root mean squared singular value of the sum.

    Examples:
        >>> round(muon_displacement(0.1, 100, momentum=0.0), 12)  # a random walk
        1.0
    """
    age = np.arange(steps)[:, None] - np.arange(steps)  # of the gradient in a column
    share = np.where(age >= 0, (1 - momentum) * momentum ** (np.maximum(age, 0) + 1.0), 0)
    share += (1 - momentum) * np.eye(steps)
    ways = share / np.linalg.norm(share, axis=1, keepdims=True)
    return float(rate * np.linalg.norm(ways.sum(0)))


def gaussian_condition(width: int) -> float:
    r"""Median condition number of a large square Gaussian matrix, :math:`3.67\,d` (Edelman 1988).

    Args:
        width: :math:`d`.

    Returns:
        :math:`xd` with :math:`2/x+2/x^2=\log2`.

    Examples:
        >>> round(gaussian_condition(100))
        367
    """
    return 4 * width / (math.sqrt(4 + 8 * math.log(2)) - 2)
