"""The eight quantities along two training runs: batch normalisation, and the small CNN.

OMP_NUM_THREADS=1 nice -n 5 python book/data/eight-quantities/make.py      # a quarter of an hour

Runs are kept in a temporary folder; run it again to go on after an interruption.
"""

import tempfile
import time

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from bnmlp import BNMLP, load_dataset
from bnmlp.book.tables import store_table
from bnmlp.data.batches import epoch_orders, images
from bnmlp.measurements.curvature import curvature_table, hessian, spectral_density
from bnmlp.measurements.noise import Batches
from bnmlp.networks.convolutional import simple_cnn
from bnmlp.networks.replicas import subset
from bnmlp.training import load_model, read_curvature, train
from bnmlp.training.configuration import TrainingRun

NAME = "eight-quantities"
COMMAND = f"OMP_NUM_THREADS=1 nice -n 5 python book/data/{NAME}/make.py"
KEYS = ["epoch", "replica", "quantity", "index"]
RUN = TrainingRun(
    width=32, depth=20, activation="tanh", gain_exponent=0.4, replicas=5, batch_size=200,
    learning_rate=1.0, epochs=50, measure_every=10, curvature_samples=400,
    quantities=("hessian", "overlap", "gradient", "weights", "loss"),
)  # fmt: skip


def scaled_largest(model: BNMLP, batches: Batches, rows: bool) -> float:
    """Largest eigenvalue in the normalised weights; each row in units of its length if asked.

    Products with the Hessian by a second pass backwards, several times faster than curvlinops for
    many small layers.
    """
    weights, parts = list(model.parameters()), []
    loss = sum(F.cross_entropy(model.logits(x)[0], y) for x, y in batches) / len(batches)
    slopes = torch.autograd.grad(loss, weights, create_graph=True)
    slope = torch.cat([g.flatten() for g in slopes])

    def product(v: np.ndarray) -> np.ndarray:
        v = torch.from_numpy((d * v.ravel()).astype(d.dtype))
        rows = torch.autograd.grad(slope, weights, v, retain_graph=True)
        return d * torch.cat([row.flatten() for row in rows]).numpy()

    for name, p in model.named_parameters():
        length = p.detach().norm(dim=-1, keepdim=True).expand_as(p)
        parts.append((length if rows else length * 0 + 1) * (not name.startswith("output")))
    d = torch.cat([p.flatten() for p in parts]).numpy()
    scaled = LinearOperator((len(d), len(d)), product, dtype=d.dtype)
    start = np.random.default_rng(0).standard_normal(len(d)).astype(d.dtype)
    return eigsh(scaled, 1, which="LA", tol=1e-3, v0=start)[0].item()


def density(model: nn.Module, batches: Batches, network: str, moment: str) -> pd.DataFrame:
    """Spectral density as rows."""
    grid, values = spectral_density(hessian(model, batches), vectors=50, repeats=1, points=200)
    columns = {"network": network, "moment": moment, "eigenvalue": grid, "density": values}
    return pd.DataFrame(columns)


