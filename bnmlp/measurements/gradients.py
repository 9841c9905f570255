"""Gradient norms of every layer and the rate at which they grow towards the input."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bnmlp.machine.modes import ordinary, outside_modes
from bnmlp.machine.precision import float64
from bnmlp.networks import engine
from bnmlp.networks.losses import matrix_gradients
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import as_network, labels_like
from bnmlp.networks.replicas import subset

SPARE = 2**30  # bytes for buffers that save computing representations twice


class NotFiniteError(ValueError):
    """A gradient leaves the range of the type it is computed in."""


@outside_modes
def gradient_norms(model: nn.Module, x: Tensor, y: Tensor, *, log: bool = False) -> Tensor:
    r"""Frobenius norms of the gradients of the mean cross entropy for every weight matrix.

    Computed in the type of the weights, also where ``torch.autocast`` is on, and for networks whose
    signals or gradients fall below what that type can hold once more in float64. Frozen weights
    have gradients like others.

    Args:
        model: R networks, or any module that maps samples to logits.
        x: Samples. Shape ``(n, ...)`` or ``(R, n, ...)``.
        y: Class labels, integers. Shape ``(n,)`` or ``(R, n)``.
        log: Return natural logarithms, which do not overflow at any depth; minus infinity says
            that a gradient is zero in float64.

    Returns:
        :math:`\lVert\partial\mathcal L/\partial W\rVert_F`, input layer first, output layer last,
        float64. Shape ``(matrices, R)``, for a BNMLP ``(depth + 1, R)``.

    Raises:
        ValueError: If samples or labels do not fit the model, a gradient is not finite, or batch
            normalisation would centre a single sample.
    """
    if not isinstance(model, BNMLP):
        found, _ = matrix_gradients(as_network(model), ordinary(x), ordinary(y))
        return _checked(torch.stack([_norm(matrix) for matrix in found.values()]).log(), log)
    model.check_input(x)
    model.check_batch_size(x)
    y = labels_like(model.output_weight, x, y)
    logs, lost = _log_norms(model, x, y)
    if x.dtype != torch.float64 and lost.any():
        logs[:, lost] = _in_float64(model, x, y, lost.nonzero().flatten().tolist()).to(logs)
    return _checked(logs, log)


@outside_modes
@torch.no_grad()
def deep_gradient_norms(
    x: Tensor,
    y: Tensor,
    *,
    width: int,
    depth: int,
    out_features: int,
    log: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> Tensor:
    """Gradient norms at initialisation of networks deeper than memory holds.

    The same as :func:`gradient_norms` of a new :class:`BNMLP`, in memory that grows with the
    square root of the depth: weights are drawn from the seed when a layer needs them, twice, and
    representations are computed twice.

    Args:
        x: Samples; their type and device are those of the computation. Shape
            ``(n, in_features)`` or ``(R, n, in_features)``.
        y: Class labels, integers. Shape ``(n,)`` or ``(R, n)``.
        width: Features of each layer.
        depth: Number of normalised layers.
        out_features: Number of logits.
        log: Return natural logarithms: gradients that explode leave float64 near 700 nats.
        progress: Show a progress bar; by default where standard error is a terminal.
        **options: Further options of :class:`BNMLP`, as ``init``, ``replicas`` and ``seed``.

    Returns:
        Norms, input layer first, output layer last, float64. Shape ``(depth + 1, R)``.

    Raises:
        ValueError: As :class:`BNMLP` and :func:`gradient_norms`, and for an affine part or bias.
    """
    if x.ndim < 2:
        raise ValueError(f"deep_gradient_norms: samples are rows, got shape {tuple(x.shape)}")
    if "dtype" in options or "device" in options:
        raise ValueError("deep_gradient_norms: dtype and device are those of x; convert x")
    # On the device "meta" the model is a description without weights.
    model = BNMLP(x.shape[-1], width, depth, out_features, dtype=x.dtype, device="meta", **options)
    if model.affine or model.layer_bias is not None:
        raise ValueError("deep_gradient_norms: affine and bias change nothing at initialisation")
    model.check_shape(x)
    model.check_batch_size(x)
    labels = labels_like(model.output_weight, x, y)
    hidden = None if progress is None else not progress

    def weights_of(layers: range) -> list[Tensor]:
        return [w.to(x.device) for w in model.draw_weights(layers)]

    def bar(segments: range) -> Iterable[int]:
        from tqdm import tqdm

        return tqdm(segments, disable=hidden, unit="segment", leave=False)

    logs, lost = _record(model, x, labels, weights_of, progress=bar)
    if x.dtype != torch.float64 and lost.any():
        x = float64(x)
        exact = deep_gradient_norms(
            x, y.to(x.device), width=width, depth=depth, out_features=out_features,
            log=True, progress=progress, **options,
        )  # fmt: skip
        logs = torch.where(lost, exact.to(logs), logs)
    return _checked(logs, log)


def explosion_rate(
    norms: Tensor, layers: Sequence[int] | None = None, *, log: bool = False
) -> Tensor:
    r"""Minus the least-squares slope of log gradient norm against layer index.

    Positive where gradients grow towards the input: a rate :math:`\rho` multiplies the norm by
    :math:`e^\rho` for every layer passed on the way back. Defined in :eq:`explosion-rate`.

    Args:
        norms: Gradient norms, as :func:`gradient_norms` returns them. Shape ``(depth + 1, R)``.
        layers: Rows of ``norms`` to fit; all but the first and the last if omitted, since the
            rectangular input and output matrices are not comparable with the others.
        log: Whether logarithms of the norms are given, which no depth makes too large.

    Returns:
        Rate in nats per layer, float64. Shape ``(R,)``.

    Raises:
        ValueError: If fewer than two layers remain, an index is outside the network, or a norm
            is not positive and finite.
    """
    if norms.ndim != 2:
        raise ValueError(
            f"explosion_rate: expected norms of shape (depth + 1, R), got {tuple(norms.shape)}"
        )
    rows = range(1, len(norms) - 1) if layers is None else list(layers)
    if len(set(rows)) < 2:
        raise ValueError(
            f"explosion_rate: a slope needs two layers, got {len(set(rows))}; "
            "use a deeper network or name the layers"
        )
    if min(rows) < 0 or max(rows) >= len(norms):
        raise ValueError(
            f"explosion_rate: layers must lie in 0..{len(norms) - 1}, got {min(rows)}..{max(rows)}"
        )
    logs = float64(norms[list(rows)])  # (layers, R)
    logs = logs if log else logs.log()
    index = torch.tensor(list(rows), dtype=torch.float64, device=logs.device)
    if not logs.isfinite().all():
        raise ValueError(
            "explosion_rate: norms must be positive and finite; where gradients leave the range "
            "of float32 build the model with dtype=torch.float64"
        )
    centred = index - index.mean()
    return -(centred @ (logs - logs.mean(0))) / centred.square().sum()


@torch.no_grad()
def _log_norms(model: BNMLP, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the norms, and which networks have one below the range of the type."""
    weights = (*model.layer_weights(), model.output_weight)

    def weights_of(layers: range) -> Sequence[Tensor]:
        return weights[layers.start : layers.stop]

    return _record(model, x, y, weights_of, spare=SPARE)


