"""Rows of networks that keep R replicas in one tensor, by the protocol they offer.

Such networks are no tree of modules, so no hook sees their layers. Their weight matrices have names
and an order, and a BNMLP says what each of its layers does.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vector_norm

from bnmlp.diagnosis.forms import LossFunction
from bnmlp.diagnosis.kept import everything_kept
from bnmlp.diagnosis.table import COLUMNS, Table, mark_invariant
from bnmlp.machine.modes import ordinary
from bnmlp.machine.precision import float64
from bnmlp.measurements.gradients import NotFiniteError, gradient_norms
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import Network, batch_of

Replicas = list[tuple[Table, float, float]]  # with the loss and the accuracy of each


def is_stack(model: object) -> bool:
    """Whether a module offers the protocol of several networks in one."""
    return hasattr(model, "weight_matrices") and hasattr(model, "replica_axis")


def tables_of_stack(
    network: Any, x: Tensor, y: Tensor, loss_fn: LossFunction | None, training: bool | None
) -> Replicas:
    """Measure each of R networks.

    Args:
        network: They are left as they were, bit for bit.
        x: Samples. Shape ``(n, ...)`` or ``(R, n, ...)``.
        y: Class labels. Shape ``(n,)`` or ``(R, n)``.
        loss_fn: Of logits ``(n, out)`` and labels; cross entropy if omitted.
        training: Mode; as it is if None.

    Returns:
        For each network a table, its loss, and the share of labels that are right.

    Raises:
        ValueError: If samples and labels do not fit.
    """
    with everything_kept(network, training), torch.enable_grad():
        x, y = batch_of(network, ordinary(x), ordinary(y))
        stages: list[_Stage] = []
        logits = _bnmlp_logits(network, x, stages) if isinstance(network, BNMLP) else network(x)
        losses = torch.stack(
            [
                (loss_fn or F.cross_entropy)(one, labels)
                for one, labels in zip(logits, y, strict=True)
            ]
        )
        named = {k: p for k, p in network.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(losses.sum(), list(named.values()), materialize_grads=True)
        losses = losses.detach()
        right = (logits.argmax(-1) == y).double().mean(-1)
        gradients = network.weight_matrices(dict(zip(named, found, strict=True)))
        numbers = _numbers(network, gradients)
        if isinstance(network, BNMLP) and loss_fn is None and not _safe(numbers["log_gradient"]):
            numbers["log_gradient"] = _exact(network, x, y, numbers["log_gradient"])
    names = list(gradients)
    return [
        (_table(names, stages, numbers, r), float(losses[r]), float(right[r]))
        for r in range(network.replicas)
    ]


class _Stage:
    """What one stage of a layer gives, for R networks at once. Numbers have the shape ``(R,)``."""

    def __init__(self, name: str, kind: str, value: Tensor) -> None:
        self.name, self.kind = name, kind
        x = value.detach()  # (R, d, n)
        self.shape, self.dtype = (x.shape[2], x.shape[1]), x.dtype
        self.norm = vector_norm(x, dim=(1, 2))
        self.total = vector_norm(x.sum(-1), dim=1)
        self.largest = x.abs().amax((1, 2))
        self.faults = (~x.isfinite()).sum((1, 2))
        self.gradient: Tensor | None = None
        if value.requires_grad:
            value.register_hook(self.backward)

    def backward(self, gradient: Tensor) -> None:
        self.gradient = vector_norm(gradient, dim=(1, 2))

    def columns(self, r: int) -> dict[str, float]:
        """Numbers of one network."""
        n, d = self.shape
        norm, total, largest = (float(v[r]) for v in (self.norm, self.total, self.largest))
        gradient = float("nan") if self.gradient is None else float(self.gradient[r])
        with np.errstate(all="ignore"):
            square, largest = np.float64(norm) ** 2, np.float64(largest)
            return {
                "mean_square": square / (n * d),
                "variance": np.maximum(0, square - np.float64(total) ** 2 / n) / (n * d),
                "cosine": np.clip((total**2 / square - 1) / (n - 1), -1, 1) if n > 1 else np.nan,
                "largest": largest,
                "headroom": np.log(torch.finfo(self.dtype).max) - np.log(largest),
                "gradient_norm": gradient,
                "sensitivity": np.log(gradient) + 0.5 * np.log(square / (n * d)),
                "output_faults": float(self.faults[r]),
            }


def _bnmlp_logits(model: BNMLP, x: Tensor, stages: list[_Stage]) -> Tensor:
    """Logits ``(R, n, out)``; keeps what each stage gives."""
    for i, values in enumerate(model.stages(x), 1):
        before = None
        for stage, value in zip(model.stage_names, values, strict=True):
            if value is not before:  # the identity, or no normalisation
                stages.append(_Stage(f"layer {i}.{stage}", stage, value))
            before = value
    logits = model.head(values[-1])
    stages.append(_Stage("output", "linear", logits.mT))
    return logits


def _numbers(network: Network, gradients: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Of all matrices and networks; each of shape ``(matrices, R)``."""
    weights = network.weight_matrices()

    def each(function: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
        pairs = ((float64(w.detach()), float64(gradients[k])) for k, w in weights.items())
        return np.array(torch.stack([function(w, g) for w, g in pairs]).cpu().numpy())

    with np.errstate(all="ignore"):
        return {
            "norm": each(lambda w, g: vector_norm(w, dim=(1, 2))),
            "log_gradient": np.log(each(lambda w, g: vector_norm(g, dim=(1, 2)))),
            "product": each(lambda w, g: (w * g).sum((1, 2))),
            "size": np.array([[w[0].numel()] * len(w) for w in weights.values()], float),
            "faults": each(lambda w, g: (~w.isfinite()).sum((1, 2))),
            "gradient_faults": each(lambda w, g: (~g.isfinite()).sum((1, 2))),
            "exact": np.array([[w.dtype.itemsize >= 4] * len(w) for w in weights.values()]),
        }


def _safe(logs: np.ndarray) -> bool:
    return bool((np.isfinite(logs) & (logs > -80) & (logs < 80)).all())


def _exact(model: BNMLP, x: Tensor, y: Tensor, logs: np.ndarray) -> np.ndarray:
    """Logarithms that no depth takes out of range, where there are any."""
    try:
        return np.array(gradient_norms(model, x, y, log=True).cpu().numpy())
    except NotFiniteError:
        return logs


def _table(
    names: list[str], stages: list["_Stage"], numbers: dict[str, np.ndarray], r: int
) -> Table:
    """One network's rows: of its stages, or of its matrices where it has none."""
    by_name = {f"{name}.linear": i for i, name in enumerate(names)} | {
        name: i for i, name in enumerate(names)
    }
    rows = [(s.name, s.kind) for s in stages] or [(name, "matrix") for name in names]
    columns = {k: np.full(len(rows), np.nan) for k in COLUMNS}
    for i, stage in enumerate(stages):
        for key, value in stage.columns(r).items():
            columns[key][i] = value
    places = [i for i, (name, _) in enumerate(rows) if name in by_name]
    matrix = [by_name[rows[i][0]] for i in places]
    _fill(columns, places, {k: v[matrix, r] for k, v in numbers.items()})
    for before, place in zip(places[:-1], places[1:], strict=True):
        if stages:
            columns["input_rms"][place] = np.sqrt(columns["mean_square"][place - 1])
    shapes: list[tuple[int, ...]] = [stage.shape for stage in stages]
    shapes = shapes or [()] * len(rows)
    dtypes = [str(stage.dtype).removeprefix("torch.") for stage in stages] or [""] * len(rows)
    return Table(
        [n for n, _ in rows], [k for _, k in rows], shapes, dtypes, columns, [None] * len(rows)
    )


def _fill(columns: dict[str, Any], places: list[int], of: dict[str, np.ndarray]) -> None:
    """Columns about weights."""
    with np.errstate(all="ignore"):
        columns["layer"][places] = 1 + np.arange(len(places))
        columns["weight_norm"][places] = of["norm"]
        columns["weight_gradient_norm"][places] = np.exp(of["log_gradient"])
        relative = of["log_gradient"] - np.log(of["norm"])
        columns["effective_rate"][places] = np.exp(relative)
        sizes = 2 * np.log(of["norm"]) - 0.5 * np.log(of["size"])
        columns["weight_sensitivity"][places] = relative + sizes
    columns["weight_faults"][places] = of["faults"]
    columns["gradient_faults"][places] = of["gradient_faults"]
    columns["shared"][places] = 1
    with np.errstate(all="ignore"):
        products = of["product"] / np.exp(relative + 2 * np.log(of["norm"])) * np.sqrt(of["size"])
    mark_invariant(columns, places, products, of["exact"])
