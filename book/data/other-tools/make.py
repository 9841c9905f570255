"""What other tools report on three patients, beside bnmlp.measure: writes reports.csv.

python book/data/other-tools/make.py      # a minute, where pip has installed the TOOLS
"""

import contextlib
import copy
import importlib
import importlib.metadata
import io
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnmlp import load_dataset, measure
from bnmlp.book.making import Maker, rows_table
from bnmlp.layers.seeds import seed_of
from bnmlp.machine.randomness import random_state_kept
from bnmlp.networks.convolutional import ResNet

TOOLS = ("bnmlp", "torchdiag", "torchmortem", "neural-observatory", "torchinfo", "weightwatcher")
FACTORS = (1.0, 1e6)  # of the loss
DEPTH, WIDTH, BATCH = 60, 100, 100  # of the MLP
STEPS, MOMENTUM = 60, 0.001  # of the ResNet's training, and of its running averages
BLOCKS, FEATURES, PATCH = 24, 32, 7  # of the transformer
COLUMNS = ["version", "layers", "exploding", "vanishing", "verdict", "rate", "low", "high", "left"]
Loss = Callable[[Tensor, Tensor], Tensor]


class Patient(NamedTuple):
    """A network and a batch."""

    model: nn.Module
    x: Tensor
    y: Tensor


class Told(NamedTuple):
    """What a tool says: layers that it looks at, how many it finds so, and its own words."""

    layers: int | None = None
    exploding: int | None = None
    vanishing: int | None = None
    verdict: str = ""
    rate: tuple[float | None, float | None, float | None] = (None, None, None)


