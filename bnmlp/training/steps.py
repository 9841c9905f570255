"""How a run takes its steps: the engine's own, one of PyTorch's optimisers, or by rates."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from bnmlp.layers.seeds import seed_of
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import Network
from bnmlp.training.batchwise import optimizer_step
from bnmlp.training.configuration import RATED, TrainingRun
from bnmlp.training.descent import Descent, Rule, rule_of
from bnmlp.training.networks import as_module
from bnmlp.training.step import scored_step


class Stepper(Protocol):
    """Takes the steps of one run; all of its state is in :meth:`state`."""

    def step(self, x: Tensor, y: Tensor, rate: float, t: int) -> tuple[Tensor, Tensor]:
        """One step at a learning rate: losses before it, and samples that were right, ``(R,)``."""
        ...

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps."""
        ...

    def restore(self, state: Any) -> None:
        """Take back what :meth:`state` gave."""


def stepper(run: TrainingRun, network: Network) -> Stepper:
    """The steps that a run asks for.

    Args:
        run: Its optimiser and schedule.
        network: R networks, which change in place.

    Returns:
        The fastest way to take them.

    Raises:
        ValueError: If the schedule looks at rates and the network has none.
    """
    if run.schedule in RATED:
        return _ByRates(run, network)
    plain = run.optimizer == "sgd" and not (run.momentum or run.weight_decay)
    return _Engine(network) if plain and isinstance(network, BNMLP) else _Torch(run, network)


def learning_rate(run: TrainingRun, t: int, steps: int) -> float:
    """The learning rate of step ``t`` of ``steps``; the target, where rates decide further."""
    rate = run.learning_rate
    if t < run.warmup_steps:
        return rate * (t + 1) / run.warmup_steps
    if run.schedule == "cosine":
        share = (t - run.warmup_steps) / max(1, steps - run.warmup_steps)
        return rate * 0.5 * (1 + math.cos(math.pi * share))
    return rate


class _Engine:
    """Plain steps of a BNMLP, several times faster than those of autograd."""

    def __init__(self, network: BNMLP) -> None:
        self.network = network

    def step(self, x: Tensor, y: Tensor, rate: float, t: int) -> tuple[Tensor, Tensor]:
        return scored_step(self.network, x, y, rate)

    def state(self) -> None:
        return None

    def restore(self, state: None) -> None:
        pass


class _Torch:
    """Steps of one of PyTorch's optimisers."""

    def __init__(self, run: TrainingRun, network: Network) -> None:
        self.seed, self.network = run.seed, network
        kinds = {
            "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop,
            "sgd": torch.optim.SGD,
        }  # fmt: skip
        parameters = as_module(network).parameters()
        more = {"momentum": run.momentum} if run.optimizer == "sgd" else {}
        self.optimizer = kinds[run.optimizer](
            parameters, run.learning_rate, weight_decay=run.weight_decay, **more
        )

    def step(self, x: Tensor, y: Tensor, rate: float, t: int) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with _own_randomness(x.device, self.seed, t):
            return optimizer_step(self.network, x, y, self.optimizer)

    def state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


class _ByRates:
    """Gradient descent whose learning rates look at effective rates."""

    def __init__(self, run: TrainingRun, network: Network) -> None:
        self.run = run
        self.descent = Descent(
            network, self._rule(0.0), momentum=run.momentum, weight_decay=run.weight_decay
        )

    def _rule(self, target: float) -> Rule:
        return rule_of(self.run.schedule, target, tilt=self.run.tilt)

    def step(self, x: Tensor, y: Tensor, rate: float, t: int) -> tuple[Tensor, Tensor]:
        self.descent.rule, self.descent.others = self._rule(rate), lambda rates, t: rate
        with _own_randomness(x.device, self.run.seed, t):
            moment = self.descent.step(x, y, t)
        return moment.losses, moment.correct

    def state(self) -> dict[str, Any]:
        return self.descent.velocity

    def restore(self, state: dict[str, Any]) -> None:
        self.descent.velocity = state


@contextlib.contextmanager
def _own_randomness(device: torch.device, *numbers: int) -> Iterator[None]:
    """Random numbers of dropout that are a function of seed and step; PyTorch's own stay."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(*numbers, 2))
        yield
