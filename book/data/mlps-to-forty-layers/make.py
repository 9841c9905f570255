"""MLPs of 10 to 40 layers, four variants: writes three tables beside itself.

OMP_NUM_THREADS=1 python book/data/mlps-to-forty-layers/make.py      # about four hours

Each finished network size is written at once; run it again to go on after an interruption.
Names of tables after the command make these only.
"""

import itertools
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from bnmlp import load_dataset
from bnmlp.book.tables import store_table
from bnmlp.data.batches import epoch_orders
from bnmlp.measurements.evaluation import STATISTICS
from bnmlp.networks.losses import scored_losses, weight_gradients
from bnmlp.networks.skip import VARIANTS, SkipMLP, evaluate

HERE, REPLICAS, SEED = Path(__file__).parent, 5, 0
DATA = "fashion_mnist"
KEYS = ["variant", "init_gain", "rate", "batch_size", "epochs", "depth"]
HE = 2**0.5
THIN = "fashion-20-depths.csv"  # the last eight epochs and a few before, in these columns
COLUMNS = [
    *KEYS, "step", "replica", "dead_last", "grad_first", "grad_last", "train_accuracy",
    *(f"test_accuracy_{kind}" for kind in STATISTICS), "minutes",
]  # fmt: skip


def tables() -> dict[str, list[tuple]]:
    """Of each table: variant, gain, learning rate, batch size, epochs and depth of every size."""

    def sizes(n: int, epochs: int, *depths: int, variants: tuple = VARIANTS[:3]) -> list[tuple]:
        return [(v, 1.0, 1e-3, n, epochs, d) for d, v in itertools.product(depths, variants)]

    return {
        "fashion.csv": sizes(128, 2, 40, 30, 20, 10, 25, 35, 15)
        + [("plain", HE, 1e-3, 128, 2, 40)]
        + sizes(512, 2, 40, variants=("batch", "skip")),
        "fashion-20.csv": sizes(128, 20, 40, variants=VARIANTS)
        + sizes(128, 20, 30, variants=("batch", "skip")),
        THIN: sizes(128, 20, 10, 20)
        + sizes(128, 20, 30, variants=("plain", "single"))
        + sizes(128, 20, 35, variants=VARIANTS)
        + sizes(128, 20, 25, 15)
        + sizes(512, 20, 40, variants=("batch", "skip", "single")),
    }


def features(model: SkipMLP, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Units and gradients of each network on one batch that moves no averages."""
    before = [b.clone() for b in model.buffers()]
    with torch.no_grad():
        layers = list(model.representations(x))
    on = [(h > 0).any(-1).double().mean(-1) for h in layers]
    last = layers[-1].double()
    norms = [g.double().flatten(1).norm(dim=1) for g in weight_gradients(model, x, y)]
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)
    return {
        "dead": 1 - torch.stack(on).mean(0),
        "dead_last": 1 - on[-1],
        "always_last": (last > 0).all(-1).double().mean(-1),
        "size_last": last.square().mean((-2, -1)).sqrt(),
        "spread_last": last.var(-1, correction=0).mean(-1).sqrt(),
        "grad_first": norms[1],
        "grad_middle": norms[len(norms) // 2],
        "grad_last": norms[-2],
    }


def corrected(model: SkipMLP, steps: int, n: int, x: torch.Tensor, y: torch.Tensor) -> dict:
    """With running averages freed from their first value and from Bessel's correction."""
    before, memory = [b.clone() for b in model.buffers()], (1 - model.momentum) ** steps
    if before:
        model.running_mean.div_(1 - memory)
        model.running_var.sub_(memory).mul_((n - 1) / n / (1 - memory))
    found = evaluate(model, x, y, "running")
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)
    return {"test_accuracy_corrected": found.accuracy}


