"""Test accuracy with all statistics, with the averages corrected too: writes accuracy.csv.

bnmlp run book/data/running-statistics/runs.json RUNS     # an hour on one core
python book/data/running-statistics/make.py RUNS          # a minute
"""

import sys
from pathlib import Path

import pandas as pd
import torch

from bnmlp import evaluate, load_dataset, load_model, read_metrics
from bnmlp.book.tables import store_table
from bnmlp.measurements.evaluation import STATISTICS
from bnmlp.training import read_run, read_status
from bnmlp.training.folder import run_folders


@torch.no_grad()
def final_row(folder: Path) -> pd.DataFrame:
    """Accuracy of the trained networks without first value and Bessel's correction."""
    run, model, data = read_run(folder), load_model(folder), load_dataset("mnist5k")
    model.eval()
    logits = model(data.test_x)  # (R, N, out)
    memory = (1 - model.momentum) ** read_status(folder)["step"]
    n = run.batch_size
    model.running_var.sub_(memory).mul_((n - 1) / n / (1 - memory))
    model.running_mean.div_(1 - memory)
    found = evaluate(model, data.test_x, data.test_y, "running")
    biases = model.output_bias
    return pd.DataFrame(
        {
            "test_accuracy_corrected": found.accuracy,
            "test_loss_corrected": found.loss,
            "spread": logits.var(1).mean(-1).sqrt(),
            "largest_bias": 0.0 if biases is None else biases.abs().amax(-1),
        }
    )


def main() -> None:
    """Gather all runs below the folder given."""
    tables, minutes = [], 0.0
    for folder in run_folders(sys.argv[1]):
        run, status, rows = read_run(folder), read_status(folder), read_metrics(folder)
        minutes += status["seconds"] / 60
        chosen = [c for c in rows if c.startswith("test_")]
        rows = rows[["epoch", "replica", "train_accuracy", *chosen]]
        last = rows["epoch"] == rows["epoch"].max()
        extra = final_row(folder).set_index(rows.index[last])
        rows = rows.assign(corrected=last).join(extra)
        for i, (field, value) in enumerate(
            {"name": run.name, "depth": run.depth, "activation": run.activation,
             "bias": run.bias}.items()
        ):  # fmt: skip
            rows.insert(i, field, value)
        tables.append(rows)
    about = [
        "Test accuracy on mnist5k of deep networks with batch, running, recalibrated and corrected",
        "statistics; spread: standard deviation of the logits over samples with running ones",
        f"seed 0, statistics of bnmlp.evaluate: {', '.join(STATISTICS)}",
    ]
    command = "bnmlp run book/data/running-statistics/runs.json RUNS, then make.py RUNS"
    table = pd.concat(tables).set_index("name")
    name = "running-statistics/accuracy.csv"
    store_table(table, name, about, command=command, minutes=minutes, float_format="%.5g")


if __name__ == "__main__":
    main()
