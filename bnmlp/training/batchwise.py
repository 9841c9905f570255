"""Training on given batches, a step for each, without a folder."""

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from bnmlp.networks.losses import scored_losses
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import Network
from bnmlp.networks.replicas import add_to_parameters
from bnmlp.training.step import sgd_step

Batches = Iterable[tuple[Tensor, Tensor]]
Item = TypeVar("Item")


def sgd(model: BNMLP, batches: Batches, learning_rate: float) -> Iterator[Tensor]:
    """Plain gradient descent: :func:`bnmlp.sgd_step` on each batch.

    Args:
        model: R networks; their parameters change in place.
        batches: Samples and labels.
        learning_rate: Step size.

    Yields:
        Losses before each step. Shape ``(R,)``.
    """
    for x, y in batches:
        yield sgd_step(model, x, y, learning_rate)


def noisy_sgd(
    model: BNMLP,
    batches: Batches,
    learning_rate: float,
    factor: Tensor,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    r"""Gradient descent with Gaussian noise of a fixed covariance :math:`F^\top F` in its gradient.

    Args:
        model: R networks; their parameters change in place.
        batches: Samples and labels.
        learning_rate: Step size.
        factor: :math:`F`, in the order of ``model.parameters()``. Shape ``(k, P)``.
        generator: Draws the noise of each network, in single precision.

    Yields:
        Losses before each step. Shape ``(R,)``.
    """
    for x, y in batches:
        noise = torch.randn(model.replicas, len(factor), generator=generator).to(factor) @ factor
        losses = sgd_step(model, x, y, learning_rate)
        add_to_parameters(model, -learning_rate * noise)
        yield losses


def optimise(
    network: Network, batches: Batches, optimizer: torch.optim.Optimizer
) -> Iterator[Tensor]:
    """Steps of one of PyTorch's optimisers, see :func:`optimizer_step`.

    Args:
        network: R networks; what the optimiser holds of their parameters changes in place.
        batches: Samples, and labels of shape ``(R, n)``.
        optimizer: Of these parameters.

    Yields:
        Losses before each step, and shares of samples that were right. Shape ``(2, R)``.
    """
    for x, y in batches:
        losses, correct = optimizer_step(network, x, y, optimizer)
        yield torch.stack([losses, correct / y.shape[-1]])


def optimizer_step(
    network: Network, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer
) -> tuple[Tensor, Tensor]:
    """One step down the mean cross entropy of every network.

    Args:
        network: R networks.
        x: Samples. Shape ``(n, ...)`` or ``(R, n, ...)``.
        y: Labels, int64. Shape ``(R, n)``.
        optimizer: Of their parameters, whose ``.grad`` are those of this step afterwards.

    Returns:
        Losses before the step, and samples that were right. Both of shape ``(R,)``.
    """
    optimizer.zero_grad()
    losses, correct = scored_losses(network, x, y)
    losses.sum().backward()
    optimizer.step()
    return losses.detach(), correct


def run_through(training: Iterable[Tensor]) -> Tensor:
    """Go through a training; what its steps yield, as losses ``(steps, R)`` of :func:`sgd`."""
    return torch.stack(list(training))


def looks(training: Iterable[object], at: Collection[int]) -> Iterator[int]:
    """Stop a training for a look after some numbers of steps; it goes no further than the last.

    Args:
        training: Takes one step for each item, as :func:`sgd` does.
        at: Numbers of steps, 0 for the start.

    Yields:
        The numbers in order, each when as many steps have been taken.

    Examples:
        >>> taken = []
        >>> training = (taken.append(t) for t in range(100))
        >>> {steps: len(taken) for steps in looks(training, (0, 20, 3))}
        {0: 0, 3: 3, 20: 20}
    """
    for t, _ in _parts(training, at):
        yield t


def means_between(
    training: Iterable[Tensor], at: Collection[int]
) -> Iterator[tuple[int, Tensor | None]]:
    """As :func:`looks`, with means over the steps since the look before.

    Args:
        training: Takes one step for each item, as :func:`optimise` does.
        at: Numbers of steps, 0 for the start.

    Yields:
        The numbers in order, and the mean of what the steps yielded, none where there was no step.
    """
    for t, found in _parts(training, at):
        yield t, torch.stack(found).mean(0) if found else None


def _parts(training: Iterable[Item], at: Collection[int]) -> Iterator[tuple[int, list[Item]]]:
    steps, done = iter(training), 0
    for t in sorted(at):
        yield t, list(islice(steps, t - done))
        done = t
