r"""Effective learning rates: what weight norms do to the steps of scale-invariant layers.

A layer that is normalised afterwards computes the same for :math:`W` and :math:`cW`. Its
gradient is therefore orthogonal to :math:`W` and scales with :math:`1/c`; plain gradient descent
can only lengthen the weights, and what a step changes is set by
:math:`E = \lVert g\rVert/\lVert W\rVert`, the effective learning rate per unit of the nominal one.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor


def next_rate(rate: Tensor, learning_rate: float | Tensor) -> Tensor:
    r"""The rate after one step along a gradient orthogonal to the weights.

    :math:`E' = E/(1+\lambda^2E^2)` exactly, if the gradient at unit norm keeps its length:
    equation :eq:`rate-map`.

    Args:
        rate: :math:`E`, of any shape.
        learning_rate: :math:`\lambda`.

    Returns:
        :math:`E'`, in the shape of the rates.

    Examples:
        At the largest learning rate that pays, :math:`\lambda E = 1`, a step halves the rate:

        >>> next_rate(torch.tensor([4.0, 1.0]), 0.25).tolist()
        [2.0, 0.9411764740943909]
    """
    return rate / (1 + (learning_rate * rate) ** 2)


def rate_path(rates: Tensor, learning_rates: Iterable[float | Tensor]) -> Tensor:
    """Rates before each step and at the end by the map of :func:`next_rate`.

    Args:
        rates: Before the first step, of any shape.
        learning_rates: One for each step.

    Returns:
        Shape ``(steps + 1, ...)``.
    """
    path = [rates]
    for learning_rate in learning_rates:
        path.append(next_rate(path[-1], learning_rate))
    return torch.stack(path)


def rate_after(rate: Tensor, learning_rate: float, steps: float) -> Tensor:
    r"""Continuous-time limit of many steps: :math:`E_0/\sqrt{1+2\lambda^2E_0^2t}`.

    Tends to :math:`1/(\lambda\sqrt{2t})` whatever :math:`E_0`: all layers end at one rate.

    Args:
        rate: :math:`E_0`, of any shape.
        learning_rate: :math:`\lambda`.
        steps: :math:`t`.

    Returns:
        :math:`E(t)`, in the shape of the rates.

    Examples:
        Rates a hundred apart forget where they began:

        >>> late = rate_after(torch.tensor([0.1, 10.0]), 1.0, steps=10**6)
        >>> round((late[1] / late[0]).item(), 4)
        1.0
    """
    return rate / torch.sqrt(1 + 2 * steps * (learning_rate * rate) ** 2)


def critical_learning_rate(rates: Tensor) -> Tensor:
    r"""The learning rate after which the largest and the smallest rate coincide.

    :math:`1/\sqrt{E_{\max}E_{\min}}`, where the map of :func:`next_rate` takes both to the same
    value. It is also the learning rate that leaves the smallest spread over these two; below it
    the order of the two is kept, above it is reversed.

    Args:
        rates: Positive. Shape ``(layers, ...)``.

    Returns:
        Shape ``(...)``.
    """
    return (rates.amax(0) * rates.amin(0)).rsqrt()


def greedy_warmup(rates: Tensor, target: float, steps: int) -> tuple[Tensor, Tensor]:
    r"""Learning rates that close the spread as fast as one step at a time can.

    :math:`\lambda_t = \min(\lambda, 1/\sqrt{E_{\max}E_{\min}})` with the rates of that moment.

    Args:
        rates: Rates before the first step. Shape ``(layers,)``.
        target: The learning rate to reach.
        steps: Number of steps.

    Returns:
        Learning rates, shape ``(steps,)``, and rates before each step and at the end by the map of
        :func:`next_rate`, shape ``(steps + 1, layers)``.
    """
    learning_rates, path = [], [rates]
    for _ in range(steps):
        learning_rates.append(critical_learning_rate(path[-1]).clamp_max(target))
        path.append(next_rate(path[-1], learning_rates[-1]))
    return torch.stack(learning_rates), torch.stack(path)


def random_walk(
    norms: Tensor,
    base_norms: Tensor,
    elements: Sequence[int],
    learning_rates: Sequence[float],
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Weights that take random steps as scale-invariant layers would (our reconstruction).

    In each layer a normal vector is projected orthogonally to the weights and scaled to the length
    :math:`c/\lVert W\rVert`, then a step of gradient descent follows.

    Args:
        norms: Norms of the initial weights, whose directions are random. Shape ``(layers,)``.
        base_norms: :math:`c`, gradient norms at unit weights. Shape ``(layers,)``.
        elements: Number of weights of each layer.
        learning_rates: One for each step.
        momentum: :math:`\beta` in :math:`v \leftarrow \beta v + g + \gamma W`, the heavy ball of
            ``torch.optim.SGD``; :math:`W \leftarrow W - \lambda v`.
        weight_decay: :math:`\gamma`.
        generator: Source of randomness.

    Returns:
        Norms of the weights and rates before each step and at the end, float64. Both of shape
        ``(steps + 1, layers)``.

    Raises:
        ValueError: If a layer has fewer than two weights, so that no direction is orthogonal to
            them, or lists differ in length.
    """
    if min(elements) < 2:
        raise ValueError(f"random_walk: layers need at least two weights, got {min(elements)}")
    place = norms.device if generator is None else generator.device
    normal = partial(torch.randn, dtype=torch.float64, generator=generator, device=place)
    weights = []
    for n, norm in zip(elements, norms.tolist(), strict=True):
        w = normal(n)
        weights.append(w * (norm / w.norm()))
    velocities = [torch.zeros_like(w) for w in weights]
    lengths = [torch.stack([w.norm() for w in weights])]
    for learning_rate in learning_rates:
        for w, v, base in zip(weights, velocities, base_norms.tolist(), strict=True):
            g = normal(len(w))
            g -= (g @ w) / (w @ w) * w
            g *= base / (w.norm() * g.norm())
            v.mul_(momentum).add_(g + weight_decay * w)
            w.sub_(v, alpha=float(learning_rate))
        lengths.append(torch.stack([w.norm() for w in weights]))
    path = torch.stack(lengths)
    return path, base_norms.to(path) / path.square()


