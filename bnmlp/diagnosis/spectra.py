"""How many directions an activation has, and how even they are."""

import torch
from torch import Tensor

from bnmlp.machine.modes import outside_modes
from bnmlp.machine.precision import float64
from bnmlp.measurements.isometry import isometry_gap

LARGEST = 2048  # of the smaller side of a matrix whose Gram matrix is formed


@outside_modes
@torch.no_grad()
def spectrum(x: Tensor) -> tuple[float, float]:
    r"""Participation ratio and isometry gap of an activation.

    Args:
        x: One sample along the first axis. Shape ``(n, ...)``.

    Returns:
        :math:`(\sum_k s_k^2)^2/\sum_k s_k^4` of the singular values of the matrix whose rows are
        samples, see :eq:`participation-ratio`, and its isometry gap in nats, infinite where there
        are fewer samples than features; nan where a number is not finite, or the matrix too large.
    """
    if x.ndim < 2 or min(len(x), x[0].numel()) > LARGEST or not bool(x.isfinite().all()):
        return float("nan"), float("nan")
    rows = float64(x.flatten(1))
    peak = rows.abs().amax()
    if peak == 0:
        return float("nan"), float("nan")
    rows = rows / peak
    gram = rows @ rows.mT if rows.shape[0] <= rows.shape[1] else rows.mT @ rows
    ratio = rows.square().sum() ** 2 / gram.square().sum()
    n, d = rows.shape
    return float(ratio), float(isometry_gap(rows.mT)) if d <= n else float("inf")
