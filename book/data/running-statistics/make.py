"""Test accuracy with all statistics, with the averages corrected too: writes accuracy.csv.

bnmlp run book/data/running-statistics/runs.json RUNS     # an hour on one core
python book/data/running-statistics/make.py RUNS          # a minute

Test accuracy on mnist5k of deep networks with batch, running, recalibrated and corrected
statistics, see bnmlp.evaluate; spread: standard deviation of the logits over samples with running
ones; seed 0.
"""

import sys
from pathlib import Path

import pandas as pd
import torch

from bnmlp import evaluate, load_dataset, load_model, read_metrics
from bnmlp.book.making import Maker
from bnmlp.measurements.evaluation import averages_without_start
from bnmlp.training import read_run, read_status
from bnmlp.training.folder import run_folders

FIELDS = ["name", "depth", "activation", "bias"]


@torch.no_grad()
def final_row(folder: Path) -> pd.DataFrame:
    """Accuracy of the trained networks without first value and Bessel's correction."""
    model, data = load_model(folder).eval(), load_dataset("mnist5k")
    logits, biases = model(data.test_x), model.output_bias  # (R, N, out)
    with averages_without_start(model, read_status(folder)["step"], read_run(folder).batch_size):
        found = evaluate(model, data.test_x, data.test_y, "running")
    return pd.DataFrame({
        "test_accuracy_corrected": found.accuracy, "test_loss_corrected": found.loss,
        "spread": logits.var(1).mean(-1).sqrt(),
        "largest_bias": 0.0 if biases is None else biases.abs().amax(-1),
    })  # fmt: skip


def table(folder: Path) -> pd.DataFrame:
    """All evaluations of one run, and what the last one lacks."""
    run, rows = read_run(folder), read_metrics(folder)
    rows = rows[["epoch", "replica", "train_accuracy", *rows.filter(regex="^test_")]]
    last = rows["epoch"] == rows["epoch"].max()
    rows = rows.assign(corrected=last).join(final_row(folder).set_index(rows.index[last]))
    index = pd.MultiIndex.from_tuples([[getattr(run, k) for k in FIELDS]] * len(rows), names=FIELDS)
    return rows.set_index(index)


def main() -> None:
    """Gather all runs below the folder given."""
    folders = run_folders(sys.argv[1])
    minutes = sum(read_status(folder)["seconds"] for folder in folders) / 60
    rows = pd.concat([table(folder) for folder in folders])
    Maker(globals()).store("accuracy", rows, minutes=minutes, float_format="%.5g")


if __name__ == "__main__":
    main()
