"""Loss and accuracy with batch, running or recalibrated statistics: three different networks."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import Dataset

from bnmlp.checks import check_module
from bnmlp.layers.activations import activation_parts
from bnmlp.layers.normalization import refuse_single_sample
from bnmlp.layers.seeds import random_order
from bnmlp.machine.modes import outside_modes
from bnmlp.machine.precision import float64
from bnmlp.measurements.recalibration import NORMS, input_of, recalibrate_module
from bnmlp.networks.eager import activate, is_one
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import (
    Network,
    as_network,
    averages_kept,
    averaging,
    class_labels,
    labels_like,
)

STATISTICS = ("batch", "running", "recalibrated")
CHUNK = 1000  # samples that pass through the layers together


class Evaluation(NamedTuple):
    """How well each replica does.

    Attributes:
        loss: Mean cross entropy in nats, float64. Shape ``(R,)``.
        accuracy: Share of samples whose largest logit is the label's, float64. Shape ``(R,)``.
    """

    loss: Tensor
    accuracy: Tensor


@outside_modes
@torch.no_grad()
def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    statistics: str = "batch",
    *,
    calibration: Tensor | None = None,
    batch_size: int = 100,
) -> Evaluation:
    """Loss and accuracy of every replica; the model stays as it was.

    ``"batch"`` normalises each batch with its own mean and variance, as in training: what it says
    about a sample depends on its company. ``"running"`` uses the averages kept in training, as
    PyTorch does after ``.eval()``. ``"recalibrated"`` uses the statistics of one large set of
    training samples, layer by layer: each layer is measured behind layers that use theirs already.
    The three are the same for a model without batch normalisation.

    Args:
        model: R networks, or any module that maps samples to logits. Where that is no BNMLP, no
            layer but batch normalisation is in training mode.
        x: Samples. Shape ``(N, ...)``.
        y: Labels. Shape ``(N,)``.
        statistics: ``"batch"``, ``"running"`` or ``"recalibrated"``.
        calibration: Training samples for ``"recalibrated"``, shared by the replicas or some for
            each. Shape ``(M, ...)`` or ``(R, M, ...)``.
        batch_size: Samples in a batch for ``"batch"``; batches are random with a fixed seed,
            sizes differ by one if they must. Where samples are centred no batch has only one.

    Returns:
        Losses and accuracies, on the CPU.

    Raises:
        ValueError: If the name is unknown, calibration samples are missing, shapes do not fit, or
            a single sample would be centred.
    """
    if statistics not in STATISTICS:
        raise ValueError(f"unknown statistics {statistics!r}; use one of {', '.join(STATISTICS)}")
    if batch_size < 1:
        raise ValueError(f"evaluate: batch_size must be at least 1, got {batch_size}")
    if statistics == "recalibrated" and calibration is None:
        raise ValueError('evaluate: "recalibrated" needs training samples, pass calibration=')
    if not isinstance(model, BNMLP):
        return _evaluate_any(as_network(model), x, y, statistics, calibration, batch_size)
    if x.ndim != 2:
        raise ValueError(f"evaluate: expected samples of shape (N, features), got {tuple(x.shape)}")
    model.check_input(x)
    y = labels_like(model.output_weight, x, y)[0]
    batches = max(1, round(len(x) / batch_size))
    if model.norm == "batch" and statistics == "batch" and model.center:
        refuse_single_sample("evaluate", min(len(x), batch_size))
        batches = min(batches, len(x) // 2)
    averages = None
    if model.norm == "batch" and statistics == "running":
        averages = model.running_mean, model.running_var
    elif model.norm == "batch" and statistics == "recalibrated" and calibration is not None:
        averages = population_statistics(model, calibration, batch_size)

    order = random_order(len(x), 0).to(x.device)
    total = torch.zeros(2, model.replicas, dtype=torch.float64, device="cpu")
    for chunk in _chunks(order.tensor_split(batches)):
        chosen = torch.cat(chunk)
        logits = _logits(model, x[chosen], averages, len(chunk[0]))  # (R, N, out)
        index = y[chosen].expand(model.replicas, -1).unsqueeze(-1)
        losses = -torch.log_softmax(logits, -1).gather(-1, index).squeeze(-1)
        correct = logits.argmax(-1) == y[chosen]
        total += torch.stack([losses.sum(-1), correct.sum(-1)]).cpu().double()
    return Evaluation(*(total / len(x)))


@outside_modes
@torch.no_grad()
def recalibrate(
    model: nn.Module, data: Tensor | Iterable[Any], batch_size: int = 100, *, exact: bool = True
) -> None:
    """Set the running averages to the statistics of some training samples, layer by layer.

    Each layer is measured behind layers that use theirs already. Of one tensor that takes one pass.
    Of several batches it takes one for each call of a norm, which ends there: as much as half as
    many whole passes. ``exact=False`` takes one: each batch is normalised with its own statistics,
    and these are pooled. How far the spread of logits is off then, in networks trained on digits:
    60 tanh layers, 0.1 % with batches of 32; 30 ReLU layers, 6 to 30 % with batches of 32 and 1 %
    with 500; 40 ReLU layers that had not learnt, a factor of ten, and 13 %.

    A norm that is called several times keeps the pooled statistics of all its calls. What several
    processes train together each recalibrates with what it is given: give all the same.

    Args:
        model: R networks, or any module with batch norm or instance norm in it.
        data: Training samples, the more the better: a tensor of shape ``(N, ...)``, for R networks
            also ``(R, N, ...)``; or batches, as a loader gives them: samples, tuples that begin
            with samples, or dicts of named arguments.
        batch_size: Samples in a training batch: a row's norm, which ``unit_norm`` keeps, grows
            with it.
        exact: Whether several batches count as one, see above.

    Raises:
        TypeError: If the data are no tensors.
        ValueError: If a module keeps no running averages (the networks of this package stay as
            they are then), there are no samples or a single one would be centred, they do not fit
            the model, or statistics are not finite. Nothing has changed then.
    """
    check_module("recalibrate", model)
    if not isinstance(data, Iterable) or isinstance(data, (np.ndarray, Dataset)):
        raise TypeError(
            f"recalibrate: expected a tensor of samples or batches of them, got "
            f"{type(data).__name__}; torch.as_tensor makes one of an array, DataLoader batches of "
            "a dataset"
        )
    if any(value.is_meta for value in model.buffers()):
        raise ValueError("recalibrate: averages on the device 'meta' hold no numbers")
    if isinstance(model, BNMLP):
        if model.norm == "batch":
            samples = data if isinstance(data, Tensor) else _joined(data)
            mean, var = population_statistics(model, samples, batch_size)
            model.running_mean.copy_(mean)
            model.running_var.copy_(var)
        return
    if not hasattr(model, "weight_matrices"):
        _refuse_without_averages(model)
    elif not isinstance(data, Tensor):
        data = _joined(data)
    whole = isinstance(data, (Tensor, PackedSequence))
    recalibrate_module(model, [data] if whole else data, exact=exact)


def _joined(batches: Iterable[Any]) -> Tensor:
    """Batches as one, for networks side by side, which take all samples together."""
    parts = [input_of(batch) for batch in batches]
    if not parts:
        raise ValueError("recalibration: no batches")
    return torch.cat(parts)


def _refuse_without_averages(model: nn.Module) -> None:
    if averaging(model):
        return
    norms = [m for m in model.modules() if isinstance(m, NORMS)]
    why = "keeps none (track_running_stats=False)" if norms else "has no batch normalisation"
    raise ValueError(f"recalibrate: there are no running averages to set: the module {why}")


@torch.no_grad()
def population_statistics(model: BNMLP, x: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Statistics of what every layer normalises, all samples being one batch.

    The variance is the biased one that normalises in training; ``running_var`` of PyTorch holds
    the unbiased one, larger by n / (n - 1), which shrinks every layer a little in evaluation.

    Args:
        model: R networks with batch normalisation.
        x: Samples. Shape ``(N, in_features)`` or ``(R, N, in_features)``.
        batch_size: See :func:`bnmlp.recalibrate`.

    Returns:
        As ``running_mean`` and ``running_var`` of the model. Each of shape ``(depth, R, width)``.

    Raises:
        ValueError: As :func:`bnmlp.recalibrate`.
    """
    model.check_input(x)
    n = x.shape[-2]
    if model.center:
        refuse_single_sample("recalibration", n)
    means, variances = torch.zeros_like(model.running_mean), torch.ones_like(model.running_var)

    def normalize(i: int, z: Tensor) -> Tensor:
        mean, var = model.batch_statistics(z)
        if model.unit_norm:
            var = var * (batch_size / n)
        elif model.center:  # as normalised in training: without Bessel's correction
            var = var * ((n - 1) / n)
        variances[i] = var
        if mean is not None:
            means[i] = mean
        return _fixed_norm(model, z, means[i], variances[i])

    _last_representation(model, x, normalize)
    return means, variances


