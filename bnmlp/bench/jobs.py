"""The jobs that ``bnmlp bench`` times, each in several ways that are run in turn."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnmlp.data.datasets import load_dataset
from bnmlp.layers.seeds import random_source
from bnmlp.measurements.gradients import gradient_norms
from bnmlp.measurements.isometry import isometry_gap
from bnmlp.measurements.scores import evaluations
from bnmlp.networks.convolutional import ResNet
from bnmlp.networks.engine import stack_of
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.plain import PlainNetwork
from bnmlp.networks.protocol import Network, as_network, stacked
from bnmlp.networks.skip import SkipMLP
from bnmlp.networks.transformer import Transformer
from bnmlp.training.batchwise import optimizer_step
from bnmlp.training.configuration import TrainingRun
from bnmlp.training.loop import train
from bnmlp.training.networks import seeded
from bnmlp.training.step import sgd_step

WIDTH, BATCH, FEATURES, CLASSES = 100, 100, 784, 10
REPLICAS = 10
SAMPLES = 4000  # to train with, of mnist5k
RATE = 1e-3


@dataclass(frozen=True)
class Job:
    """Ways of doing the same thing, which are timed in turn.

    Args:
        name: What it is.
        ways: What is called, by name.
        networks: How many each of them treats, one if it is not here.
    """

    name: str
    ways: dict[str, Callable[[], object]]
    networks: dict[str, int] = field(default_factory=dict)


def batch(features: int = FEATURES) -> tuple[Tensor, Tensor]:
    """Random samples and labels: no job's time depends on what they are."""
    x = torch.randn(BATCH, features, generator=random_source(0))
    return x, torch.arange(BATCH) % CLASSES


def networks(replicas: int, depth: int, **options: object) -> BNMLP:
    """Shaped tanh networks, whose gradients float32 holds at depth 1000."""
    chosen: dict[str, Any] = {"activation": "tanh", "gain_exponent": 0.4, **options}
    return BNMLP(FEATURES, WIDTH, depth, CLASSES, replicas=replicas, **chosen)


def training_step(depth: int) -> Job:
    """A step of gradient descent: plain PyTorch, the engine, JAX, matrix products alone."""
    from bnmlp.bench.in_jax import jax_step

    (x, y), one, ten = batch(), networks(1, depth), networks(REPLICAS, depth)
    plain = PlainNetwork(one)
    optimizer = torch.optim.SGD(plain.parameters(), lr=RATE)

    def plain_step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()

    ways: dict[str, Callable[[], object]] = {
        "plain": plain_step,
        "ours, one": lambda: sgd_step(one, x, y, RATE),
        "ours, ten": lambda: sgd_step(ten, x, y, RATE),
        "floor, one": lambda: products(one, x),
        "floor, ten": lambda: products(ten, x),
    }
    for name, model in (("jax, one", one), ("jax, ten", ten)):
        step = jax_step(model, x, y, RATE)
        if step is not None:
            ways[name] = step
    return Job("training step", ways, {name: REPLICAS for name in ways if "ten" in name})


@torch.no_grad()
def products(model: BNMLP, x: Tensor) -> None:
    """The three matrix products of each layer, which read and write what those of a step do."""
    stack, h = stack_of(model, x), x.mT.expand(model.replicas, -1, -1)
    for i, weight in enumerate(model.layer_weights()):
        h = torch.bmm(weight, h, out=stack.linear[i])
    grad = torch.zeros_like(stack.linear[0])
    for i in reversed(range(1, model.depth)):
        weight = model.hidden_weight[i - 1]
        below = torch.bmm(weight.mT, grad, out=stack.spare[i % 2])
        weight.baddbmm_(grad, stack.linear[i - 1].mT, alpha=-RATE)  # of zeros: it stays
        grad = below


