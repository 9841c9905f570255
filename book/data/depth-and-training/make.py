"""Training runs at several depths: writes fashion.csv and mnist5k.csv beside itself.

bnmlp run book/data/depth-and-training/runs.json RUNS/fashion        # hours on one core
bnmlp run book/data/depth-and-training/runs-mnist5k.json RUNS/mnist5k    # half an hour
python book/data/depth-and-training/make.py RUNS/fashion RUNS/mnist5k
Runs need not be finished: what is there is gathered.

Training runs: loss and accuracy of every network; train_* is the mean over the steps since the row
before, test_* is on all test data. Standard batch normalisation, SGD without momentum, gain
exponent 0.4 (identity: none).
"""

import sys

import pandas as pd

from bnmlp.book.making import Maker, runs_about
from bnmlp.training import read_metrics, read_run
from bnmlp.training.folder import run_folders

RUN = ["name", "activation", "init", "depth", "batch_size"]
SHOWN = ["learning_rate", "replica", "epoch", "step", "train_loss", "train_accuracy",
         *(f"test_accuracy_{kind}" for kind in ("batch", "running", "recalibrated"))]  # fmt: skip


def table(folder: str) -> pd.DataFrame:
    """Every network: all evaluations of the first five epochs, then fewer to spare room."""
    parts = {}
    for path in run_folders(folder):
        rows, run = read_metrics(path), read_run(path)
        whole, even = rows["epoch"] % 1 == 0, rows["epoch"] % 2 == 0
        kept = (rows["epoch"] <= 5) | (whole & (rows["epoch"] <= 12)) | even
        if len(rows):
            parts[tuple(getattr(run, field) for field in RUN)] = rows.loc[kept, SHOWN]
    return pd.concat(parts, names=RUN).droplevel(-1)


def main() -> None:
    """Gather each folder into a table with its provenance."""
    maker = Maker(globals())
    for name, folder in zip(("fashion", "mnist5k"), sys.argv[1:], strict=True):
        maker.store(name, table(folder), *runs_about(folder))


if __name__ == "__main__":
    main()
