"""Shaped tanh with the last gain of another depth: writes last-gain.csv beside itself.

OMP_NUM_THREADS=1 python book/data/depth-and-training/last_gain.py      # about three minutes
"""

import pandas as pd
import torch

from bnmlp import BNMLP, evaluate, load_dataset
from bnmlp.book.making import Maker, long_table
from bnmlp.layers.seeds import stored_streams
from bnmlp.training.step import scored_step

WIDTH, REPLICAS, STEPS, MEAN, RATE = 100, 4, 120, 20, 0.01
KINDS = {"100": (100, 100), "100, gain of 500": (100, 500), "500": (500, 500),
         "500, gain of 100": (500, 100)}  # fmt: skip


def record(kind: str, depth: int, last: int) -> pd.DataFrame:
    """Train; means over 20 steps of training loss and accuracy, and test accuracy at the end."""
    data, found = load_dataset("mnist5k"), []
    drawn = BNMLP(784, WIDTH, depth, 10, activation="tanh", gain_exponent=0.4, replicas=REPLICAS)
    model = drawn.with_gains("tanh", [*drawn.gains[:-1], last**-0.4])
    for step in range(1, STEPS + 1):
        x, y = data.batches(WIDTH, REPLICAS, seed=REPLICAS * step)
        loss, right = scored_step(model, x, y, RATE)
        found.append(torch.stack([loss, right / WIDTH]))
    means = torch.stack(found).unflatten(0, (-1, MEAN)).mean(1)
    test = torch.full((len(means), REPLICAS), torch.nan)
    test[-1] = evaluate(model, data.test_x, data.test_y).accuracy
    columns = {"loss": means[:, 0], "accuracy": means[:, 1], "test": test}
    return long_table(
        columns, kind=kind, step=range(MEAN, STEPS + 1, MEAN), replica=range(REPLICAS)
    )


def main() -> None:
    """Train each kind."""
    maker = Maker(globals())
    with stored_streams():
        table = pd.concat([record(kind, *depths) for kind, depths in KINDS.items()])
    maker.store("last-gain", table)


if __name__ == "__main__":
    main()
