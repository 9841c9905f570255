"""Shaped tanh with the last gain of another depth: writes last-gain.csv beside itself.

OMP_NUM_THREADS=1 python book/data/depth-and-training/last_gain.py      # about three minutes
"""

import time

import pandas as pd
import torch

from bnmlp import BNMLP, evaluate, load_dataset
from bnmlp.book.tables import store_table
from bnmlp.layers.seeds import stored_streams
from bnmlp.training.step import scored_step

WIDTH, REPLICAS, STEPS, MEAN, RATE = 100, 4, 120, 20, 0.01
KINDS = {"100": (100, 100), "100, gain of 500": (100, 500), "500": (500, 500),
         "500, gain of 100": (500, 100)}  # fmt: skip


def record(kind: str, depth: int, last: int) -> pd.DataFrame:
    """Train; means over 20 steps of training loss and accuracy, and test accuracy at the end."""
    data = load_dataset("mnist5k")
    model = BNMLP(784, WIDTH, depth, 10, activation="tanh", gain_exponent=0.4, replicas=REPLICAS)
    model.gains[-1] = last**-0.4
    sums, rows = torch.zeros(2, REPLICAS), []
    for step in range(1, STEPS + 1):
        x, y = data.batches(WIDTH, REPLICAS, seed=REPLICAS * step)
        loss, right = scored_step(model, x, y, RATE)
        sums += torch.stack([loss, right / WIDTH]) / MEAN
        if step % MEAN == 0:
            columns = {"loss": sums[0], "accuracy": sums[1]}
            if step == STEPS:
                columns["test"] = evaluate(model, data.test_x, data.test_y).accuracy
            frame = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
            rows.append(frame.rename_axis("replica").assign(kind=kind, step=step).reset_index())
            sums = torch.zeros(2, REPLICAS)
            print(kind, step, loss.tolist(), flush=True)
    return pd.concat(rows).set_index(["kind", "step", "replica"])


def main() -> None:
    """Train each kind, with provenance."""
    start = time.perf_counter()
    with stored_streams():
        table = pd.concat([record(kind, *depths) for kind, depths in KINDS.items()])
    minutes = (time.perf_counter() - start) / 60
    about = [
        "Shaped tanh, depths 100 and 500, each with its own last gain and with that of the other: "
        "mean training loss and accuracy of 20 steps, test accuracy with batch statistics "
        "at the end",
        f"dataset mnist5k, width and batch {WIDTH}, standard batch normalisation, orthogonal "
        f"weights, exponent 0.4, SGD with rate {RATE}, float32, {REPLICAS} networks; network r "
        "of all kinds sees the same batches",
    ]
    command = "OMP_NUM_THREADS=1 python book/data/depth-and-training/last_gain.py"
    name = "depth-and-training/last-gain.csv"
    store_table(table, name, about, command=command, minutes=minutes, float_format="%.4g")


if __name__ == "__main__":
    main()
