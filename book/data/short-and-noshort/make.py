"""Short and NoShort in training: writes runs.csv and paths.csv beside itself.

OMP_NUM_THREADS=1 python book/data/short-and-noshort/make.py      # about twenty minutes

BNMLP_SCALE=paper python book/data/short-and-noshort/make.py      # networks of the paper's size
At paper scale: CIFAR-10, 56 and 110 layers of 16 channels, on a GPU; writes runs-paper.csv and
paths-paper.csv. Runs that the tables already hold are not repeated; delete the tables to start
anew.
"""

from itertools import product
from types import SimpleNamespace as Sizes

import numpy as np
import pandas as pd
import torch

from bnmlp import default_device, load_dataset, scale
from bnmlp.book.making import Maker, long_table
from bnmlp.data.batches import images, shuffled_batches
from bnmlp.measurements.scores import batch_scores
from bnmlp.networks.convolutional import ResNet
from bnmlp.networks.protocol import Stacked, stacked
from bnmlp.training.descent import descent, held, rule_of

SIZES = Sizes(
    dataset="cifar10", in_channels=3, pooled=1, blocks=(9, 18), channels=16, batch=128,
    steps=39_000, warmup=1_950, rates=(0.01, 0.03, 0.1, 0.3, 1.0), seeds=3,
    recorded=np.unique(np.r_[0, np.geomspace(1, 38_999, 29).round()]).astype(int).tolist(),
) if scale() == "paper" else Sizes(
    dataset="mnist5k", in_channels=1, pooled=4, blocks=(3, 5, 9, 18), channels=4, batch=64,
    steps=200, warmup=40, rates=(0.01, 0.03, 0.1, 0.3, 1.0), seeds=3,
    recorded=(0, 1, 2, 3, 5, 10, 20, 30, 40, 60, 80, 110, 150, 199),
)  # fmt: skip
SCHEDULES = ("constant", "linear", "critical", "equalised", "tilted")
TILT = 0.16  # nats per layer, about the growth in NoShort at initialisation


def networks(depth: int, shortcuts: bool) -> Stacked:
    """Each seed with its copies in turn, one for each learning rate."""
    models = []
    for seed in range(SIZES.seeds):
        torch.manual_seed(seed)
        options = {"shortcuts": shortcuts, "in_channels": SIZES.in_channels}
        models += [ResNet((depth - 2) // 6, SIZES.channels, **options)] * len(SIZES.rates)
    return stacked(models, 3).to(default_device())


def record(depth: int, network: str, schedule: str) -> dict[str, pd.DataFrame]:
    """Train; rows of both tables."""
    data, device = load_dataset(SIZES.dataset), default_device()
    x = images(data.train_x, SIZES.in_channels, SIZES.pooled).to(device)
    y, model = data.train_y.to(device), networks(depth, network == "Short")
    seeds = [1000 + seed for seed in range(SIZES.seeds) for _ in SIZES.rates]
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    top = torch.tensor(SIZES.rates, dtype=torch.float64, device=device).repeat(SIZES.seeds)
    rule = rule_of(schedule, top, warmup=SIZES.warmup, tilt=TILT)
    last = held(top) if schedule in ("equalised", "tilted") else None
    batches = shuffled_batches(x, y, SIZES.batch, SIZES.steps, sources)
    moments = descent(model, batches, rule, others=last)
    found = torch.stack([torch.stack([m.losses, m.spread, m.turns]) for m in moments])
    losses, spreads, turns = found.cpu().unbind(1)  # each (steps, R)
    columns = {"spread": spreads.mean(0), "turns": turns.mean(0), "loss": losses[-20:].mean(0)}
    columns["accuracy"] = batch_scores(model, x[:1000], y[:1000]).accuracy.cpu()
    tables = {"runs": columns}
    if schedule in SCHEDULES[:3]:
        tables["paths"] = {step: spreads[step] for step in SIZES.recorded}
    axes = {"seed": range(SIZES.seeds), "rate": SIZES.rates}
    return {k: long_table(v, **axes).reorder_levels(["rate", "seed"]) for k, v in tables.items()}


def main() -> None:
    """Train all that is missing; both tables are written after each network and schedule."""
    cells = [
        {"depth": 6 * blocks + 2, "network": network, "schedule": schedule}
        for blocks, network, schedule in product(SIZES.blocks, ("NoShort", "Short"), SCHEDULES)
        if network == "Short" or schedule != "tilted"  # NoShort is tilted by itself
    ]
    suffix = "-paper" if scale() == "paper" else ""
    Maker(globals()).grow(("paths", "runs"), cells, record, suffix, float_format="%.3g")


if __name__ == "__main__":
    main()
