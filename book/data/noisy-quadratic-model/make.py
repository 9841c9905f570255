"""Curvature and gradient noise of a small network in training: writes five tables beside itself.

OMP_NUM_THREADS=1 nice -n 5 python book/data/noisy-quadratic-model/make.py    # some ten minutes
"""

import sys
import time

import pandas as pd
import torch
from curvlinops import HessianLinearOperator
from torch import Tensor

from bnmlp import BNMLP, load_dataset, sgd_step
from bnmlp.book.tables import store_table
from bnmlp.data.batches import images
from bnmlp.measurements.curvature import gauss_newton, hessian, spectrum_ends
from bnmlp.measurements.noise import gradient, sample_gradients
from bnmlp.networks.losses import scored_losses
from bnmlp.networks.replicas import read_replica, replica_axis, subset, write_replica
from bnmlp.theory.quadratic import expected_losses

NETWORKS, SAMPLES, WIDTH, TARGET, LEADING = 10, 1000, 10, 0.2, 9
DATA = load_dataset("mnist5k")
POOLED = torch.cat([DATA.train_x, DATA.test_x])
POOLED = images(POOLED, pooled=4).flatten(1).double()
LABELS = torch.cat([DATA.train_y, DATA.test_y])
X, Y = POOLED[:SAMPLES], LABELS[:SAMPLES]
TEST = POOLED[SAMPLES:], LABELS[SAMPLES:]


def networks(replicas: int = NETWORKS) -> BNMLP:
    """Two hidden tanh layers, 720 parameters."""
    return BNMLP(
        49, WIDTH, 2, 10, activation="tanh", norm="none", bias=True, init="gaussian",
        replicas=replicas, seed=0, dtype=torch.float64,
    )  # fmt: skip


def step(model: BNMLP, rate: float, batch: int, generator: torch.Generator) -> None:
    """One step on samples drawn with replacement, or on all of them if the batch is as large."""
    if batch == SAMPLES:
        sgd_step(model, X, Y, rate)
    else:
        index = torch.randint(SAMPLES, (model.replicas, batch), generator=generator)
        sgd_step(model, X[index], Y[index], rate)


def scores(model: BNMLP, x: Tensor = X, y: Tensor = Y) -> tuple[Tensor, Tensor]:
    """Loss and number of right answers of every network."""
    return scored_losses(model, x, y.expand(model.replicas, -1))


def sharpness(model: BNMLP, r: int) -> float:
    """Largest eigenvalue of the Hessian of one network."""
    return spectrum_ends(hessian(subset(model, [r]), [(X, Y)]), 1, 0, 1e-3)[0].item()


def edge() -> pd.DataFrame:
    """Gradient descent with all samples: largest eigenvalue against time."""
    rows = {}
    for rate in (0.1, 0.2, 0.35, 0.5, 1.0):
        model = networks()
        for t in range(2001):
            if t in (0, 50, 100, 200, 400, 600, 800, 1000, 1250, 1500, 2000):
                losses = scores(model)[0]
                for r in range(NETWORKS):
                    rows[rate, t, r] = sharpness(model, r), losses[r].item()
            sgd_step(model, X, Y, rate)
        print("edge", rate, losses.tolist(), flush=True)
    index = pd.MultiIndex.from_tuples(rows, names=["rate", "step", "network"])
    return pd.DataFrame(rows.values(), index, ["sharpness", "loss"])


def reach(
    model: BNMLP, target: float, rate: float, batch: int, generator: torch.Generator, most: int
) -> list[int]:
    """Train every network until its loss is below the target; steps, or -1."""
    reached, kept = [-1] * model.replicas, {}
    for t in range(1, most + 1):
        step(model, rate, batch, generator)
        if t % 10 == 0:
            for r, loss in enumerate(scores(model)[0].tolist()):
                if r not in kept and loss < target:
                    reached[r], kept[r] = t, read_replica(model, r)
            if len(kept) == model.replicas:
                break
    for r, state in kept.items():
        write_replica(model, r, state)
    return reached


def shape(model: BNMLP) -> list[tuple[float, ...]]:
    """Sharpness, trace, training loss, test loss and accuracy of every network."""
    losses = scores(model)[0].tolist()
    tests, right = (t.tolist() for t in scores(model, *TEST))
    random = torch.Generator().manual_seed(5)
    rows = []
    for r in range(model.replicas):
        signs = torch.randint(2, (720, 60), generator=random).double() * 2 - 1
        product = hessian(subset(model, [r]), [(X, Y)]) @ signs
        trace = (signs * product).sum(0).mean().item()
        rows.append((sharpness(model, r), trace, losses[r], tests[r], right[r] / len(TEST[0])))
    return rows