def batch_norm_runs() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Five networks of 20 layers; the run is repeated to the moments where it is measured."""
    data = load_dataset("mnist5k")
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(1))[:400]
    batches = [(data.train_x[i], data.train_y[i]) for i in order.split(200)]
    rows, densities = [], []
    folder = f"{tempfile.gettempdir()}/{NAME}"
    metrics = train(RUN, f"{folder}/full", progress=False)
    found = read_curvature(f"{folder}/full").reset_index()
    for epoch in range(0, RUN.epochs + 1, RUN.measure_every):
        short = RUN.model_copy(update={"epochs": max(epoch, 1), "quantities": ()})
        train(short, f"{folder}/{epoch}", progress=False)
        model = load_model(f"{folder}/{epoch}") if epoch else short.build()
        for r in range(RUN.replicas):
            one = subset(model, [r])
            for name, unit in (("hessian_block", False), ("hessian_rows", True)):
                rows.append((epoch, r, name, 1, scaled_largest(one, batches, unit)))
            for i, w in enumerate((one.input_weight, one.hidden_weight), 1):
                squared = w.detach().square().sum(-1).mean().item()
                rows.append((epoch, r, "row_squared", i, squared))
            if r == 0 and epoch in (0, RUN.epochs):
                moment = "end" if epoch else "start"
                densities.append(density(one, batches, "batch-norm", moment))
    for row in metrics.itertuples():
        for kind in ("train_loss", "test_loss_batch"):
            rows.append((row.epoch, row.replica, kind, 1, getattr(row, kind)))
    every = pd.DataFrame(rows, columns=KEYS + ["value"])
    wanted = every["epoch"] % RUN.measure_every == 0
    return pd.concat([found, every[wanted]]), pd.concat(densities)


def cnn_run(seed: int, moments: tuple[int, ...]) -> pd.DataFrame:
    """One narrow CNN on images of 14 x 14 pixels, SGD as in the study's first setting."""
    data = load_dataset("mnist5k")
    x, test_x = (images(v, pooled=2) for v in (data.train_x, data.test_x))
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(1))[:500]
    batches = [(x[i], data.train_y[i]) for i in order.split(250)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = simple_cnn(14, wider=0.25)
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    optimiser, tables = torch.optim.SGD(model.parameters(), lr=0.1), []
    for epoch in range(max(moments) + 1):
        if epoch in moments:
            table = curvature_table(model, start, batches)
            table = pd.concat([table, losses(model, (x, data.train_y), (test_x, data.test_y))])
            tables.append(table.assign(epoch=epoch, replica=seed))
        for i in epoch_orders(seed, 1, epoch, 4000)[0].split(32):
            optimiser.zero_grad()
            F.cross_entropy(model(x[i]), data.train_y[i]).backward()
            optimiser.step()
    return pd.concat(tables)


@torch.no_grad()
def losses(model: nn.Module, *parts: tuple[Tensor, Tensor]) -> pd.DataFrame:
    """Loss on all training and on all test data."""
    values = [F.cross_entropy(model(x), y).item() for x, y in parts]
    names = ["train_loss", "test_loss_batch"]
    return pd.DataFrame({"quantity": names, "index": 1, "value": values})


def store_batch_norm() -> None:
    """Quantities and densities of the networks with batch normalisation."""
    begin = time.process_time()
    found, densities = batch_norm_runs()
    minutes = (time.process_time() - begin) / 60
    about = [
        f"Quantities of curvature_table along {RUN.replicas} runs of BNMLP with batch "
        "normalisation, on 400 training digits in two batches; hessian_block, hessian_rows: "
        "largest eigenvalue in the normalised weights, and with each row in units of its length; "
        "row_squared: mean squared length of a row of the first weights and the hidden ones; "
        "mnist5k",
        f"run: {RUN.model_dump_json()}",
    ]
    store_table(found.set_index("epoch")[KEYS[1:] + ["value"]], f"{NAME}/batch-norm.csv", about,
                command=COMMAND, minutes=minutes, float_format="%.6g")  # fmt: skip
    about = ["Spectral density of the Hessian of the first of these networks, 50 Lanczos vectors"]
    store_table(densities.set_index("network"), f"{NAME}/density.csv", about,
                command=COMMAND, minutes=minutes, float_format="%.5g")  # fmt: skip


def store_cnn() -> None:
    """Quantities of three convolutional networks."""
    begin = time.process_time()
    tables = [cnn_run(seed, (0, 1, 2, 4, 8, 12)) for seed in range(3)]
    about = [
        "Quantities of curvature_table along three runs of simple_cnn(14, wider=0.25): mnist5k "
        "averaged to 14 x 14 pixels, SGD with learning rate 0.1 and batches of 32, seeds 0-2, on "
        "500 training digits; losses on all training and test digits",
    ]
    store_table(pd.concat(tables).set_index("epoch")[KEYS[1:] + ["value"]], f"{NAME}/cnn.csv",
                about, command=COMMAND, minutes=(time.process_time() - begin) / 60,
                float_format="%.6g")  # fmt: skip


if __name__ == "__main__":
    store_batch_norm()
    store_cnn()
