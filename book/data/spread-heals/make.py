"""Effective learning rates of deep ReLU networks in training: writes six tables beside itself.

OMP_NUM_THREADS=1 python book/data/spread-heals/make.py      # about ten minutes
"""

from itertools import product

import pandas as pd
import torch

from bnmlp import BNMLP, load_dataset
from bnmlp.book.descents import ends_table, path_tables, spaced_steps, window_table
from bnmlp.book.intervals import median_interval
from bnmlp.book.making import Maker
from bnmlp.data.batches import epoch_batches
from bnmlp.theory.weight_dynamics import critical_learning_rate, equilibrium_rate
from bnmlp.training.descent import Moment, Rule, critical, descent, held, history, rule_of, turning

DEPTH, WIDTH, REPLICAS, LAST = 30, 100, 6, 20
STEPS = {"rates": 160, "kinds": 60, "constrained": 100, "decay": 2400}
SPREADS, TURNS = (0, 1, 2, 3, 4, -1, -2, -4), (0.01, 0.02, 0.05)  # imposed
RATE, DECAY = 0.1, 0.025  # of the last table
HIDDEN = slice(1, None)


def train(rule: Rule, steps: int, decay: float = 0.0, head: float | None = None, **more) -> Moment:
    """All moments of a run; ``head`` is the learning rate of the last matrix."""
    options = {"activation": "relu", "init": "gaussian", "replicas": REPLICAS} | more
    data, model = load_dataset("mnist5k"), BNMLP(784, WIDTH, DEPTH, 10, **options)
    batches = epoch_batches(data.train_x, data.train_y, 100, REPLICAS, steps + 1)
    last = None if head is None else held(head)
    return history(descent(model, batches, rule, weight_decay=decay, others=last))


def by_schedule(maker: Maker) -> None:
    """Runs with constant learning rates and with others, and how their networks ended."""
    steps, scheduled = STEPS["rates"], {}
    first = critical_learning_rate(train(held(0.0), 0).of(HIDDEN).rates[0])
    rules = {f"{v:g}": held(v) for v in (1e-4, 0.01, 0.1, 0.3, 3, 100)} | {"critical": held(first)}
    constant = {name: train(rule, steps).of(HIDDEN) for name, rule in rules.items()}
    maker.store("rates", path_tables(constant, ["learning rate"]))
    for top in (1.0, 3.0, 10.0):
        names = ("constant", "cosine", "linear")
        rules = {name: rule_of(name, top, steps=steps, warmup=40) for name in names}
        rules["greedy"] = critical(top, HIDDEN)
        scheduled |= {(name, top): train(rule, steps).of(HIDDEN) for name, rule in rules.items()}
    maker.store("schedules", path_tables(scheduled, ["schedule", "target"]))
    tables = {("constant", name): ends_table(run, LAST) for name, run in constant.items()}
    tables |= {(name, f"{v:g}"): ends_table(run, LAST) for (name, v), run in scheduled.items()}
    maker.store("ends", pd.concat(tables, names=["schedule", "target"]))


def others(maker: Maker) -> None:
    """Other networks, imposed spreads, weight decay."""
    runs, steps = {}, STEPS["kinds"]
    kinds = (("relu", "orthogonal"), ("identity", "gaussian"), ("identity", "orthogonal"))
    for (activation, init), rate in product(kinds, (0.1, 1.0)):
        run = train(held(rate), steps, activation=activation, init=init)
        runs[activation, init, rate] = run.of(HIDDEN)
    maker.store("kinds", path_tables(runs, ["activation", "init", "rate"]))

    rows, profile = {}, torch.linspace(0.5, -0.5, DEPTH).double()[:, None]
    for wide, turn in product(SPREADS, TURNS):
        run = train(turning(turn * (wide * profile).exp()), STEPS["constrained"], head=0.1)
        rows[wide, turn] = median_interval(run.losses[-LAST:].mean(0))
    table = pd.DataFrame(rows, ["loss", "low", "high"]).T
    maker.store("constrained", table.rename_axis(["spread", "turn"]))

    run, steps = train(held(RATE), STEPS["decay"], DECAY), spaced_steps(STEPS["decay"], 28)
    maker.store("decay", window_table(run, steps, equilibrium_rate(RATE, DECAY)))


def main() -> None:
    """Run everything; each table is written when it is made."""
    maker = Maker(globals())
    by_schedule(maker)
    others(maker)


if __name__ == "__main__":
    main()
