"""What every layer of a network looks like at one moment, as a table."""

import pandas as pd
import torch
from torch import Tensor
from torch.linalg import matrix_norm

from bnmlp.gradients import gradient_norms
from bnmlp.isometry import isometry_gap
from bnmlp.model import BNMLP

TOGETHER = 32  # layers whose gaps are computed at a time: enough for all threads, little memory


@torch.no_grad()
def layer_table(model: BNMLP, x: Tensor, y: Tensor, probe: Tensor) -> pd.DataFrame:
    """Gaps, gradient norms and weight norms of every normalised layer.

    Args:
        model: R networks.
        x: A batch for the gradients. Shape ``(n, in_features)``.
        y: Its labels. Shape ``(n,)``.
        probe: Samples for the gaps of representations; these are infinite unless there are more
            samples than features. Shape ``(N, in_features)``.

    Returns:
        One row for each layer, counted from 1, and replica, with ``weight_gap``, ``weight_norm``,
        ``gradient_norm``, and the isometry gap of the representation after each stage,
        ``linear_gap``, ``norm_gap`` and ``activation_gap``.
    """
    hidden, first = model.hidden_weight, model.input_weight
    columns = {
        "weight_gap": torch.cat([isometry_gap(first)[None], isometry_gap(hidden)]),
        "weight_norm": torch.stack([matrix_norm(w.double()) for w in (first, *hidden)]),
        "gradient_norm": gradient_norms(model, x, y)[:-1],
    }
    gaps = _stage_gaps(model, probe)
    columns |= {f"{stage}_gap": gaps[:, i] for i, stage in enumerate(model.stage_names)}
    index = pd.MultiIndex.from_product(
        [range(1, model.depth + 1), range(model.replicas)], names=["layer", "replica"]
    )
    return pd.DataFrame({k: v.flatten().cpu() for k, v in columns.items()}, index)


def _stage_gaps(model: BNMLP, probe: Tensor) -> Tensor:
    """Shape ``(depth, 3, R)``."""
    gaps, waiting = [], []
    for stages in model.stages(probe):
        waiting.append(torch.stack(stages))
        if len(waiting) == TOGETHER:
            gaps.append(isometry_gap(torch.stack(waiting)))
            waiting = []
    if waiting:
        gaps.append(isometry_gap(torch.stack(waiting)))
    return torch.cat(gaps)
