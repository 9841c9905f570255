r"""The noisy quadratic model: gradient descent on independent parabolas with noisy slopes.

Exact second moments of :math:`\theta_i` under :math:`\nabla = h_i\theta_i + \varepsilon`,
:math:`\E\varepsilon^2 = \sigma_i^2`, with heavy-ball momentum and averaging of the weights
:cite:p:`zhang2019nqm`.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Parabola(NamedTuple):
    r"""A loss around a point, direction by direction, and the noise of its gradient.

    Attributes:
        curvatures: :math:`h_i`. Shape ``(K,)``.
        slopes: Of the loss at the point, :math:`g_i`. Shape ``(K,)``.
        noise: Variance of the gradient of one sample, :math:`\sigma_i^2`. Shape ``(K,)``.
    """

    curvatures: Tensor
    slopes: Tensor
    noise: Tensor

    def expected_change(
        self,
        batch_size: int,
        learning_rate: float,
        steps: int,
        *,
        momentum: float = 0.0,
        average: float = 0.0,
        below: float = torch.inf,
    ) -> Tensor:
        r"""Expected change of the loss in descent from the point, see :func:`expected_losses`.

        Directions whose curvature is zero but for rounding are left out: where they come from
        symmetries there is no slope either.

        Args:
            batch_size: B; the noise of a step is :math:`\sigma_i^2/B`.
            learning_rate: Step size.
            steps: Number of steps.
            momentum: As for :func:`expected_losses`.
            average: As for :func:`expected_losses`.
            below: Only directions of less curvature than this.

        Returns:
            Before each step and at the end, zero at first. Shape ``(steps + 1,)``.
        """
        h, slopes, noise = self
        used = (h.abs() > 1e-10) & (h < below)
        apex = (slopes / h)[used]
        losses = expected_losses(
            h[used], noise[used] / batch_size, learning_rate, steps,
            momentum=momentum, average=average, start=apex**2,
        )  # fmt: skip
        return losses - losses[0]


def expected_losses(
    curvatures: Tensor,
    noise: Tensor,
    learning_rate: float,
    steps: int,
    *,
    momentum: float = 0.0,
    average: float = 0.0,
    start: float | Tensor = 1.0,
) -> Tensor:
    r"""Expected loss :math:`\frac12\sum_i h_i\,\E\theta_i^2` before each step and at the end.

    Args:
        curvatures: :math:`h_i`. Shape ``(K,)``.
        noise: Variance :math:`\sigma_i^2` of a gradient, that of one sample over the batch size.
            Shape ``(K,)``.
        learning_rate: :math:`\alpha`.
        steps: Number of steps.
        momentum: :math:`\mu` in :math:`v \leftarrow \mu v + \nabla`,
            :math:`\theta \leftarrow \theta - \alpha v`.
        average: :math:`\gamma` in :math:`\bar\theta \leftarrow \gamma\bar\theta +
            (1-\gamma)\theta`; the loss is that of :math:`\bar\theta`.
        start: :math:`\E\theta_i^2` at the start, a number or of shape ``(K,)``.

    Returns:
        Losses, float64. Shape ``(steps + 1,)``.
    """
    h, noise = curvatures.double(), noise.double()
    one, zero = torch.ones_like(h), torch.zeros_like(h)
    shrink, keep, a = 1 - learning_rate * h, learning_rate * momentum, average
    # State (velocity, weight, average): z' = A z + b epsilon.
    rows = (
        (h, momentum * one, zero),
        (shrink, -keep * one, zero),
        ((1 - a) * shrink, -(1 - a) * keep * one, a * one),
    )
    stacked = [torch.stack((velocity, weight, mean), -1) for weight, velocity, mean in rows]
    transition = torch.stack(stacked, -2)  # (K, 3, 3)
    kick = torch.tensor([1, -learning_rate, -(1 - a) * learning_rate], dtype=torch.float64)
    kicks = noise[:, None, None] * kick[:, None] * kick
    moments = torch.zeros(len(h), 3, 3, dtype=torch.float64)
    moments[:, 1:, 1:] = torch.as_tensor(start, dtype=torch.float64).expand(len(h))[:, None, None]
    losses = []
    for _ in range(steps):
        losses.append(0.5 * h @ moments[:, 2, 2])
        moments = transition @ moments @ transition.mT + kicks
    return torch.stack([*losses, 0.5 * h @ moments[:, 2, 2]])


def steady_variance(curvatures: Tensor, noise: Tensor, learning_rate: float) -> Tensor:
    r"""Variance at which plain gradient descent ends: :math:`\alpha\sigma^2/(h(2-\alpha h))`.

    Args:
        curvatures: :math:`h_i`, positive. Shape ``(K,)``.
        noise: :math:`\sigma_i^2`. Shape ``(K,)``.
        learning_rate: :math:`\alpha`.

    Returns:
        :math:`\E\theta_i^2`, infinite from :math:`\alpha h = 2` on. Shape ``(K,)``.
    """
    h = curvatures.double()
    variance = learning_rate * noise.double() / (h * (2 - learning_rate * h))
    return torch.where(learning_rate * h < 2, variance, torch.inf)
