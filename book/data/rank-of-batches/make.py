"""Ranks of 100 batches of 256 and 512 images: writes ranks.csv beside itself.

OMP_NUM_THREADS=1 python book/data/rank-of-batches/make.py      # about five minutes
"""

from itertools import product

import torch

from bnmlp import available_datasets, numerical_rank
from bnmlp.book.making import Maker, rows_table

NAMES = ("mnist5k", "photo_patches", "mnist", "fashion_mnist", "cifar10", "cifar100")
SIZES, BATCHES = (256, 512), 100
WAYS = ["float64", "float32", "Gram float32", "Gram, standardised"]


def main() -> None:
    """Every data set that is here, counted in each of ``WAYS``."""
    maker, rows = Maker(globals()), {}
    for data, n, batch in product(available_datasets(*NAMES), SIZES, range(BATCHES)):
        scaled = data.batch(n, seed=batch)[0]
        x = data.pixels(scaled)
        single = [torch.linalg.matrix_rank(m).item() for m in (x, x @ x.T, scaled @ scaled.T)]
        rows[data.name, n, batch] = [numerical_rank(x).item(), *single]
    maker.store("ranks", rows_table(rows, ["data", "n", "batch"], WAYS))


if __name__ == "__main__":
    main()
