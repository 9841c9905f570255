"""Transformers with and without skip connections in training: writes runs.csv and paths.csv.

OMP_NUM_THREADS=1 python book/data/transformers/make.py      # about ten minutes
Runs that the tables hold are not repeated; delete the tables to start anew.
"""

from itertools import repeat

import pandas as pd
import torch

from bnmlp import load_dataset
from bnmlp.book.making import Maker, long_table
from bnmlp.data.batches import patches
from bnmlp.measurements.scores import batch_scores
from bnmlp.networks.transformer import Transformer
from bnmlp.training.descent import descent, held, history, mapped_rates, rule_of

DEPTH, WIDTH, BATCH, STEPS, SEEDS = 12, 32, 32, 120, 3
RATES = {
    "constant": (0.01, 0.1, 1.0, 10.0, 100.0), "equalised": (0.1, 1.0, 10.0),
    "linear": (1.0, 10.0, 100.0), "momentum": (0.01, 0.1, 1.0),
    "momentum, linear": (0.1, 1.0, 10.0),
}  # fmt: skip
RULES = {"equalised": "levelled", "linear": "linear", "momentum, linear": "linear"}
BETA, WARMUP, LAST = 0.9, 24, 0.1
NETWORKS = {"Short": {"skip": True}, "NoShort": {"skip": False},
            "shaped": {"skip": False, "attention": "shaped"}}  # fmt: skip
RECORDED = (0, 1, 2, 5, 10, 20, 30, 45, 60, 80, 100, 119)


def record(network: str, schedule: str, rate: float) -> dict[str, pd.DataFrame]:
    """Train; rows of both tables."""
    data, beta = load_dataset("mnist5k"), BETA if "momentum" in schedule else 0.0
    model = Transformer(49, WIDTH, DEPTH, 10, tokens=16, replicas=SEEDS, **NETWORKS[network])
    rule = rule_of(RULES.get(schedule, "constant"), rate, warmup=WARMUP)
    batches = ((patches(x), y) for x, y in data.fresh_batches(BATCH, SEEDS, STEPS))
    run = history(descent(model, batches, rule, momentum=beta, others=held(LAST)))
    others = [not name.endswith(("query", "key")) for name in model.normalized()]
    nominal = repeat(rate, STEPS) if schedule == "equalised" else None
    mapped = run._replace(rates=mapped_rates(run, beta, nominal))
    found = torch.stack([part.spread for part in (run, run.of(others), mapped)], 1)
    accuracy = batch_scores(model, patches(data.train_x[:1000]), data.train_y[:1000]).accuracy
    ends = {"loss": run.losses[-20:].double().mean(0), "accuracy": accuracy}
    means = dict(zip(("all", "others"), found.mean(0)[:2], strict=True))
    columns = {step: found[step].mT for step in RECORDED}
    return {
        "paths": long_table(columns, seed=range(SEEDS), spread=["all", "others", "map"]),
        "runs": long_table(means | ends, seed=range(SEEDS)),
    }


def main() -> None:
    """Train all that is missing; tables are written after each."""
    cells = [
        {"network": network, "schedule": schedule, "rate": rate}
        for network in NETWORKS for schedule, rates in RATES.items() for rate in rates
    ]  # fmt: skip
    Maker(globals()).grow(("paths", "runs"), cells, record)


if __name__ == "__main__":
    main()
