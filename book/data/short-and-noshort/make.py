"""Short and NoShort in training: writes runs.csv and paths.csv beside itself.

OMP_NUM_THREADS=1 python book/data/short-and-noshort/make.py      # about twenty minutes

BNMLP_SCALE=paper python book/data/short-and-noshort/make.py      # networks of the paper's size
At paper scale: CIFAR-10, 56 and 110 layers of 16 channels, on a GPU; writes runs-paper.csv and
paths-paper.csv. Runs that the tables already hold are not repeated; delete the tables to start
anew.

ResNets for small images with shortcuts (Short) and without (NoShort), plain SGD without momentum,
weight decay, affine part or bias; schedules constant, linear warm-up, critical: at most
1/sqrt(E_max E_min) at every step; equalised, tilted: one learning rate per convolution, so that all
turn alike, or TILT nats faster with every layer towards the input, by the geometric mean of the
rates. The same weights and batches for all learning rates and schedules.

runs.csv: spread, turns: log-ratio of largest to smallest E, and of learning rate times E, over the
convolutions, mean over steps; loss: mean of the last 20 batches; accuracy: 1000 training images,
statistics of those.

paths.csv: spread at the steps that head the columns.
"""

from collections.abc import Iterator
from itertools import product
from types import SimpleNamespace as Sizes

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnmlp import at_scale, default_device, load_dataset, scale
from bnmlp.book.making import Maker, long_table
from bnmlp.data.batches import images
from bnmlp.measurements.rates import spread
from bnmlp.networks.convolutional import ResNet
from bnmlp.networks.protocol import Stacked, stacked
from bnmlp.training.descent import critical, descent, equalised, held, tilted, warmed

RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
MOMENTS = np.unique(np.r_[0, np.geomspace(1, 38_999, 29).round()]).astype(int).tolist()
SIZES = at_scale(  # 3, 5, 9 and 18 blocks in each of three stages: 20, 32, 56 and 110 layers
    smoke=Sizes(
        dataset="photo_patches", in_channels=3, pooled=4, blocks=(9, 18), channels=2, batch=8,
        steps=2, warmup=2, rates=(0.1,), recorded=(0, 1), seeds=1,
    ),
    laptop=Sizes(
        dataset="mnist5k", in_channels=1, pooled=4, blocks=(3, 5, 9, 18), channels=4, batch=64,
        steps=200, warmup=40, rates=RATES, seeds=3,
        recorded=(0, 1, 2, 3, 5, 10, 20, 30, 40, 60, 80, 110, 150, 199),
    ),
    paper=Sizes(
        dataset="cifar10", in_channels=3, pooled=1, blocks=(9, 18), channels=16, batch=128,
        steps=39_000, warmup=1_950, rates=RATES, seeds=3, recorded=MOMENTS,
    ),
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


def batches(pixels: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of each seed, for all of its copies."""
    draws = [torch.Generator().manual_seed(1000 + seed) for seed in range(SIZES.seeds)]
    for _ in range(SIZES.steps):
        picks = [torch.randperm(len(pixels), generator=g)[: SIZES.batch] for g in draws]
        picks = torch.stack(picks).to(pixels.device).repeat_interleave(len(SIZES.rates), 0)
        yield pixels[picks], labels[picks]


def record(depth: int, network: str, schedule: str) -> dict[str, pd.DataFrame]:
    """Train; rows of both tables."""
    data, device = load_dataset(SIZES.dataset), default_device()
    pixels = images(data.train_x, SIZES.in_channels, SIZES.pooled).to(device)
    labels, model = data.train_y.to(device), networks(depth, network == "Short")
    top = torch.tensor(SIZES.rates, dtype=torch.float64, device=device).repeat(SIZES.seeds)
    rules = {"constant": held(top), "linear": warmed(top, SIZES.warmup), "critical": critical(top),
             "equalised": equalised(top), "tilted": tilted(top, TILT)}  # fmt: skip
    last = held(top) if schedule in ("equalised", "tilted") else None
    found = torch.stack([
        torch.stack([m.losses, spread(m.rates), spread(m.learning_rates * m.rates)])
        for m in descent(model, batches(pixels, labels), rules[schedule], others=last)
    ]).cpu()  # (steps, 3, R)  # fmt: skip
    with torch.no_grad():
        right = model(pixels[:1000]).argmax(-1) == labels[:1000]
    losses, spreads, turns = found.unbind(1)
    columns = {"spread": spreads.mean(0), "turns": turns.mean(0), "loss": losses[-20:].mean(0)}
    columns["accuracy"] = right.double().mean(1).cpu()
    axes = {"seed": range(SIZES.seeds), "rate": SIZES.rates}
    tables = {"runs": columns}
    if schedule in SCHEDULES[:3]:
        tables["paths"] = {step: spreads[step] for step in SIZES.recorded}
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
