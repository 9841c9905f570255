"""Transformers with and without skip connections in training: writes runs.csv and paths.csv.

OMP_NUM_THREADS=1 python book/data/transformers/make.py      # about ten minutes

Runs that the tables already hold are not repeated; delete the tables to start anew.
"""

import time
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from bnmlp import load_dataset
from bnmlp.book.tables import DATA, store_table
from bnmlp.data.batches import patches
from bnmlp.measurements.rates import matrix_rates, spread
from bnmlp.networks.losses import matrix_gradients
from bnmlp.networks.transformer import MATRICES, Transformer
from bnmlp.theory.weight_dynamics import momentum_map

DEPTH, WIDTH, BATCH, STEPS, SEEDS = 12, 32, 32, 120, 3
RATES = {
    "constant": (0.01, 0.1, 1.0, 10.0, 100.0), "equalised": (0.1, 1.0, 10.0),
    "linear": (1.0, 10.0, 100.0), "momentum": (0.01, 0.1, 1.0),
    "momentum, linear": (0.1, 1.0, 10.0),
}  # fmt: skip
BETA, WARMUP = 0.9, 24
LAST = 0.1  # learning rate of the first and the last matrix, without momentum
NETWORKS = {
    "Short": {"skip": True},
    "NoShort": {"skip": False},
    "shaped": {"skip": False, "attention": "shaped"},
}
RECORDED = (0, 1, 2, 5, 10, 20, 30, 45, 60, 80, 100, 119)
QUANTITIES = ("all", "others", "map")
COMMAND = "OMP_NUM_THREADS=1 python book/data/transformers/make.py"
ABOUT = [
    "Transformers whose every matrix is normalised (norm after): Short with skip connections, "
    "NoShort without, shaped without and with attention I + A - U; plain SGD; constant: one "
    "learning rate for all; equalised: every matrix of a block turns alike, by the median of the "
    f"rates; linear: warm-up over {WARMUP} steps; momentum: heavy ball, {BETA}",
    f"first and last matrix: learning rate {LAST}; {DEPTH} blocks, width {WIDTH}, 4 heads, mnist5k "
    f"as 16 patches of 7 x 7, batch {BATCH}, "
    f"{STEPS} steps, seeds 0 to {SEEDS - 1} with the same weights and batches for all learning "
    "rates and schedules, float32",
]


def spreads(rates: Tensor) -> tuple[Tensor, Tensor]:
    """Spread of E over all matrices, and without queries and keys. Shapes (R,)."""
    return spread(rates.flatten(0, 1)), spread(rates[2:].flatten(0, 1))


def train(kind: str, schedule: str, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (steps, R), spreads (steps, 3, R) and accuracy (R,).

    The third spread is that of the rates at step 0 under the map of constant base gradients.
    """
    data = load_dataset("mnist5k")
    model = Transformer(49, WIDTH, DEPTH, 10, tokens=16, replicas=SEEDS, **NETWORKS[kind])
    momentum = BETA if "momentum" in schedule else 0.0
    velocity = {k: torch.zeros_like(model.matrices[k]) for k in MATRICES}
    losses, found, state, base = [], [], None, None
    for step in range(STEPS):
        now = rate * min(1, (step + 1) / WARMUP) if "linear" in schedule else rate
        x, y = data.batches(BATCH, SEEDS, seed=SEEDS * step)
        gradients, loss = matrix_gradients(model, patches(x), y)
        rates = matrix_rates(model, gradients)
        if state is None:
            norms = [model.matrices[k].detach().double().square().sum((-2, -1)) for k in MATRICES]
            state = torch.stack(norms), torch.zeros_like(rates), torch.zeros_like(rates)
            base = rates * state[0]
        mapped = base / state[0]
        state = momentum_map(state, base, now, momentum)
        sizes = torch.full_like(rates, now)
        if schedule == "equalised":
            sizes = rate * rates.flatten(0, 1).median(0).values / rates.clamp_min(1e-30)
        with torch.no_grad():
            for size, k in zip(sizes, MATRICES, strict=True):
                velocity[k].mul_(momentum).add_(gradients[k])
                model.matrices[k] -= size[..., None, None].to(torch.float32) * velocity[k]
            for k in ("embedding", "last"):
                getattr(model, k).sub_(gradients[k], alpha=LAST)
        losses.append(loss)
        found.append(torch.stack([*spreads(rates), spread(mapped.flatten(0, 1))]))
    with torch.no_grad():
        right = (model(patches(data.train_x[:1000])).argmax(-1) == data.train_y[:1000]).double()
    return torch.stack(losses).double(), torch.stack(found), right.mean(-1)


def main() -> None:
    """Train all that is missing; tables are written after each."""
    start, tables = time.process_time(), {}
    for name in ("paths", "runs"):  # runs last: they tell what is done
        path = DATA / "transformers" / f"{name}.csv"
        tables[name] = pd.read_csv(path, comment="#") if path.is_file() else pd.DataFrame()
    planned = [(schedule, rate) for schedule, rates in RATES.items() for rate in rates]
    for kind, (schedule, rate) in product(NETWORKS, planned):
        key, runs = {"network": kind, "schedule": schedule, "rate": rate}, tables["runs"]
        if len(runs) and (runs[list(key)] == list(key.values())).all(axis=1).any():
            continue
        losses, found, accuracy = train(kind, schedule, rate)
        rows, paths = [], []
        for seed in range(SEEDS):
            means = found[:, :, seed].mean(0).tolist()
            rows.append({
                **key, "seed": seed, **dict(zip(QUANTITIES[:2], means[:2], strict=True)),
                "loss": losses[-20:, seed].mean().item(), "accuracy": accuracy[seed].item(),
            })  # fmt: skip
            for i, quantity in enumerate(QUANTITIES):
                at = {step: found[step, i, seed].item() for step in RECORDED}
                paths.append({**key, "seed": seed, "spread": quantity, **at})
        paths = pd.DataFrame(paths).rename(columns=str)
        for name, table in (("runs", pd.DataFrame(rows)), ("paths", paths)):
            held = tables[name]
            if len(held):
                held = held[(held[list(key)] != list(key.values())).any(axis=1)]
            tables[name] = pd.concat([held, table])
        print(kind, schedule, rate, losses[-20:].mean(0).tolist(), flush=True)
        minutes = (time.process_time() - start) / 60
        columns = {
            "runs": "all, others: spread of E over all matrices of blocks and over those but "
            "queries and keys, mean over steps; loss: mean of the last 20 batches; accuracy: 1000 "
            "training images",
            "paths": "spread at the steps that head the columns; map: of the rates at step 0 under "
            "E/(1 + rate^2 E^2), with momentum under its map",
        }
        for name, table in tables.items():
            store_table(
                table.set_index("network"), f"transformers/{name}.csv", [*ABOUT, columns[name]],
                command=COMMAND, minutes=minutes, float_format="%.4g",
            )  # fmt: skip


if __name__ == "__main__":
    main()