def mlp() -> Patient:
    """Gaussian weights, batch normalisation and ReLU: gradients explode."""
    sizes = [784, *[WIDTH] * DEPTH]
    layers = [
        (nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(sizes)
    ]
    model = nn.Sequential(*(part for layer in layers for part in layer), nn.Linear(WIDTH, 10))
    for linear, _, _ in layers:
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
    return Patient(model, *load_dataset("mnist5k").batch(BATCH))


def resnet() -> Patient:
    """Trained, and evaluated with running averages that still hold their first values."""
    data, model = load_dataset("mnist5k"), ResNet(1, 8, in_channels=1)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = MOMENTUM
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(STEPS):
        x, y = data.batch(BATCH, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(model(x.view(-1, 1, 28, 28)), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return Patient(model.eval(), data.test_x[:400].view(-1, 1, 28, 28), data.test_y[:400])


class Block(nn.Module):
    """Attention and two maps, each added to the stream; no normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(FEATURES, 4, batch_first=True)
        self.maps = nn.Sequential(
            nn.Linear(FEATURES, 2 * FEATURES), nn.ReLU(), nn.Linear(2 * FEATURES, FEATURES)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The stream behind the block."""
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.maps(x)


class Mean(nn.Module):
    """Over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(n, FEATURES)``."""
        return x.mean(1)


def transformer() -> Patient:
    """Gaussian weights and no normalisation: the stream grows from block to block."""
    blocks = [Block() for _ in range(BLOCKS)]
    model = nn.Sequential(
        nn.Linear(PATCH * PATCH, FEATURES), *blocks, Mean(), nn.Linear(FEATURES, 10)
    )
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=p.shape[1] ** -0.5)
    x, y = load_dataset("mnist5k").batch(BATCH)
    n = 28 // PATCH
    tokens = x.view(-1, n, PATCH, n, PATCH).transpose(2, 3).reshape(-1, n * n, PATCH * PATCH)
    return Patient(model, tokens, y)


def bnmlp(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Told:
    """This package."""
    report = measure(model, x, y, loss_fn=loss)
    kinds = dict.fromkeys(f.kind for f in report.findings if f.severity != "note")
    rate = report.rate
    interval = (rate.value, rate.low, rate.high) if rate else (None, None, None)
    return Told(len(report.tables[0]), None, None, "; ".join(kinds) or "none", interval)


def torchdiag(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Told:
    """Looks at ``.grad`` of each parameter."""
    import torchdiag

    loss(model(x), y).backward()
    states = [told["status"] for told in torchdiag.check_gradients(model).values()]
    verdict = "issues found" if set(states) - {"OK"} else "all gradients healthy"
    return Told(len(states), states.count("EXPLODE"), states.count("VANISH"), verdict)


def torchmortem(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Told:
    """Watches the steps of a run, here one."""
    from torchmortem import Autopsy

    with Autopsy(model) as autopsy:
        value = loss(model(x), y)
        value.backward()
        autopsy.step(loss=value.item())
    report = autopsy.get_report()
    counts = [
        sum(len(found.affected_layers) for found in report.findings if word in found.title)
        for word in ("Exploding", "Vanishing")
    ]
    titles = Counter(found.title.split(" in ")[0] for found in report.findings)
    words = "; ".join(f"{n} {title}" if n > 1 else title for title, n in titles.items())
    return Told(len(report.metadata.layer_names), *counts, words or "none")


def neural_observatory(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Told:
    """Watches activations, gradients and parameters."""
    from neural_observatory import Observatory

    observatory = Observatory(model)
    observatory.watch()
    observatory.step(step=0, epoch=0)
    loss(model(x), y).backward()
    observatory.stop()
    report = observatory.report()
    rows = [r for r in report.results if r.analyzer_name == "gradient_health"]
    counts = [
        sum(any(word in warning for warning in row.warnings) for row in rows)
        for word in ("Exploding", "Vanishing")
    ]
    return Told(len(rows), *counts, report.overall_status().value)


def torchinfo(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Told:
    """Lists layers, and judges none."""
    from torchinfo import summary

    return Told(len(summary(model, input_data=[x], verbose=0).summary_list))


def weightwatcher(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Told:
    """Looks at weights alone."""
    from weightwatcher import WeightWatcher

    found = WeightWatcher(model=model).analyze()
    words = found["warning"][found["warning"] != ""].value_counts()
    return Told(len(found), verdict="; ".join(f"{n} {word}" for word, n in words.items()) or "none")


def state(model: nn.Module) -> dict[str, Any]:
    """What a measurement may leave changed, by the names that the table uses."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "parameters": [p.detach().numpy().tobytes() for p in model.parameters()],
        "buffers": [b.numpy().tobytes() for b in model.buffers()],
        ".grad": [p.grad is None for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [len(getattr(m, name)) for m in model.modules() for name in hooks],
        "random state": (
            torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(),
        ),
    }  # fmt: skip


def row(name: str, patient: Patient, factor: float) -> list[object]:
    """Values of ``COLUMNS``."""
    model, tool = copy.deepcopy(patient.model), globals()[name.replace("-", "_")]
    importlib.import_module(name.replace("-", "_"))
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(seed_of(1))
    before = state(model)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            told = tool(model, patient.x, patient.y, lambda z, y: factor * F.cross_entropy(z, y))
    except Exception as error:  # whatever a tool raises is what it says
        told = Told(verdict=f"{type(error).__name__}: {error}")
    after = state(model)
    left = ", ".join(key for key, value in before.items() if after[key] != value)
    return [importlib.metadata.version(name), *told[:4], *told.rate, left or "nothing"]


def check_installed() -> None:
    """Say what is missing."""
    missing = []
    for name in TOOLS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise SystemExit(
            f"other-tools: not installed: {', '.join(missing)}. They are no part of the book; "
            f"into an environment of your own: pip install {' '.join(missing)}"
        )


@random_state_kept()
def main() -> None:
    """Every tool on every patient, at every unit of the loss."""
    check_installed()
    maker, rows, patients = Maker(globals()), {}, {}
    for make in (mlp, resnet, transformer):
        torch.manual_seed(seed_of(0))
        patients[make.__name__] = make()
    for name, patient, factor in product(TOOLS, patients, FACTORS):
        rows[name, patient, factor] = row(name, patients[patient], factor)
        print(name, patient, factor, *rows[name, patient, factor], sep=", ", flush=True)
    table = rows_table(rows, ["tool", "patient", "loss"], COLUMNS)
    said = table.groupby(["tool", "patient"])[["exploding", "vanishing", "verdict"]]
    changes = (said.nunique(dropna=False) > 1).any(axis=1).map({True: "yes", False: "no"})
    table.insert(len(COLUMNS) - 1, "changes", changes.reindex(table.index.droplevel("loss")).array)
    for column in ("layers", "exploding", "vanishing"):
        table[column] = table[column].astype("Int64")
    maker.store("reports", table)


if __name__ == "__main__":
    main()