COLUMNS = ["sharpness", "trace", "loss", "test_loss", "test_accuracy", "steps"]


def minima() -> pd.DataFrame:
    """Curvature and test loss at one training loss, for learning rates and batch sizes."""
    rows = {}
    for rate in (0.1, 0.2, 0.4):
        for batch in (8, 32, 128, SAMPLES):
            model, generator = networks(), torch.Generator().manual_seed(1)
            steps = reach(model, TARGET, rate, batch, generator, 6000)
            for r, row in enumerate(shape(model)):
                rows[rate, batch, r] = (*row, steps[r])
            print("minima", rate, batch, steps, flush=True)
    index = pd.MultiIndex.from_tuples(rows, names=["rate", "batch", "network"])
    return pd.DataFrame(rows.values(), index, COLUMNS)


def initial() -> pd.DataFrame:
    """The same, with one learning rate until the loss is 0.6 and another one after."""
    rows = {}
    for first in (0.05, 0.5):
        for then in (0.05, 0.5):
            model, generator = networks(), torch.Generator().manual_seed(2)
            before = reach(model, 0.6, first, 32, generator, 6000)
            after = reach(model, TARGET, then, 32, generator, 12000)
            for r, row in enumerate(shape(model)):
                rows[first, then, r] = (*row, after[r])
            print("initial", first, then, before, after, flush=True)
    index = pd.MultiIndex.from_tuples(rows, names=["first", "then", "network"])
    return pd.DataFrame(rows.values(), index, COLUMNS)


