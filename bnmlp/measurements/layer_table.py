"""What every layer of a network looks like at one moment, as a table."""

import pandas as pd
import torch
from torch import Tensor
from torch.linalg import matrix_norm

from bnmlp.measurements.gradients import NotFiniteError, gradient_norms
from bnmlp.measurements.isometry import isometry_gap
from bnmlp.measurements.rates import lengths
from bnmlp.networks.losses import matrix_gradients
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import Network
from bnmlp.networks.replicas import subset

TOGETHER = 32  # layers whose gaps are computed at a time: enough for all threads, little memory


@torch.no_grad()
def layer_table(model: Network, x: Tensor, y: Tensor, probe: Tensor) -> pd.DataFrame:
    """Gaps, gradient norms and weight norms of every normalised layer.

    Of a network that is no BNMLP, these and the effective rate of every weight matrix, with its
    name.

    Args:
        model: R networks.
        x: A batch for the gradients. Shape ``(n, in_features)``.
        y: Its labels. Shape ``(n,)``.
        probe: Samples for the gaps of representations; these are infinite unless there are more
            samples than features. Shape ``(N, in_features)``.

    Returns:
        One row for each layer, counted from 1, and replica, with ``weight_gap``, ``weight_norm``,
        ``gradient_norm``, and the isometry gap of the representation after each stage,
        ``linear_gap``, ``norm_gap`` and ``activation_gap``. A gap is nan where weights or
        representations are not finite. Where a network's gradients leave the range of its type
        they are computed in float64, infinite beyond that, and nan if they have no value.
    """
    if not isinstance(model, BNMLP):
        return _matrix_table(model, x, y)
    hidden, first = model.hidden_weight, model.input_weight
    columns = {
        "weight_gap": torch.cat([_gap_or_nan(first)[None], _gap_or_nan(hidden)]),
        "weight_norm": torch.stack([matrix_norm(w.double()) for w in (first, *hidden)]),
        "gradient_norm": _norms_or_nan(model, x, y)[:-1],
    }
    gaps = _stage_gaps(model, probe)
    columns |= {f"{stage}_gap": gaps[:, i] for i, stage in enumerate(model.stage_names)}
    index = pd.MultiIndex.from_product(
        [range(1, model.depth + 1), range(model.replicas)], names=["layer", "replica"]
    )
    return pd.DataFrame({k: v.flatten().cpu() for k, v in columns.items()}, index)


def _matrix_table(network: Network, x: Tensor, y: Tensor) -> pd.DataFrame:
    found, _ = matrix_gradients(network, x, y)
    weights = network.weight_matrices()
    columns = {
        "weight_gap": torch.stack([_gap_or_nan(w.detach()) for w in weights.values()]),
        "weight_norm": lengths(weights.values()),
        "gradient_norm": lengths(found.values()),
    }
    columns["rate"] = columns["gradient_norm"] / columns["weight_norm"]
    index = pd.MultiIndex.from_product(
        [range(1, len(weights) + 1), range(network.replicas)], names=["layer", "replica"]
    )
    table = pd.DataFrame({k: v.flatten().cpu() for k, v in columns.items()}, index)
    table.insert(0, "name", [name for name in weights for _ in range(network.replicas)])
    return table


def _stage_gaps(model: BNMLP, probe: Tensor) -> Tensor:
    """Shape ``(depth, 3, R)``."""
    gaps, waiting = [], []
    for stages in model.stages(probe):
        waiting.append(torch.stack(stages))
        if len(waiting) == TOGETHER:
            gaps.append(_gap_or_nan(torch.stack(waiting)))
            waiting = []
    if waiting:
        gaps.append(_gap_or_nan(torch.stack(waiting)))
    return torch.cat(gaps)


def _gap_or_nan(x: Tensor) -> Tensor:
    """The isometry gap, nan for matrices that are not finite. Shape ``(...)``."""
    finite = x.isfinite().all(-1).all(-1)
    if finite.all():
        return isometry_gap(x)
    gaps = torch.full(finite.shape, torch.nan, dtype=torch.float64, device=x.device)
    gaps[finite] = isometry_gap(x[finite]) if finite.any() else gaps[finite]
    return gaps


def _norms_or_nan(model: BNMLP, x: Tensor, y: Tensor) -> Tensor:
    """Gradient norms, network by network if some are out of range. Shape ``(depth + 1, R)``."""
    try:
        return gradient_norms(model, x, y).cpu()
    except NotFiniteError:
        if model.replicas > 1:
            alone = [_norms_or_nan(subset(model, [r]), x, y) for r in range(model.replicas)]
            return torch.cat(alone, 1)
    try:
        exact = subset(model, [0]).cpu().double()
        return gradient_norms(exact, x.cpu().double(), y.cpu(), log=True).exp()
    except NotFiniteError:
        return torch.full((model.depth + 1, 1), torch.nan, dtype=torch.float64, device="cpu")
