"""Transformers with and without skip connections in training: writes runs.csv and paths.csv.

OMP_NUM_THREADS=1 python book/data/transformers/make.py      # about ten minutes
Runs that the tables hold are not repeated; delete the tables to start anew.

Transformers whose every matrix is normalised (norm after): Short with skip connections, NoShort
without, shaped without and with attention I + A - U; plain SGD; constant: one learning rate for
all; equalised: every matrix of a block turns alike, by the median of the rates; linear: warm-up
over WARMUP steps; momentum: heavy ball, BETA; first and last matrix: learning rate LAST. 4 heads,
mnist5k as 16 patches of 7 x 7, the same weights and batches for all learning rates and schedules,
float32.

runs.csv: all, others: spread of E over all matrices of blocks and over those but queries and keys,
mean over steps; loss: mean of the last 20 batches; accuracy: 1000 training images.

paths.csv: spread at the steps that head the columns; map: of the rates at step 0 under
E/(1 + rate^2 E^2), with momentum under its map.
"""

import pandas as pd
import torch

from bnmlp import load_dataset
from bnmlp.book.making import Maker, long_table
from bnmlp.data.batches import patches
from bnmlp.measurements.rates import spread
from bnmlp.networks.transformer import Transformer
from bnmlp.theory.weight_dynamics import momentum_map
from bnmlp.training.descent import descent, held, warmed

DEPTH, WIDTH, BATCH, STEPS, SEEDS = 12, 32, 32, 120, 3
RATES = {
    "constant": (0.01, 0.1, 1.0, 10.0, 100.0), "equalised": (0.1, 1.0, 10.0),
    "linear": (1.0, 10.0, 100.0), "momentum": (0.01, 0.1, 1.0),
    "momentum, linear": (0.1, 1.0, 10.0),
}  # fmt: skip
BETA, WARMUP, LAST = 0.9, 24, 0.1
NETWORKS = {"Short": {"skip": True}, "NoShort": {"skip": False},
            "shaped": {"skip": False, "attention": "shaped"}}  # fmt: skip
RECORDED = (0, 1, 2, 5, 10, 20, 30, 45, 60, 80, 100, 119)


def record(network: str, schedule: str, rate: float) -> dict[str, pd.DataFrame]:
    """Train; rows of both tables."""
    data, losses, found, state = load_dataset("mnist5k"), [], [], None
    model = Transformer(49, WIDTH, DEPTH, 10, tokens=16, replicas=SEEDS, **NETWORKS[network])
    rule = warmed(rate, WARMUP) if "linear" in schedule else held(rate)
    if schedule == "equalised":
        rule = lambda rates, t: rate * rates.median(0).values / rates.clamp_min(1e-30)  # noqa: E731
    beta = BETA if "momentum" in schedule else 0.0
    batches = (data.batches(BATCH, SEEDS, seed=SEEDS * step) for step in range(STEPS))
    batches = ((patches(x), y) for x, y in batches)
    others = [not name.endswith(("query", "key")) for name in model.normalized()]
    for m in descent(model, batches, rule, momentum=beta, others=held(LAST)):
        if state is None:
            base, state = m.rates * m.norms**2, (m.norms**2, 0 * m.norms, 0 * m.norms)
        found.append(torch.stack([*map(spread, (m.rates, m.rates[others], base / state[0]))]))
        losses.append(m.losses)
        now = m.learning_rates if schedule != "equalised" else rate
        state = momentum_map(state, base, now, beta)
    found, losses = torch.stack(found), torch.stack(losses).double()  # (steps, 3, R), (steps, R)
    with torch.no_grad():
        right = model(patches(data.train_x[:1000])).argmax(-1) == data.train_y[:1000]
    ends = {"loss": losses[-20:].mean(0), "accuracy": right.double().mean(-1)}
    means = dict(zip(("all", "others"), found.mean(0)[:2], strict=True))
    columns = {step: found[step].mT for step in RECORDED}
    return {
        "paths": long_table(columns, seed=range(SEEDS), spread=["all", "others", "map"]),
        "runs": long_table(means | ends, seed=range(SEEDS)),
    }


def main() -> None:
    """Train all that is missing; tables are written after each."""
    runs = [(k, schedule, rate) for k in NETWORKS for schedule in RATES for rate in RATES[schedule]]
    cells = [dict(zip(("network", "schedule", "rate"), run, strict=True)) for run in runs]
    Maker(globals()).grow(("paths", "runs"), cells, record)


if __name__ == "__main__":
    main()
