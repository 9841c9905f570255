"""Networks that fail, treated and not: writes runs.csv beside itself.

OMP_NUM_THREADS=1 python book/data/patients/make.py      # about twelve minutes
Runs that the table holds are not repeated; delete it to start anew.
"""

import pandas as pd

from bnmlp import load_dataset
from bnmlp.book import patients
from bnmlp.book.making import Maker

SEEDS = 8
STEPS = {"perceptron": 200, "resnet": 62, "averaged resnet": 124, "transformer": 150}


def record(patient: str, treatment: str) -> dict[str, pd.DataFrame]:
    """Train every seed; rows of the table."""
    data = load_dataset("mnist5k")
    rows = {
        seed: patients.course(patients.PATIENTS[patient], data, STEPS[patient], seed, treatment)
        for seed in range(SEEDS)
    }
    return {"runs": pd.DataFrame.from_dict(rows, orient="index").rename_axis("seed")}


def main() -> None:
    """Train all that is missing."""
    cells = [
        {"patient": patient, "treatment": treatment}
        for patient in STEPS
        for treatment in ("none", *patients.PATIENTS[patient].cures)
    ]
    Maker(globals()).grow(("runs",), cells, record)


if __name__ == "__main__":
    main()
