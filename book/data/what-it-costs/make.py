"""Gradient norms of 100,000 layers, and what they cost: writes depth-100000.csv beside itself.

python book/data/what-it-costs/make.py      # minutes on two cores, below 2 GiB
"""

import resource
import time

import pandas as pd

from bnmlp import deep_gradient_norms, default_device, load_dataset
from bnmlp.book.tables import store_table

DEPTH, WIDTH, N, REPLICAS, SEED = 100_000, 100, 100, 2, 0


def main() -> None:
    """Run both initialisations and write every hundredth layer with its provenance."""
    device = default_device()
    x, y = (t.to(device) for t in load_dataset("mnist5k").batch(N, seed=SEED))
    columns, minutes = {}, {}
    for init in ("orthogonal", "gaussian"):
        start = time.perf_counter()
        logs = deep_gradient_norms(
            x, y, width=WIDTH, depth=DEPTH, out_features=10, center=False, init=init,
            replicas=REPLICAS, seed=SEED, log=True,
        )  # fmt: skip
        minutes[init] = (time.perf_counter() - start) / 60
        for r in range(REPLICAS):
            columns[f"{init}_{r}"] = logs[1:-1:100, r].cpu().numpy()
    table = pd.DataFrame(columns, index=pd.RangeIndex(2, DEPTH + 1, 100, name="layer"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    about = [
        "Log gradient norm (nats) of the hidden layers of linear networks, batch norm without mean",
        f"reduction, depth {DEPTH}, width {WIDTH}, batch of {N} mnist5k digits, float32, "
        f"{REPLICAS} networks, seed {SEED}",
        f"minutes: orthogonal {minutes['orthogonal']:.1f}, gaussian {minutes['gaussian']:.1f}; "
        f"peak memory of the process {peak:.2f} GiB",
    ]
    command = "python book/data/what-it-costs/make.py"
    store_table(table.round(3), "what-it-costs/depth-100000.csv", about, command=command)


if __name__ == "__main__":
    main()
