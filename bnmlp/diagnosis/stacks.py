"""Rows of networks that keep R replicas in one tensor, by the protocol they offer.

Such networks are no tree of modules, so no hook sees their layers. Their weight matrices have names
and an order, and a BNMLP says what each of its layers does.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

from bnmlp.diagnosis.forms import LossFunction, loss_called, one_number
from bnmlp.diagnosis.kept import everything_kept
from bnmlp.diagnosis.table import COLUMNS, Table, mark_invariant
from bnmlp.machine.modes import ordinary
from bnmlp.machine.precision import float64
from bnmlp.measurements.gradients import NotFiniteError, gradient_norms
from bnmlp.networks.losses import default_loss
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
        ValueError: If samples and labels do not fit, or give no loss of one number.
    """
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise ValueError(
            "measure: networks of several replicas take samples as a tensor, and labels as another"
        )
    with everything_kept(network, training), torch.enable_grad():
        x, y = batch_of(network, ordinary(x), ordinary(y))
        known = isinstance(network, BNMLP)
        stages, logits = _recorded(network, x) if known else ([], network(x))
        losses = torch.stack(
            [_loss(one, labels, loss_fn) for one, labels in zip(logits, y, strict=True)]
        )
        named = {k: p for k, p in network.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(losses.sum(), list(named.values()), materialize_grads=True)
        losses = losses.detach()
        right = (logits.argmax(-1) == y).double().mean(-1)
        gradients = network.weight_matrices(dict(zip(named, found, strict=True)))
        numbers = _numbers(network, gradients)
        if known and loss_fn is None and not _safe(numbers["log_gradient"]):
            numbers["log_gradient"] = _exact(network, x, y, numbers["log_gradient"])
        outputs = _outputs(stages) if stages else {}
        if stages and not np.isfinite(outputs["mean_square"]).all():
            outputs["output_faults"] = _output_faults(network, x)
    names = list(gradients)
    return [
        (_table(names, stages, numbers, outputs, r), float(losses[r]), float(right[r]))
        for r in range(network.replicas)
    ]


def _loss(logits: Tensor, y: Tensor, loss_fn: LossFunction | None) -> Tensor:
    if loss_fn is None:
        return default_loss(logits, y)[0]
    return one_number(loss_called(loss_fn, logits, y))


class _Stage:
    """What one stage of a layer gives, for R networks at once. Numbers have the shape ``(R,)``."""

    def __init__(self, name: str, kind: str, value: Tensor) -> None:
        self.name, self.kind = name, kind
        x = value.detach()  # (R, d, n)
        self.shape, self.dtype = (x.shape[2], x.shape[1]), x.dtype
        self.norm = vector_norm(x, dim=(1, 2))
        self.total = vector_norm(x.sum(-1), dim=1)
        self.largest = x.abs().amax((1, 2))
        self.gradient: Tensor | None = None
        if value.requires_grad:
            value.register_hook(self.backward)

    def backward(self, gradient: Tensor) -> None:
        self.gradient = vector_norm(gradient, dim=(1, 2))


def _faults(x: Tensor) -> Tensor:
    """Entries of each network that are nan or infinite, for ``x`` of shape ``(R, d, n)``."""
    return (~x.isfinite()).sum((1, 2))


def _stages_of(model: BNMLP, x: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    """Name, kind and value ``(R, d, n)`` of every stage, the logits last."""
    for i, values in enumerate(model.stages(x), 1):
        before = None
        for stage, value in zip(model.stage_names, values, strict=True):
            if value is not before:  # the identity, or no normalisation
                yield f"layer {i}.{stage}", stage, value
            before = value
    yield "output", "linear", model.head(values[-1]).mT


def _recorded(model: BNMLP, x: Tensor) -> tuple[list[_Stage], Tensor]:
    """What each stage gives, and the logits ``(R, n, out)``."""
    stages = []
    for name, kind, value in _stages_of(model, x):
        stages.append(_Stage(name, kind, value))
    return stages, value.mT


@torch.no_grad()
def _output_faults(model: BNMLP, x: Tensor) -> np.ndarray:
    """What is not finite in each stage, by a pass of its own: counting takes long."""
    return _columns([_faults(value) for _, _, value in _stages_of(model, x)])


def _outputs(stages: Sequence[_Stage]) -> dict[str, np.ndarray]:
    """Columns about what stages give; each of shape ``(stages, R)``."""
    norm, total, largest = (
        _columns([getattr(s, key) for s in stages]) for key in ("norm", "total", "largest")
    )
    nothing = torch.full_like(stages[0].norm, math.nan)
    gradient = _columns([nothing if s.gradient is None else s.gradient for s in stages])
    n, d = np.array([stage.shape for stage in stages], float).T[:, :, None]
    limits = np.array([[torch.finfo(stage.dtype).max] for stage in stages])
    with np.errstate(all="ignore"):
        square = norm**2
        cosine = np.clip((total**2 / square - 1) / (n - 1), -1, 1)
        return {
            "mean_square": square / (n * d),
            "variance": np.maximum(0, square - total**2 / n) / (n * d),
            "cosine": np.where(n > 1, cosine, np.nan),
            "largest": largest,
            "headroom": np.log(limits) - np.log(largest),
            "gradient_norm": gradient,
            "sensitivity": np.log(gradient) + 0.5 * np.log(square / (n * d)),
            "output_faults": np.zeros(norm.shape),
        }


def _columns(rows: Sequence[Tensor]) -> np.ndarray:
    """Numbers of one transfer, float64. Shape ``(len(rows), R)``."""
    return np.asarray(float64(torch.stack(list(rows))).cpu().numpy())


def _numbers(network: Network, gradients: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Of all matrices and networks; each of shape ``(matrices, R)``."""
    weights = {k: w.detach() for k, w in network.weight_matrices().items()}
    found = [_sizes(float64(w), float64(gradients[k])) for k, w in weights.items()]
    norm, gradient, product = (_columns(column) for column in zip(*found, strict=True))
    with np.errstate(all="ignore"):
        return {
            "norm": norm,
            "log_gradient": np.log(gradient),
            "product": product,
            "size": np.array([[w[0].numel()] * len(w) for w in weights.values()], float),
            "faults": _faults_where(norm, list(weights.values())),
            "gradient_faults": _faults_where(gradient, [gradients[k] for k in weights]),
            "exact": np.array([[w.dtype.itemsize >= 4] * len(w) for w in weights.values()]),
        }


def _sizes(w: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Norms of weights and gradients of R networks, and their products."""
    return vector_norm(w, dim=(1, 2)), vector_norm(g, dim=(1, 2)), (w * g).sum((1, 2))


def _faults_where(norms: np.ndarray, matrices: Sequence[Tensor]) -> np.ndarray:
    """Entries that are not finite; none where a norm is finite, which need not be looked at."""
    found = np.zeros(norms.shape)
    for i in np.flatnonzero(~np.isfinite(norms).all(1)).tolist():
        found[i] = _faults(matrices[i]).cpu().numpy()
    return found


def _safe(logs: np.ndarray) -> bool:
    return bool((np.isfinite(logs) & (logs > -80) & (logs < 80)).all())


def _exact(model: BNMLP, x: Tensor, y: Tensor, logs: np.ndarray) -> np.ndarray:
    """Logarithms that no depth takes out of range, where there are any."""
    try:
        return np.array(gradient_norms(model, x, y, log=True).cpu().numpy())
    except NotFiniteError:
        return logs


def _table(
    names: list[str], stages: list[_Stage], numbers: dict[str, np.ndarray],
    outputs: dict[str, np.ndarray], r: int,
) -> Table:  # fmt: skip
    """One network's rows: of its stages, or of its matrices where it has none."""
    by_name = {f"{name}.linear": i for i, name in enumerate(names)} | {
        name: i for i, name in enumerate(names)
    }
    rows = [(s.name, s.kind) for s in stages] or [(name, "matrix") for name in names]
    columns = {k: np.full(len(rows), np.nan) for k in COLUMNS}
    for key, values in outputs.items():
        columns[key][:] = values[:, r]
    places = [i for i, (name, _) in enumerate(rows) if name in by_name]
    matrix = [by_name[rows[i][0]] for i in places]
    _fill(columns, places, {k: v[matrix, r] for k, v in numbers.items()})
    if stages:
        inner = np.array(places[1:], dtype=int)
        columns["input_rms"][inner] = np.sqrt(columns["mean_square"][inner - 1])
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
