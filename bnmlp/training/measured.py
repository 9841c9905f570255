"""Tables of what changes along a training."""

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnmlp.measurements.isometry import isometry_gap
from bnmlp.measurements.turns import change_energies
from bnmlp.networks.mlp import BNMLP
from bnmlp.training.batchwise import Batches, looks, sgd


def along(
    training: Iterable[object], at: Collection[int], measure: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """Measure at some moments of a training.

    Args:
        training: Takes one step for each item, as :func:`bnmlp.training.batchwise.sgd` does.
        at: Numbers of steps, 0 for the start.
        measure: Makes a table of the moment.

    Returns:
        All tables, with the number of steps as first level of the index.
    """
    return pd.concat({t: measure() for t in looks(training, at)}, names=["step"])


def turning_table(
    model: BNMLP, batches: Batches, learning_rate: float, layers: Sequence[int], at: Sequence[int]
) -> pd.DataFrame:
    """How far hidden weights have come by plain gradient descent, and how much of it deforms them.

    Args:
        model: R networks; their parameters change in place.
        batches: A step for each.
        learning_rate: Step size.
        layers: Which, from 2.
        at: Numbers of steps to look after.

    Returns:
        A table, its index step, layer and replica. Isometry ``gap``; squared norm of the
        displacement since the start (``moved``) and summed over steps (``path``), and of the
        symmetric part of displacement or step times the transposed weights (``moved_symmetric``,
        ``path_symmetric``).
    """
    chosen = torch.as_tensor(np.asarray(layers) - 2)  # hidden_weight begins with layer 2
    now = start = model.hidden_weight.detach()[chosen]
    path, parts = torch.zeros(()), {}
    for step, _ in enumerate(sgd(model, batches, learning_rate), 1):
        before, now = now, model.hidden_weight.detach()[chosen]
        path = path + change_energies(now - before, before)
        if step in at:
            parts[step] = _energies_table(now, start, path, layers)
    return pd.concat(parts, names=["step"])


def _energies_table(
    now: Tensor, start: Tensor, path: Tensor, layers: Sequence[int]
) -> pd.DataFrame:
    moved = change_energies(now - start, start)
    names = ("gap", "moved", "moved_symmetric", "path", "path_symmetric")
    values = (isometry_gap(now), *moved, *path)
    index = pd.MultiIndex.from_product([layers, range(now.shape[1])], names=["layer", "replica"])
    columns = {k: v.flatten().cpu().numpy() for k, v in zip(names, values, strict=True)}
    return pd.DataFrame(columns, index)