def _in_float64(model: BNMLP, x: Tensor, y: Tensor, replicas: list[int]) -> Tensor:
    """Logarithms of the norms of some networks. Shape ``(depth + 1, len(replicas))``."""
    exact = float64(subset(model, replicas), x.device)
    x = float64(x if x.ndim == 2 else x[replicas])
    return _log_norms(exact, x, y[replicas].to(x.device))[0]


def _record(
    model: BNMLP,
    x: Tensor,
    y: Tensor,
    weights_of: Callable[[range], Sequence[Tensor]],
    **options: Any,
) -> tuple[Tensor, Tensor]:
    place = "cpu" if x.device.type == "mps" else x.device  # MPS has no float64
    logs = torch.empty(model.depth + 1, model.replicas, dtype=torch.float64, device=place)
    scales: dict[int, Tensor] = {}

    def record(layer: int, grad: Tensor, h: Tensor, log2_scale: Tensor) -> None:
        scales[layer] = log2_scale.to(logs) * math.log(2)
        logs[layer] = _norm(torch.bmm(grad, h.mT)).log() + scales[layer]

    engine.backward_in_segments(model, x, y, weights_of, record, **options)
    scale = torch.stack([scales[layer] for layer in range(model.depth + 1)])
    held = logs - scale  # logarithms of the numbers that were computed
    return logs, (held < math.log(torch.finfo(x.dtype).tiny)).any(0)


def _checked(logs: Tensor, log: bool) -> Tensor:
    norms = logs if log else logs.exp()
    wrong = norms.isnan() | norms.isposinf()  # minus infinity is the logarithm of zero
    if wrong.any():
        raise NotFiniteError(
            f"gradient_norms: {int(wrong.sum())} of {norms.numel()} norms are not finite; if the "
            "samples are, use dtype=torch.float64, and log=True where that overflows too"
        )
    return norms


def _norm(gradient: Tensor) -> Tensor:
    if gradient.device.type == "mps":
        gradient = gradient.cpu()
    if gradient.device.type == "cpu":
        norm = torch.linalg.vector_norm(gradient, dim=(-2, -1)).double()
        # The square of a float32 overflows near 1e19 and underflows near 1e-19.
        low, high = torch.aminmax(norm) if norm.numel() else (1.0, 1.0)
        if low > 1e-15 and high < 1e18:
            return norm
    return torch.linalg.vector_norm(gradient, dim=(-2, -1), dtype=torch.float64)