def momentum_map(
    state: tuple[Tensor, Tensor, Tensor],
    base_norms: Tensor,
    learning_rate: float | Tensor,
    momentum: float,
    *,
    weight_decay: float = 0.0,
    cosine: float | Tensor = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Norms after one step with momentum along a gradient orthogonal to the weights.

    With :math:`v' = \beta v + g + \gamma W` and :math:`W' = W - \lambda v'` the three numbers
    :math:`N = \lVert W\rVert^2`, :math:`p = \langle W, v\rangle` and
    :math:`V = \lVert v\rVert^2` follow a closed map, equation :eq:`momentum-map`, but for the
    angle between velocity and gradient. Exact, if that angle and the gradient at unit norm are
    right. It begins with :math:`p = V = 0`.

    Args:
        state: :math:`(N, p, V)` before the step, of any one shape.
        base_norms: :math:`c`, the gradient norm at unit weights.
        learning_rate: :math:`\lambda`.
        momentum: :math:`\beta`.
        weight_decay: :math:`\gamma`.
        cosine: Of the angle between :math:`v` and :math:`g`.

    Returns:
        :math:`(N', p', V')`.
    """
    n, p, v = state
    g = base_norms / n.sqrt()
    along = cosine * v.sqrt() * g
    q = momentum * p + weight_decay * n  # <W, v'>
    v = momentum**2 * v + g.square() + 2 * momentum * along
    v = v + weight_decay * (2 * momentum * p + weight_decay * n)
    return n - 2 * learning_rate * q + learning_rate**2 * v, q - learning_rate * v, v


def momentum_path(
    squares: Tensor,
    base_norms: Iterable[Tensor],
    learning_rates: Iterable[float | Tensor],
    momentum: float,
    *,
    cosines: Iterable[float | Tensor] | None = None,
) -> Tensor:
    r"""Squared norms before each step by :func:`momentum_map`, from rest.

    Args:
        squares: :math:`\lVert W\rVert^2` before the first step, of any shape.
        base_norms: :math:`c` of each step.
        learning_rates: :math:`\lambda` of each step.
        momentum: :math:`\beta`.
        cosines: Of the angle between velocity and gradient in each step, zero if omitted.

    Returns:
        Shape ``(steps, ...)``.
    """
    state, path = (squares, torch.zeros_like(squares), torch.zeros_like(squares)), []
    angles = itertools.repeat(0.0) if cosines is None else cosines
    for c, learning_rate, cosine in zip(base_norms, learning_rates, angles, strict=False):
        path.append(state[0])
        state = momentum_map(state, c, learning_rate, momentum, cosine=cosine)
    return torch.stack(path)


def equilibrium_rate(learning_rate: float, weight_decay: float, momentum: float = 0.0) -> float:
    r"""The rate at which decay and gradient steps balance: :math:`\sqrt{2\gamma(1-\beta)/\lambda}`.

    To leading order in :math:`\lambda\gamma`. The norm is
    :math:`\lVert W\rVert^4 = \lambda c^2/(2\gamma(1-\beta))` there and each step turns the weights
    by :math:`\sqrt{2\lambda\gamma/(1+\beta)}`, whatever the layer's gradient
    :cite:p:`vanlaarhoven2017l2,wan2021spherical`.

    Args:
        learning_rate: :math:`\lambda`.
        weight_decay: :math:`\gamma`.
        momentum: :math:`\beta`, of the heavy ball.

    Returns:
        The rate.

    Raises:
        ValueError: If learning rate or weight decay is not positive, or the momentum not in [0, 1).
    """
    if not (learning_rate > 0 and weight_decay > 0):
        raise ValueError(
            "equilibrium_rate: needs a positive learning rate and weight decay, got "
            f"{learning_rate}, {weight_decay}"
        )
    if not 0 <= momentum < 1:
        raise ValueError(f"equilibrium_rate: momentum must lie in [0, 1), got {momentum}")
    return math.sqrt(2 * weight_decay * (1 - momentum) / learning_rate)
