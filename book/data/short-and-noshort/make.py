"""Short and NoShort in training: writes runs.csv and paths.csv beside itself.

OMP_NUM_THREADS=1 python book/data/short-and-noshort/make.py      # about twenty minutes
BNMLP_SCALE=paper python book/data/short-and-noshort/make.py      # networks of the paper's size

At paper scale: CIFAR-10, 56 and 110 layers of 16 channels, on a GPU; writes runs-paper.csv and
paths-paper.csv. Runs that the tables already hold are not repeated; delete the tables to start
anew.
"""

import time
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import (
    functional_call,
    grad_and_value,
    replace_all_batch_norm_modules_,
    stack_module_state,
    vmap,
)

from bnmlp import at_scale, default_device, load_dataset, scale
from bnmlp.book.tables import DATA, store_table
from bnmlp.data.batches import images
from bnmlp.measurements.rates import spread
from bnmlp.networks.convolutional import ResNet
from bnmlp.theory.weight_dynamics import critical_learning_rate


@dataclass(frozen=True)
class Sizes:
    """What is trained on what, and for how long."""

    dataset: str
    blocks: tuple[int, ...]  # in each of three stages: 3, 5, 9, 18 for 20, 32, 56, 110 layers
    channels: int
    pooled: int
    batch: int
    steps: int
    warmup: int
    rates: tuple[float, ...]
    recorded: tuple[int, ...]
    in_channels: int = 1
    seeds: int = 3


RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
SIZES = at_scale(
    smoke=Sizes("photo_patches", (9, 18), 2, 4, 8, 2, 2, (0.1,), (0, 1), in_channels=3, seeds=1),
    laptop=Sizes(
        "mnist5k", (3, 5, 9, 18), 4, 4, 64, 200, 40, RATES,
        (0, 1, 2, 3, 5, 10, 20, 30, 40, 60, 80, 110, 150, 199),
    ),
    paper=Sizes(
        "cifar10", (9, 18), 16, 1, 128, 39_000, 1_950, RATES,
        tuple(np.unique(np.r_[0, np.geomspace(1, 38_999, 29).round()]).astype(int).tolist()),
        in_channels=3,
    ),
)  # fmt: skip
SUFFIX = "-paper" if scale() == "paper" else ""
SCHEDULES = ("constant", "linear", "critical", "equalised", "tilted")
TILT = 0.16  # nats per layer, about the growth in NoShort at initialisation
KEYS = ["depth", "network", "schedule"]
INDEX = [*KEYS, "rate", "seed"]


def networks(blocks: int, shortcuts: bool, copies: int) -> tuple:
    """A ResNet as a function, and stacked parameters: each seed with its copies in turn."""
    models = []
    for seed in range(SIZES.seeds):
        torch.manual_seed(seed)
        model = ResNet(blocks, SIZES.channels, shortcuts=shortcuts, in_channels=SIZES.in_channels)
        models += [replace_all_batch_norm_modules_(model).to(default_device())] * copies
    parameters, _ = stack_module_state(models)
    return models[0], {k: p.detach().clone() for k, p in parameters.items()}


def step_sizes(schedule: str, target: Tensor, step: int, rates: Tensor) -> Tensor:
    """Learning rate of every convolution, then of the last matrix. Shape (layers + 1, R)."""
    now = target
    if schedule == "linear":
        now = target * min(1, (step + 1) / SIZES.warmup)
    if schedule == "critical":
        now = torch.minimum(target, critical_learning_rate(rates))
    each = now.expand(len(rates), -1)
    if schedule in ("equalised", "tilted"):  # all turn alike, or the first ones faster
        slope = -TILT if schedule == "tilted" else 0.0
        place = torch.arange(len(rates)).to(rates) - (len(rates) - 1) / 2
        each = now * rates.log().mean(0).exp() / rates * (slope * place).exp()[:, None]
    return torch.cat([each, now[None]])


def train(blocks: int, shortcuts: bool, schedule: str) -> tuple[Tensor, ...]:
    """Losses, spreads of the rates and of the turns of all steps, and accuracies at the end.

    Shapes (steps, R), (steps, R), (steps, R), (R,) with R = seeds x learning rates.
    """
    data, device, seeds, copies = (
        load_dataset(SIZES.dataset),
        default_device(),
        SIZES.seeds,
        len(SIZES.rates),
    )
    pixels = images(data.train_x, SIZES.in_channels, SIZES.pooled).to(device)
    labels = data.train_y.to(device)
    model, parameters = networks(blocks, shortcuts, copies)
    target = torch.tensor(SIZES.rates, dtype=torch.float64, device=device).repeat(seeds)
    draws = [torch.Generator().manual_seed(1000 + s) for s in range(seeds)]

    def loss(parameters: dict, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (x,)), y)

    gradients = vmap(grad_and_value(loss))
    names = [k for k in parameters if k != "last.weight"]
    losses, spreads, turns = [], [], []
    for step in range(SIZES.steps):
        picks = [torch.randperm(len(pixels), generator=g)[: SIZES.batch] for g in draws]
        picks = torch.stack(picks).to(device).repeat_interleave(copies, 0)
        found, value = gradients(parameters, pixels[picks], labels[picks])
        norms = [[t[k].double().flatten(1).norm(dim=1) for k in names] for t in (found, parameters)]
        rates = torch.stack(norms[0]) / torch.stack(norms[1])
        sizes = step_sizes(schedule, target, step, rates)
        for size, k in zip(sizes, [*names, "last.weight"], strict=True):
            g = found[k]
            parameters[k] -= size.to(g).view(-1, *[1] * (g.dim() - 1)) * g
        losses.append(value)
        spreads.append(spread(rates))
        turns.append(spread(sizes[:-1] * rates))
    with torch.no_grad():
        logits = vmap(lambda p: functional_call(model, p, (pixels[:1000],)))(parameters)
    accuracy = (logits.argmax(-1) == labels[:1000]).double().mean(1)
    return *(torch.stack(t).double().cpu() for t in (losses, spreads, turns)), accuracy.cpu()