def record(*cell: str | float) -> pd.DataFrame:
    """Train five networks of one size; rows at the start and at least six times on the way."""
    variant, gain, rate, n, epochs, depth = cell
    start, data = time.process_time(), load_dataset(DATA)
    pixels = [part * data.std[0] + data.mean[0] for part in (data.train_x, data.test_x)]
    (train_x, test_x), test_y = pixels, data.test_y[:2000]
    seen_x, seen_y, test_x = train_x[:1000], data.train_y[:1000], test_x[:2000]
    probe = train_x[:512], data.train_y[:512].expand(REPLICAS, -1)
    model = SkipMLP(depth, variant, init_gain=gain, replicas=REPLICAS, seed=SEED)
    optimiser = torch.optim.RMSprop(model.parameters(), lr=rate, alpha=0.9, eps=1e-7)
    each = len(train_x) // n
    orders = [epoch_orders(SEED, REPLICAS, e, len(train_x)) for e in range(epochs)]
    orders = torch.cat([order[:, : each * n] for order in orders], 1)
    steps = each * epochs
    records = max(6, epochs)
    marks = {round(k * steps / records) for k in range(records + 1)}
    parts, loss_sum, right, count = [], 0.0, 0.0, 0
    for step in range(steps + 1):
        if step in marks:
            columns = {"step": torch.full((REPLICAS,), step), "replica": torch.arange(REPLICAS)}
            columns |= features(model, *probe)
            if step:
                columns |= {"train_loss": loss_sum / count, "train_accuracy": right / count / n}
                columns |= corrected(model, step, n, test_x, test_y)
                for kind in STATISTICS:
                    options = {"calibration": train_x[:2000], "batch_size": n}
                    found = evaluate(model, test_x, test_y, kind, **options)
                    columns[f"test_accuracy_{kind}"] = found.accuracy
                    columns[f"test_loss_{kind}"] = found.loss
                    found = evaluate(model, seen_x, seen_y, kind, **options)
                    columns[f"seen_accuracy_{kind}"] = found.accuracy
            parts.append(pd.DataFrame({k: v.numpy() for k, v in columns.items()}))
            loss_sum, right, count = 0.0, 0.0, 0
        if step < steps:
            batch = orders[:, step * n : (step + 1) * n]
            optimiser.zero_grad()
            losses, correct = scored_losses(model, train_x[batch], data.train_y[batch])
            losses.sum().backward()
            optimiser.step()
            loss_sum, right, count = loss_sum + losses.detach(), right + correct, count + 1
    table = pd.concat(parts)
    for i, (key, value) in enumerate(zip(KEYS, cell, strict=True)):
        table.insert(i, key, value)
    return table.assign(minutes=(time.process_time() - start) / 60)


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """The last eight of twenty epochs, and epochs 1, 2, 4 and 8."""
    epoch = (20 * table["step"] / table["step"].max()).round()
    return table.loc[(epoch > 12) | epoch.isin([1, 2, 4, 8]), COLUMNS]


def write(table: pd.DataFrame, name: str) -> None:
    """All rows of a table so far, with provenance."""
    data = load_dataset(DATA)
    minutes = table.groupby(KEYS)["minutes"].first().sum()
    about = [
        "Training of SkipMLP: accuracies and losses of five networks of each size with batch, "
        "running, recalibrated and corrected statistics; test_*: 2,000 test images, "
        "seen_*: 1,000 training images, train_*: mean over the steps since the row before; "
        "dead, always, size, spread, grad: units and gradients on 512 training images",
        f"dataset {DATA}, {len(data.train_x)} images, pixels / 255, "
        f"width 128, RMSprop (alpha 0.9, eps 1e-7), momentum of averages 0.01, float32; "
        f"seed {SEED}; minutes are of processor time",
    ]
    if name == THIN:
        about.append("of these columns only some, of 20 epochs 1, 2, 4, 8 and the last eight")
    command = "OMP_NUM_THREADS=1 python book/data/mlps-to-forty-layers/make.py"
    store_table(
        table.set_index("variant"), f"{HERE.name}/{name}", about,
        command=command, minutes=minutes, float_format="%.4g",
    )  # fmt: skip


def slug(value: float | str) -> str:
    """A choice as the table writes it."""
    return value if isinstance(value, str) else f"{value:.4g}"


def main() -> None:
    """Train what is missing."""
    for name, cells in tables().items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        path = HERE / name
        for cell in cells:
            done = pd.read_csv(path, comment="#") if path.exists() else pd.DataFrame(columns=KEYS)
            known = {tuple(map(slug, row)) for row in done[KEYS].itertuples(index=False)}
            if tuple(map(slug, cell)) in known:
                continue
            found = thinned(record(*cell)) if name == THIN else record(*cell)
            write(found if done.empty else pd.concat([done, found]), name)
            shown = found[found["step"] == found["step"].max()].mean(numeric_only=True)
            shown = shown.filter(regex="train|test_acc|dead|minutes").round(3).to_dict()
            print(name, cell, shown, flush=True)


if __name__ == "__main__":
    main()
