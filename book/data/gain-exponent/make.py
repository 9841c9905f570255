"""Explosion of shaped networks to 4,000 layers: writes exponents-4000.csv beside itself.

python book/data/gain-exponent/make.py      # about five minutes on two cores
"""

from itertools import product

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
    sizes = {"width": WIDTH, "depth": DEPTH, "out_features": 10, "replicas": REPLICAS}
    for activation, e in product(("tanh", "sin"), EXPONENTS):
        options = {"activation": activation, "gain_exponent": e, "log": True}
        logs = deep_gradient_norms(x, y, **sizes, **options)
        parts[activation, e] = growth_table(logs, layers, digits=3)
    table = pd.concat(parts, names=["activation", "exponent"])
    maker.store(f"exponents-{DEPTH}", table, float_format=None)


if __name__ == "__main__":
    main()
