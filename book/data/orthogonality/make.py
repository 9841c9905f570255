"""Orthogonality of a thousand layers in training: writes depth-1000.csv beside itself.

OMP_NUM_THREADS=1 python book/data/orthogonality/make.py      # about eight minutes
Kinds of networks that the table holds are not repeated; delete it to start anew.
"""

import numpy as np
import pandas as pd

from bnmlp import BNMLP, load_dataset
from bnmlp.book.making import Maker
from bnmlp.data.batches import epoch_batches
from bnmlp.training.measured import turning_table

DEPTH, WIDTH, REPLICAS, STEPS = 1_000, 100, 2, 400
KINDS = (("identity", 0.001), ("tanh", 0.001), ("tanh", 0.05), ("sin", 0.05))
RECORDED = (50, 100, 200, 400)


def record(activation: str, rate: float) -> dict[str, pd.DataFrame]:
    """Train networks; rows of 28 layers."""
    layers = np.unique([*np.linspace(2, DEPTH, 26).round().astype(int), 5, DEPTH - 5])
    options = {"activation": activation, "gain_exponent": 0.4, "replicas": REPLICAS}
    data, model = load_dataset("mnist5k"), BNMLP(784, WIDTH, DEPTH, 10, seed=DEPTH, **options)
    batches = epoch_batches(data.train_x, data.train_y, WIDTH, REPLICAS, STEPS, DEPTH)
    return {"depth": turning_table(model, batches, rate, layers, RECORDED)}


def main() -> None:
    """Train each kind that the table lacks."""
    cells = [{"activation": activation, "rate": rate} for activation, rate in KINDS]
    Maker(globals()).grow(["depth"], cells, record, f"-{DEPTH}", float_format="%.3g")


if __name__ == "__main__":
    main()
