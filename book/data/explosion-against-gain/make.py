"""Explosion of networks with weak gains to 3,000 layers: writes weak-gains-3000.csv beside itself.

python book/data/explosion-against-gain/make.py      # about two minutes on two cores
"""

import time

import pandas as pd

from bnmlp import BNMLP, default_device, gradient_norms, load_dataset
from bnmlp.book.tables import store_table

DEPTH, WIDTH, REPLICAS = 3_000, 100, 10
LAYERS = range(100, DEPTH, 100)
KINDS = [("identity", 1.0)] + [(act, a) for act in ("tanh", "sin") for a in (0.1, 0.2, 0.3)]


def main() -> None:
    """Run each activation and gain on the same weights; keep every hundredth layer."""
    device = default_device()
    data = load_dataset("mnist5k")
    x, y = data.batches(WIDTH, REPLICAS, device=device)
    start, parts = time.perf_counter(), []
    model = BNMLP(784, WIDTH, DEPTH, 10, replicas=REPLICAS, device=device)
    for activation, gain in KINDS:
        model.activation, model.gains = activation, [gain] * DEPTH
        logs = gradient_norms(model, x, y, log=True).cpu()
        growth = pd.DataFrame((logs[1] - logs[list(LAYERS)]).numpy()).round(4)
        growth.insert(0, "layer", LAYERS)
        growth.insert(0, "gain", gain)
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
    command = "python book/data/explosion-against-gain/make.py"
    name = "explosion-against-gain/weak-gains-3000.csv"
    store_table(table, name, about, command=command, minutes=minutes)


if __name__ == "__main__":
    main()
