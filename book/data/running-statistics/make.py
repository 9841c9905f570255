"""Test accuracy with all statistics, with the averages corrected too: writes accuracy.csv.

bnmlp run book/data/running-statistics/runs.json RUNS     # an hour on one core
python book/data/running-statistics/make.py RUNS          # a minute
"""

import sys
from pathlib import Path

import pandas as pd
import torch

from bnmlp import evaluate, gather, load_dataset, load_model
from bnmlp.book.making import Maker
from bnmlp.measurements.evaluation import averages_without_start
from bnmlp.training import read_run, read_status, run_folders

FIELDS = ["name", "depth", "activation", "bias"]
METRICS = ["epoch", "replica", "train_accuracy"]


@torch.no_grad()
def table(folder: Path) -> pd.DataFrame:
    """All evaluations of one run, and, of the last one, what lacks of its trained networks."""
    model, data = load_model(folder).eval(), load_dataset("mnist5k")
    logits, biases = model(data.test_x), model.output_bias  # (R, N, out)
    with averages_without_start(model, read_status(folder)["step"], read_run(folder).batch_size):
        found = evaluate(model, data.test_x, data.test_y, "running")
    last = {
        "test_accuracy_corrected": found.accuracy, "test_loss_corrected": found.loss,
        "spread": logits.var(1).mean(-1).sqrt(),
        "largest_bias": 0.0 if biases is None else biases.abs().amax(-1),
    }  # fmt: skip
    rows = gather(folder, FIELDS[1:])
    rows = rows[[*FIELDS, *METRICS, *rows.filter(regex="^test_")]]
    rows["corrected"] = at_end = rows["epoch"] == rows["epoch"].max()
    return rows.join(pd.DataFrame(last, rows.index[at_end])).set_index(FIELDS)


def main() -> None:
    """Gather all runs below the folder given."""
    folders = run_folders(sys.argv[1])
    minutes = sum(read_status(folder)["seconds"] for folder in folders) / 60
    rows = pd.concat([table(folder) for folder in folders])
    Maker(globals()).store("accuracy", rows, minutes=minutes, float_format="%.5g")


if __name__ == "__main__":
    main()
