"""Isometry gap of wide networks over 200 layers: writes wide.csv beside itself.

OMP_NUM_THREADS=1 python book/data/isometry-widths/make.py      # about ten minutes
"""

import time

import numpy as np
import pandas as pd
import torch

from bnmlp import BNMLP, isometry_gap, load_dataset, perturbed_identity
from bnmlp.book.tables import store_table

WIDTHS, DEPTH, NETWORKS, BATCHES = (256, 512, 1024), 200, 10, 3


def main() -> None:
    """One network at a time: ten of width 1024 would not fit into small machines."""
    start, parts = time.perf_counter(), []
    data = load_dataset("mnist5k")
    shown = np.unique(np.geomspace(1, DEPTH, 25).astype(int)) - 1
    for d in WIDTHS:
        real = data.batches(d, BATCHES)[0]
        noisy = perturbed_identity(d, strength=0.01, noise="full").float()
        for r in range(NETWORKS):
            for kind, x in (("digits", real[r % BATCHES]), ("identity", noisy)):
                model = BNMLP(x.shape[-1], d, DEPTH, 10, center=False, seed=1000 + r)
                with torch.no_grad():
                    stages = model.representations(x, shown.tolist())
                gaps = isometry_gap(stages["linear"])[:, 0]
                parts.append(
                    pd.DataFrame(
                        {"input": kind, "width": d, "network": r, "layer": shown + 1, "gap": gaps}
                    )
                )
            print(d, r, f"{time.perf_counter() - start:.0f} s", flush=True)
    about = [
        "Isometry gap (nats) before the normalisation of a layer",
        f"linear networks of depth {DEPTH}, orthogonal weights, batch normalisation without mean "
        f"reduction, float32, {NETWORKS} networks, seed 1000 + network; input: {BATCHES} batches "
        "of as many mnist5k digits as the width, or the perturbed identity with strength 0.01",
    ]
    command = "OMP_NUM_THREADS=1 python book/data/isometry-widths/make.py"
    store_table(
        pd.concat(parts).set_index("input"), "isometry-widths/wide.csv", about,
        command=command, minutes=(time.perf_counter() - start) / 60, float_format="%.4g",
    )  # fmt: skip


if __name__ == "__main__":
    main()
