"""Explosion of networks with weak gains to 3,000 layers: writes weak-gains-3000.csv beside itself.

python book/data/explosion-against-gain/make.py      # about two minutes on two cores
"""

import pandas as pd

from bnmlp import BNMLP, default_device, gradient_norms, load_dataset
from bnmlp.book.making import Maker, growth_table

DEPTH, WIDTH, REPLICAS, EVERY = 3_000, 100, 10, 100
KINDS = (("identity", 1.0), *((act, a) for act in ("tanh", "sin") for a in (0.1, 0.2, 0.3)))


def main() -> None:
    """Run each activation and gain on the same weights; keep every hundredth layer."""
    maker, device, parts = Maker(globals()), default_device(), {}
    x, y = load_dataset("mnist5k").batches(WIDTH, REPLICAS, device=device)
    drawn = BNMLP(784, WIDTH, DEPTH, 10, replicas=REPLICAS, device=device)
    for activation, gain in KINDS:
        model = drawn.with_gains(activation, [gain] * DEPTH)
        logs = gradient_norms(model, x, y, log=True)
        parts[activation, gain] = growth_table(logs, range(EVERY, DEPTH, EVERY), digits=4)
    table = pd.concat(parts, names=["activation", "gain"])
    maker.store(f"weak-gains-{DEPTH}", table, float_format=None)


if __name__ == "__main__":
    main()
