"""The choices that make a BNMLP."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bnmlp.layers.activations import gain_schedule

NORMS = ("batch", "layer", "none")

ORDERS = ("norm_act", "act_norm")

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def layer_gains(
    depth: int,
    gain: float | tuple[float, ...],
    exponent: float | tuple[float, ...],
    replicas: int,
) -> list[float] | list[Tensor]:
    """Gain of every layer; one for each replica, of shape ``(R, 1, 1)``, where they differ."""
    gains = gain if isinstance(gain, tuple) else (gain,) * replicas
    exponents = exponent if isinstance(exponent, tuple) else (exponent,) * replicas
    pairs = list(zip(gains, exponents, strict=True))
    if len(set(pairs)) == 1:
        return gain_schedule(depth, *pairs[0]).tolist()
    table = torch.stack([gain_schedule(depth, *pair) for pair in pairs], 1)  # (depth, R)
    return list(table[..., None, None].unbind())


def _plain(value: float | Sequence[float] | np.ndarray | Tensor) -> float | Sequence[float]:
    return value.tolist() if isinstance(value, np.ndarray | Tensor) else value
