"""Exponents in training at depth 300: writes metrics-300.csv and layers-300.csv beside itself.

OMP_NUM_THREADS=1 python book/data/gain-while-training/make.py      # about eight minutes
"""

import time

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnmlp import BNMLP, batch_norm, gain_schedule, gradient_norms, load_dataset, sgd_step
from bnmlp.book.tables import store_table
from bnmlp.data.batches import epoch_orders

DEPTH, WIDTH, REPLICAS, EPOCHS = 300, 100, 2, 6
RATES = (0.003, 0.01)
EXPONENTS = (0.0, 0.2, 0.25, 0.3, 0.4, 0.5)
KEPT = (0, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200, DEPTH)
TAIL = 0.01  # a gain at which tanh is linear to seven digits


def kinds() -> dict[str, tuple[str, list[float]]]:
    """Name, activation and gains of every kind of network."""
    gains = {e: gain_schedule(DEPTH, exponent=e).tolist() for e in EXPONENTS}
    shaped = {f"{e:g}": ("tanh", gains[e]) for e in EXPONENTS}
    cut = {f"0.4 to {k}": ("tanh", gains[0.4][:k] + [TAIL] * (DEPTH - k)) for k in (10, 30)}
    return {"linear": ("identity", [1.0] * DEPTH)} | shaped | cut


def network(activation: str, gains: list[float]) -> BNMLP:
    """Networks whose logits and hidden gradients start at one scale, whatever the gains."""
    model = BNMLP(784, WIDTH, DEPTH, 10, activation=activation, replicas=REPLICAS, seed=DEPTH,
                  eps=0.0)  # fmt: skip
    model.gains = gains
    with torch.no_grad():
        model.output_weight /= gains[-1]
    return model


@torch.no_grad()
def accuracy(model: BNMLP, x: Tensor, y: Tensor, kept: int) -> Tensor:
    """Accuracy by batch with the activations after the first ``kept`` layers made linear."""
    h = x.unflatten(0, (-1, 1, 100)).mT  # (batches, 1, features, n)
    for i, (weight, gain) in enumerate(zip(model.layer_weights(), model.gains, strict=True)):
        h = gain * batch_norm(weight @ h, eps=0.0)
        h = torch.tanh(h) if i < kept and model.activation == "tanh" else h
    right = model.head(h).argmax(-1) == y.unflatten(0, (-1, 1, 100))
    return right.double().mean((0, 2))


@torch.no_grad()
def layers_of(model: BNMLP, x: Tensor, y: Tensor, kept: np.ndarray) -> dict[str, Tensor]:
    """Gradient norm of some layers, and the share of the activation that is not linear."""
    shares = []
    for gain, (_, z, h) in zip(model.gains, model.stages(x), strict=True):
        z, h = (gain * z).double(), h.double()
        fit = (z * h).sum((-2, -1)) ** 2
        shares.append(1 - fit / (z.square().sum((-2, -1)) * h.square().sum((-2, -1))))
    norms = gradient_norms(model, x, y)
    return {"gradient": norms[kept - 1], "nonlinear": torch.stack(shares)[kept - 1]}


def main() -> None:
    """Train every kind with every learning rate."""
    start = time.perf_counter()
    data = load_dataset("mnist5k")
    layers = np.unique(np.geomspace(1, DEPTH, 22).astype(int))
    xp, yp = data.batches(WIDTH, REPLICAS, seed=99)
    metrics, measured = [], []
    for rate in RATES:
        for name, (activation, gains) in kinds().items():
            model = network(activation, gains)
            moments = {"start": layers_of(model, xp, yp, layers)}
            for epoch in range(EPOCHS):
                order = epoch_orders(DEPTH, REPLICAS, epoch, len(data.train_x))
                losses = [
                    sgd_step(model, data.train_x[b], data.train_y[b], rate)
                    for b in order.split(WIDTH, 1)
                ]
                loss = torch.stack(losses).mean(0)
                for r in range(REPLICAS):
                    metrics.append((rate, name, epoch + 1, r, "train_loss", loss[r].item()))
            moments["end"] = layers_of(model, xp, yp, layers)
            for kept in KEPT:
                found = accuracy(model, data.test_x, data.test_y, kept)
                for r in range(REPLICAS):
                    metrics.append((rate, name, EPOCHS, r, f"test_kept_{kept}", found[r].item()))
            found = accuracy(model, data.train_x, data.train_y, DEPTH)
            for r in range(REPLICAS):
                metrics.append((rate, name, EPOCHS, r, "train_accuracy", found[r].item()))
            for moment, columns in moments.items():
                index = pd.MultiIndex.from_product(
                    [[rate], [name], [moment], layers, range(REPLICAS)],
                    names=["learning_rate", "kind", "moment", "layer", "replica"],
                )
                measured.append(pd.DataFrame({k: v.flatten() for k, v in columns.items()}, index))
            print(rate, name, loss.tolist(), found.tolist(), f"{time.perf_counter() - start:.0f} s",
                  flush=True)  # fmt: skip
    minutes = (time.perf_counter() - start) / 60
    names = ["learning_rate", "kind", "epoch", "replica", "metric", "value"]
    tables = {
        "metrics": pd.DataFrame(metrics, columns=names).set_index(names[:4]),
        "layers": pd.concat(measured),
    }
    about = [
        "metrics: mean training loss of each epoch, accuracies with batch statistics at the end, "
        "test_kept_k with the activations after layer k made linear; layers: gradient norm and "
        "share of the activation that is not linear",
        f"depth {DEPTH}, width and batch {WIDTH}, standard batch normalisation without eps, "
        f"orthogonal weights, output matrix divided by the last gain, {REPLICAS} networks per kind "
        f"with their own batches of mnist5k, float32, seed {DEPTH}, SGD, {EPOCHS} epochs; "
        f"'0.4 to k': exponent 0.4 up to layer k, gain {TAIL} after",
    ]
    command = "OMP_NUM_THREADS=1 python book/data/gain-while-training/make.py"
    for name, table in tables.items():
        name = f"gain-while-training/{name}-{DEPTH}.csv"
        store_table(table, name, about, command=command, minutes=minutes, float_format="%.4g")


if __name__ == "__main__":
    main()
