"""Networks taken out of a model of several, and put back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bnmlp.machine.modes import outside_modes
from bnmlp.networks.mlp import BNMLP

CHOICES = (
    "norm", "center", "unit_norm", "affine", "eps",
    "order", "init", "init_gain", "seed",
)  # fmt: skip


def replica_axis(name: str) -> int:
    """The axis of a parameter or buffer that counts the networks."""
    return 0 if name in ("input_weight", "output_weight", "output_bias") else 1


def read_replica(model: BNMLP, r: int) -> dict[str, Tensor]:
    """Copies of the parameters and buffers of one network."""
    return {k: v.select(replica_axis(k), r).clone() for k, v in model.state_dict().items()}


def write_replica(model: BNMLP, r: int, state: dict[str, Tensor]) -> None:
    """Put back what :func:`read_replica` took."""
    for name, value in model.state_dict().items():
        value.select(replica_axis(name), r).copy_(state[name])


@outside_modes
def subset(model: BNMLP, replicas: Sequence[int]) -> BNMLP:
    """Copies of some of the networks, for measurements.

    Args:
        model: R networks.
        replicas: Which, from 0.

    Returns:
        A model of as many networks, in the same mode.
    """

    def chosen(value: object) -> object:
        return tuple(value[r] for r in replicas) if isinstance(value, tuple) else value

    part = BNMLP(
        model.in_features, model.width, model.depth, model.out_features,
        bias=model.layer_bias is not None, replicas=len(replicas),
        dtype=model.input_weight.dtype, device="meta",
        streams=chosen(model.streams),
        **{n: chosen(getattr(model, n)) for n in ("activation", "gain", "gain_exponent")},
        **{name: getattr(model, name) for name in CHOICES},
    )  # fmt: skip
    part.momentum = model.momentum
    part.gains = [g[list(replicas)] if isinstance(g, Tensor) else g for g in model.gains]
    index = torch.tensor(list(replicas), device=model.input_weight.device)
    state = {k: v.index_select(replica_axis(k), index) for k, v in model.state_dict().items()}
    part.load_state_dict(state, assign=True)
    return part.train(model.training)
