"""Effective learning rates of deep ReLU networks in training: writes six tables beside itself.

OMP_NUM_THREADS=1 python book/data/spread-heals/make.py      # about ten minutes
"""

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from bnmlp import BNMLP, load_dataset
from bnmlp.book.intervals import median_interval
from bnmlp.book.tables import store_table
from bnmlp.data.batches import epoch_orders
from bnmlp.measurements.rates import spread
from bnmlp.theory.weight_dynamics import critical_learning_rate, equilibrium_rate, next_rate

DEPTH, WIDTH, REPLICAS, STEPS = 30, 100, 6, 160
LAST = 20  # losses are means over the last steps
DATA = load_dataset("mnist5k")
Rule = Callable[[Tensor, int], object]


def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of 100 samples, other ones for each network, the same for every run."""
    epochs = math.ceil(steps / 40)
    orders = torch.cat([epoch_orders(0, REPLICAS, e, 4000) for e in range(epochs)], 1)
    for index in orders[:, : 100 * steps].split(100, 1):
        yield DATA.train_x[index], DATA.train_y[index]


def train(rule: Rule, steps: int, decay: float = 0.0, head: float | None = None, **options):
    """Gradient descent with a learning rate for each layer and network.

    ``rule`` maps rates (depth, R) and step to learning rates; ``head`` is that of the last
    matrix, by default the one of layer L. Rates, norms (step, layer, R), losses and learning
    rates (step, R).
    """
    options = {"activation": "relu", "init": "gaussian"} | options
    model = BNMLP(784, WIDTH, DEPTH, 10, replicas=REPLICAS, **options)
    weights = model.input_weight, model.hidden_weight, model.output_weight
    kept = [], [], [], []
    for t, (x, y) in enumerate(batches(steps + 1)):
        logits = model.logits(x).flatten(0, 1)
        loss = F.cross_entropy(logits, y.flatten(), reduction="none").view_as(y).mean(1)
        grads = torch.autograd.grad(loss.sum(), weights)
        g, w = (lengths(*v[:2]) for v in (grads, weights))
        rates = torch.as_tensor(rule(g / w, t)).double().expand(g.shape)
        for values, value in zip(kept, (g / w, w, loss.detach(), rates[-1]), strict=True):
            values.append(value)
        with torch.no_grad():
            steps_now = rates.float()[..., None, None]
            last = steps_now[-1] if head is None else head
            weights[0].sub_(steps_now[0] * (grads[0] + decay * weights[0]))
            weights[1].sub_(steps_now[1:] * (grads[1] + decay * weights[1]))
            weights[2].sub_(last * grads[2])
    return [torch.stack(values) for values in kept]


def lengths(first: Tensor, hidden: Tensor) -> Tensor:
    """Norms of the weights or gradients of every normalised layer. Shape (depth, R)."""
    stack = [first.flatten(1).norm(dim=1)[None], hidden.flatten(2).norm(dim=2)]
    return torch.cat(stack).detach().double()


def hidden_spread(rates: Tensor) -> Tensor:
    """Spread over the hidden layers at each step."""
    return spread(rates[:, 1:].transpose(0, 1))


def recorded(steps: int) -> np.ndarray:
    """The steps that are kept."""
    return np.unique([0, 1, 2, 3, *np.geomspace(4, steps, 14).round().astype(int)])


def summary(run: list[Tensor], steps: int) -> pd.DataFrame:
    """Medians over networks, and intervals, at some steps."""
    rates, norms, losses, used = run
    mapped = [rates[0]]
    for rate in used[:-1]:
        mapped.append(next_rate(mapped[-1], rate))
    at = recorded(steps)
    middle, low, high = median_interval(hidden_spread(rates)[at])
    base = rates * norms.square()
    return pd.DataFrame(
        {
            "spread": middle, "low": low, "high": high,
            "map": hidden_spread(torch.stack(mapped))[at].median(1).values,
            "base": hidden_spread(base)[at].median(1).values,
            "norms": 2 * hidden_spread(norms)[at].median(1).values,
            # Positive while layers near the input are faster.
            "tilt": (rates[at, 1:5].log().mean(1) - rates[at, -4:].log().mean(1)).median(1).values,
            "base_tilt": (base[at, 1:5].log().mean(1) - base[at, -4:].log().mean(1))
            .median(1).values,
            "rate": used[at].median(1).values,
        },
        index=pd.Index(at, name="step"),
    )  # fmt: skip


def ends(run: list[Tensor]) -> pd.DataFrame:
    """Of each network: loss of the last steps, and spread averaged over the run."""
    loss = run[2][-LAST:].mean(0)
    mean = hidden_spread(run[0]).mean(0)
    last = hidden_spread(run[0])[-LAST:].mean(0)
    columns = {"loss": loss, "mean_spread": mean, "last_spread": last}
    return pd.DataFrame(columns, index=pd.Index(range(REPLICAS), name="replica"))


def critical(rates: Tensor) -> Tensor:
    """Critical learning rate of the hidden layers."""
    return critical_learning_rate(rates[1:])


def held(value: float) -> Rule:
    """A constant learning rate."""
    return lambda rates, t: value


def schedules(target: float, steps: int) -> dict[str, Rule]:
    """Four ways to use a target."""
    return {
        "constant": held(target),
        "cosine": lambda rates, t: target * (1 + math.cos(math.pi * t / steps)) / 2,
        "linear": lambda rates, t: target * min(1, (t + 1) / 40),
        "greedy": lambda rates, t: critical(rates).clamp(max=target),
    }


def constrained(turn: float, wide: float) -> Rule:
    """Every layer turns by a chosen angle; geometric mean ``turn``, first over last e^wide."""
    profile = turn * torch.exp(wide * torch.linspace(0.5, -0.5, DEPTH).double())[:, None]
    return lambda rates, t: profile / rates


def tables() -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Name, table, what it is."""
    runs, at_end = {}, {}
    first: list[Tensor] = []

    def once(rates: Tensor, t: int) -> Tensor:
        if t == 0:
            first[:] = [critical(rates)]
        return first[0]

    rules = {f"{v:g}": held(v) for v in (1e-4, 0.01, 0.1, 0.3, 3, 100)}
    for name, rule in {**rules, "critical": once}.items():
        run = train(rule, STEPS)
        runs[name], at_end[name] = summary(run, STEPS), ends(run)
        print("rates", name, float(at_end[name]["loss"].median()), flush=True)
    yield "rates", pd.concat(runs, names=["learning rate"]), "constant learning rates"
    ended = {("constant", k): v for k, v in at_end.items()}

    runs = {}
    for target in (1.0, 3.0, 10.0):
        for name, rule in schedules(target, STEPS).items():
            run = train(rule, STEPS)
            runs[name, target], ended[name, f"{target:g}"] = summary(run, STEPS), ends(run)
            print(name, target, float(ended[name, f"{target:g}"]["loss"].median()), flush=True)
    table = pd.concat(runs, names=["schedule", "target"])
    yield "schedules", table, "schedules; linear: over the first 40 steps"
    table = pd.concat(ended, names=["schedule", "target"])
    yield "ends", table, f"each network: loss and spread of the last {LAST} steps, mean spread"

    runs = {}
    others = (("relu", "orthogonal"), ("identity", "gaussian"), ("identity", "orthogonal"))
    for activation, init in others:
        for value in (0.1, 1.0):
            run = train(held(value), 60, activation=activation, init=init)
            runs[activation, init, value] = summary(run, 60)
            print(activation, init, value, float(ends(run)["loss"].median()), flush=True)
    yield "kinds", pd.concat(runs, names=["activation", "init", "rate"]), "other networks"

    rows = {}
    for wide in (0, 1, 2, 3, 4, -1, -2, -4):
        for turn in (0.01, 0.02, 0.05):
            loss = train(constrained(turn, wide), 100, head=0.1)[2][-LAST:].mean(0)
            named = zip(("loss", "low", "high"), median_interval(loss), strict=True)
            rows[wide, turn] = dict(named)
            print("constrained", wide, turn, rows[wide, turn], flush=True)
    table = pd.DataFrame(rows).T.rename_axis(["spread", "turn"])
    yield (
        "constrained",
        table,
        (
            "imposed spreads: each layer's step times its rate falls geometrically from the first "
            "layer to the last, by e^spread, around a mean of turn; last matrix 0.1; 100 steps"
        ),
    )

    yield "decay", *decay_table()


