"""Orthogonality of a thousand layers in training: writes depth-1000.csv beside itself.

OMP_NUM_THREADS=1 python book/data/orthogonality/make.py      # about eight minutes

Hidden weights in training: isometry gap; squared Frobenius norms of the displacement since the
start (moved) and summed over the steps (path), and of the symmetric part of displacement or step
times the transposed weights. Width and batch equal, standard batch normalisation, orthogonal
weights, exponent 0.4, own batches of mnist5k for each network, float32, seed DEPTH, SGD.
"""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnmlp import BNMLP, isometry_gap, load_dataset, sgd_step
from bnmlp.book.making import Maker, epoch_batches, long_table
from bnmlp.measurements.turns import energies

DEPTH, WIDTH, REPLICAS, STEPS = 1_000, 100, 2, 400
KINDS = (("identity", 0.001), ("tanh", 0.001), ("tanh", 0.05), ("sin", 0.05))
RECORDED = (50, 100, 200, 400)


def lengths(change: Tensor, weight: Tensor) -> Tensor:
    """Squared norms of a change of the weights, and of the symmetric part of change times W^T."""
    _, deformation, trace = energies((change @ weight.mT).double())
    return torch.stack([change.double().square().sum((-2, -1)), deformation + trace])


def record(activation: str, rate: float) -> pd.DataFrame:
    """Train networks; squared lengths of path and displacement, and gaps, of 28 layers."""
    layers = np.unique([*np.linspace(2, DEPTH, 26).round().astype(int), 5, DEPTH - 5])
    kept = torch.as_tensor(layers - 2)  # hidden_weight starts with layer 2
    options = {"activation": activation, "gain_exponent": 0.4, "replicas": REPLICAS}
    model, parts, path = BNMLP(784, WIDTH, DEPTH, 10, seed=DEPTH, **options), [], 0
    now = start = model.hidden_weight.detach()[kept]
    batches = epoch_batches(load_dataset("mnist5k"), WIDTH, REPLICAS, STEPS, DEPTH)
    for step, (x, y) in enumerate(batches, 1):
        loss = sgd_step(model, x, y, rate)
        before, now = now, model.hidden_weight.detach()[kept]
        path = path + lengths(now - before, before)
        if step in RECORDED:
            moved = lengths(now - start, start)
            columns = {"gap": isometry_gap(now), "moved": moved[0], "moved_symmetric": moved[1]}
            columns |= {"path": path[0], "path_symmetric": path[1]}
            axes = {"activation": activation, "rate": rate, "step": step}
            parts.append(long_table(columns, **axes, layer=layers, replica=range(REPLICAS)))
            print(activation, rate, step, loss.tolist(), flush=True)
    return pd.concat(parts)


def main() -> None:
    """Train each kind."""
    maker = Maker(globals())
    maker.store(f"depth-{DEPTH}", pd.concat([record(*kind) for kind in KINDS]), float_format="%.3g")


if __name__ == "__main__":
    main()
