"""Orthogonality of a thousand layers in training: writes depth-1000.csv beside itself.

OMP_NUM_THREADS=1 python book/data/orthogonality/make.py      # about eight minutes
"""

import time

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnmlp import BNMLP, isometry_gap, load_dataset, sgd_step
from bnmlp.book.tables import store_table
from bnmlp.data.batches import epoch_orders

DEPTH, WIDTH, REPLICAS, STEPS = 1_000, 100, 2, 400
KINDS = (("identity", 0.001), ("tanh", 0.001), ("tanh", 0.05), ("sin", 0.05))
RECORDED = (50, 100, 200, 400)


def energies(matrix: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Squared norm of a change of the weights, and of the symmetric part of change times W^T."""
    turn = (matrix @ weight.mT).double()
    symmetric = (turn + turn.mT) / 2
    return matrix.double().square().sum((-2, -1)), symmetric.square().sum((-2, -1))


def record(activation: str, rate: float, layers: np.ndarray) -> pd.DataFrame:
    """Train networks; squared lengths of path and displacement, and gaps, of some layers."""
    data = load_dataset("mnist5k")
    model = BNMLP(
        784, WIDTH, DEPTH, 10, activation=activation, gain_exponent=0.4, replicas=REPLICAS,
        seed=DEPTH,
    )  # fmt: skip
    orders = torch.cat([epoch_orders(DEPTH, REPLICAS, e, 4000) for e in range(STEPS // 40)], 1)
    kept = torch.as_tensor(layers - 2)  # hidden_weight starts with layer 2
    start = model.hidden_weight.detach()[kept]
    path = path_symmetric = 0
    before, parts = start, []
    for step in range(1, STEPS + 1):
        batch = orders[:, (step - 1) * WIDTH : step * WIDTH]
        loss = sgd_step(model, data.train_x[batch], data.train_y[batch], rate)
        now = model.hidden_weight.detach()[kept]
        length, symmetric = energies(now - before, before)
        path, path_symmetric = path + length, path_symmetric + symmetric
        before = now
        if step in RECORDED:
            moved, moved_symmetric = energies(now - start, start)
            columns = {
                "gap": isometry_gap(now), "moved": moved, "moved_symmetric": moved_symmetric,
                "path": path, "path_symmetric": path_symmetric,
            }  # fmt: skip
            index = pd.MultiIndex.from_product(
                [[activation], [rate], [step], layers, range(REPLICAS)],
                names=["activation", "rate", "step", "layer", "replica"],
            )
            parts.append(pd.DataFrame({k: v.flatten() for k, v in columns.items()}, index))
            print(activation, rate, step, loss.tolist(), flush=True)
    return pd.concat(parts)


def main() -> None:
    """Train each kind; keep 28 layers, with provenance."""
    start = time.perf_counter()
    layers = np.unique(np.linspace(2, DEPTH, 26).round().astype(int))
    layers = np.unique([*layers, 5, 995])
    table = pd.concat([record(*kind, layers) for kind in KINDS])
    minutes = (time.perf_counter() - start) / 60
    about = [
        "Hidden weights in training: isometry gap; squared Frobenius norms of the displacement "
        "since the start (moved) and summed over the steps (path), and of the symmetric part of "
        "displacement or step times the transposed weights",
        f"depth {DEPTH}, width and batch {WIDTH}, standard batch normalisation, orthogonal "
        f"weights, exponent 0.4, {REPLICAS} networks per kind with their own batches of "
        f"mnist5k, float32, seed {DEPTH}, SGD",
    ]
    command = "OMP_NUM_THREADS=1 python book/data/orthogonality/make.py"
    name = f"orthogonality/depth-{DEPTH}.csv"
    store_table(table, name, about, command=command, minutes=minutes, float_format="%.3g")


if __name__ == "__main__":
    main()