@contextlib.contextmanager
def averages_without_start(network: nn.Module, steps: int, batch_size: int) -> Iterator[None]:
    """Free running averages of their first value, and variances of Bessel's correction, for now.

    Args:
        network: R networks whose averages began with mean zero and variance one.
        steps: Batches that they have seen.
        batch_size: Numbers behind each variance of a batch.
    """
    with averages_kept(network), torch.no_grad():
        for module in averaging(network):
            memory = (1 - module.momentum) ** steps
            module.running_mean.div_(1 - memory)
            bessel = (batch_size - 1) / batch_size
            module.running_var.sub_(memory).mul_(bessel / (1 - memory))
        yield


def _evaluate_any(
    network: Network,
    x: Tensor,
    y: Tensor,
    statistics: str,
    calibration: Tensor | None,
    batch_size: int,
) -> Evaluation:
    if y.shape != x.shape[:1]:
        raise ValueError(f"evaluate: {len(x)} samples need as many labels, got {tuple(y.shape)}")
    batches = max(1, round(len(x) / batch_size))
    normalizing = averaging(network) if statistics == "batch" else []
    if normalizing:
        refuse_single_sample("evaluate", min(len(x), batch_size))
        batches = min(batches, len(x) // 2)
    total = torch.zeros(2, network.replicas, dtype=torch.float64, device="cpu")
    with averages_kept(network):
        if statistics == "recalibrated" and calibration is not None:
            recalibrate_module(cast(nn.Module, network), [calibration])
        network.eval()
        for module in normalizing:
            module.training = True
        for chosen in random_order(len(x), 0).to(x.device).tensor_split(batches):
            logits = float64(network(x[chosen]))
            replicas, n, classes = logits.shape
            labels = class_labels(y[chosen], replicas, n, classes, x.device).to(logits.device)
            losses = F.cross_entropy(logits.mT, labels, reduction="none")
            right = logits.argmax(-1) == labels
            total += torch.stack([losses.sum(-1), right.sum(-1)]).cpu()
    return Evaluation(*(total / len(x)))


def _chunks(batches: tuple[Tensor, ...]) -> list[list[Tensor]]:
    """Neighbouring batches of equal size, about as many as ``CHUNK`` samples at a time."""
    chunks = [[batches[0]]]
    for batch in batches[1:]:
        last = chunks[-1]
        if len(batch) == len(last[0]) and len(batch) * (len(last) + 1) <= CHUNK:
            last.append(batch)
        else:
            chunks.append([batch])
    return chunks


def _logits(
    model: BNMLP, x: Tensor, averages: tuple[Tensor, Tensor] | None, batch_size: int
) -> Tensor:
    """Logits ``(R, N, out)`` with fixed statistics, or with those of batches in a row."""

    def normalize(i: int, z: Tensor) -> Tensor:
        if model.norm != "batch":
            return model.normalize(z)
        if averages is not None:
            return _fixed_norm(model, z, averages[0][i], averages[1][i])
        return model.normalize(z.unflatten(-1, (-1, batch_size))).flatten(-2)

    return model.head(_last_representation(model, x, normalize))


def _fixed_norm(model: BNMLP, z: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    scale = torch.rsqrt(var + model.eps).unsqueeze(-1)
    return torch.addcmul(-mean.unsqueeze(-1) * scale, z, scale)


def _last_representation(
    model: BNMLP, x: Tensor, normalize: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """The way in with a normalisation of one's choice, in place where it can be."""
    h, parts = x.mT, activation_parts(model.activation)
    layers = zip(model.layer_weights(), model.gains_like(x), strict=True)
    for i, (weight, gain) in enumerate(layers):
        z = weight @ h  # (R, d, N)
        if model.bias:
            z += model.layer_bias[i].unsqueeze(-1)
        if model.order == "act_norm":
            z = activate(parts, z.mul_(gain), z)
        h = normalize(i, z)
        if model.affine and model.norm != "none":
            h = torch.addcmul(
                model.norm_bias[i].unsqueeze(-1), h, model.norm_weight[i].unsqueeze(-1)
            )
        if model.order == "norm_act":
            h = h if is_one(gain) else h.mul_(gain)
            h = h if model.activation == "identity" else activate(parts, h, h)
    return h
