"""Curvature and gradient noise of a small network in training: writes five tables beside itself.

OMP_NUM_THREADS=1 nice -n 5 python book/data/noisy-quadratic-model/make.py    # some ten minutes
Names of tables after the command make these only.
"""

import functools
import itertools

import pandas as pd
import torch
from torch import Tensor

from bnmlp import BNMLP, load_dataset
from bnmlp.book.intervals import mean_and_error
from bnmlp.book.making import Maker, long_table, rows_table
from bnmlp.data.batches import drawn_batches, images
from bnmlp.measurements.noise import sample_gradients
from bnmlp.measurements.overlaps import matrix_cosine, noise_alignment, subspace_overlap
from bnmlp.measurements.parabola import local_parabola
from bnmlp.measurements.scores import batch_scores
from bnmlp.measurements.sharpness import hessian_traces, sharpness
from bnmlp.networks.replicas import subset
from bnmlp.theory.quadratic import Parabola
from bnmlp.training.batchwise import looks, noisy_sgd, run_through, sgd
from bnmlp.training.measured import along
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


@functools.cache
def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Samples and labels for training, and for tests."""
    data = load_dataset("mnist5k")
    x = images(torch.cat([data.train_x, data.test_x]), pooled=4).flatten(1).double()
    y = torch.cat([data.train_y, data.test_y])
    return (x[:SAMPLES], y[:SAMPLES]), (x[SAMPLES:], y[SAMPLES:])


def start(seed: int, replicas: int) -> tuple[BNMLP, torch.Generator]:
    """Networks of two hidden tanh layers, 720 parameters, and what draws their batches."""
    options = {"activation": "tanh", "norm": "none", "bias": True, "init": "gaussian"}
    model = BNMLP(49, 10, 2, 10, replicas=replicas, dtype=torch.float64, **options)
    return model, torch.Generator().manual_seed(seed)


def ends(seed: int, *stages: tuple[float, int, float, int]) -> pd.DataFrame:
    """Networks after stages, each of learning rate, batch size, loss to reach and steps at most."""
    (model, generator), (train, test) = start(seed, NETWORKS), digits()
    for rate, size, target, most in stages:
        batches = drawn_batches(*train, size, NETWORKS, most, generator)
        steps = train_until(model, batches, rate, target, *train)
    columns = {
        "sharpness": sharpness(model, [train]),
        "trace": hessian_traces(model, [train], 60, torch.Generator().manual_seed(5)),
        "loss": batch_scores(model, *train).loss,
    } | dict(zip(("test_loss", "test_accuracy"), batch_scores(model, *test), strict=True))
    return long_table(columns | {"steps": steps}, network=range(NETWORKS))


def edge() -> pd.DataFrame:
    """Gradient descent with all samples: largest eigenvalue against time."""
    train, parts = digits()[0], {}

    def look() -> pd.DataFrame:
        columns = {"sharpness": sharpness(model, [train]), "loss": batch_scores(model, *train).loss}
        return long_table(columns, network=range(NETWORKS))

    for rate in EDGE["rates"]:
        model, _ = start(0, NETWORKS)
        parts[rate] = along(sgd(model, itertools.repeat(train), rate), EDGE["steps"], look)
    return pd.concat(parts, names=["rate"])


def minima() -> pd.DataFrame:
    """Where the training loss is first below the target."""
    settings = itertools.product(*MINIMA.values())
    parts = {(rate, size): ends(1, (rate, size, TARGET, MOST)) for rate, size in settings}
    return pd.concat(parts, names=["rate", "batch"])


def initial() -> pd.DataFrame:
    """The same, with one learning rate first and another one after."""
    parts = {
        (first, then): ends(2, (first, 32, BETWEEN, MOST), (then, 32, TARGET, 2 * MOST))
        for first, then in itertools.product((0.05, 0.5), repeat=2)
    }
    return pd.concat(parts, names=["first", "then"])


def alignment() -> pd.DataFrame:
    """Hessian, Gauss-Newton matrix and covariance of gradients in training with small batches."""
    (model, generator), train, rows, found = start(3, NETWORKS), digits()[0], {}, {}
    batches = drawn_batches(*train, 32, NETWORKS, max(ALIGNED), generator)
    for t in looks(sgd(model, batches, 0.1), ALIGNED):
        scores = batch_scores(model, *train)._asdict()
        for r in range(NETWORKS):
            row, *found[t, r] = noise_alignment(subset(model, [r]), *train, LEADING, generator)
            rows[t, r] = {name: values[r].item() for name, values in scores.items()} | row
    for (t, r), (h, top) in found.items():
        last, space = found[max(ALIGNED), r]
        rows[t, r] |= {"cosine_last": matrix_cosine(h, last)}
        rows[t, r] |= {"overlap_last": subspace_overlap(top, space)}
    return rows_table(rows, ["step", "network"])


def forecast() -> pd.DataFrame:
    """The quadratic model against SGD, and against descent with the frozen noise."""
    (x, y), rows, size = digits()[0], {}, 8
    for place, before in PLACES.items():
        model, generator = start(4, 1)
        run_through(sgd(model, drawn_batches(x, y, 32, 1, before, generator), 0.1))
        valley, each = Parabola(*local_parabola(model, x, y)), sample_gradients(model, x, y)
        noise = (each - each.mean(0)) / (SAMPLES * size) ** 0.5, generator
        for rate in (0.0125, 0.025, 0.05, 0.1, 0.2):
            expected = valley.expected_change(size, rate, AHEAD)[-1]
            row = rows[place, rate] = {"model": expected.item()}
            for kind, step, n in (("SGD", sgd, size), ("frozen noise", noisy_sgd, SAMPLES)):
                many = subset(model, [0] * RUNS)
                batches = drawn_batches(x, y, n, RUNS, AHEAD, generator)
                run_through(step(many, batches, rate, *(() if step is sgd else noise)))
                rise = batch_scores(many, x, y).loss - batch_scores(model, x, y).loss
                row[kind], row[f"{kind} error"] = mean_and_error(rise)
    return rows_table(rows, ["place", "rate"])


def main() -> None:
    """Every table, or those named on the command line."""
    Maker(globals()).make(edge, minima, initial, alignment, forecast)


if __name__ == "__main__":
    main()