def initialisation(depth: int) -> Job:
    """New orthogonal networks and the gradient norms of all their layers."""
    (x, y), one = batch(), networks(1, depth)

    def plain() -> None:
        net = PlainNetwork(one)
        for name, weight in net.named_parameters():
            if name.startswith("linears"):
                nn.init.orthogonal_(weight)
        net.gradient_norms(x, y)

    ways: dict[str, Callable[[], object]] = {
        "plain": plain,
        "ours, ten": lambda: gradient_norms(networks(REPLICAS, depth), x, y),
    }
    return Job("initialise, all gradient norms", ways, {"ours, ten": REPLICAS})


def gaps(depth: int) -> list[Job]:
    """Isometry gaps of many matrices: eigenvalues in float32 one by one, and ours."""
    x, _ = batch()
    linear = networks(1, depth, activation="identity", center=False)
    kinds = {
        "orthogonal weights": networks(1, depth).hidden_weight.detach()[:, 0],
        "Gaussian weights": networks(1, depth, init="gaussian").hidden_weight.detach()[:, 0],
        "representations": linear.representations(x)["linear"][:, 0],
    }

    def job(name: str, matrices: Tensor) -> Job:
        ways: dict[str, Callable[[], object]] = {
            "plain": lambda: [torch.linalg.eigvalsh(m @ m.mT) for m in matrices],
            "ours": lambda: isometry_gap(matrices),
        }
        return Job(f"isometry gaps, {name}", ways)

    return [job(name, matrices) for name, matrices in kinds.items()]


def other_networks(quick: bool) -> list[Job]:
    """A step of other networks: one after the other, and as one batch."""
    (x, y), n = batch(), 10 if quick else BATCH
    x, y = x[:n], y[:n]
    images = torch.randn(n, 3, 32, 32, generator=random_source(1))
    blocks, depth = (1, 4) if quick else (3, 40)
    resnets = seeded(lambda: ResNet(blocks), REPLICAS, 0, torch.float32)

    def skip(replicas: int) -> Network:
        return SkipMLP(depth, replicas=replicas)

    def transformer(replicas: int) -> Network:
        return Transformer(28, 32, 4, CLASSES, tokens=28, replicas=replicas)

    return [
        _steps("ResNet", [as_network(net) for net in resnets], stacked(resnets, 3), images, y),
        _steps("SkipMLP", [skip(1) for _ in range(REPLICAS)], skip(REPLICAS), x, y),
        _steps(
            "Transformer", [transformer(1) for _ in range(REPLICAS)], transformer(REPLICAS),
            x.view(n, 28, 28), y,
        ),
    ]  # fmt: skip


def _steps(name: str, alone: list[Network], together: Network, x: Tensor, y: Tensor) -> Job:
    def stepper(network: Network) -> Callable[[], object]:
        optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
        labels = y.expand(network.replicas, -1)
        return lambda: optimizer_step(network, x, labels, optimizer)

    singly, all_at_once = [stepper(network) for network in alone], stepper(together)
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: [step() for step in singly],
        "ours, ten": all_at_once,
    }
    return Job(f"{name}, ten networks", ways, dict.fromkeys(ways, REPLICAS))


def trainer(depth: int, epochs: int) -> Job:
    """A run with all it stores, one shorter by some epochs, and what those compute, bare."""
    (x, y), model = batch(), networks(3, depth)
    data = load_dataset("mnist5k")

    def run(passes: int) -> None:
        fields = {
            "dataset": "mnist5k", "depth": depth, "width": WIDTH, "batch_size": BATCH,
            "learning_rate": RATE, "activation": "tanh", "gain_exponent": 0.4, "replicas": 3,
            "epochs": passes, "measure_every": None,
        }  # fmt: skip
        described = TrainingRun.model_validate(fields)
        with tempfile.TemporaryDirectory() as folder:
            train(described, Path(folder) / "run", progress=lambda line: None)

    def bare() -> None:
        for _ in range(epochs):
            for _ in range(SAMPLES // BATCH):
                sgd_step(model, x, y, RATE)
            test = data.test_x, data.test_y
            evaluations(model, *test, calibration=data.train_x[:2000], batch_size=BATCH)

    return Job("trainer", {"long": lambda: run(1 + epochs), "short": lambda: run(1), "floor": bare})
