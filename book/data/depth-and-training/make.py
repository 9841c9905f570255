"""Training runs at several depths: writes a table for each folder of runs beside itself.

bnmlp run book/data/depth-and-training/runs.json RUNS/fashion        # hours on one core
bnmlp run book/data/depth-and-training/runs-mnist5k.json RUNS/mnist5k    # half an hour
bnmlp run book/data/depth-and-training/runs-mnist.json RUNS/mnist    # a day
python book/data/depth-and-training/make.py RUNS/fashion RUNS/mnist5k RUNS/mnist
Runs need not be finished: what is there is gathered. Folders that are not named keep their tables,
and runs that have come further in a table than in its folder, or are not there, keep their rows.
"""

import sys
from pathlib import Path

import pandas as pd

from bnmlp import gather
from bnmlp.book.making import Maker, runs_about

RUN = ["name", "activation", "init", "depth", "batch_size"]
SHOWN = ["learning_rate", "replica", "epoch", "step", "train_loss", "train_accuracy",
         *(f"test_accuracy_{kind}" for kind in ("batch", "running", "recalibrated"))]  # fmt: skip


def main() -> None:
    """Gather each folder into a table with its provenance."""
    maker = Maker(globals())
    kept = "epoch <= 5 or (epoch <= 12 and epoch % 1 == 0) or epoch % 2 == 0"
    for folder in map(Path, sys.argv[1:]):
        rows = gather(folder, RUN[1:]).rename(columns={"current_learning_rate": "learning_rate"})
        before = maker.stored(folder.name, [*RUN, *SHOWN])
        reached = rows.groupby("name")["epoch"].max().reindex(before["name"], fill_value=0)
        further = before["epoch"].to_numpy() > reached.to_numpy()
        names = sorted(set(before["name"][further]))
        rows = rows[~rows["name"].isin(names)].query(kept)
        rows = pd.concat([rows[[*RUN, *SHOWN]], before[before["name"].isin(names)]])
        about = [f"from an earlier gathering: {', '.join(names)}"] if names else []
        maker.store(folder.name, rows.set_index(RUN), *runs_about(folder), *about)


if __name__ == "__main__":
    main()
