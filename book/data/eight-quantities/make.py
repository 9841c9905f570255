"""The eight quantities along two training runs: batch normalisation, and the small CNN.

OMP_NUM_THREADS=1 nice -n 5 python book/data/eight-quantities/make.py      # a quarter of an hour
Runs are kept in a temporary folder; run it again to go on after an interruption.

batch-norm.csv: Quantities of curvature_table along runs of BNMLP with batch normalisation, on 400
training digits in two batches; hessian_block, hessian_rows: largest eigenvalue in the normalised
weights, and with each row in units of its length; row_squared: mean squared length of a row of the
first weights and the hidden ones; mnist5k.

density.csv: Spectral density of the Hessian of the first network with batch normalisation, 50
Lanczos vectors.

cnn.csv: Quantities of curvature_table along runs of simple_cnn(14, wider=0.25): mnist5k averaged to
14 x 14 pixels, SGD with learning rate 0.1 and batches of 32, a seed for each, on SAMPLES
training digits; losses on all training and test digits.
"""

import tempfile
from collections.abc import Iterator

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from bnmlp import BNMLP, load_dataset
from bnmlp.book.making import Maker
from bnmlp.data.batches import epoch_orders, images
from bnmlp.measurements.curvature import (
    curvature_table,
    hessian,
    row_lengths,
    scaled_largest,
    spectral_density,
)  # fmt: skip
from bnmlp.measurements.noise import Batches
from bnmlp.networks.convolutional import simple_cnn
from bnmlp.networks.replicas import subset
from bnmlp.training import TrainingRun, load_model, read_curvature, train

RUN = TrainingRun(
    width=32, depth=20, activation="tanh", gain_exponent=0.4, replicas=5, batch_size=200,
    learning_rate=1.0, epochs=50, measure_every=10, curvature_samples=400,
    quantities=("hessian", "overlap", "gradient", "weights", "loss"),
)  # fmt: skip
SEEDS, MOMENTS, SAMPLES, POOLED = 3, (0, 1, 2, 4, 8, 12), 500, 2
KEYS = ["epoch", "replica", "quantity", "index"]
LOSSES = ["train_loss", "test_loss_batch"]


def chosen(x: torch.Tensor, y: torch.Tensor, count: int) -> Batches:
    """Two batches of random training samples."""
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(1))[:count]
    return [(x[i], y[i]) for i in order.split(count // 2)]


def trained(epoch: int) -> BNMLP:
    """The networks of the run at one moment, by a run that ends there."""
    short = RUN.model_copy(update={"epochs": max(epoch, 1), "quantities": ()})
    folder = f"{tempfile.gettempdir()}/eight-quantities/{epoch}"
    return (
        load_model(folder) if epoch and len(train(short, folder, progress=False)) else short.build()
    )


def of_rows(epoch: int, r: int, one: BNMLP, batches: Batches) -> Iterator[tuple]:
    """Curvature in units of rows and without, and lengths of rows."""
    units = row_lengths(one)
    for name, d in (("hessian_block", (units > 0).float()), ("hessian_rows", units)):
        yield epoch, r, name, 1, scaled_largest(one, batches, 1e-3, units=d).item()
    for i, w in enumerate((one.input_weight, one.hidden_weight), 1):
        yield epoch, r, "row_squared", i, w.detach().square().sum(-1).mean().item()


def batch_norm() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Quantities of all networks, and densities of the first at the start and at the end."""
    data, rows, densities = load_dataset("mnist5k"), [], {}
    batches = chosen(data.train_x, data.train_y, RUN.curvature_samples)
    folder = f"{tempfile.gettempdir()}/eight-quantities/full"
    losses = train(RUN, folder, progress=False).query(f"epoch % {RUN.measure_every} == 0")
    for epoch in range(0, RUN.epochs + 1, RUN.measure_every):
        model = trained(epoch)
        for r in range(RUN.replicas):
            rows += of_rows(epoch, r, subset(model, [r]), batches)
        if epoch in (0, RUN.epochs):
            operator = hessian(subset(model, [0]), batches)
            found = spectral_density(operator, vectors=50, repeats=1, points=200)
            table = pd.DataFrame(dict(zip(("eigenvalue", "density"), found, strict=True)))
            densities["batch-norm", "end" if epoch else "start"] = table
    losses = losses.set_index(KEYS[:2])[LOSSES].stack().rename_axis(KEYS[:3]).rename("value")
    losses = losses.reset_index().assign(index=1)
    rows = pd.concat([pd.DataFrame(rows, columns=[*KEYS, "value"]), losses])
    densities = pd.concat(densities, names=["network", "moment"]).droplevel(-1)
    return pd.concat([read_curvature(folder).reset_index(), rows]).set_index(KEYS), densities


def cnn(seed: int) -> pd.DataFrame:
    """One narrow CNN on small images, SGD as in the study's first setting."""
    data, tables = load_dataset("mnist5k"), []
    x, test_x = (images(v, pooled=POOLED) for v in (data.train_x, data.test_x))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = simple_cnn(28 // POOLED, wider=0.25)
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(max(MOMENTS) + 1):
        if epoch in MOMENTS:
            parts = [(x, data.train_y), (test_x, data.test_y)]
            values = [F.cross_entropy(model(a), b).item() for a, b in parts]
            losses = pd.DataFrame({"quantity": LOSSES, "index": 1, "value": values})
            table = pd.concat([curvature_table(model, start, chosen(*parts[0], SAMPLES)), losses])
            tables.append(table.assign(epoch=epoch, replica=seed))
        for i in epoch_orders(seed, 1, epoch, 4000)[0].split(32):
            optimiser.zero_grad()
            F.cross_entropy(model(x[i]), data.train_y[i]).backward()
            optimiser.step()
    return pd.concat(tables).set_index(KEYS)


def main() -> None:
    """Three tables."""
    maker = Maker(globals())
    quantities, densities = batch_norm()
    maker.store("batch-norm", quantities, f"run: {RUN.model_dump_json()}", float_format="%.6g")
    maker.store("density", densities, float_format="%.5g")
    maker = Maker(globals())
    maker.store("cnn", pd.concat(map(cnn, range(SEEDS))), float_format="%.6g")


if __name__ == "__main__":
    main()
