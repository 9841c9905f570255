"""Training runs at several depths: writes fashion.csv and mnist5k.csv beside itself.

bnmlp run book/data/depth-and-training/runs.json RUNS/fashion        # hours on one core
bnmlp run book/data/depth-and-training/runs-mnist5k.json RUNS/mnist5k    # half an hour
python book/data/depth-and-training/make.py RUNS/fashion RUNS/mnist5k

Runs need not be finished: what is there is gathered.
"""

import sys

import pandas as pd

from bnmlp.book.tables import store_table
from bnmlp.training import read_metrics, read_run, read_status
from bnmlp.training.folder import run_folders

RUN = ["name", "activation", "init", "depth", "batch_size"]
TRAIN = ["train_loss", "train_accuracy"]
TEST = [f"test_accuracy_{statistics}" for statistics in ("batch", "running", "recalibrated")]


def main() -> None:
    """Gather each folder into a table with its provenance."""
    for name, folder in zip(("fashion", "mnist5k"), sys.argv[1:], strict=True):
        runs = "runs.json" if name == "fashion" else f"runs-{name}.json"
        command = f"bnmlp run book/data/depth-and-training/{runs} FOLDER"
        name = f"depth-and-training/{name}.csv"
        store_table(table(folder), name, about(folder), command=command, float_format="%.4g")


def table(folder: str) -> pd.DataFrame:
    """Every network: all evaluations of the first five epochs, then fewer to spare room."""
    parts = []
    for path in run_folders(folder):
        run, rows = read_run(path), read_metrics(path)
        for position, field in enumerate(RUN):
            rows.insert(position, field, getattr(run, field))
        parts.append(rows)
    rows = pd.concat([part for part in parts if len(part)])
    whole, even = rows["epoch"] % 1 == 0, rows["epoch"] % 2 == 0
    kept = (rows["epoch"] <= 5) | (whole & (rows["epoch"] <= 12)) | even
    kept_columns = [*RUN, "learning_rate", "replica", "epoch", "step", *TRAIN, *TEST]
    return rows.loc[kept, kept_columns].set_index("name")


def about(folder: str) -> list[str]:
    """What was run, and how far."""
    paths = run_folders(folder)
    states = {path.name: read_status(path) for path in paths if read_status(path)}
    first, last = read_run(paths[0]), list(states.values())[-1]
    reached = ", ".join(
        f"{name} {int(s['epoch'])} of {s['epochs']} epochs in {s['seconds'] / 60:.1f} min"
        + (f" ({', '.join(filter(None, s['stopped']))})" if any(s["stopped"]) else "")
        for name, s in states.items()
    )
    return [
        "Training runs: loss and accuracy of every network; train_* is the mean over the steps "
        "since the row before, test_* is on all test data",
        f"dataset {first.dataset}, width {first.width}, standard "
        "batch normalisation, SGD without momentum, gain exponent 0.4 "
        f"(identity: none), seed {first.seed}, {first.dtype}, {first.replicas} networks a run",
        f"made on: {last['device']}, {last['threads']} threads, torch {last['torch']}",
        f"reached: {reached}",
    ]


if __name__ == "__main__":
    main()
