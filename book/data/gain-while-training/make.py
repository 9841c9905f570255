"""Exponents in training at depth 300: writes metrics-300.csv and layers-300.csv beside itself.

OMP_NUM_THREADS=1 python book/data/gain-while-training/make.py      # about eight minutes
Kinds of networks that the tables hold are not repeated; delete the tables to start anew.
"""

import numpy as np
import pandas as pd
from torch import Tensor

from bnmlp import BNMLP, gain_schedule, gradient_norms, load_dataset
from bnmlp.book.making import Maker, long_table
from bnmlp.data.batches import epoch_batches
from bnmlp.measurements.activity import accuracy_linear_after, layer_nonlinearity
from bnmlp.training.batchwise import run_through, sgd

DEPTH, WIDTH, BATCH, REPLICAS, EPOCHS = 300, 100, 100, 2, 6
RATES, TAIL = (0.003, 0.01), 0.01
EXPONENTS = (0.0, 0.2, 0.25, 0.3, 0.4, 0.5)
KEPT = (0, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300)


def kinds() -> dict[str, dict]:
    """The gains of every kind of network."""
    exponents = {f"{e:g}": {"exponent": e} for e in EXPONENTS}
    cut = {f"0.4 to {k}": {"exponent": 0.4, "cut": (k, TAIL)} for k in (10, 30)}
    return {"linear": {}} | exponents | cut


def some_layers(model: BNMLP, x: Tensor, y: Tensor) -> pd.DataFrame:
    """Gradient norm of some layers, and the share of the activation that is not linear."""
    layers = np.unique(np.geomspace(1, DEPTH, 22).astype(int))
    found = {"gradient": gradient_norms(model, x, y), "nonlinear": layer_nonlinearity(model, x)}
    found = {name: values[layers - 1] for name, values in found.items()}
    return long_table(found, layer=layers, replica=range(REPLICAS))


def record(learning_rate: float, kind: str) -> dict[str, pd.DataFrame]:
    """Train; rows of both tables."""
    data, activation = load_dataset("mnist5k"), "identity" if kind == "linear" else "tanh"
    train, test = (data.train_x, data.train_y), (data.test_x, data.test_y)
    gains = gain_schedule(DEPTH, **kinds()[kind]).tolist()
    drawn = BNMLP(784, WIDTH, DEPTH, 10, replicas=REPLICAS, seed=DEPTH, eps=0.0)
    model = drawn.with_gains(activation, gains)
    model.output_weight.data /= gains[-1]  # all kinds start with logits of one scale
    probe = data.batches(BATCH, REPLICAS, seed=99)
    start = some_layers(model, *probe)
    batches = epoch_batches(*train, BATCH, REPLICAS, EPOCHS * len(train[0]) // BATCH, DEPTH)
    losses = run_through(sgd(model, batches, learning_rate)).unflatten(0, (EPOCHS, -1)).mean(1)
    scores = {f"test_kept_{k}": accuracy_linear_after(model, *test, k, BATCH) for k in KEPT}
    scores["train_accuracy"] = accuracy_linear_after(model, *train, DEPTH, BATCH)
    axes = {"replica": range(REPLICAS)}
    parts = [long_table({"value": losses}, epoch=range(1, EPOCHS + 1), **axes, metric="train_loss")]
    parts += [
        long_table({"value": v}, epoch=EPOCHS, **axes, metric=name) for name, v in scores.items()
    ]
    layers = pd.concat({"start": start, "end": some_layers(model, *probe)}, names=["moment"])
    return {"layers": layers, "metrics": pd.concat(parts)}


def main() -> None:
    """Train every kind with every learning rate, if tables lack it."""
    cells = [{"learning_rate": rate, "kind": kind} for rate in RATES for kind in kinds()]
    Maker(globals()).grow(("layers", "metrics"), cells, record, f"-{DEPTH}")


if __name__ == "__main__":
    main()
