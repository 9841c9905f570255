"""Networks that fail, their cures and their training: for a chapter and the runs stored with it."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bnmlp.data.batches import epoch_batches, images, patches
from bnmlp.data.datasets import Dataset
from bnmlp.diagnosis.cures import orthogonal_, shape_
from bnmlp.diagnosis.measure import measure
from bnmlp.diagnosis.report import Report
from bnmlp.measurements.evaluation import recalibrate
from bnmlp.measurements.scores import evaluations
from bnmlp.networks.convolutional import ResNet
from bnmlp.networks.protocol import One
from bnmlp.training.batchwise import optimise
from bnmlp.training.networks import seeded

PROBED = 100  # samples that a report is about
LAST = 20  # steps whose losses are averaged
CALIBRATION = 1000  # samples behind new running averages


def deep_perceptron(depth: int = 60, width: int = 100) -> nn.Sequential:
    """Gaussian matrices, each with batch norm and ReLU behind it, and a linear map to ten logits.

    Args:
        depth: Normalised layers.
        width: Features of each.

    Returns:
        The network, from ``(n, 784)`` to logits ``(n, 10)``.
    """
    layers = []
    for features in [784, *[width] * (depth - 1)]:
        linear = nn.Linear(features, width, bias=False)
        nn.init.normal_(linear.weight, std=features**-0.5)
        layers.append(nn.Sequential(linear, nn.BatchNorm1d(width), nn.ReLU()))
    return nn.Sequential(*layers, nn.Linear(width, 10))


def shape_perceptron(model: nn.Module, *, orthogonal: bool = True, exponent: float = 0.4) -> None:
    """Tanh for ReLU, orthogonal matrices, and ever smaller gains.

    Args:
        model: Changes in place.
        orthogonal: Whether matrices are drawn anew.
        exponent: The gain of layer l is l to the power of minus this.
    """
    for part in model.modules():
        for name, inner in part.named_children():
            if isinstance(inner, nn.ReLU):
                setattr(part, name, nn.Tanh())
    if orthogonal:
        orthogonal_(model)
    shape_(model, exponent)


def small_resnet() -> ResNet:
    """A ResNet of 20 layers and 8 channels, for grey images."""
    return ResNet(3, 8, in_channels=1)


def slow_resnet() -> ResNet:
    """The same with running averages of momentum 0.01, a tenth of PyTorch's."""
    model = small_resnet()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.01
    return model


