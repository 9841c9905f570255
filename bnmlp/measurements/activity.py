"""What activations do with their inputs: units that are dead, and how much is not linear."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bnmlp.machine.precision import float64


def unit_activity(layers: Sequence[Tensor]) -> dict[str, Tensor]:
    """How ReLU units answer one batch.

    Args:
        layers: Outputs of the hidden layers in turn. Each of shape ``(R, width, n)``.

    Returns:
        Each of shape ``(R,)``, float64. Share of units that are zero for every sample, in all
        layers (``dead``) and in the last (``dead_last``); of the last layer the share that is
        positive for every sample (``always_last``), the root mean square (``size_last``) and the
        root of the variance over samples (``spread_last``).
    """
    on = [(h > 0).any(-1).double().mean(-1) for h in layers]
    last = float64(layers[-1])
    return {
        "dead": 1 - torch.stack(on).mean(0),
        "dead_last": 1 - on[-1],
        "always_last": (last > 0).all(-1).double().mean(-1),
        "size_last": last.square().mean((-2, -1)).sqrt(),
        "spread_last": last.var(-1, correction=0).mean(-1).sqrt(),
    }


def nonlinear_share(z: Tensor, h: Tensor) -> Tensor:
    """Share of the squared length of an activation's output that no multiple of its input has.

    Zero exactly where the activation multiplies all inputs by one number; unchanged by rescaling.

    Args:
        z: Inputs. Shape ``(..., d, n)``.
        h: Outputs, of the same shape.

    Returns:
        From 0 to 1, float64. Shape ``(...)``.
    """
    z, h = float64(z), float64(h)
    fit = (z * h).sum((-2, -1)) ** 2
    return 1 - fit / (z.square().sum((-2, -1)) * h.square().sum((-2, -1)))
