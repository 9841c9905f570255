"""Networks taken out of a model of several, and put back."""

import copy
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from bnmlp.machine.modes import outside_modes
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import Network


def read_replica(network: Network, r: int) -> dict[str, Tensor]:
    """Copies of the parameters and buffers of one network."""
    return {k: _of(network, k, v, r).clone() for k, v in network.state_dict().items()}


def write_replica(network: Network, r: int, state: dict[str, Tensor]) -> None:
    """Put back what :func:`read_replica` took."""
    for name, value in network.state_dict().items():
        _of(network, name, value, r).copy_(state[name])


@torch.no_grad()
def add_to_parameters(network: Network, changes: Tensor) -> None:
    """Add a flat vector to the parameters of each network.

    Args:
        network: R networks; their parameters change in place.
        changes: In the order of ``network.parameters()``. Shape ``(R, P)``.
    """
    start = 0
    for name, values in network.named_parameters():
        axis = network.replica_axis(name)
        each = values.unsqueeze(0) if axis is None else values.movedim(axis, 0)
        size = each[0].numel()
        each += changes[:, start : start + size].view_as(each)
        start += size


def _of(network: Network, name: str, value: Tensor, r: int) -> Tensor:
    """A view of one network's part of a parameter or buffer; all of what they share."""
    axis = network.replica_axis(name)
    return value if axis is None else value.select(axis, r)


@overload
def subset(model: BNMLP, replicas: Sequence[int]) -> BNMLP: ...


@overload
def subset(model: Network, replicas: Sequence[int]) -> Network: ...


@outside_modes
def subset(model: Network, replicas: Sequence[int]) -> Network:
    """Copies of some of the networks, for measurements.

    Args:
        model: R networks.
        replicas: Which, from 0.

    Returns:
        A model of as many networks, in the same mode; all parameters of a BNMLP require gradients.
    """
    if not isinstance(model, BNMLP):
        return _sliced(model, list(replicas))
    index = torch.tensor(list(replicas), device=model.input_weight.device)
    state = {k: v.index_select(model.replica_axis(k), index) for k, v in model.state_dict().items()}
    return model.of_recipe(model.recipe.subset(replicas), state)


def _sliced(network: Network, replicas: list[int]) -> Network:
    part: Any = copy.deepcopy(network)
    for prefix, owner in part.named_modules():
        for kind in (owner._parameters, owner._buffers):
            for name, value in kind.items():
                axis = network.replica_axis(f"{prefix}.{name}" if prefix else name)
                if value is None or axis is None:
                    continue
                with torch.no_grad():
                    kept = value.index_select(axis, torch.tensor(replicas, device=value.device))
                if isinstance(value, nn.Parameter):
                    kept = nn.Parameter(kept, value.requires_grad)
                kind[name] = kept
    if network.replicas > 1:
        part.replicas = len(replicas)
    return part
