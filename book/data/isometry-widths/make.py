"""Isometry gap of wide networks over 200 layers: writes wide.csv beside itself.

OMP_NUM_THREADS=1 python book/data/isometry-widths/make.py      # about ten minutes
"""

from itertools import product

import numpy as np
import pandas as pd
import torch

from bnmlp import BNMLP, isometry_gap, load_dataset, perturbed_identity
from bnmlp.book.making import Maker, long_table

WIDTHS, DEPTH, NETWORKS, BATCHES = (256, 512, 1024), 200, 10, 3


@torch.no_grad()
def main() -> None:
    """One network at a time: ten of width 1024 would not fit into small machines."""
    maker, data, parts = Maker(globals()), load_dataset("mnist5k"), []
    shown = np.unique(np.geomspace(1, DEPTH, 25).astype(int))
    for d, r in product(WIDTHS, range(NETWORKS)):
        noisy = perturbed_identity(d, strength=0.01, noise="full").float()
        inputs = {"digits": data.batch(d, seed=r % BATCHES)[0], "identity": noisy}
        for kind, x in inputs.items():
            model = BNMLP(x.shape[-1], d, DEPTH, 10, center=False, seed=1000 + r)
            before = model.representations(x, (shown - 1).tolist())["linear"]
            gaps = {"gap": isometry_gap(before)}
            parts.append(long_table(gaps, input=kind, width=d, network=r, layer=shown))
    maker.store("wide", pd.concat(parts))


if __name__ == "__main__":
    main()
