"""Curvature and gradient noise of a small network in training: writes five tables beside itself.

OMP_NUM_THREADS=1 nice -n 5 python book/data/noisy-quadratic-model/make.py    # some ten minutes

Tanh network 49-10-10-10 with biases, float64, Xavier normal, cross entropy; first SAMPLES training
digits of mnist5k averaged to 7 x 7 pixels, the others test; seed 0; batches drawn with replacement.

edge.csv: Largest eigenvalue of the Hessian under gradient descent with all samples.

minima.csv: When the training loss is first below TARGET (looked at every 10 steps; steps -1:
never): largest eigenvalue and trace (60 random vectors) of the Hessian, test loss.

initial.csv: The same for batches of 32, with the first learning rate until the training loss is
BETWEEN and the other one after.

alignment.csv: Hessian H, Gauss-Newton matrix G, covariance K of sample gradients, with own labels
drawn from the network; SGD, rate 0.1, batch 32; cosines of matrices, overlaps of the spaces of the
LEADING largest eigenvalues; last: the last step.

forecast.csv: Rise of the loss in AHEAD steps with batch 8: noisy quadratic model with H and K of
the start, SGD, and descent with all samples plus Gaussian noise of covariance K/8; means of RUNS
runs of one network and their standard errors; starts early and late, after PLACES steps of SGD,
rate 0.1, batch 32.
"""

import functools
import itertools
import sys
from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor

from bnmlp import BNMLP, load_dataset, sgd_step
from bnmlp.book.making import Maker, rows_table
from bnmlp.data.batches import images
from bnmlp.measurements.curvature import hessian, spectrum_ends
from bnmlp.measurements.noise import gradient, sample_gradients
from bnmlp.measurements.overlaps import (
    dense,
    matrix_cosine,
    noise_alignment,
    subspace_overlap,
    trace_estimate,
)  # fmt: skip
from bnmlp.networks.losses import scored_losses
from bnmlp.networks.replicas import add_to_parameters, read_replica, subset, write_replica
from bnmlp.theory.quadratic import expected_losses
from bnmlp.training.until import train_until

NETWORKS, SAMPLES, LEADING = 10, 1000, 9
EDGE = {
    "rates": (0.1, 0.2, 0.35, 0.5, 1.0),
    "steps": (0, 50, 100, 200, 400, 600, 800, 1000, 1250, 1500, 2000),
}
MINIMA = {"rates": (0.1, 0.2, 0.4), "batches": (8, 32, 128, SAMPLES)}
TARGET, BETWEEN, MOST = 0.2, 0.6, 6000
ALIGNED = (0, 50, 200, 1000, 6000)
PLACES, AHEAD, RUNS = {"early": 100, "late": 6000}, 300, 24
COLUMNS = ["sharpness", "trace", "loss", "test_loss", "test_accuracy", "steps"]


@functools.cache
def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Samples and labels for training, and for tests."""
    data = load_dataset("mnist5k")
    x = images(torch.cat([data.train_x, data.test_x]), pooled=4).flatten(1).double()
    y = torch.cat([data.train_y, data.test_y])
    return (x[:SAMPLES], y[:SAMPLES]), (x[SAMPLES:], y[SAMPLES:])


def networks(replicas: int) -> BNMLP:
    """Two hidden tanh layers, 720 parameters."""
    options = {"activation": "tanh", "norm": "none", "bias": True, "init": "gaussian"}
    return BNMLP(49, 10, 2, 10, replicas=replicas, dtype=torch.float64, **options)


def drawn(
    model: BNMLP, size: int, steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches with replacement, or all samples if they are as many."""
    x, y = digits()[0]
    for _ in range(steps):
        index = torch.arange(SAMPLES)
        if size < SAMPLES:
            index = torch.randint(SAMPLES, (model.replicas, size), generator=generator)
        yield x[index], y[index]


@torch.no_grad()
def scores(model: BNMLP, which: int = 0) -> tuple[Tensor, Tensor]:
    """Loss and share of right answers of every network, in training or test (1)."""
    x, y = digits()[which]
    losses, right = scored_losses(model, x, y.expand(model.replicas, -1))
    return losses, right.double() / len(x)


def sharpness(one: BNMLP) -> float:
    """Largest eigenvalue of the Hessian of one network."""
    return spectrum_ends(hessian(one, [digits()[0]]), 1, 0, 1e-3)[0].item()


def edge() -> pd.DataFrame:
    """Gradient descent with all samples: largest eigenvalue against time."""
    rows = {}
    for rate in EDGE["rates"]:
        model = networks(NETWORKS)
        for t in range(max(EDGE["steps"]) + 1):
            if t in EDGE["steps"]:
                for r, loss in enumerate(scores(model)[0].tolist()):
                    rows[rate, t, r] = sharpness(subset(model, [r])), loss
            sgd_step(model, *digits()[0], rate)
    return rows_table(rows, ["rate", "step", "network"], ["sharpness", "loss"])


