"""What fixed statistics make of a signal, layer by layer, from their measured errors."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

END = 7.0  # of the trapezoidal rules; beyond is less than 1e-10
SAMPLES, CHANNELWISE = 0.05, 0.2  # their steps; kinks ask for the finer one
ALIKE = 1e-9  # relative difference of both in the variance, up to which no kink is there
CHANNELS = 32  # that stand for all of a layer


def evaluation_spread(
    ratios: Sequence[float],
    offsets: Sequence[float],
    activations: Sequence[Callable[[Tensor], Tensor]],
    weights: Sequence[Tensor | None] | None = None,
    biases: Sequence[Tensor | None] | None = None,
) -> Tensor:
    r"""Variance and squared offset of a signal in evaluation, where both are 1 and 0 in training.

    For a chain of layers, each a batch norm, an activation and a wide random map, in evaluation
    with fixed statistics. Let normalised numbers be :math:`\sqrt p\,\xi+\sqrt w\,z` with
    independent standard normal :math:`\xi` for each channel and :math:`z` for each sample. Then

    .. math::
        w_{\ell+1} = \frac{r_{\ell+1}}{\Var\sigma(z)}\,\E_\xi\Var_z\sigma, \qquad
        p_{\ell+1} = \frac{r_{\ell+1}}{\Var\sigma(z)}\,\E_\xi\big(\E_z\sigma-\E\sigma(z)\big)^2
        + \delta_{\ell+1}

    with :math:`\sigma=\sigma(\sqrt{p_\ell}\,\xi+\sqrt{w_\ell}\,z)`,
    from :math:`w_1=r_1,\ p_1=\delta_1`. For odd activations without offsets that is
    :eq:`running-spread`, for ReLU and :math:`q=w+p` it is :eq:`evaluation-growth`. Errors of
    different layers count as independent.

    Args:
        ratios: :math:`r_\ell`, what a layer in training divides by over what it divides by in
            evaluation, variances, mean over channels.
        offsets: :math:`\delta_\ell`, squared difference of the means in units of the running
            variance, mean over channels.
        activations: Of each layer, elementwise in float64.
        weights: Scale of each channel after the norm, of each layer; ones where it is None.
        biases: Offset of each channel after the norm; zeros where it is None.

    Returns:
        :math:`w` and :math:`p` of each layer, and in the last row of what the last activation
        hands on, float64. Shape ``(layers + 1, 2)``.

    Raises:
        ValueError: If lengths differ, or there is no layer.

    Examples:
        A linear network that divides by Bessel's variance loses half its log in every layer:

        >>> found = evaluation_spread([0.99] * 100, [0.0] * 100, [lambda x: x] * 100)
        >>> round(found[-1, 0].log().item() / 2, 4) == round(50 * math.log(0.99), 4)
        True
    """
    layers = len(ratios)
    if layers == 0 or len(offsets) != layers or len(activations) != layers:
        raise ValueError(
            f"evaluation_spread: {layers} ratios, {len(offsets)} offsets and {len(activations)} "
            "activations; give one of each for every layer"
        )
    nothing: list[Tensor | None] = [None] * layers
    affine = zip(weights or nothing, biases or nothing, strict=True)
    w, p, rows = 1.0, 0.0, []
    for i, (weight, bias) in enumerate(affine):
        w, p = ratios[i] * w, ratios[i] * p + offsets[i]
        rows.append((w, p))
        w, p = _passed_on(activations[i], w, p, weight, bias)
    return torch.tensor([*rows, (w, p)], dtype=torch.float64)


def _passed_on(
    activation: Callable[[Tensor], Tensor],
    w: float,
    p: float,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[float, float]:
    """Variance and squared offset behind an activation, in units of its variance in training."""
    scale, shift, part = _some_channels(weight, bias)  # (c, 1, 1), (c, 1, 1), (c)
    middle, variance = _alone(activation, scale, shift, SAMPLES)  # (c, 1)
    wide = scale * math.sqrt(max(w, 1.0))
    fine, coarse = (_alone(activation, wide, shift, step)[1] for step in (SAMPLES, CHANNELWISE))
    smooth = ((fine - coarse).abs() <= ALIKE * fine).all()
    z, density = _nodes(CHANNELWISE if smooth else SAMPLES)
    xi, share = _nodes(CHANNELWISE)
    seen = activation(scale * (math.sqrt(p) * xi[:, None] + math.sqrt(w) * z) + shift)  # (c, xi, z)
    mean = seen @ density  # (c, xi)
    within = ((seen - mean[..., None]).square() @ density) @ share
    between = (mean - middle).square() @ share
    whole = part @ variance
    return (part @ within / whole).item(), (part @ between / whole).item()


def _alone(
    activation: Callable[[Tensor], Tensor], scale: Tensor, shift: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, without errors of fixed statistics."""
    z, density = _nodes(step)
    values = activation(scale * z + shift)  # (c, 1, z)
    mean = values @ density
    return mean, (values - mean[..., None]).square() @ density


@cache
def _nodes(step: float) -> tuple[Tensor, Tensor]:
    """Nodes of the trapezoidal rule for means of a standard normal variable, and their weights."""
    z = torch.arange(-END, END + step / 2, step, dtype=torch.float64)
    return z, step * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)


def _some_channels(weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scales and offsets of some channels, each pair once, and their shares."""
    scales, shifts = _some(weight, 1.0), _some(bias, 0.0)
    n = max(len(scales), len(shifts))
    columns = (values * (n // len(values)) for values in (scales, shifts))
    pairs = Counter(zip(*columns, strict=True))
    scale, shift = torch.tensor(list(pairs), dtype=torch.float64)[:, :, None, None].unbind(1)
    return scale, shift, torch.tensor([times / n for times in pairs.values()], dtype=torch.float64)


def _some(values: Tensor | None, default: float) -> list[float]:
    if values is None:
        return [default]
    step = max(1, math.ceil(len(values) / CHANNELS))
    return values.detach()[::step].tolist()
