"""Learning rates of weights that are free or kept on a sphere: writes rates.csv beside itself.

OMP_NUM_THREADS=1 python book/data/on-the-sphere/make.py      # about a quarter of an hour
Runs that the table holds are not repeated; delete it to start anew.
"""

import pandas as pd
import torch

from bnmlp import BNMLP, load_dataset
from bnmlp.book.making import Maker, long_table
from bnmlp.training.descent import Rule, descent, held, history, turning

DEPTHS, WIDTH, SEEDS, STEPS, LAST, WARMUP, HEAD = (5, 10, 20, 40), 100, 5, 100, 20, 20, 0.1
OCTAVES = {"free": range(-8, 2), "sphere": range(-8, 2), "turned": range(-9, -1)}


def rule_of(way: str, size: float, warmup: int) -> Rule:
    """One learning rate, or one angle, for all matrices; both rise over the first steps."""
    if way == "turned":
        rule = turning(torch.tensor([[size]], dtype=torch.float64))
    else:
        rule = held(size)
    return lambda rates, t: min(1.0, (t + 1) / max(warmup, 1)) * rule(rates, t)


def sweep(way: str, warmup: int, depth: int) -> dict[str, pd.DataFrame]:
    """Every rate, a power of two; rows of the table."""
    data, losses = load_dataset("mnist5k"), {}
    for size in (2.0**octave for octave in OCTAVES[way]):
        net = BNMLP(
            784, WIDTH, depth, 10, activation="relu", init="gaussian", replicas=SEEDS,
        )  # fmt: skip
        run = history(
            descent(
                net, data.fresh_batches(WIDTH, SEEDS, STEPS), rule_of(way, size, warmup),
                others=held(HEAD), sphere=way != "free",
            )
        )  # fmt: skip
        last = run.of(slice(1, None)).spread[-LAST:].mean(0)
        losses[size] = torch.stack([run.losses[-LAST:].mean(0).double(), last])
    columns = dict(zip(("loss", "spread"), torch.stack([*losses.values()], 1), strict=True))
    return {"rates": long_table(columns, size=[*losses], seed=range(SEEDS))}


def main() -> None:
    """Train all that is missing; the table is written after each way and depth."""
    cells = [
        {"way": way, "warmup": warmup, "depth": depth}
        for warmup in (0, WARMUP) for way in OCTAVES for depth in DEPTHS
    ]  # fmt: skip
    Maker(globals()).grow(("rates",), cells, sweep)


if __name__ == "__main__":
    main()
