"""Gaussian averages of activations: what wide networks do on average."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bnmlp.activations import ACTIVATIONS, gain_schedule


def gaussian_mean(function: Callable[[Tensor], Tensor], variance: float = 1.0) -> float:
    r"""Mean of a function of a centred normal variable.

    :math:`\E f(\sqrt q\,z)` by the double-exponential rule on each half-line, whose nodes gather
    at zero: kinks there and large variances, which make any smooth activation a step, cost no
    accuracy.

    Args:
        function: Acts on each entry of a float64 tensor.
        variance: :math:`q`.

    Returns:
        The mean.

    Raises:
        ValueError: If the variance is negative or not finite.
    """
    if not (variance >= 0 and math.isfinite(variance)):
        raise ValueError(f"gaussian_mean: variance must be finite and >= 0, got {variance}")
    s = torch.arange(-4.5, 3.7, 0.02, dtype=torch.float64)
    z = torch.exp(s - torch.exp(-s))
    weight = 0.02 * z * (1 + torch.exp(-s)) * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    x = math.sqrt(variance) * z
    return float(weight @ (function(x) + function(-x)))


def gradient_growth(activation: str, gain: float = 1.0, *, norm: str = "batch") -> float:
    r"""Mean-field growth of the log gradient norm in one normalised layer with an activation.

    :math:`\frac12\log\frac{\alpha^2\,\E\sigma'(\alpha z)^2}{\operatorname{Var}\sigma(\alpha z)}`,
    from :eq:`gradient-growth`, for large batches; with layer normalisation :math:`\E\sigma^2` takes
    the place of the variance. Zero for the identity; with batch normalisation positive for
    anything else. Says nothing about batch normalisation without mean reduction, except for odd
    activations, which have no mean: for others samples align and rows are no longer Gaussian.

    Args:
        activation: Name in ``bnmlp.ACTIVATIONS``.
        gain: :math:`\alpha`.
        norm: ``"batch"``, with mean reduction, or ``"layer"``.

    Returns:
        Growth towards the input in nats per layer.

    Raises:
        ValueError: If activation or normalisation is unknown or the gain is not positive.
    """
    if norm not in ("batch", "layer"):
        raise ValueError(f"gradient_growth: norm is 'batch' or 'layer', got {norm!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; use one of {', '.join(ACTIVATIONS)}")
    if not (gain > 0 and math.isfinite(gain)):
        raise ValueError(f"gradient_growth: gain must be finite and > 0, got {gain}")
    sigma = ACTIVATIONS[activation]

    def slope(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(sigma(x).sum(), x)[0]

    energy = gaussian_mean(lambda x: sigma(x).square(), gain**2)
    if norm == "batch":
        energy -= gaussian_mean(sigma, gain**2) ** 2
    change = gain**2 * gaussian_mean(lambda x: slope(x).square(), gain**2)
    return 0.5 * math.log(change / energy)


def running_spread(
    depth: int,
    activation: str,
    *,
    gain: float = 1.0,
    gain_exponent: float = 0.0,
    steps: float = math.inf,
    batch_size: int,
    momentum: float = 0.1,
    first_variance: float = 1.0,
) -> Tensor:
    r"""Spread of representations under running statistics, compared with batch statistics.

    The recursion :eq:`running-spread` of the book, for wide networks with weights at rest and
    PyTorch's averages, which begin at one and hold the unbiased variance.

    Args:
        depth: Number of layers.
        activation: An odd function in ``bnmlp.ACTIVATIONS``: identity, tanh or sin.
        gain: :math:`\alpha`.
        gain_exponent: :math:`e` in :math:`\alpha_\ell = \alpha\,\ell^{-e}`.
        steps: Batches that have gone into the averages.
        batch_size: Samples in each.
        momentum: Weight of the newest batch.
        first_variance: Mean variance of what the first layer normalises.

    Returns:
        Logarithm of the ratio of standard deviations after each layer. Shape ``(depth,)``.

    Raises:
        ValueError: If the activation is not odd.
    """
    if activation not in ("identity", "tanh", "sin"):
        raise ValueError(f"running_spread: the activation must be odd, got {activation!r}")
    sigma, memory = ACTIVATIONS[activation], (1 - momentum) ** steps
    bessel = batch_size / (batch_size - 1)
    seen = evaluated = first_variance  # variance of what a layer normalises, in either mode
    ratios = torch.empty(depth, dtype=torch.float64)
    for i, alpha in enumerate(gain_schedule(depth, gain, gain_exponent).tolist()):
        running = memory + (1 - memory) * bessel * seen
        q = alpha**2 * evaluated / running
        seen = gaussian_mean(lambda x: sigma(x).square(), alpha**2)
        evaluated = gaussian_mean(lambda x: sigma(x).square(), q)
        ratios[i] = 0.5 * math.log(evaluated / seen)
    return ratios
