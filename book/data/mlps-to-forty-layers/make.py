"""MLPs of 10 to 40 layers, four variants: writes three tables beside itself.

OMP_NUM_THREADS=1 python book/data/mlps-to-forty-layers/make.py      # about four hours
Each finished size is written at once; run it again to go on after an interruption. Names of tables
after the command make these only.

Training of SkipMLP: accuracies and losses of networks of each size with batch, running,
recalibrated and corrected statistics; test_*: 2,000 test images, seen_*: 1,000 training images,
train_*: mean over the steps since the row before; dead, always, size, spread, grad: units and
gradients on 512 training images. Pixels / 255, width 128, RMSprop (alpha 0.9, eps 1e-7), momentum
of averages 0.01, float32; minutes are of processor time.

fashion-20-depths.csv: of these columns only some, of 20 epochs 1, 2, 4, 8 and the last eight.
"""

import sys
import time
from dataclasses import replace
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from bnmlp import evaluate, load_dataset
from bnmlp.book.making import Maker, epoch_batches, long_table
from bnmlp.layers.seeds import random_order
from bnmlp.measurements.activity import unit_activity
from bnmlp.measurements.evaluation import STATISTICS, averages_without_start
from bnmlp.measurements.rates import lengths
from bnmlp.networks.losses import matrix_gradients, scored_losses
from bnmlp.networks.protocol import averages_kept
from bnmlp.networks.skip import VARIANTS, SkipMLP

DATA, REPLICAS, SEED = "fashion_mnist", 5, 0
KEYS = ["variant", "init_gain", "rate", "batch_size", "epochs", "depth"]
COLUMNS = [
    "step", "replica", "dead_last", "grad_first", "grad_last", "train_accuracy",
    *(f"test_accuracy_{kind}" for kind in STATISTICS), "minutes",
]  # fmt: skip


def tables() -> dict[str, list[tuple]]:
    """Of each table the sizes: variant, gain, learning rate, batch size, epochs and depth."""

    def sizes(n: int, epochs: int, *depths: int, variants: tuple = VARIANTS[:3]) -> list[tuple]:
        return [(v, 1.0, 1e-3, n, epochs, d) for d, v in product(depths, variants)]

    return {
        "fashion": sizes(128, 2, 40, 30, 20, 10, 25, 35, 15)
        + [("plain", 2**0.5, 1e-3, 128, 2, 40)]
        + sizes(512, 2, 40, variants=("batch", "skip")),
        "fashion-20": sizes(128, 20, 40, variants=VARIANTS)
        + sizes(128, 20, 30, variants=("batch", "skip")),
        "fashion-20-depths": sizes(128, 20, 10, 20)
        + sizes(128, 20, 30, variants=("plain", "single"))
        + sizes(128, 20, 35, variants=VARIANTS)
        + sizes(128, 20, 25, 15)
        + sizes(512, 20, 40, variants=("batch", "skip", "single")),
    }


def features(model: SkipMLP, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Units and gradients of each network on one batch that moves no averages."""
    with averages_kept(model), torch.no_grad():
        found = unit_activity(list(model.representations(x)))
    norms = lengths(matrix_gradients(model, x, y)[0].values())
    places = {"grad_first": 1, "grad_middle": len(norms) // 2, "grad_last": -2}
    return found | {name: norms[place] for name, place in places.items()}


def in_order(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Samples so that the batches of :func:`bnmlp.evaluate` are these, one after the other."""
    back = random_order(len(x), 0).argsort()
    return x[back], y[back]


def record(
    variant: str, init_gain: float, rate: float, batch_size: int, epochs: int, depth: int
) -> pd.DataFrame:
    """Train networks of one size; rows at the start and at least six times on the way."""
    start, data, n = time.process_time(), load_dataset(DATA), batch_size
    train_x, test_x = (part * data.std[0] + data.mean[0] for part in (data.train_x, data.test_x))
    test = in_order(test_x[:2000], data.test_y[:2000])
    seen = in_order(train_x[:1000], data.train_y[:1000])
    model = SkipMLP(depth, variant, init_gain=init_gain, replicas=REPLICAS, seed=SEED)
    optimiser = torch.optim.RMSprop(model.parameters(), lr=rate, alpha=0.9, eps=1e-7)
    steps, records = len(train_x) // n * epochs, max(6, epochs)
    marks = {round(k * steps / records) for k in range(records + 1)}

    def rows(step: int, scores: list[Tensor]) -> pd.DataFrame:
        columns = features(model, train_x[:512], data.train_y[:512])
        if step:
            means = torch.stack(scores).mean(0)
            columns |= {"train_loss": means[0], "train_accuracy": means[1]}
            with averages_without_start(model, step, n):
                columns["test_accuracy_corrected"] = evaluate(model, *test, "running").accuracy
            for kind in STATISTICS:
                options = {"calibration": train_x[:2000], "batch_size": n}
                found = evaluate(model, *test, kind, **options)
                columns[f"test_accuracy_{kind}"] = found.accuracy
                columns[f"test_loss_{kind}"] = found.loss
                columns[f"seen_accuracy_{kind}"] = evaluate(model, *seen, kind, **options).accuracy
        return long_table(columns, step=step, replica=range(REPLICAS))

    parts, scores = [rows(0, [])], []
    batches = epoch_batches(replace(data, train_x=train_x), n, REPLICAS, steps, SEED)
    for step, (x, y) in enumerate(batches, 1):
        optimiser.zero_grad()
        losses, right = scored_losses(model, x, y)
        losses.sum().backward()
        optimiser.step()
        scores.append(torch.stack([losses.detach(), right / n]))
        if step in marks:
            parts.append(rows(step, scores))
            scores = []
    return pd.concat(parts).assign(minutes=(time.process_time() - start) / 60)


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """The last eight of twenty epochs, and epochs 1, 2, 4 and 8."""
    steps = table.index.get_level_values("step")
    epoch = (20 * steps / steps.max()).to_series().round()
    return table[((epoch > 12) | epoch.isin([1, 2, 4, 8])).values].filter(COLUMNS)


def main() -> None:
    """Train what is missing."""
    maker = Maker(globals())
    for name in sys.argv[1:] or tables():
        cells = [dict(zip(KEYS, cell, strict=True)) for cell in tables()[name]]
        kept = thinned if name == "fashion-20-depths" else lambda table: table
        maker.grow([name], cells, lambda **cell: {name: kept(record(**cell))})  # noqa: B023


if __name__ == "__main__":
    main()
