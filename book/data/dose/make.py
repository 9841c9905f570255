"""Residual networks in training, by scheme, depth and learning rate: writes three tables.

OMP_NUM_THREADS=1 python book/data/dose/make.py      # about fifteen minutes
Runs that the tables hold are not repeated; delete them to start anew.
"""

import math
from collections.abc import Iterator
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from bnmlp import load_dataset
from bnmlp.book.making import Maker, long_table
from bnmlp.measurements.blocks import block_costs, block_doses, nonlinear_share
from bnmlp.measurements.scores import batch_scores
from bnmlp.networks.residual import ResidualMLP
from bnmlp.theory.residual import block_shares
from bnmlp.training.batchwise import optimise

DEPTHS, DEEP, WIDTH, BATCH, SEEDS = (4, 16, 64), 1000, 32, 64, 4
STEPS, LONG, LAST = 100, 300, 20
SPAN = (-3, -2, -1, 0, 1, 2, 3)  # octaves around the prediction
UNITS = {"sgd": 1.0, "adam": 0.04}  # learning rate of a network whose blocks add up to one
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
SCHEMES = [("pre", 0.0), ("scaled", 0.0), ("peri", 0.0), ("post", 0.0), ("keel", 0.0),
           ("pre", 0.5), ("pre", 1.0)]  # fmt: skip


def predicted_rate(
    scheme: str, exponent: float, matrices: int, optimizer: str, depth: int
) -> float:
    """One over the sum of what blocks write, or of its root for steps of one length."""
    shares = block_shares(scheme, depth, exponent)
    total = (shares if optimizer == "sgd" else shares.sqrt()).sum().item()
    return UNITS[optimizer] / (matrices * total)


def network(scheme: str, exponent: float, depth: int, matrices: int = 2) -> ResidualMLP:
    """As before the first step."""
    return ResidualMLP(
        depth, scheme, exponent=exponent, matrices=matrices, in_features=64, width=WIDTH,
        replicas=SEEDS,
    )  # fmt: skip


def trained(net: ResidualMLP, optimizer: str, rate: float, steps: int) -> Iterator[Tensor]:
    """Losses while blocks learn; the first and the last matrix keep their values."""
    batches = load_dataset("digits").fresh_batches(BATCH, SEEDS, steps)
    rule = OPTIMIZERS[optimizer]([net.hidden_weight], rate)
    return (losses for losses, _ in optimise(net, batches, rule))


def sweep(
    scheme: str, exponent: float, matrices: int, optimizer: str, depth: int
) -> dict[str, pd.DataFrame]:
    """Every learning rate, a power of two; rows of the first table."""
    middle = round(math.log2(predicted_rate(scheme, exponent, matrices, optimizer, depth)))
    x, rows = load_dataset("digits").test_x, {}
    for rate in (2.0 ** (middle + octave) for octave in SPAN):
        net = network(scheme, exponent, depth, matrices)
        start = net.hidden_weight.detach().clone()
        losses = torch.stack([*trained(net, optimizer, rate, STEPS)])[-LAST:].mean(0)
        rows[rate] = torch.stack([losses, nonlinear_share(net, start, x)])
    values = torch.stack([*rows.values()], 1)  # (columns, rates, seeds)
    columns = dict(zip(("loss", "nonlinear"), values, strict=True))
    return {"rates": long_table(columns, rate=[*rows], seed=range(SEEDS))}


def by_block(scheme: str, exponent: float, optimizer: str) -> dict[str, pd.DataFrame]:
    """A longer training at the predicted rate; a row for each quantity of all blocks."""
    depth, data = DEPTHS[-1], load_dataset("digits")
    net = network(scheme, exponent, depth)
    start, found = net.hidden_weight.detach().clone(), {}
    found["dose at first"], found["stream at first"] = by_depth(net, data.test_x)
    rate = predicted_rate(scheme, exponent, 2, optimizer, depth)
    losses = torch.stack([*trained(net, optimizer, rate, LONG)])
    found["dose"], found["stream"] = by_depth(net, data.test_x)
    moved = (net.hidden_weight.detach() - start).unflatten(0, (depth, 2)).norm(dim=(1, 3, 4))
    found["moved"] = moved / start.unflatten(0, (depth, 2)).norm(dim=(1, 3, 4))
    found["cost"] = block_costs(net, data.test_x, data.test_y)
    found["loss"] = losses[-LAST:].mean(0).expand(depth, -1)
    columns = {i + 1: torch.stack([v[i] for v in found.values()]) for i in range(depth)}
    return {"blocks": long_table(columns, quantity=[*found], seed=range(SEEDS))}


@torch.no_grad()
def by_depth(net: ResidualMLP, x: Tensor) -> tuple[Tensor, Tensor]:
    """Doses, and mean squares of the stream behind each block; each (L, R)."""
    squares = torch.stack([h.square().mean((-2, -1)) for h in net.streams(x)][1:])
    return block_doses(net, x), squares


def deep(scheme: str, exponent: float) -> dict[str, pd.DataFrame]:
    """A thousand blocks, at the predicted rate only."""
    data, net = load_dataset("digits"), network(scheme, exponent, DEEP)
    rate = predicted_rate(scheme, exponent, 2, "sgd", DEEP)
    losses = torch.stack([*trained(net, "sgd", rate, STEPS)])
    accuracy = batch_scores(net, data.test_x, data.test_y).accuracy
    ends = {"first": losses[0], "loss": losses[-LAST:].mean(0), "accuracy": accuracy}
    return {"deep": long_table(ends, seed=range(SEEDS))}


def main() -> None:
    """Train all that is missing; tables are written after each."""
    maker = Maker(globals())
    kinds = [*((*s, 2) for s in SCHEMES), *((*s, 1) for s in SCHEMES if s[0] == "pre")]
    ways = [(*kind, "sgd") for kind in kinds]
    ways += [(*s, 2, "adam") for s in SCHEMES if s[0] in ("pre", "keel")]
    names = ("scheme", "exponent", "matrices", "optimizer")
    cells = [dict(zip(names, way, strict=True)) | {"depth": d} for way, d in product(ways, DEPTHS)]
    maker.grow(("rates",), cells, sweep)
    names = ("scheme", "exponent")
    cells = [dict(zip(names, scheme, strict=True)) for scheme in SCHEMES]
    both = [cell | {"optimizer": optimizer} for optimizer in OPTIMIZERS for cell in cells]
    maker.grow(("blocks",), both, by_block, float_format="%.3g")
    maker.grow(("deep",), cells, deep)


if __name__ == "__main__":
    main()
