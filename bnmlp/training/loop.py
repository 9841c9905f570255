"""Training that survives: killed at any moment, resumed bit for bit."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from tqdm import tqdm

from bnmlp.data.batches import epoch_orders
from bnmlp.data.datasets import Dataset, load_dataset
from bnmlp.layers.seeds import random_order, stored_streams
from bnmlp.machine import storage
from bnmlp.machine.settings import default_device
from bnmlp.machine.threads import keep_threads
from bnmlp.measurements.evaluation import STATISTICS
from bnmlp.measurements.layer_table import layer_table
from bnmlp.measurements.rates import matrix_rates, spread
from bnmlp.measurements.scores import evaluations
from bnmlp.networks.losses import matrix_gradients
from bnmlp.networks.protocol import without_dropout
from bnmlp.networks.replicas import read_replica, subset, write_replica
from bnmlp.theory.weight_dynamics import critical_learning_rate
from bnmlp.training.configuration import TrainingRun
from bnmlp.training.folder import claimed, read_metrics, read_status, refuse_other
from bnmlp.training.networks import as_module
from bnmlp.training.steps import learning_rate, stepper

# A checkpoint within an epoch once the work since the last one exceeds this many times its cost.
CHECKPOINT_EVERY = 20
Batches = list[tuple[Tensor, Tensor]]
CHECKPOINT = (
    "model", "optimizer", "step", "since", "sums", "rows", "stopped", "frozen", "best",
    "best_epoch", "seconds",
)  # fmt: skip


def train(
    run: TrainingRun,
    directory: Path | str,
    *,
    root: Path | str | None = None,
    device: torch.device | str | None = None,
    progress: bool | Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Train, or go on with, the networks of a run in a folder of their own.

    The folder gets ``run.json``, ``metrics.csv``, ``layers/``, ``curvature/`` if quantities are
    asked for, ``rates.csv`` if rates are, ``status.json`` and ``checkpoint.pt``. Every file is
    replaced in one step, so the process may be killed at any moment; called again, it goes on from
    the checkpoint, and weights and metrics are bit for bit those of a run that was never
    interrupted, on the same machine with as many threads; the number of this thread when the call
    begins is kept to its end. A network whose loss is no longer finite, or that meets a stop rule,
    stops alone. A measurement that fails never ends the run: what has no value is nan, and
    ``"unmeasured"`` in ``status.json`` says why.

    Args:
        run: What to train.
        directory: Folder of this run, made if missing.
        root: Folder of the datasets, as in :func:`load_dataset`.
        device: Where to compute, :func:`default_device` if omitted.
        progress: True for a bar with the time left, False for silence, a function to be called
            with one line per epoch; by default a bar where standard error is a terminal.

    Returns:
        One row for each evaluation and network that was still in training, with ``epoch``,
        ``step``, ``replica`` (which counts the networks of all variants; with several variants
        also ``activation`` and ``gain_exponent``), ``learning_rate``, ``train_loss`` and
        ``train_accuracy`` (mean over the steps since the row before), and loss and accuracy on the
        test data for each of the three statistics of :func:`evaluate`. No row if every network
        stopped before the first evaluation.

    Raises:
        ValueError: If the folder belongs to a run with another configuration (the differences are
            shown), or the training data are too few for one batch.
        FileNotFoundError: If the dataset is missing.
        bnmlp.machine.storage.StorageError: If the folder cannot be written, the checkpoint is
            damaged, or another process trains in this folder.
    """
    directory = Path(directory)
    keep_threads()
    finished = read_status(directory).get("state") == "done"
    if finished:
        refuse_other(run, directory)
        return read_metrics(directory)
    data = load_dataset(run.dataset, root)
    if run.network != "bnmlp":
        run.build()  # what is wrong with it shows before there is a folder
    with claimed(run, directory), stored_streams():
        training = _Training(run, data, directory, torch.device(device or default_device()))
        training.resume()
        training.finish(progress)
    return read_metrics(directory)


