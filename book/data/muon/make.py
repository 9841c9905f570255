"""Plain and orthogonal steps from orthogonal and Gaussian weights: writes runs.csv beside itself.

OMP_NUM_THREADS=1 python book/data/muon/make.py      # about two minutes
Runs that the table holds are not repeated; delete it to start anew.
"""

import pandas as pd
import torch
from torch import Tensor

from bnmlp import BNMLP, load_dataset
from bnmlp.book.making import Maker, long_table
from bnmlp.measurements.scores import batch_scores
from bnmlp.training.orthogonal import hidden_descent, hidden_state

DEPTHS, WIDTH, BATCH, SEEDS, STEPS, LAST = (20, 100), 32, 100, 5, 60, 10
RATES = {
    "sgd": {20: (0.03, 0.1, 0.3), 100: (0.01, 0.03, 0.1)},
    "muon": {20: (0.001, 0.003, 0.01), 100: (0.001, 0.003, 0.01)},
}
WAYS = [("orthogonal", "sgd", 0), ("orthogonal", "muon", 0), ("orthogonal", "sgd", 1)]
SHALLOW = [("gaussian", "muon", 0), ("gaussian", "sgd", 0), ("orthogonal", "muon", 1)]


def trained(depth: int, init: str, steps: str, held: int, rate: float) -> dict[str, Tensor]:
    """Means over the last steps and the state at the end; a rate of zero trains nothing."""
    data = load_dataset("mnist5k")
    net = BNMLP(data.train_x.shape[1], WIDTH, depth, 10, activation="tanh", gain_exponent=0.4,
                init=init, replicas=SEEDS)  # fmt: skip
    start = net.hidden_weight.detach().clone()
    ways = {"muon": steps == "muon", "every": held or None}
    batches = data.fresh_batches(BATCH, SEEDS, STEPS if rate else 0)
    found = [*hidden_descent(net, batches, rate, **ways)][-LAST:]
    loss, accuracy = torch.stack(found).mean(0) if found else torch.full((2, SEEDS), torch.nan)
    test = batch_scores(net, data.test_x[:1000], data.test_y[:1000]).accuracy
    return {"loss": loss, "accuracy": accuracy, "test": test,
            **hidden_state(net, start, *data.batches(BATCH, SEEDS, seed=1))}  # fmt: skip


def sweep(depth: int, init: str, steps: str, held: int) -> dict[str, pd.DataFrame]:
    """The start and the end with every learning rate; rows of the table."""
    rates = (0, *RATES[steps][depth])
    rows = [trained(depth, init, steps, held, rate) for rate in rates]
    columns = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {"runs": long_table(columns, rate=rates, seed=range(SEEDS))}


def main() -> None:
    """Train all that is missing; the table is written after each network."""
    names = ("depth", "init", "steps", "held")
    ways = [(depth, *way) for depth in DEPTHS for way in WAYS]
    ways += [(DEPTHS[0], *way) for way in SHALLOW]
    cells = [dict(zip(names, way, strict=True)) for way in ways]
    Maker(globals()).grow(("runs",), cells, sweep)


if __name__ == "__main__":
    main()