def decay_table() -> tuple[pd.DataFrame, str]:
    """Rates over those of equilibrium, in time."""
    rate, decay, steps = 0.1, 0.025, 2400
    rates, norms, losses, _ = train(held(rate), steps, decay)
    base = (rates * norms.square())[:, 1:].square()
    balance = equilibrium_rate(rate, decay)
    at = np.unique([0, 1, *np.geomspace(2, steps, 28).round().astype(int)])
    rows = {}
    for step in at:
        # Root mean squares over windows: it's squared gradients that norms add up.
        window = slice(max(0, step - max(step // 5, 1) + 1), step + 1)
        rms = (rates[window].square().mean(0).sqrt() / balance).median(1).values
        rows[step] = dict(enumerate(rms.tolist(), 1))
        rows[step]["log_base"] = base[window].mean(0).log().mean().item() / 2
        rows[step]["loss"] = losses[window].mean(0).median().item()
    table = pd.DataFrame(rows).T.rename_axis("step")
    return table, (
        f"weight decay {decay}, learning rate {rate}: rate over the root of 2 decay/rate, root "
        "mean square of the last fifth of the steps so far; columns: layers; mean over hidden "
        "layers of the log of the root mean square of base gradients; loss, mean over the window"
    )


def main() -> None:
    """Run everything; write each table with its provenance."""
    begin = time.perf_counter()
    for name, table, about in tables():
        keep(name, table, about, (time.perf_counter() - begin) / 60)


def keep(name: str, table: pd.DataFrame, about: str, minutes: float) -> None:
    """Write one table."""
    sizes = (
        f"depth {DEPTH}, width {WIDTH}, ReLU, Gaussian weights where not said, standard batch "
        f"normalisation, {REPLICAS} networks with batches of 100 samples of mnist5k of their own, "
        "float32, seed 0, SGD; spreads over the hidden layers in nats, medians over networks"
    )
    command = "OMP_NUM_THREADS=1 python book/data/spread-heals/make.py"
    made = {"command": command, "minutes": minutes, "float_format": "%.4g"}
    store_table(table, f"spread-heals/{name}.csv", [about, sizes], **made)


if __name__ == "__main__":
    main()
