"""MLPs of 10 to 40 layers, four variants: writes three tables beside itself.

OMP_NUM_THREADS=1 python book/data/mlps-to-forty-layers/make.py      # about four hours
Each finished size is written at once; run it again to go on after an interruption. Names of tables
after the command make these only.
"""

import sys
import time

import pandas as pd
import torch
from torch import Tensor

from bnmlp import load_dataset
from bnmlp.book.making import Maker, long_table
from bnmlp.data.batches import epoch_batches
from bnmlp.layers.seeds import random_order
from bnmlp.measurements.activity import units_and_gradients
from bnmlp.measurements.evaluation import STATISTICS
from bnmlp.measurements.scores import evaluations
from bnmlp.networks.skip import VARIANTS, SkipMLP
from bnmlp.training.batchwise import means_between, optimise

DATA, REPLICAS, SEED = "fashion_mnist", 5, 0
GROUPS = [  # table, variants, gain, batch size, epochs and depths
    ("fashion", VARIANTS[:3], 1.0, 128, 2, (40, 30, 20, 10, 25, 35, 15)),
    ("fashion", ("plain",), 2**0.5, 128, 2, (40,)),
    ("fashion", VARIANTS[1:3], 1.0, 512, 2, (40,)),
    ("fashion-20", VARIANTS, 1.0, 128, 20, (40,)),
    ("fashion-20", VARIANTS[1:3], 1.0, 128, 20, (30,)),
    ("fashion-20-depths", VARIANTS[:3], 1.0, 128, 20, (10, 20)),
    ("fashion-20-depths", ("plain", "single"), 1.0, 128, 20, (30,)),
    ("fashion-20-depths", VARIANTS, 1.0, 128, 20, (35,)),
    ("fashion-20-depths", VARIANTS[:3], 1.0, 128, 20, (25, 15)),
    ("fashion-20-depths", ("batch", "skip", "single"), 1.0, 512, 20, (40,)),
]
COLUMNS = [
    "step", "replica", "dead_last", "grad_first", "grad_last", "train_accuracy",
    *(f"test_accuracy_{kind}" for kind in STATISTICS), "minutes",
]  # fmt: skip


def in_order(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Samples so that the batches of :func:`bnmlp.evaluate` are these, one after the other."""
    back = random_order(len(x), 0).argsort()
    return x[back], y[back]


def record(
    variant: str, init_gain: float, rate: float, batch_size: int, epochs: int, depth: int
) -> pd.DataFrame:
    """Train networks of one size; rows at the start and at least six times on the way."""
    begun, data, replicas = time.process_time(), load_dataset(DATA), {"replica": range(REPLICAS)}
    x, y = data.pixels(data.train_x), data.train_y
    test = in_order(data.pixels(data.test_x[:2000]), data.test_y[:2000])
    seen = in_order(x[:1000], y[:1000])
    model = SkipMLP(depth, variant, init_gain=init_gain, replicas=REPLICAS, seed=SEED)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=rate, alpha=0.9, eps=1e-7)
    steps, records, parts = len(x) // batch_size * epochs, max(6, epochs), []
    marks = {round(k * steps / records) for k in range(records + 1)}
    training = optimise(model, epoch_batches(x, y, batch_size, REPLICAS, steps, SEED), optimizer)
    for step, means in means_between(training, marks):
        columns = units_and_gradients(model, x[:512], y[:512])
        if step:
            options = {"calibration": x[:2000], "batch_size": batch_size}
            found = evaluations(model, *test, steps=step, **options)
            corrected = found.pop("corrected").accuracy
            columns |= {"train_loss": means[0], "train_accuracy": means[1]}
            columns |= {"test_accuracy_corrected": corrected}
            for kind, before in evaluations(model, *seen, **options).items():
                columns[f"test_accuracy_{kind}"] = found[kind].accuracy
                columns[f"test_loss_{kind}"] = found[kind].loss
                columns[f"seen_accuracy_{kind}"] = before.accuracy
        parts.append(long_table(columns, step=step, **replicas))
    return pd.concat(parts).assign(minutes=(time.process_time() - begun) / 60)


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """The last eight of twenty epochs, and epochs 1, 2, 4 and 8."""
    steps = table.index.get_level_values("step")
    epoch = (20 * steps / steps.max()).to_series().round()
    return table[((epoch > 12) | epoch.isin([1, 2, 4, 8])).values].filter(COLUMNS)


def main() -> None:
    """Train what is missing."""
    maker = Maker(globals())
    for name in sys.argv[1:] or dict.fromkeys(group[0] for group in GROUPS):
        cells = [
            {"variant": variant, "init_gain": gain, "rate": 1e-3, "batch_size": n,
             "epochs": epochs, "depth": depth}
            for table, variants, gain, n, epochs, depths in GROUPS if table == name
            for depth in depths for variant in variants
        ]  # fmt: skip
        kept = thinned if name == "fashion-20-depths" else lambda table: table
        maker.grow([name], cells, lambda **cell: {name: kept(record(**cell))})  # noqa: B023


if __name__ == "__main__":
    main()
