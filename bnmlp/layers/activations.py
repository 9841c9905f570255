"""Activations of the paper and its code, and the gain that shapes them."""

import math
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "selu": F.selu,
}


def gain_schedule(
    depth: int, gain: float = 1.0, exponent: float = 0.0, *, cut: tuple[int, float] | None = None
) -> Float64[Tensor, " {depth}"]:
    r"""Gains :math:`\alpha_\ell = \alpha\,\ell^{-e}` of layers :math:`\ell = 1, \dots, L`.

    Args:
        depth: Number of layers, :math:`L`.
        gain: :math:`\alpha`, the gain of the first layer.
        exponent: :math:`e`; zero gives every layer the same gain.
        cut: A number of first layers, and the gain of all others.

    Returns:
        Gains on the CPU, float64. Shape ``(depth,)``.

    Raises:
        ValueError: If ``gain`` is not positive or ``exponent`` is not finite.

    Examples:
        >>> gain_schedule(4, gain=2, exponent=1).tolist()
        [2.0, 1.0, 0.6666666666666666, 0.5]
        >>> gain_schedule(4, exponent=1, cut=(2, 0.125)).tolist()
        [1.0, 0.5, 0.125, 0.125]
    """
    if not (gain > 0 and math.isfinite(gain)):
        raise ValueError(f"gain must be a finite number > 0, got {gain}")
    if not math.isfinite(exponent):
        raise ValueError(f"gain_exponent must be finite, got {exponent}")
    layers = torch.arange(1, depth + 1, dtype=torch.float64, device="cpu")
    gains = gain * layers**-exponent
    return gains if cut is None else gains.where(layers <= cut[0], cut[1])


def activation_parts(activation: str | Sequence[str]) -> list[tuple[slice, str]]:
    """Runs of replicas with one activation.

    Args:
        activation: A name for all replicas, or one for each.

    Returns:
        Slices along the axis of replicas and the activation of each.
    """
    if isinstance(activation, str):
        return [(slice(None), activation)]
    parts: list[tuple[slice, str]] = []
    start = 0
    for name, run in groupby(activation):
        stop = start + len(list(run))
        parts.append((slice(start, stop), name))
        start = stop
    return parts
