"""The eight quantities along two training runs: batch normalisation, and the small CNN.

OMP_NUM_THREADS=1 nice -n 5 python book/data/eight-quantities/make.py      # a quarter of an hour
Runs are kept in a temporary folder; run it again to go on after an interruption.
"""

import tempfile

import pandas as pd
import torch
from torch import Tensor, nn

from bnmlp import BNMLP, TrainingRun, load_dataset, load_model, train
from bnmlp.book.making import Maker
from bnmlp.data.batches import epoch_batches, images
from bnmlp.measurements.curvature import curvature_table, hessian, spectral_density
from bnmlp.measurements.scores import batch_scores
from bnmlp.measurements.sharpness import row_quantities
from bnmlp.networks.convolutional import simple_cnn
from bnmlp.networks.protocol import One
from bnmlp.networks.replicas import subset
from bnmlp.training import read_curvature
from bnmlp.training.batchwise import looks, optimise

RUN = TrainingRun(
    width=32, depth=20, activation="tanh", gain_exponent=0.4, replicas=5, batch_size=200,
    learning_rate=1.0, epochs=50, measure_every=10, curvature_samples=400,
    quantities=("hessian", "overlap", "gradient", "weights", "loss"),
)  # fmt: skip
SEEDS, MOMENTS, SAMPLES, POOLED = 3, (0, 1, 2, 4, 8, 12), 500, 2
KEYS = ["epoch", "replica", "quantity", "index"]
LOSSES = ["train_loss", "test_loss_batch"]


def chosen(x: Tensor, y: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Two batches of random training samples."""
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(1))[:count]
    return [(x[i], y[i]) for i in order.split(count // 2)]


def trained(epoch: int) -> BNMLP:
    """The networks of the run at one moment, by a run that ends there."""
    if epoch == 0:
        return RUN.build()
    folder = f"{tempfile.gettempdir()}/eight-quantities/{epoch}"
    short = RUN.model_copy(update={"epochs": epoch, "quantities": ()})
    train(short, folder, progress=False)
    return load_model(folder)


def batch_norm() -> pd.DataFrame:
    """Quantities of all networks, those of the run and those of rows, and losses."""
    data, folder = load_dataset("mnist5k"), f"{tempfile.gettempdir()}/eight-quantities/full"
    batches = chosen(data.train_x, data.train_y, RUN.curvature_samples)
    metrics = train(RUN, folder, progress=False).query(f"epoch % {RUN.measure_every} == 0")
    losses = metrics.melt(KEYS[:2], LOSSES, "quantity").sort_values(KEYS[:2], kind="stable")
    moments = range(0, RUN.epochs + 1, RUN.measure_every)
    rows = [row_quantities(trained(epoch), batches).assign(epoch=epoch) for epoch in moments]
    parts = [read_curvature(folder).reset_index(), *rows, losses.assign(index=1)]
    return pd.concat(parts).set_index(KEYS)


def density() -> pd.DataFrame:
    """Spectral densities of the first network at the start and at the end."""
    data, parts = load_dataset("mnist5k"), {}
    batches = chosen(data.train_x, data.train_y, RUN.curvature_samples)
    for moment, epoch in (("start", 0), ("end", RUN.epochs)):
        operator = hessian(subset(trained(epoch), [0]), batches)
        found = spectral_density(operator, vectors=50, repeats=1, points=200)
        columns = dict(zip(("eigenvalue", "density"), found, strict=True))
        parts["batch-norm", moment] = pd.DataFrame(columns)
    return pd.concat(parts, names=["network", "moment"]).droplevel(-1)


def cnn() -> pd.DataFrame:
    """Narrow CNNs on small images, SGD as in the study's first setting."""
    data, tables = load_dataset("mnist5k"), []
    x, test_x = (images(v, pooled=POOLED) for v in (data.train_x, data.test_x))
    parts = (x, data.train_y), (test_x, data.test_y)
    for seed in range(SEEDS):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = One(simple_cnn(28 // POOLED, wider=0.25), 3)
        start = nn.utils.parameters_to_vector(model.parameters()).detach()
        batches = epoch_batches(x, data.train_y, 32, 1, 125 * max(MOMENTS), seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in looks(optimise(model, batches, optimizer), [125 * t for t in MOMENTS]):
            values = [batch_scores(model, *part).loss.item() for part in parts]
            losses = pd.DataFrame({"quantity": LOSSES, "index": 1, "value": values})
            table = curvature_table(model, start, chosen(*parts[0], SAMPLES))
            table = pd.concat([table, losses]).assign(epoch=step // 125, replica=seed)
            tables.append(table)
    return pd.concat(tables).set_index(KEYS)


def main() -> None:
    """Three tables."""
    maker = Maker(globals())
    maker.make(batch_norm, about=[f"run: {RUN.model_dump_json()}"], float_format="%.6g")
    maker.make(density, float_format="%.5g")
    maker.make(cnn, float_format="%.6g")


if __name__ == "__main__":
    main()
