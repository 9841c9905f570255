"""Ranks of 100 batches of 256 and 512 images: writes ranks.csv beside itself.

OMP_NUM_THREADS=1 python book/data/rank-of-batches/make.py      # about five minutes

Rank of random batches of n images, pixels from 0 to 1 and standardised: singular values in float64
and float32, float32 Gram matrices; seed of a batch: its number.
"""

import pandas as pd
import torch

from bnmlp import available_datasets, numerical_rank
from bnmlp.book.making import Maker

NAMES = ("mnist5k", "photo_patches", "mnist", "fashion_mnist", "cifar10", "cifar100")
SIZES, BATCHES = (256, 512), 100
WAYS = ["float64", "float32", "Gram float32", "Gram, standardised"]


def ranks(scaled: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> list[int]:
    """Counted in float64, in float32, and of float32 Gram matrices."""
    x = (scaled.unflatten(1, (len(mean), -1)) * std[:, None] + mean[:, None]).flatten(1)
    single = [torch.linalg.matrix_rank(m).item() for m in (x, x @ x.T, scaled @ scaled.T)]
    return [numerical_rank(x).item(), *single]


def main() -> None:
    """Every data set that is here."""
    maker, rows = Maker(globals()), {}
    for data in available_datasets(*NAMES):
        scales = torch.tensor(data.mean), torch.tensor(data.std)
        for n, batch in [(n, batch) for n in SIZES for batch in range(BATCHES)]:
            rows[data.name, n, batch] = ranks(data.batch(n, seed=batch)[0], *scales)
    index = pd.MultiIndex.from_tuples(rows, names=["data", "n", "batch"])
    maker.store("ranks", pd.DataFrame(rows.values(), index, WAYS))


if __name__ == "__main__":
    main()
