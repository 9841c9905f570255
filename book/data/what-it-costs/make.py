"""Gradient norms of 100,000 layers, and what they cost: writes depth-100000.csv beside itself.

python book/data/what-it-costs/make.py      # minutes on two cores, below 2 GiB
"""

import resource
import time

import pandas as pd

from bnmlp import deep_gradient_norms, default_device, load_dataset
from bnmlp.book.making import Maker

DEPTH, WIDTH, N, REPLICAS, SEED = 100_000, 100, 100, 2, 0


def main() -> None:
    """Run both initialisations; every hundredth layer."""
    maker, columns, took = Maker(globals()), {}, []
    x, y = (t.to(default_device()) for t in load_dataset("mnist5k").batch(N, seed=SEED))
    for init in ("orthogonal", "gaussian"):
        start = time.perf_counter()
        logs = deep_gradient_norms(
            x, y, width=WIDTH, depth=DEPTH, out_features=10, center=False, init=init,
            replicas=REPLICAS, seed=SEED, log=True,
        )  # fmt: skip
        took.append(f"{init} {(time.perf_counter() - start) / 60:.1f}")
        columns |= {f"{init}_{r}": logs[1:-1:100, r].cpu().numpy() for r in range(REPLICAS)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    table = pd.DataFrame(columns, index=pd.RangeIndex(2, DEPTH + 1, 100, name="layer"))
    told = f"minutes: {', '.join(took)}; peak memory of the process {peak:.2f} GiB"
    maker.store(f"depth-{DEPTH}", table.round(3), told, float_format=None)


if __name__ == "__main__":
    main()
