"""Ranks of 100 batches of 256 and 512 images: writes ranks.csv beside itself.

OMP_NUM_THREADS=1 python book/data/rank-of-batches/make.py      # about five minutes
"""

import time

import pandas as pd
import torch

from bnmlp import available_datasets, numerical_rank
from bnmlp.book.tables import store_table

NAMES = ("mnist5k", "photo_patches", "mnist", "fashion_mnist", "cifar10", "cifar100")
SIZES, BATCHES = (256, 512), 100


def main() -> None:
    """Count in float64, in float32, and of float32 Gram matrices."""
    start, rows = time.perf_counter(), []
    for data in available_datasets(*NAMES):
        mean, std = torch.tensor(data.mean)[:, None], torch.tensor(data.std)[:, None]
        for n in SIZES:
            for batch in range(BATCHES):
                scaled = data.batch(n, seed=batch)[0]
                x = (scaled.unflatten(1, (len(mean), -1)) * std + mean).flatten(1)
                single = [x, x @ x.T, scaled @ scaled.T]
                counted = [torch.linalg.matrix_rank(matrix).item() for matrix in single]
                rows.append((data.name, n, batch, numerical_rank(x).item(), *counted))
    ways = ["float64", "float32", "Gram float32", "Gram, standardised"]
    table = pd.DataFrame(rows, columns=["data", "n", "batch", *ways]).set_index("data")
    about = [
        f"Rank of {BATCHES} random batches of n images, pixels from 0 to 1 and standardised: "
        "singular values in float64 and float32, float32 Gram matrices; seed of a batch: its "
        "number",
    ]
    command = "OMP_NUM_THREADS=1 python book/data/rank-of-batches/make.py"
    minutes = (time.perf_counter() - start) / 60
    store_table(table, "rank-of-batches/ranks.csv", about, command=command, minutes=minutes)


if __name__ == "__main__":
    main()
