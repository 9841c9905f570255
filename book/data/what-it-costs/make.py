"""Gradient norms of 100,000 layers, and what they cost: writes depth-100000.csv beside itself.

python book/data/what-it-costs/make.py      # minutes on two cores, below 2 GiB
"""

import platform
import resource
import subprocess
import time
from pathlib import Path

import pandas as pd
import torch

from bnmlp import deep_gradient_norms, default_device, load_dataset

DEPTH, WIDTH, N, REPLICAS, SEED = 100_000, 100, 100, 2, 0


def main() -> None:
    """Run both initialisations and write every hundredth layer with its provenance."""
    here, device = Path(__file__).parent, default_device()
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
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    header = [
        "Log gradient norm (nats) of the hidden layers of linear networks, batch norm without mean",
        f"reduction, depth {DEPTH}, width {WIDTH}, batch of {N} mnist5k digits, float32, "
        f"{REPLICAS} networks",
        f"command: python book/data/what-it-costs/make.py; commit {commit}; seed {SEED}",
        f"device: {device.type}, {platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}",
        f"minutes: orthogonal {minutes['orthogonal']:.1f}, gaussian {minutes['gaussian']:.1f}; "
        f"peak memory of the process {peak:.2f} GiB",
    ]
    with (here / "depth-100000.csv").open("w") as file:
        file.writelines(f"# {line}\n" for line in header)
        table.round(3).to_csv(file)


if __name__ == "__main__":
    main()
