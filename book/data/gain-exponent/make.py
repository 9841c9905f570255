"""Explosion of shaped networks to 4,000 layers: writes exponents-4000.csv beside itself.

python book/data/gain-exponent/make.py      # about five minutes on two cores
"""

import time

import numpy as np
import pandas as pd

from bnmlp import deep_gradient_norms, default_device, load_dataset
from bnmlp.book.tables import store_table

DEPTH, WIDTH, REPLICAS = 4_000, 100, 10
EXPONENTS = (0.2, 0.25, 0.3, 0.4, 0.5)


def main() -> None:
    """Run each activation and exponent; keep 60 layers, with provenance."""
    device = default_device()
    data = load_dataset("mnist5k")
    x, y = data.batches(WIDTH, REPLICAS, device=device)
    layers = np.unique(np.geomspace(2, DEPTH - 500, 60).astype(int))
    start, parts = time.perf_counter(), []
    for activation in ("tanh", "sin"):
        for exponent in EXPONENTS:
            logs = deep_gradient_norms(
                x, y, width=WIDTH, depth=DEPTH, out_features=10, activation=activation,
                gain_exponent=exponent, replicas=REPLICAS, log=True,
            ).cpu()  # fmt: skip
            growth = pd.DataFrame((logs[1] - logs[layers]).numpy()).round(3)
            growth.insert(0, "layer", layers)
            growth.insert(0, "exponent", exponent)
            growth.insert(0, "activation", activation)
            parts.append(growth)
    table = pd.concat(parts).set_index("activation")
    minutes = (time.perf_counter() - start) / 60
    about = [
        "Log gradient norm (nats) of the first hidden layer minus that of the given layer, "
        f"columns: {REPLICAS} networks",
        f"depth {DEPTH}, width {WIDTH}, standard batch normalisation, orthogonal weights, "
        f"a batch of {WIDTH} mnist5k digits for each network, float32, seed 0",
    ]
    command = "python book/data/gain-exponent/make.py"
    name = "gain-exponent/exponents-4000.csv"
    store_table(table, name, about, command=command, minutes=minutes)


if __name__ == "__main__":
    main()