def tables(key: tuple, losses: Tensor, spreads: Tensor, turns: Tensor, accuracy: Tensor) -> dict:
    """Rows of both tables."""
    rows, paths = [], []
    for i, (seed, rate) in enumerate(product(range(SIZES.seeds), SIZES.rates)):
        ends = losses[-20:, i].mean().item(), accuracy[i].item()
        rows.append(
            (*key, rate, seed, spreads[:, i].mean().item(), turns[:, i].mean().item(), *ends)
        )
        paths.append((*key, rate, seed, *spreads[list(SIZES.recorded), i].tolist()))
    columns = [*INDEX, "spread", "turns", "loss", "accuracy"]
    found = {"runs": pd.DataFrame(rows, columns=columns)}
    if key[2] in SCHEDULES[:3]:
        found["paths"] = pd.DataFrame(paths, columns=[*INDEX, *map(str, SIZES.recorded)])
    return found


def write(name: str, table: pd.DataFrame, columns: str, minutes: float) -> None:
    """All rows so far, with provenance."""
    about = [
        "ResNets for small images with shortcuts (Short) and without (NoShort), plain SGD without "
        "momentum, weight decay, affine part or bias; schedules constant, linear warm-up over "
        f"{SIZES.warmup} steps, critical: at most 1/sqrt(E_max E_min) at every step; equalised, "
        "tilted: one learning rate per convolution, so that all turn alike, or "
        f"{TILT} nats faster with every layer towards the input, by the geometric mean of the "
        "rates",
        f"{SIZES.channels} channels, {SIZES.dataset}, images averaged over squares of "
        f"{SIZES.pooled} pixels, batch {SIZES.batch}, {SIZES.steps} steps, seeds 0 to "
        f"{SIZES.seeds - 1} with the same weights and batches for all learning rates and schedules",
        columns,
    ]
    command = "OMP_NUM_THREADS=1 python book/data/short-and-noshort/make.py"
    command = f"BNMLP_SCALE=paper {command}" if SUFFIX else command
    store_table(
        table.set_index("depth"), f"short-and-noshort/{name}{SUFFIX}.csv", about,
        command=command, minutes=minutes, float_format="%.3g",
    )  # fmt: skip


def rows_of(key: tuple, table: pd.DataFrame) -> pd.Index:
    """Index of what a table has of a network and schedule."""
    return table.index[(table[KEYS] == list(key)).all(axis=1)] if len(table) else table.index


def main() -> None:
    """Train all that is missing; both tables are written after each network and schedule."""
    start, kept = time.process_time(), {}
    about = {
        "paths": "spread at the steps that head the columns",
        "runs": "spread, turns: log-ratio of largest to smallest E, and of learning rate times E, "
        "over the convolutions, mean over steps; loss: mean of the last 20 batches; accuracy: "
        "1000 training images, statistics of those",
    }
    for name in about:
        path = DATA / "short-and-noshort" / f"{name}{SUFFIX}.csv"
        kept[name] = pd.read_csv(path, comment="#") if path.is_file() else pd.DataFrame()
    for blocks, shortcuts, schedule in product(SIZES.blocks, (False, True), SCHEDULES):
        key, runs = (6 * blocks + 2, "Short" if shortcuts else "NoShort", schedule), kept["runs"]
        tilted_by_itself = schedule == "tilted" and not shortcuts
        if tilted_by_itself or len(rows_of(key, runs)):
            continue
        losses, *found = train(blocks, shortcuts, schedule)
        for name, table in tables(key, losses, *found).items():
            kept[name] = pd.concat([kept[name].drop(rows_of(key, kept[name])), table])
            kept[name] = kept[name].reset_index(drop=True)
        for name in about:  # runs last: they tell what is done
            write(name, kept[name], about[name], (time.process_time() - start) / 60)
        print(*key, losses[-20:].mean(0).view(SIZES.seeds, -1).mean(0).tolist(), flush=True)


if __name__ == "__main__":
    main()
