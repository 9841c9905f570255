"""Networks with other gains that begin at one scale."""

from collections.abc import Sequence

import torch

from bnmlp.networks.mlp import BNMLP


@torch.no_grad()
def with_even_start(model: BNMLP, gains: Sequence[float]) -> BNMLP:
    r"""Give layers gains, and divide the output weights by the last one, :math:`\alpha_L`.

    The gain of the last layer multiplies logits and gradients. So networks of all gains begin with
    both at one scale, and a learning rate means the same for the hidden layers of all.

    Args:
        model: R networks, which change in place.
        gains: One for each layer.

    Returns:
        The model.
    """
    model.gains = list(gains)
    model.output_weight /= gains[-1]
    return model
