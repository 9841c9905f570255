"""Learning rates of residual networks, by scheme and depth: writes rates.csv beside itself.

OMP_NUM_THREADS=1 python book/data/dose/make.py      # about six minutes
Runs that the table holds are not repeated; delete it to start anew.
"""

import math
from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor

from bnmlp import load_dataset
from bnmlp.book.making import Maker, long_table
from bnmlp.measurements.blocks import nonlinear_share
from bnmlp.networks.residual import ResidualMLP
from bnmlp.theory.residual import block_shares
from bnmlp.training.batchwise import optimise

DEPTHS, WIDTH, BATCH, SEEDS, STEPS, LAST = (4, 16, 64), 32, 64, 4, 100, 20
SPAN = (-3, -2, -1, 0, 1, 2, 3)  # octaves around the prediction
UNITS = {"sgd": 1.0, "adam": 0.04}  # learning rate of a network whose blocks add up to one
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
SCHEMES = [("pre", 0.0), ("scaled", 0.0), ("peri", 0.0), ("post", 0.0), ("keel", 0.0),
           ("pre", 0.5), ("pre", 1.0)]  # fmt: skip
WAYS = [(*scheme, 2, "sgd") for scheme in SCHEMES]  # matrices in a block, and optimiser
WAYS += [("pre", 0.5, 2, "adam"), ("pre", 1.0, 2, "adam"), ("keel", 0.0, 2, "adam")]


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
    """Every learning rate, a power of two; rows of the table."""
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


def main() -> None:
    """Train all that is missing; the table is written after each network."""
    names = ("scheme", "exponent", "matrices", "optimizer", "depth")
    cells = [dict(zip(names, (*way, depth), strict=True)) for way in WAYS for depth in DEPTHS]
    Maker(globals()).grow(("rates",), cells, sweep)


if __name__ == "__main__":
    main()