def dense(operator: HessianLinearOperator) -> Tensor:
    """The matrix, some columns at a time."""
    columns = torch.eye(720, dtype=torch.float64).split(48, 1)
    return torch.cat([operator @ part for part in columns], 1)


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two symmetric matrices."""
    return ((a * b).sum() / (a.norm() * b.norm())).item()


def leading(matrix: Tensor, count: int = LEADING) -> Tensor:
    """Eigenvectors of the largest eigenvalues, in columns."""
    return torch.linalg.eigh(matrix)[1][:, -count:]


def overlap(a: Tensor, b: Tensor) -> float:
    """Mean squared cosine of two subspaces: 1 if equal, share of the dimension at random."""
    return ((a.mT @ b).square().sum() / a.shape[1]).item()


def alignment() -> pd.DataFrame:
    """Hessian, Gauss-Newton matrix and covariance of gradients in training with small batches."""
    rows, found = {}, {}
    model, generator = networks(), torch.Generator().manual_seed(3)
    for t in range(6001):
        if t in (0, 50, 200, 1000, 6000):
            losses, right = scores(model)
            for r in range(NETWORKS):
                one = subset(model, [r])
                h, g = dense(hessian(one, [(X, Y)])), dense(gauss_newton(one, [(X, Y)]))
                each = sample_gradients(one, X, Y)
                k = torch.cov(each.mT, correction=0)
                drawn = torch.multinomial(one.logits(X)[0].softmax(-1), 1, generator=generator)
                own = torch.cov(sample_gradients(one, X, drawn[:, 0]).mT, correction=0)
                values, vectors = torch.linalg.eigh(h)
                top = vectors[:, -LEADING:]
                found[t, r] = h, top
                rows[t, r] = {
                    "loss": losses[r].item(), "accuracy": right[r].item() / SAMPLES,
                    "sharpness": values[-1].item(), "trace": values.sum().item(),
                    "trace_newton": g.trace().item(), "trace_covariance": k.trace().item(),
                    "trace_own": own.trace().item(), "gradient": each.mean(0).norm().item(),
                    "cosine": cosine(h, k), "cosine_newton": cosine(g, k),
                    "cosine_both": cosine(h, g), "cosine_own": cosine(g, own),
                    "overlap": overlap(top, leading(k)),
                    "leading_share": (values[-LEADING:].sum() / values.abs().sum()).item(),
                    "noise_share": ((top * (k @ top)).sum() / k.trace()).item(),
                    "negative": (-values[values < 0].sum() / values.abs().sum()).item(),
                }  # fmt: skip
            print("alignment", t, losses.tolist(), flush=True)
        step(model, 0.1, 32, generator)
    for t, r in rows:
        last, space = found[6000, r]
        rows[t, r] |= {
            "cosine_last": cosine(found[t, r][0], last),
            "overlap_last": overlap(found[t, r][1], space),
        }
    index = pd.MultiIndex.from_tuples(rows, names=["step", "network"])
    return pd.DataFrame(rows.values(), index)


def add(model: BNMLP, change: Tensor) -> None:
    """Add one flat vector to the parameters of each network. Shape ``(R, P)``."""
    with torch.no_grad():
        start = 0
        for name, values in model.named_parameters():
            view = values.movedim(replica_axis(name), 0)
            size = view[0].numel()
            view += change[:, start : start + size].view_as(view)
            start += size


def forecast() -> pd.DataFrame:
    """The quadratic model against SGD, and against descent with the frozen noise.

    Rise of the loss after 300 steps from one point, for learning rates.
    """
    rows, batch, steps, runs = {}, 8, 300, 24
    for place, before in (("early", 100), ("late", 6000)):
        generator = torch.Generator().manual_seed(4)
        model = networks(1)
        for _ in range(before):
            step(model, 0.1, 32, generator)
        state, begin = read_replica(model, 0), scores(model)[0].item()
        h, v = torch.linalg.eigh(dense(hessian(model, [(X, Y)])))
        each = sample_gradients(model, X, Y)
        centred = each - each.mean(0)
        slope = gradient(model, X, Y) @ v
        noise = (centred @ v).square().mean(0) / batch
        keep = h.abs() > 1e-10
        at = (slope / h)[keep]
        for rate in (0.0125, 0.025, 0.05, 0.1, 0.2):
            model_losses = expected_losses(h[keep], noise[keep], rate, steps, start=at**2)
            row = {"model": (model_losses[-1] - model_losses[0]).item()}
            for kind in ("SGD", "frozen noise"):
                many = networks(runs)
                for r in range(runs):
                    write_replica(many, r, state)
                for _ in range(steps):
                    if kind == "SGD":
                        step(many, rate, batch, generator)
                    else:
                        random = torch.randn(runs, SAMPLES, generator=generator).double()
                        sgd_step(many, X, Y, rate)
                        add(many, -rate * random @ centred / (SAMPLES * batch) ** 0.5)
                rise = scores(many)[0] - begin
                row[kind], row[f"{kind} error"] = rise.mean().item(), rise.std().item() / runs**0.5
            rows[place, rate] = row
            print("forecast", place, begin, rate, row, flush=True)
    index = pd.MultiIndex.from_tuples(rows, names=["place", "rate"])
    return pd.DataFrame(rows.values(), index)


def main() -> None:
    """Every table, or those named on the command line, with provenance."""
    about = {
        edge: "Largest eigenvalue of the Hessian under gradient descent with all samples",
        minima: "When the training loss is first below 0.2 (looked at every 10 steps; steps -1: "
        "never): largest eigenvalue and trace (60 random vectors) of the Hessian, test loss",
        initial: "The same for batches of 32, with the first learning rate until the training "
        "loss is 0.6 and the other one after",
        alignment: "Hessian H, Gauss-Newton matrix G, covariance K of sample gradients, with own "
        "labels drawn from the network; SGD, rate 0.1, batch 32; cosines of matrices, overlaps "
        f"of the spaces of the {LEADING} largest eigenvalues; last: step 6000",
        forecast: "Rise of the loss in 300 steps with batch 8: noisy quadratic model with H and "
        "K of the start, SGD, and descent with all samples plus Gaussian noise of covariance "
        "K/8; means of 24 runs of one network and their standard errors; starts after 100 "
        "(early) and 6000 (late) steps of SGD, rate 0.1, batch 32",
    }
    for table, text in about.items():
        if sys.argv[1:] and table.__name__ not in sys.argv[1:]:
            continue
        start = time.perf_counter()
        frame = table()
        lines = [
            text,
            f"tanh network 49-{WIDTH}-{WIDTH}-10 with biases, float64, Xavier normal, cross "
            f"entropy; first {SAMPLES} training digits of mnist5k averaged to 7 x 7 pixels, the "
            f"other 4000 test; up to {NETWORKS} networks, seed 0; batches drawn with replacement",
        ]
        command = "OMP_NUM_THREADS=1 nice -n 5 python book/data/noisy-quadratic-model/make.py"
        minutes = (time.perf_counter() - start) / 60
        name = f"noisy-quadratic-model/{table.__name__}.csv"
        store_table(frame, name, lines, command=command, minutes=minutes, float_format="%.4g")


if __name__ == "__main__":
    main()