def improves(value: float, best: float, metric: str) -> bool:
    """Whether an evaluation is better than the best one so far.

    A value that is nan never is; any other is better than none, which is nan.

    Args:
        value: Of the metric.
        best: Of the same metric.
        metric: Its name: of a loss less is better, of an accuracy more.

    Returns:
        Whether it is.
    """
    if math.isnan(value) or math.isnan(best):
        return not math.isnan(value)
    return value < best if "loss" in metric else value > best


class _Training:
    """The state of a run: all of it is in the checkpoint."""

    def __init__(
        self, run: TrainingRun, data: Dataset, directory: Path, device: torch.device
    ) -> None:
        self.run, self.directory, self.device = run, directory, device
        dtype = getattr(torch, run.dtype)
        self.x = run.view(data.train_x[: run.samples]).to(device, dtype)
        self.y = data.train_y[: run.samples].to(device)
        self.test = run.view(data.test_x).to(device, dtype), data.test_y.to(device)
        self.steps_per_epoch = len(self.x) // run.batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"{len(self.x)} training samples make no batch of {run.batch_size}; "
                "lower batch_size or raise samples"
            )
        if run.quantities and len(self.x) < 2 * run.batch_size:
            raise ValueError(
                f"{len(self.x)} training samples are too few for quantities, which need two "
                f"batches of {run.batch_size}; raise samples or lower batch_size"
            )
        self.steps = run.epochs * self.steps_per_epoch
        self.step = 0
        self.rate = 0.0  # of the newest step
        nothing = torch.zeros(run.networks, dtype=torch.float64, device="cpu")
        self.sums = torch.stack([nothing, nothing])  # of losses and hits
        self.since = 0  # steps in the sums
        self.rows: list[dict[str, Any]] = []
        self.stopped = [""] * run.networks  # why, for each network
        self.rates: list[dict[str, Any]] = []
        self.unmeasured: list[str] = []  # what has no value, and why
        self.frozen: dict[int, dict[str, Tensor]] = {}  # networks as they were when they stopped
        self.best = torch.full_like(nothing, torch.nan)
        self.best_epoch = torch.zeros(run.networks, dtype=torch.int64, device="cpu")
        self.seconds, self.saved_at, self.saving = 0.0, 0.0, 0.0
        self.order: tuple[int, Tensor] | None = None

    def resume(self) -> None:
        """Take the state from the checkpoint, or begin."""
        path = self.directory / "checkpoint.pt"
        if path.exists():
            state = storage.load_tensors(path, self.device, CHECKPOINT)
            self.model = self.run.build("meta")
            as_module(self.model).load_state_dict(state["model"], assign=True)
            self.stepper = stepper(self.run, self.model)
            self.stepper.restore(state["optimizer"])
            self.step, self.since, self.rows = state["step"], state["since"], state["rows"]
            self.sums, self.stopped = state["sums"].cpu(), state["stopped"]
            self.frozen = state["frozen"]
            self.best, self.best_epoch = state["best"].cpu(), state["best_epoch"].cpu()
            self.seconds = state["seconds"]
            self.unmeasured = state.get("unmeasured", [])  # older checkpoints have none
            self.rates = state.get("rates", [])
            self.saved_at = time.monotonic()
            self.started = self.saved_at - self.seconds
        else:
            self.started = time.monotonic()
            self.model = self.run.build(self.device)
            self.stepper = stepper(self.run, self.model)
            self._measure(0)
            self._save("running")

    def finish(self, progress: bool | Callable[[str], None] | None) -> None:
        """Train to the last epoch, or until every network has stopped."""
        shown = sys.stderr.isatty() if progress is None else progress is True
        with tqdm(total=self.steps, initial=self.step, disable=not shown, unit="step") as bar:
            while self.step < self.steps and not all(self.stopped):
                self._take_step()
                bar.update()
                at_end = self.step % self.steps_per_epoch == 0
                every = self.run.evaluate_every
                if at_end or (every and self.step % every == 0):
                    self._evaluate(at_end)
                    bar.set_postfix_str(self._summary())
                    if callable(progress) and at_end:
                        progress(self._summary())
                elif time.monotonic() - self.saved_at > max(5, CHECKPOINT_EVERY * self.saving):
                    self._save("running")
        for r, state in self.frozen.items():
            write_replica(self.model, r, state)
        self._measure(math.ceil(self.step / self.steps_per_epoch))
        self._save("done")

    def _batch(self) -> tuple[Tensor, Tensor]:
        """The next batch of each network, from its own permutation of the data in each epoch."""
        epoch, i = divmod(self.step, self.steps_per_epoch)
        if self.order is None or self.order[0] != epoch:
            orders = epoch_orders(self.run.seed, self.run.replicas, epoch, len(self.x))
            self.order = epoch, orders.repeat(len(self.run.variants), 1).to(self.device)
        n = self.run.batch_size
        chosen = self.order[1][:, i * n : (i + 1) * n]  # (R, n)
        return self.x[chosen], self.y[chosen]

    def _take_step(self) -> None:
        x, y = self._batch()
        rate = self.rate = learning_rate(self.run, self.step, self.steps)
        if self.run.rates_every and self.step % self.run.rates_every == 0:
            self._record_rates(x, y)
        losses, correct = self.stepper.step(x, y, rate, self.step)
        self.sums += torch.stack([losses.double(), correct.double() / y.shape[1]]).cpu()
        self.step, self.since = self.step + 1, self.since + 1
        for r in (~self.sums[0].isfinite()).nonzero().flatten().tolist():
            self.stopped[r] = self.stopped[r] or f"loss not finite at step {self.step}"

    def _record_rates(self, x: Tensor, y: Tensor) -> None:
        """Effective rates of this moment, of the normalised matrices or of all but the last."""
        try:
            found = matrix_rates(self.model, matrix_gradients(self.model, x, y)[0])
            names = self.model.normalized() or list(found)[:-1]
            rates = torch.stack([found[name] for name in names]).cpu()
        except Exception as error:  # whatever it is, training goes on
            self._note(self.step // self.steps_per_epoch, "all", "rates", storage.reason(error))
            return
        columns = {
            "spread": spread(rates), "smallest": rates.amin(0), "largest": rates.amax(0),
            "critical_learning_rate": critical_learning_rate(rates),
        }  # fmt: skip
        for r in range(self.run.networks):
            if not self.stopped[r]:
                row = {"step": self.step, "replica": r}
                self.rates.append(row | {k: v[r].item() for k, v in columns.items()})

    def _evaluate(self, at_end: bool) -> None:
        """Add a row for every network in training, apply the stop rules, save."""
        train_loss, train_accuracy = (self.sums / self.since).unbind()
        values = {"train_loss": train_loss, "train_accuracy": train_accuracy}
        network, calibration = as_module(self.model), self.x[: self.run.calibration_samples]
        found = evaluations(
            network, *self.test, calibration=calibration, batch_size=self.run.batch_size
        )
        values |= {f"test_loss_{k}": v.loss for k, v in found.items()}
        values |= {f"test_accuracy_{k}": v.accuracy for k, v in found.items()}
        epoch = self.step / self.steps_per_epoch
        for r in range(self.run.networks):
            if not self.stopped[r]:
                row: dict[str, Any] = {"epoch": epoch, "step": self.step, "replica": r}
                if len(self.run.variants) > 1:
                    variant = self.run.variants[r // self.run.replicas]
                    row["activation"], row["gain_exponent"] = variant
                row["learning_rate"] = self.rate
                self.rows.append(row | {k: v[r].item() for k, v in values.items()})
        self._apply_stop_rules(values, at_end)
        self.sums.zero_()
        self.since = 0
        every = self.run.measure_every
        if every and at_end and round(epoch) % every == 0 and self.step < self.steps:
            self._measure(round(epoch))
        self._save("running")

    def _apply_stop_rules(self, values: dict[str, Tensor], at_end: bool) -> None:
        run = self.run
        known = ~values[run.metric.replace("accuracy", "loss")].isnan()
        metric = values[run.metric].where(known, torch.nan)  # logits that are nan hit by chance
        sign = -1 if "loss" in run.metric else 1
        epoch = self.step / self.steps_per_epoch
        improved = []
        for r, stopped in enumerate(self.stopped):
            if stopped:
                continue
            value = metric[r].item()
            if improves(value, self.best[r].item(), run.metric):
                self.best[r], self.best_epoch[r] = value, math.ceil(epoch)
                improved.append(r)
            if run.target is not None and sign * value >= sign * run.target:
                self.stopped[r] = f"{run.metric} reached {value:.4g} at epoch {epoch:g}"
            elif run.max_loss is not None and values["train_loss"][r] > run.max_loss:
                self.stopped[r] = f"train_loss above {run.max_loss:g} at epoch {epoch:g}"
            elif run.patience and at_end and epoch - self.best_epoch[r] >= run.patience:
                self.stopped[r] = f"no better {run.metric} since epoch {int(self.best_epoch[r])}"
            if self.stopped[r]:
                self.frozen[r] = read_replica(self.model, r)
        if run.save_best and improved:
            self._save_best(improved)

    def _save_best(self, improved: list[int]) -> None:
        path = self.directory / "best.pt"
        if len(improved) < self.run.networks and path.exists():
            best = self.run.build("meta")
            state = storage.load_tensors(path, self.device, ["model"])
            as_module(best).load_state_dict(state["model"], assign=True)
            for r in improved:
                write_replica(best, r, read_replica(self.model, r))
        else:
            best = self.model
        storage.save_tensors(path, {"model": as_module(best).state_dict()})

    def _measure(self, epoch: int) -> None:
        """Measure the layers of all networks whose weights are finite."""
        order = random_order(len(self.x), 1)
        weights = self.model.weight_matrices().values()
        finite = [w.isfinite().all(-1).all(-1) for w in weights]
        alive = torch.stack(finite).all(0).nonzero().flatten().tolist()
        for r in sorted(set(range(self.run.networks)) - set(alive)):
            self._note(epoch, r, "layers", "weights are not finite")
        if alive:
            self._measure_layers(epoch, alive, order)
        if alive and self.run.quantities:
            samples = order[: self.run.curvature_samples]
            self._measure_curvature(epoch, alive, samples.split(self.run.batch_size))

    def _measure_layers(self, epoch: int, alive: list[int], order: Tensor) -> None:
        batch, probe = order[: self.run.batch_size], order[: 2 * self.run.width]
        model = self.model if len(alive) == self.run.networks else subset(self.model, alive)
        try:
            table = layer_table(model, self.x[batch], self.y[batch], self.x[probe]).reset_index()
        except Exception as error:  # whatever it is, training goes on
            for r in alive:
                self._note(epoch, r, "layers", storage.reason(error))
            return
        table["replica"] = table["replica"].map(dict(enumerate(alive)))
        for r, rows in table.groupby("replica"):
            lacking = rows.isna()
            lacking["gradient_norm"] |= rows["gradient_norm"].eq(math.inf)
            for quantity in lacking.columns[lacking.any()]:
                first = rows["layer"][lacking[quantity]].min()
                self._note(epoch, r, quantity, f"not finite from layer {first} on")
        table.insert(0, "epoch", epoch)
        storage.write_csv(self.directory / "layers" / f"epoch-{epoch:05}.csv", table)

    def _measure_curvature(self, epoch: int, alive: list[int], parts: Sequence[Tensor]) -> None:
        batches = [(self.x[i], self.y[i]) for i in parts if len(i) == self.run.batch_size]
        start, tables = self.run.build(self.device), []
        for r in alive:
            one = as_module(subset(start, [r]))
            weights = parameters_to_vector(one.parameters()).detach()
            table = self._curvature(epoch, r, weights, batches)
            table.insert(0, "epoch", epoch)
            table.insert(1, "replica", r)
            tables.append(table)
        path = self.directory / "curvature" / f"epoch-{epoch:05}.csv"
        path.parent.mkdir(exist_ok=True)
        storage.write_csv(path, pd.concat(tables))

    def _curvature(self, epoch: int, r: int, start: Tensor, batches: Batches) -> pd.DataFrame:
        """The quantities of one network, each on its own if they fail together; nan for those."""
        from bnmlp.measurements.curvature import (
            curvature_table,  # its libraries take seconds to import
        )

        def table(quantities: Sequence[str]) -> pd.DataFrame:
            network = as_module(subset(self.model, [r]))
            with without_dropout(network):
                return curvature_table(network, start, batches, quantities)

        with contextlib.suppress(Exception):
            return table(self.run.quantities)
        tables = []
        for quantity in self.run.quantities:
            try:
                tables.append(table([quantity]))
            except Exception as error:  # whatever a library raises, training goes on
                self._note(epoch, r, quantity, storage.reason(error))
                tables.append(pd.DataFrame({"quantity": [quantity], "index": 1, "value": math.nan}))
        return pd.concat(tables)

    def _note(self, epoch: int, r: int | str, quantity: str, why: str) -> None:
        """Keep why a quantity of a network has no value, once."""
        note = f"{quantity} of network {r} at epoch {epoch}: {why}"
        if note not in self.unmeasured:
            self.unmeasured.append(note)

    def _save(self, state: str) -> None:
        start = time.monotonic()
        self.seconds = start - self.started
        checkpoint = {
            "model": as_module(self.model).state_dict(),
            "optimizer": self.stepper.state(),
            "step": self.step, "since": self.since, "sums": self.sums, "rows": self.rows,
            "stopped": self.stopped, "frozen": self.frozen,
            "best": self.best, "best_epoch": self.best_epoch, "seconds": self.seconds,
            "unmeasured": self.unmeasured, "rates": self.rates,
        }  # fmt: skip
        storage.save_tensors(self.directory / "checkpoint.pt", checkpoint)
        if self.rows:
            storage.write_csv(self.directory / "metrics.csv", pd.DataFrame(self.rows))
        if self.rates:
            storage.write_csv(self.directory / "rates.csv", pd.DataFrame(self.rates))
        status = {
            "state": state,
            "epoch": self.step / self.steps_per_epoch,
            "epochs": self.run.epochs,
            "step": self.step,
            "steps": self.steps,
            "stopped": self.stopped,
            "unmeasured": self.unmeasured,
            "seconds": round(self.seconds, 1),
            "device": str(self.device),
            "process": os.getpid(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        storage.write_json(self.directory / "status.json", status)
        self.saved_at = time.monotonic()
        self.saving = self.saved_at - start

    def _summary(self) -> str:
        """One line: the newest row of the networks still in training, median over them."""
        newest = [row for row in self.rows if row["step"] == self.step]
        if not newest:
            return "no network left"
        table = pd.DataFrame(newest).median(numeric_only=True)
        accuracy = ", ".join(f"{s} {table[f'test_accuracy_{s}']:.3f}" for s in STATISTICS)
        done, left = self.step / self.steps, time.monotonic() - self.started
        left *= (1 - done) / done
        return (
            f"epoch {table['epoch']:g}/{self.run.epochs}: train loss {table['train_loss']:.4f}, "
            f"accuracy {table['train_accuracy']:.3f}; test accuracy {accuracy}; "
            f"{len(newest)} of {self.run.networks} networks; {left / 60:.1f} min left"
        )
