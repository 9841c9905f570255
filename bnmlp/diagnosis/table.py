"""What passes recorded, as columns: one entry for each call, in the order of execution."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from bnmlp.diagnosis.probe import Pass
from bnmlp.diagnosis.recorder import Row
from bnmlp.diagnosis.weights import Weights, numbers

# <W, g> sqrt(P) / (|W| |g|) is of order one where lengths matter, by chance below 1e-3 for one
# weight in a thousand. A normalisation's eps leaves about eps over the variance, so 1e-5 and more.
INVARIANT, DEPENDENT = 1e-3, 5e-2


@dataclass
class Table:
    r"""Columns of equal length. Logarithms are natural: differences are nats.

    Attributes:
        name: Path of the module, ``#2`` for its second call; of functions the path of the module
            that calls them, with their own name behind.
        kind: Class of the module, or name of the function.
        shape: Of the output.
        dtype: Of the output.
        columns: Numbers by the names in ``COLUMNS``, float64, nan where there is none.
        modules: Modules of the calls, None for functions.
        direct: Whether a call's input is what the call before it put out.
    """

    name: list[str]
    kind: list[str]
    shape: list[tuple[int, ...]]
    dtype: list[str]
    columns: dict[str, np.ndarray]
    modules: list[nn.Module | None] = field(repr=False)
    direct: list[bool] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.name)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    @property
    def layers(self) -> np.ndarray:
        """Places of the calls that multiply with a matrix of their own."""
        return np.flatnonzero(~np.isnan(self["layer"]))


COLUMNS = {
    "layer": "number of the layer, counted over calls that multiply with a matrix of their own",
    "mean_square": "mean square of the output's entries",
    "variance": "mean square of what is left when each feature's mean is subtracted",
    "cosine": "mean product of two samples over their mean square: of equal lengths, the cosine",
    "dead": "share of features that are zero for every sample; of rectifiers",
    "largest": "largest magnitude of the output's entries; of layers, functions and 16 bits",
    "headroom": "nats from there to the largest number of the output's type",
    "input_rms": "root mean square of the input; of layers",
    "branch_over_stream": "norm of the branch over that of the stream; of sums",
    "gradient_norm": "norm of the loss's gradient in the output",
    "sensitivity": "log of that norm times the output's root mean square",
    "weight_norm": "Frobenius norm of the weight",
    "weight_gradient_norm": "Frobenius norm of the loss's gradient in the weight",
    "weight_sensitivity": "log of the product of both over the root of the weight's size",
    "effective_rate": "weight_gradient_norm over weight_norm",
    "update": "length of the optimiser's next step over weight_norm",
    "invariance": "<W, g> sqrt(P) / (|W| |g|): zero where the weight's length changes nothing",
    "scale_invariant": "1 where that is rounding, 0 where not, nan where it is neither",
    "shared": "calls that use the weight",
    "output_faults": "nan and infinite entries of the output",
    "gradient_faults": "nan and infinite entries of the gradients in output and weight",
    "weight_faults": "nan and infinite entries of the weight",
    "participation_ratio": "directions that the output has, by its singular values",
    "isometry_gap": "nats; infinite with fewer samples than features",
}


def table_of(found: Pass, weights: Weights, steps: np.ndarray | None = None) -> Table:
    """Columns of one pass.

    Args:
        found: What it recorded.
        weights: Of the same module, with the gradients of the pass.
        steps: Lengths of an optimiser's next step by parameter, where there is one.

    Returns:
        The columns, gradients without the pass's scale.
    """
    rows = found.rows
    columns = {name: np.full(len(rows), np.nan) for name in COLUMNS}
    _outputs(found, columns)
    _gradients(found, columns)
    _weights(rows, columns, weights, found.scale, steps)
    layer = np.array([row.weighted for row in rows], dtype=bool)
    columns["layer"][layer] = 1 + np.arange(layer.sum())
    return Table(
        [row.name for row in rows], [row.kind for row in rows], [tuple(row.shape) for row in rows],
        [str(row.dtype).removeprefix("torch.") for row in rows], columns,
        [row.module for row in rows], [row.direct for row in rows],
    )  # fmt: skip


def averaged(tables: Sequence[Table]) -> tuple[Table, dict[str, np.ndarray]]:
    """The mean over batches of every column, of faults their sum, and standard deviations of some.

    Args:
        tables: Of one network; those with other calls than the first are left out.

    Returns:
        A table, and by column the spread over batches, zero for a single batch.
    """
    first = tables[0]
    alike = [table for table in tables if table.name == first.name]
    stacked = {k: np.stack([table[k] for table in alike]) for k in COLUMNS}
    means = {k: v[0] if len(alike) == 1 else v.mean(0) for k, v in stacked.items()}
    means |= {k: stacked[k].sum(0) for k in ("output_faults", "gradient_faults")}
    spread = {
        k: v.std(0, ddof=1) if len(alike) > 1 else np.zeros(len(first))
        for k, v in stacked.items()
        if k in ("sensitivity", "weight_sensitivity", "mean_square", "cosine")
    }
    merged = Table(
        first.name, first.kind, first.shape, first.dtype, means, first.modules, first.direct
    )
    return merged, spread


def spread_of_rates(tables: Sequence[Table]) -> float:
    """Log-ratio of the largest to the smallest effective rate of layers, the widest of replicas."""
    spreads = []
    for table in tables:
        rates = table["effective_rate"][table.layers]
        rates = rates[np.isfinite(rates) & (rates > 0)]
        if len(rates) > 1:
            spreads.append(float(np.log(rates.max() / rates.min())))
    return max(spreads, default=float("nan"))


def _outputs(found: Pass, columns: dict[str, np.ndarray]) -> None:
    rows, norm = found.rows, found.norms
    total = numbers([row.total for row in rows]).numpy()
    positions = [i for i, row in enumerate(rows) if row.mean is not row.total]
    mean = total.copy()
    mean[positions] = numbers([rows[i].mean for i in positions]).numpy()
    size = np.array([row.shape.numel() for row in rows]).astype(float)
    n = np.array([row.shape[0] if len(row.shape) > 1 else 1 for row in rows]).astype(float)
    per_feature = size / np.array(
        [row.shape[row.axis] if len(row.shape) > 1 else 1 for row in rows]
    )
    with np.errstate(all="ignore"):
        square = norm**2
        columns["mean_square"][:] = square / size
        columns["variance"][:] = np.maximum(0, square - mean**2 / per_feature) / size
        cosine = (total**2 - square) / ((n - 1) * square)
        columns["cosine"][:] = np.where(n > 1, np.clip(cosine, -1, 1), np.nan)
    _sparse(columns, "dead", [row.dead for row in rows])
    for i, row in enumerate(rows):
        if row.dead is not None:
            columns["dead"][i] /= row.shape[row.axis]
        if row.spectrum is not None:
            columns["participation_ratio"][i], columns["isometry_gap"][i] = row.spectrum
    _extremes(rows, columns)
    _sparse(columns, "input_rms", [row.source and row.source[0] for row in rows])
    given = np.array([row.source[1] if row.source else 1 for row in rows])
    columns["input_rms"] /= np.sqrt(given)
    sums = [i for i, row in enumerate(rows) if row.ratio is not None]
    if sums:
        pairs = [row.ratio for row in rows if row.ratio is not None]
        branch, stream = (numbers(list(sizes)).numpy() for sizes in zip(*pairs, strict=True))
        with np.errstate(all="ignore"):
            columns["branch_over_stream"][sums] = branch / stream
    columns["output_faults"][:] = _faults(found, 0)


def _gradients(found: Pass, columns: dict[str, np.ndarray]) -> None:
    with np.errstate(all="ignore"):
        logs = np.log(found.output_gradients) - np.log(found.scale)
        columns["sensitivity"][:] = logs + 0.5 * np.log(columns["mean_square"])
        columns["gradient_norm"][:] = np.exp(logs)
    columns["gradient_faults"][:] = _faults(found, 1)


def _weights(
    rows: Sequence[Row],
    columns: dict[str, np.ndarray],
    weights: Weights,
    scale: float,
    steps: np.ndarray | None,
) -> None:
    """Where a call uses several matrices they are taken as one."""
    places = [[weights.index[id(p)] for p in row.weights if id(p) in weights.index] for row in rows]
    used = [i for i, place in enumerate(places) if place]
    if not used:
        return
    flat = np.array([p for i in used for p in places[i]])
    starts = np.cumsum([0, *(len(places[i]) for i in used)])[:-1]

    def together(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values[flat], starts)

    size = together(weights.sizes.astype(float))
    with np.errstate(all="ignore"):
        norm, gradient = (np.sqrt(together(v**2)) for v in (weights.norms, weights.gradients))
        product = together(weights.products)
        columns["weight_norm"][used] = norm
        logs = np.log(gradient) - np.log(scale)
        columns["weight_gradient_norm"][used] = np.exp(logs)
        columns["weight_sensitivity"][used] = logs + np.log(norm) - 0.5 * np.log(size)
        columns["effective_rate"][used] = np.exp(logs - np.log(norm))
        if steps is not None:
            columns["update"][used] = np.sqrt(together(steps**2)) / norm
        invariance = product * np.sqrt(size) / (norm * gradient)
    mark_invariant(columns, used, invariance, [rows[i].dtype.itemsize >= 4 for i in used])
    calls = np.bincount(flat, minlength=len(weights.sizes))
    columns["shared"][used] = [calls[places[i]].max() for i in used]
    columns["weight_faults"][used] = together(weights.faults[0])
    columns["gradient_faults"][used] += together(weights.faults[1])


def mark_invariant(
    columns: dict[str, np.ndarray],
    places: Sequence[int],
    invariance: np.ndarray,
    exact: Sequence[bool] | np.ndarray,
) -> None:
    """Say of weights whether their length matters.

    Args:
        columns: Of a table, which change in place.
        places: Of the weights.
        invariance: See ``COLUMNS``.
        exact: Whether numbers have enough digits to tell.
    """
    columns["invariance"][places] = invariance
    size = np.where(np.asarray(exact) & np.isfinite(invariance), np.abs(invariance), np.nan)
    columns["scale_invariant"][places] = np.select(
        [size < INVARIANT, size > DEPENDENT], [1.0, 0.0], np.nan
    )


def _faults(found: Pass, which: int) -> np.ndarray | float:
    """Counted where numbers left their range; elsewhere there are none."""
    if not found.careful:
        return 0.0
    return np.array([int(row.faults[which]) for row in found.rows]).astype(float)


def _extremes(rows: Sequence[Row], columns: dict[str, np.ndarray]) -> None:
    found = [(i, row.ends, row.dtype) for i, row in enumerate(rows) if row.ends is not None]
    if not found:
        return
    places = [i for i, _, _ in found]
    low, high = (numbers([ends[k] for _, ends, _ in found]).abs().numpy() for k in (0, 1))
    limits = np.array([torch.finfo(dtype).max for _, _, dtype in found])
    with np.errstate(all="ignore"):
        columns["largest"][places] = np.maximum(low, high)
        columns["headroom"][places] = np.log(limits) - np.log(np.maximum(low, high))


def _sparse(columns: dict[str, np.ndarray], column: str, values: Sequence[Any]) -> None:
    """Fill a column where there are values."""
    present = [i for i, value in enumerate(values) if value is not None]
    if present:
        columns[column][present] = numbers([values[i] for i in present]).numpy()
