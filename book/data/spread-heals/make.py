"""Effective learning rates of deep ReLU networks in training: writes six tables beside itself.

OMP_NUM_THREADS=1 python book/data/spread-heals/make.py      # about ten minutes

ReLU, Gaussian weights where not said, standard batch normalisation, batches of 100 samples of
mnist5k of its own for each network, float32, seed 0, SGD; spreads over the hidden layers in nats,
medians over networks.

rates.csv: constant learning rates.

schedules.csv: schedules; linear: over the first 40 steps.

ends.csv: each network: loss and spread of the last LAST steps, mean spread.

kinds.csv: other networks.

constrained.csv: imposed spreads: each layer's step times its rate falls geometrically from the
first layer to the last, by e^spread, around a mean of turn; last matrix 0.1.

decay.csv: weight decay: rate over the root of 2 decay/rate, root mean square of the last fifth of
the steps so far; columns: layers; mean over hidden layers of the log of the root mean square of
base gradients; loss, mean over the window.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bnmlp import BNMLP, load_dataset
from bnmlp.book.intervals import median_interval
from bnmlp.book.making import Maker, epoch_batches
from bnmlp.measurements.rates import spread
from bnmlp.theory.weight_dynamics import critical_learning_rate, equilibrium_rate, next_rate
from bnmlp.training.descent import Moment, Rule, critical, descent, held, history, turning, warmed

DEPTH, WIDTH, REPLICAS, LAST = 30, 100, 6, 20
STEPS = {"rates": 160, "kinds": 60, "constrained": 100, "decay": 2400}
SPREADS, TURNS = (0, 1, 2, 3, 4, -1, -2, -4), (0.01, 0.02, 0.05)  # imposed
RATE, DECAY = 0.1, 0.025  # of the last table


def train(rule: Rule, steps: int, decay: float = 0.0, head: float | None = None, **more) -> Moment:
    """All moments of a run; ``head`` is the learning rate of the last matrix."""
    options = {"activation": "relu", "init": "gaussian", "replicas": REPLICAS} | more
    batches = epoch_batches(load_dataset("mnist5k"), 100, REPLICAS, steps + 1)
    last = None if head is None else held(head)
    model = BNMLP(784, WIDTH, DEPTH, 10, **options)
    return history(descent(model, batches, rule, weight_decay=decay, others=last))


def hidden(values: Tensor) -> Tensor:
    """Spread over the hidden layers at each step."""
    return spread(values[:, 1:].transpose(0, 1))


def summary(run: Moment) -> pd.DataFrame:
    """Medians over networks, and intervals, at some steps."""
    base, mapped, last = run.rates * run.norms.square(), [run.rates[0]], len(run.rates) - 1
    for rate in run.learning_rates[:-1]:
        mapped.append(next_rate(mapped[-1], rate))
    at = np.unique([0, 1, 2, 3, *np.geomspace(4, last, 14).round().astype(int)])

    def tilt(values: Tensor) -> Tensor:  # positive while layers near the input are larger
        return values[:, 1:5].log().mean(1) - values[:, -4:].log().mean(1)

    interval = median_interval(hidden(run.rates)[at])
    columns = dict(zip(("spread", "low", "high"), interval, strict=True))
    others = {
        "map": hidden(torch.stack(mapped)), "base": hidden(base), "norms": 2 * hidden(run.norms),
        "tilt": tilt(run.rates), "base_tilt": tilt(base), "rate": run.learning_rates[:, -1],
    }  # fmt: skip
    columns |= {k: v[at].median(1).values for k, v in others.items()}
    return pd.DataFrame(columns, pd.Index(at, name="step"))


def ends(run: Moment) -> pd.DataFrame:
    """Of each network: loss of the last steps, and spread averaged over the run."""
    spreads, loss = hidden(run.rates), run.losses[-LAST:].mean(0)
    columns = {"loss": loss, "mean_spread": spreads.mean(0), "last_spread": spreads[-LAST:].mean(0)}
    return pd.DataFrame(columns, pd.Index(range(REPLICAS), name="replica"))


def tables() -> Iterator[tuple[str, pd.DataFrame]]:
    """Each with its name."""
    steps = STEPS["rates"]
    first = critical_learning_rate(train(held(0.0), 0).rates[0, 1:])
    rules = {f"{v:g}": held(v) for v in (1e-4, 0.01, 0.1, 0.3, 3, 100)} | {"critical": held(first)}
    runs = {name: train(rule, steps) for name, rule in rules.items()}
    ended = {("constant", name): ends(run) for name, run in runs.items()}
    yield "rates", pd.concat({k: summary(v) for k, v in runs.items()}, names=["learning rate"])

    rules = {
        "constant": held,
        "cosine": lambda top: lambda rates, t: top * (1 + math.cos(math.pi * t / steps)) / 2,
        "linear": lambda top: warmed(top, 40),
        "greedy": lambda top: lambda rates, t: critical(top)(rates[1:], t),
    }
    runs = {(k, top): train(rules[k](top), steps) for top in (1.0, 3.0, 10.0) for k in rules}
    named = {"names": ["schedule", "target"]}
    yield "schedules", pd.concat({k: summary(v) for k, v in runs.items()}, **named)
    yield (
        "ends",
        pd.concat(ended | {(k, f"{v:g}"): ends(run) for (k, v), run in runs.items()}, **named),
    )

    kinds = (("relu", "orthogonal"), ("identity", "gaussian"), ("identity", "orthogonal"))
    runs = {
        (*kind, rate): train(held(rate), STEPS["kinds"], activation=kind[0], init=kind[1])
        for kind in kinds for rate in (0.1, 1.0)
    }  # fmt: skip
    named = {"names": ["activation", "init", "rate"]}
    yield "kinds", pd.concat({k: summary(v) for k, v in runs.items()}, **named)

    rows, profile = {}, torch.linspace(0.5, -0.5, DEPTH).double()[:, None]
    for wide, turn in itertools.product(SPREADS, TURNS):
        run = train(turning(turn * (wide * profile).exp()), STEPS["constrained"], head=0.1)
        rows[wide, turn] = median_interval(run.losses[-LAST:].mean(0))
    table = pd.DataFrame(rows, ["loss", "low", "high"]).T
    yield "constrained", table.rename_axis(["spread", "turn"])
    yield "decay", decay_table()


def decay_table() -> pd.DataFrame:
    """Rates over those of equilibrium, in time."""
    run, rows = train(held(RATE), STEPS["decay"], DECAY), {}
    base = (run.rates * run.norms.square())[:, 1:].square()
    for step in np.unique([0, 1, *np.geomspace(2, STEPS["decay"], 28).round().astype(int)]):
        # Root mean squares over windows: it's squared gradients that norms add up.
        window = slice(max(0, step - max(step // 5, 1) + 1), step + 1)
        rms = run.rates[window].square().mean(0).sqrt() / equilibrium_rate(RATE, DECAY)
        rows[step] = dict(enumerate(rms.median(1).values.tolist(), 1))
        rows[step]["log_base"] = base[window].mean(0).log().mean().item() / 2
        rows[step]["loss"] = run.losses[window].mean(0).median().item()
    return pd.DataFrame(rows).T.rename_axis("step")


def main() -> None:
    """Run everything; write each table when it is made."""
    maker = Maker(globals())
    for name, table in tables():
        maker.store(name, table)
        print(name, flush=True)


if __name__ == "__main__":
    main()