class BareTransformer(nn.Module):
    """Blocks of attention and perceptron, each added to its input, and no normalisation.

    Matrices of the blocks are Gaussian, of variance one over the number of columns; positions are
    learnt, and the mean over tokens is read out.

    Args:
        depth: Blocks.
        width: Length of a token inside.
        tokens: Of a sample.
        features: Length of a token of the input.
    """

    blocks: Any  # BareBlocks in a ModuleList

    def __init__(
        self, depth: int = 24, width: int = 32, tokens: int = 16, features: int = 49
    ) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(features, width), nn.Linear(width, 10)
        self.position = nn.Parameter(0.3 * torch.randn(tokens, width))
        self.blocks = nn.ModuleList(BareBlock(width) for _ in range(depth))
        for weight in self.blocks.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, 10)`` of samples ``(n, tokens, features)``."""
        x = self.embed(x) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class BareBlock(nn.Module):
    """Attention of four heads and a perceptron, each added to its input.

    Args:
        width: Length of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.up, self.act = nn.Linear(width, 2 * width), nn.GELU()
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The sums, in the same shape ``(n, tokens, width)``."""
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.down(self.act(self.up(x)))


@torch.no_grad()
def calm_transformer(model: BareTransformer, *, orthogonal: bool = False) -> None:
    """Divide the last matrix of each of 2L branches by the root of 2L.

    Args:
        model: Changes in place.
        orthogonal: Whether matrices of blocks are drawn anew before.
    """
    if orthogonal:
        orthogonal_(model.blocks)
    for block in model.blocks:
        for last in (block.attention.out_proj, block.down):
            last.weight.mul_((2 * len(model.blocks)) ** -0.5)


def even_transformer(model: BareTransformer) -> None:
    """The same factor, shared by the two matrices of each branch, which are orthogonal."""
    orthogonal_(model.blocks, gain=(2 * len(model.blocks)) ** -0.25)


@dataclass(frozen=True)
class Patient:
    """A network that fails, and what cures it.

    Attributes:
        build: Makes it, from PyTorch's random numbers.
        cures: Change it in place, with training samples at hand; the first one is "cured".
        view: Rows of digits as the samples that it takes.
        optimizer: From parameters.
        size: Samples in a batch of training.
        late: Cures come after training.
        averaged: Factor of a running average of the weights, which is what is evaluated then.
    """

    build: Callable[[], nn.Module]
    cures: Mapping[str, Callable[[Any, Tensor], object]]
    view: Callable[[Tensor], Tensor]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    size: int
    late: bool = False
    averaged: float | None = None

    def network(self, seed: int) -> nn.Module:
        """A fresh one, untreated."""
        return seeded(self.build, 1, seed, torch.float32)[0]

    def train(
        self, model: nn.Module, data: Dataset, steps: int, seed: int
    ) -> tuple[nn.Module, list[float]]:
        """Train until a loss is not finite.

        Args:
            model: Changes in place.
            data: Its training samples are taken.
            steps: At most so many.
            seed: Of the order of samples.

        Returns:
            What is to be evaluated, and the loss before each step.
        """
        x, losses = self.view(data.train_x), []
        batches = epoch_batches(x, data.train_y, self.size, 1, steps, seed)
        average = None if self.averaged is None else _average(model, self.averaged)
        optimizer = self.optimizer(model.parameters())
        for loss, _ in optimise(One(model, x.ndim - 1), batches, optimizer):
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                break
            if average is not None:
                average.update_parameters(model)
        return average or model, losses


def _average(model: nn.Module, factor: float) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(factor))


def _small_images(x: Tensor) -> Tensor:
    return images(x, pooled=2)


def _recalibrate(model: nn.Module, x: Tensor) -> None:
    recalibrate(model, x[:CALIBRATION])


def _before(cure: Callable[..., object], **options: Any) -> Callable[[Any, Tensor], object]:
    """A cure that needs no samples."""
    return lambda model, x: cure(model, **options)


_RESNET = Patient(
    slow_resnet, {"cured": _recalibrate}, _small_images, partial(SGD, lr=0.05, momentum=0.9), 64,
    late=True,
)  # fmt: skip
PATIENTS = {
    "perceptron": Patient(
        deep_perceptron,
        {
            "cured": _before(shape_perceptron),
            "orthogonal": _before(orthogonal_),
            "tanh, orthogonal": _before(shape_perceptron, exponent=0.0),
            "tanh, shaped": _before(shape_perceptron, orthogonal=False),
        },
        lambda x: x, partial(SGD, lr=0.01, momentum=0.9), 100,
    ),
    "resnet": _RESNET,
    "averaged resnet": replace(_RESNET, build=small_resnet, averaged=0.99),
    "transformer": Patient(
        BareTransformer,
        {
            "cured": _before(calm_transformer),
            "orthogonal": _before(calm_transformer, orthogonal=True),
            "orthogonal, even": _before(even_transformer),
        },
        patches, partial(Adam, lr=1e-3), 64,
    ),
}  # fmt: skip


def course(
    patient: Patient, data: Dataset, steps: int, seed: int, treatment: str
) -> dict[str, float | str]:
    """One network's report, training and accuracy.

    Args:
        patient: What kind of network.
        data: Digits.
        steps: Of training.
        seed: Of weights, order of samples, and the batch of the report.
        treatment: Name of a cure, or ``"none"``.

    Returns:
        See :func:`reported` and :func:`accuracies`; ``steps`` that were taken, and ``loss``, the
        mean of the last. The report is that before training, or after it where the cure is so late.
    """
    x, (probe, labels) = patient.view(data.train_x), data.batch(PROBED, seed=seed)
    model = patient.network(seed)
    if patient.late:
        model, losses = patient.train(model, data, steps, seed)
    if treatment != "none":
        patient.cures[treatment](model, x)
    row = reported(measure(model, patient.view(probe), labels))
    if not patient.late:
        model, losses = patient.train(model, data, steps, seed)
    found = {"steps": len(losses), "loss": float(np.mean(losses[-LAST:]))}
    return row | found | accuracies(patient, model, data)


def reported(report: Report) -> dict[str, float | str]:
    """The verdict of a report, rates in nats per layer with intervals, and growth of signals.

    Args:
        report: What was measured.

    Returns:
        ``verdict``; ``rate`` of gradients, from ``low`` to ``high``, and ``predicted``; ``signal``,
        nats from the first layer to the last. Nan where there is none.
    """
    rate, signal, told = report.rate, report.rates["signals"], report.prediction.low
    none = math.nan, math.nan, math.nan
    value, low, high = none if rate is None else (rate.value, rate.low, rate.high)
    return {
        "verdict": report.verdict, "rate": value, "low": low, "high": high,
        "predicted": math.nan if told is None else told,
        "signal": math.nan if signal is None else signal.total,
    }  # fmt: skip


def accuracies(patient: Patient, model: nn.Module, data: Dataset) -> dict[str, float]:
    """Accuracy on all test samples with each kind of statistics, as ``accuracy_batch`` and so on.

    Args:
        patient: What kind of network.
        model: As it is to be evaluated.
        data: Digits.

    Returns:
        Shares that are right.
    """
    found = evaluations(
        model, patient.view(data.test_x), data.test_y, batch_size=patient.size,
        calibration=patient.view(data.train_x[:CALIBRATION]),
    )  # fmt: skip
    return {f"accuracy_{kind}": value.accuracy.item() for kind, value in found.items()}
