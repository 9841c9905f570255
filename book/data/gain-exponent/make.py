"""Explosion of shaped networks to 4,000 layers: writes exponents-4000.csv beside itself.

python book/data/gain-exponent/make.py      # about five minutes on two cores

Log gradient norm (nats) of the first hidden layer minus that of the given layer, columns: networks.
Standard batch normalisation, orthogonal weights, a batch of WIDTH mnist5k digits for each network,
float32, seed 0.
"""

import numpy as np
import pandas as pd

from bnmlp import deep_gradient_norms, default_device, load_dataset
from bnmlp.book.making import Maker, growth_table

DEPTH, WIDTH, REPLICAS, EXPONENTS = 4_000, 100, 10, (0.2, 0.25, 0.3, 0.4, 0.5)


def main() -> None:
    """Run each activation and exponent; keep 60 layers."""
    maker, parts = Maker(globals()), {}
    x, y = load_dataset("mnist5k").batches(WIDTH, REPLICAS, device=default_device())
    layers = np.unique(np.geomspace(2, DEPTH - 500, 60).astype(int))
    for kind in [(act, e) for act in ("tanh", "sin") for e in EXPONENTS]:
        logs = deep_gradient_norms(
            x, y, width=WIDTH, depth=DEPTH, out_features=10, replicas=REPLICAS, log=True,
            activation=kind[0], gain_exponent=kind[1],
        )  # fmt: skip
        parts[kind] = growth_table(logs, layers, digits=3)
    table = pd.concat(parts, names=["activation", "exponent"])
    maker.store(f"exponents-{DEPTH}", table, float_format=None)


if __name__ == "__main__":
    main()