def ends(model: BNMLP, steps: list[int]) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Of every network ``COLUMNS``."""
    losses, tests, right = (t.tolist() for t in (scores(model)[0], *scores(model, 1)))
    random = torch.Generator().manual_seed(5)
    for r in range(model.replicas):
        one = subset(model, [r])
        trace = trace_estimate(hessian(one, [digits()[0]]), 60, random)
        yield r, (sharpness(one), trace, losses[r], tests[r], right[r], steps[r])


def minima() -> pd.DataFrame:
    """Curvature and test loss at one training loss, for learning rates and batch sizes."""
    rows = {}
    for rate, size in itertools.product(*MINIMA.values()):
        model, generator = networks(NETWORKS), torch.Generator().manual_seed(1)
        batches = drawn(model, size, MOST, generator)
        steps = train_until(model, batches, rate, TARGET, *digits()[0])
        rows |= {(rate, size, r): row for r, row in ends(model, steps)}
    return rows_table(rows, ["rate", "batch", "network"], COLUMNS)


def initial() -> pd.DataFrame:
    """The same, with one learning rate first and another one after."""
    rows = {}
    for first, then in itertools.product((0.05, 0.5), (0.05, 0.5)):
        model, generator = networks(NETWORKS), torch.Generator().manual_seed(2)
        train_until(model, drawn(model, 32, MOST, generator), first, BETWEEN, *digits()[0])
        batches = drawn(model, 32, 2 * MOST, generator)
        steps = train_until(model, batches, then, TARGET, *digits()[0])
        rows |= {(first, then, r): row for r, row in ends(model, steps)}
    return rows_table(rows, ["first", "then", "network"], COLUMNS)


def alignment() -> pd.DataFrame:
    """Hessian, Gauss-Newton matrix and covariance of gradients in training with small batches."""
    rows, found = {}, {}
    model, generator = networks(NETWORKS), torch.Generator().manual_seed(3)
    batches = drawn(model, 32, max(ALIGNED) + 1, generator)
    for t in range(max(ALIGNED) + 1):
        for r in range(NETWORKS if t in ALIGNED else 0):
            loss, right = (values[r].item() for values in scores(model))
            row, *found[t, r] = noise_alignment(
                subset(model, [r]), *digits()[0], LEADING, generator
            )
            rows[t, r] = {"loss": loss, "accuracy": right} | row
        sgd_step(model, *next(batches), 0.1)
    for (t, r), (h, top) in found.items():
        last, space = found[max(ALIGNED), r]
        rows[t, r] |= {"cosine_last": matrix_cosine(h, last)}
        rows[t, r] |= {"overlap_last": subspace_overlap(top, space)}
    return rows_table(rows, ["step", "network"])


def forecast() -> pd.DataFrame:
    """The quadratic model against SGD, and against descent with the frozen noise."""
    (x, y), rows, size = digits()[0], {}, 8
    for place, before in PLACES.items():
        model, generator = networks(1), torch.Generator().manual_seed(4)
        for batch in drawn(model, 32, before, generator):
            sgd_step(model, *batch, 0.1)
        h, v = torch.linalg.eigh(dense(hessian(model, [(x, y)])))
        each = sample_gradients(model, x, y)
        centred = each - each.mean(0)
        noise = (centred @ v).square().mean(0) / size
        keep, at = h.abs() > 1e-10, (gradient(model, x, y) @ v / h).square()
        for rate in (0.0125, 0.025, 0.05, 0.1, 0.2):
            losses = expected_losses(h[keep], noise[keep], rate, AHEAD, start=at[keep])
            row = rows[place, rate] = {"model": (losses[-1] - losses[0]).item()}
            for kind in ("SGD", "frozen noise"):
                many = networks(RUNS)
                for r in range(RUNS):
                    write_replica(many, r, read_replica(model, 0))
                for batch in drawn(many, size if kind == "SGD" else SAMPLES, AHEAD, generator):
                    random = kind != "SGD" and torch.randn(RUNS, SAMPLES, generator=generator)
                    sgd_step(many, *batch, rate)
                    if kind != "SGD":
                        change = -rate * random.double() @ centred / (SAMPLES * size) ** 0.5
                        add_to_parameters(many, change)
                rise = scores(many)[0] - scores(model)[0]
                row[kind], row[f"{kind} error"] = rise.mean().item(), rise.std().item() / RUNS**0.5
    return rows_table(rows, ["place", "rate"])


def main() -> None:
    """Every table, or those named on the command line."""
    for table in (edge, minima, initial, alignment, forecast):
        if table.__name__ in (sys.argv[1:] or table.__name__):
            Maker(globals()).store(table.__name__, table())
            print(table.__name__, flush=True)


if __name__ == "__main__":
    main()
