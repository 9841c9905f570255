"""Exponents in training at depth 300: writes metrics-300.csv and layers-300.csv beside itself.

OMP_NUM_THREADS=1 python book/data/gain-while-training/make.py      # about eight minutes

Standard batch normalisation without eps, orthogonal weights, output matrix
divided by the last gain, own batches of mnist5k for each network, float32, seed DEPTH, SGD;
'0.4 to k': exponent 0.4 up to layer k, gain TAIL after, at which tanh is linear to seven digits.

metrics.csv: mean training loss of each epoch, accuracies with batch statistics at the end,
test_kept_k with the activations after layer k made linear.

layers.csv: gradient norm and share of the activation that is not linear.
"""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnmlp import BNMLP, gain_schedule, gradient_norms, load_dataset, sgd_step
from bnmlp.book.making import Maker, epoch_batches, long_table
from bnmlp.measurements.activity import accuracy_linear_after, layer_nonlinearity

DEPTH, WIDTH, BATCH, REPLICAS, EPOCHS = 300, 100, 100, 2, 6
RATES, TAIL = (0.003, 0.01), 0.01
EXPONENTS = (0.0, 0.2, 0.25, 0.3, 0.4, 0.5)
KEPT = (0, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300)


def kinds() -> dict[str, list[float]]:
    """Gains of every kind of network."""
    gains = {f"{e:g}": gain_schedule(DEPTH, exponent=e).tolist() for e in EXPONENTS}
    cut = {f"0.4 to {k}": gains["0.4"][:k] + [TAIL] * (DEPTH - k) for k in (10, 30)}
    return {"linear": [1.0] * DEPTH} | gains | cut


def layer_rows(model: BNMLP, x: Tensor, y: Tensor, **axes: object) -> pd.DataFrame:
    """Gradient norm of some layers, and the share of the activation that is not linear."""
    layers = np.unique(np.geomspace(1, DEPTH, 22).astype(int))
    found = {"gradient": gradient_norms(model, x, y), "nonlinear": layer_nonlinearity(model, x)}
    found = {name: values[layers - 1] for name, values in found.items()}
    return long_table(found, **axes, layer=layers, replica=range(REPLICAS))


def record(rate: float, kind: str, gains: list[float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train networks whose logits and hidden gradients start at one scale; rows of both tables."""
    data = load_dataset("mnist5k")
    activation = "identity" if kind == "linear" else "tanh"
    drawn = BNMLP(784, WIDTH, DEPTH, 10, replicas=REPLICAS, seed=DEPTH, eps=0.0)
    model, axes = drawn.with_gains(activation, gains), {"learning_rate": rate, "kind": kind}
    model.output_weight.data /= gains[-1]
    probe = data.batches(BATCH, REPLICAS, seed=99)
    layers = [layer_rows(model, *probe, **axes, moment="start")]
    batches = epoch_batches(data, BATCH, REPLICAS, EPOCHS * len(data.train_x) // BATCH, DEPTH)
    losses = torch.stack([sgd_step(model, x, y, rate) for x, y in batches])
    layers.append(layer_rows(model, *probe, **axes, moment="end"))
    kept = torch.stack(
        [accuracy_linear_after(model, data.test_x, data.test_y, k, BATCH) for k in KEPT]
    )
    parts = {
        "train_loss": losses.unflatten(0, (EPOCHS, -1)).mean(1),
        **{f"test_kept_{k}": found[None] for k, found in zip(KEPT, kept, strict=True)},
        "train_accuracy": accuracy_linear_after(model, data.train_x, data.train_y, DEPTH, BATCH)[
            None
        ],
    }
    rows = []
    for metric, values in parts.items():
        epochs = range(EPOCHS + 1 - len(values), EPOCHS + 1)
        more = {"epoch": epochs, "replica": range(REPLICAS), "metric": metric}
        rows.append(long_table({"value": values}, **axes, **more))
    print(rate, kind, losses[-1].tolist(), flush=True)
    return pd.concat(rows), pd.concat(layers)


def main() -> None:
    """Train every kind with every learning rate."""
    maker = Maker(globals())
    found = [record(rate, kind, gains) for rate in RATES for kind, gains in kinds().items()]
    for name, parts in zip(("metrics", "layers"), zip(*found, strict=True), strict=True):
        maker.store(name, pd.concat(parts), file=f"{name}-{DEPTH}")


if __name__ == "__main__":
    main()
