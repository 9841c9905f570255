"""Measure any network: what is wrong, how sure that is, and what helps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from bnmlp.checks import check_name, whole_number
from bnmlp.diagnosis.anatomy import Anatomy
from bnmlp.diagnosis.findings import ordered
from bnmlp.diagnosis.forms import LossFunction, batches_of
from bnmlp.diagnosis.jacobian import Spectrum, jacobian_spectra
from bnmlp.diagnosis.kept import no_collection
from bnmlp.diagnosis.prediction import (
    Assumption,
    Prediction,
    chain_of,
    chain_of_bnmlp,
    predict,
)
from bnmlp.diagnosis.probe import Setting, one_pass
from bnmlp.diagnosis.recorder import LEVELS
from bnmlp.diagnosis.report import Facts, Report
from bnmlp.diagnosis.stacks import is_stack, tables_of_stack
from bnmlp.diagnosis.statistics import Statistics, compare
from bnmlp.diagnosis.table import Table, averaged, table_of
from bnmlp.diagnosis.updates import update_norms
from bnmlp.diagnosis.verdicts import diagnose, rates_of
from bnmlp.diagnosis.weights import weights_of
from bnmlp.diagnosis.wrappers import averaged_over_processes, dissected
from bnmlp.machine.structures import samples_of, tensors_of
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import averaging


def measure(
    model: nn.Module,
    x: Any,
    y: Any = None,
    *,
    loss_fn: LossFunction | None = None,
    level: str = "additions",
    spectra: bool = False,
    jacobian: bool | Iterable[str] = False,
    statistics: bool = True,
    training: bool | None = True,
    optimizer: torch.optim.Optimizer | None = None,
    scaler: Any = None,
    batches: int = 8,
) -> Report:
    """Measure a network on a batch, and say what is wrong with it.

    One forward and one backward pass, in which every call of a module is recorded; the module, its
    gradients and averages, and all random numbers are left as they were, bit for bit, also after
    an error. Frozen parameters are measured like others. Where ``torch.autocast`` is on, the
    network is measured as it computes there.

    Args:
        model: Any module. Compilation and data parallelism are taken off, which the report says.
        x: A batch: a tensor, a tuple of arguments, or a dict of them; or, without ``y``, an
            iterable of batches, each a pair or a dict, over which numbers are averaged.
        y: Targets. Integers are scored by mean cross entropy, classes being the last or the second
            axis, other numbers by mean squared error; without targets the loss is the model's own,
            or the product of its output with a random direction.
        loss_fn: Another loss, called with the output and the targets.
        level: Which calls have rows: ``"layers"``, those that multiply with a matrix of their own;
            ``"modules"``, those of all modules without parts; ``"additions"``, also sums of two
            values and activations called as functions; ``"functions"``, all functions.
        spectra: Also measure participation ratio and isometry gap of every output.
        jacobian: Also measure singular values of the Jacobian from input to output, and of the
            modules that are named; True names the model's own parts.
        statistics: Compare running with batch statistics where there is batch normalisation, which
            takes four forward passes more.
        training: Mode in which to measure; as the module is if None.
        optimizer: Of these parameters, to see how far its next step would go.
        scaler: A ``GradScaler`` by which the loss is multiplied; results are unscaled.
        batches: How many batches of an iterable to take.

    Returns:
        The report; print it.

    Raises:
        TypeError: If the model is no module, or another argument is of the wrong kind.
        ValueError: If output and targets give no loss, the model cannot be measured as it is, or
            an option is unknown.
    """  # noqa: DOC502
    check_name("level", level, LEVELS)
    _check_helpers(optimizer, scaler)
    batches = whole_number("batches", batches)
    setting = Setting(loss_fn, level, spectra, training)
    with no_collection():
        return _measured(model, x, y, setting, jacobian, statistics, optimizer, scaler, batches)


def _check_helpers(optimizer: Any, scaler: Any) -> None:
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"measure: optimizer= takes one torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    if scaler is not None and not hasattr(scaler, "get_scale"):
        raise TypeError(
            f"measure: scaler= takes a torch.amp.GradScaler, got {type(scaler).__name__}"
        )


def _measured(
    model: nn.Module,
    x: Any,
    y: Any,
    setting: Setting,
    jacobian: bool | Iterable[str],
    statistics: bool,
    optimizer: torch.optim.Optimizer | None,
    scaler: Any,
    batches: int,
) -> Report:
    anatomy, notes, distributed = dissected(model)
    model = anatomy.module
    if scaler is not None and scaler.is_enabled():
        setting = replace(setting, factor=float(scaler.get_scale()))
        notes.append(f"loss multiplied by the scaler's {setting.factor:g}; results are unscaled")
    several = list(batches_of(x, y, batches))
    given = {
        "optimizer": optimizer,
        "spectra": setting.spectra,
        "level": setting.level == "functions",
    }
    if is_stack(model) and (idle := [name for name, value in given.items() if value]):
        notes.append(f"no effect on networks of several replicas: {', '.join(idle)}")
    found = _stack(model, several, setting) if is_stack(model) else _module(
        anatomy, several, setting, optimizer, distributed
    )  # fmt: skip
    rates = rates_of(found.tables)
    first_x, first_y = several[0]
    input_faults, target_faults = (sum(map(_faults, parts)) for parts in zip(*several, strict=True))
    diagnosis = diagnose(
        found.tables, rates, found.prediction, found.loss, input_faults, found.unused, target_faults
    )
    compared = None
    if statistics:
        compared = _statistics(model, first_x, first_y, setting.loss_fn, notes)
    if setting.training and (still := [name for name, m in anatomy.parts if not m.training]):
        count = "1 part was" if len(still) == 1 else f"{len(still)} parts were"
        which = "the model was" if "" in still else count
        notes.append(f"{which} in evaluation mode; training=None measures as it is")
    findings = [*diagnosis.findings, *(compared.findings if compared is not None else ())]
    size = sum(p.numel() for p in anatomy.parameters.values())
    facts = Facts(
        type(model).__name__, size, samples_of(first_x),
        len(several), found.loss, found.words, found.accuracy, _mode(model, setting.training),
        len(found.tables), (*notes, *found.notes),
    )  # fmt: skip
    spectra_found = _jacobian(model, first_x, jacobian, setting.training)
    tables = [replace(table, modules=[]) for table in found.tables]  # let the network go
    return Report(
        facts, tables, found.spreads, rates, found.prediction, tuple(ordered(findings)),
        tuple(diagnosis.undecided), compared, spectra_found,
    )  # fmt: skip


@dataclass
class _Found:
    """What passes over all batches gave."""

    tables: list[Table]
    spreads: Mapping[str, np.ndarray]
    prediction: Prediction
    loss: float
    words: str
    accuracy: float | None
    unused: list[str]
    notes: list[str]


def _module(
    anatomy: Anatomy,
    several: list[tuple[Any, Any]],
    setting: Setting,
    optimizer: torch.optim.Optimizer | None,
    distributed: bool,
) -> _Found:
    tables, losses, accuracies, notes, words = [], [], [], [], ""
    unused: set[str] | None = None
    left_out: set[str] = set()
    for x, y in several:
        found = one_pass(anatomy, x, y, setting)
        if distributed:
            found.gradients = averaged_over_processes(found.gradients, found.scale)
        wanted = {id(p) for row in found.rows for p in row.weights}
        weights = weights_of(anatomy.parameters, found.gradients, wanted, careful=found.careful)
        steps = (
            None
            if optimizer is None
            else update_norms(anatomy.parameters, optimizer, found.gradients, found.scale)
        )
        tables.append(table_of(found, weights, steps))
        losses.append(float(found.loss))
        accuracies += [] if found.accuracy is None else [float(found.accuracy)]
        absent = {name for name, g in found.gradients.items() if g is None}
        unused = absent if unused is None else unused & absent
        words = found.words
        left_out |= found.left_out
    notes += [f"calls that {what} have no rows" for what in sorted(left_out)]
    table, spreads = averaged(tables)
    if table is not None and len(tables) > sum(t.name == tables[0].name for t in tables):
        notes.append("batches with other calls than the first are left out of the averages")
    prediction = predict(chain_of(table, several[0][0]))
    accuracy = float(np.mean(accuracies)) if accuracies else None
    return _Found(
        [table], spreads, prediction, float(np.mean(losses)), words, accuracy,
        sorted(unused or ()), notes,
    )  # fmt: skip


def _stack(model: Any, several: list[tuple[Any, Any]], setting: Setting) -> _Found:
    if any(y is None for _, y in several):
        raise ValueError("measure: networks of several replicas need class labels, pass y")
    passes = [tables_of_stack(model, x, y, setting.loss_fn, setting.training) for x, y in several]
    merged = [averaged([one[r][0] for one in passes]) for r in range(model.replicas)]
    tables = [table for table, _ in merged]
    prediction = Prediction(
        None, None, "", None,
        (Assumption("a network whose layers are known", False, type(model).__name__),),
    )  # fmt: skip
    if isinstance(model, BNMLP):
        prediction = predict(chain_of_bnmlp(model, tables[0], several[0][0], 0))
    losses = [loss for one in passes for _, loss, _ in one]
    accuracies = [accuracy for one in passes for _, _, accuracy in one]
    words = "mean cross entropy" if setting.loss_fn is None else "loss"
    notes = [] if isinstance(model, BNMLP) else ["weights only: activations are not recorded here"]
    return _Found(
        tables, merged[0][1], prediction, float(np.mean(losses)), words,
        float(np.mean(accuracies)), [], notes,
    )  # fmt: skip


def _statistics(
    model: nn.Module, x: Any, y: Any, loss_fn: LossFunction | None, notes: list[str]
) -> Statistics | None:
    """Running against batch statistics; None without batch normalisation."""
    if not is_stack(model):
        try:
            return compare(model, x, y, loss_fn)
        except Exception as error:  # whatever the reader's network raises in evaluation mode only
            why = f"{type(error).__name__}: {error}"
            notes.append(f"running averages are not compared with those of the batch, {why}")
            return None
    if averaging(model):
        notes.append(
            "running averages are not compared with batch statistics in networks of several "
            "replicas; for that, measure one as a module of its own"
        )
    return None


def _jacobian(
    model: nn.Module, x: Any, wanted: bool | Iterable[str], training: bool | None
) -> dict[str, Spectrum] | None:
    if wanted is False:
        return None
    if isinstance(wanted, str):
        wanted = [wanted]
    names = None if isinstance(wanted, bool) else list(wanted)
    return jacobian_spectra(model, x, names, training=training)


def _faults(x: Any) -> int:
    """Nan and infinite entries of an input or of targets."""
    found = (t.to_dense() if t.is_sparse or t.is_sparse_csr else t for t in tensors_of(x))
    return sum(int((~t.isfinite()).sum()) for t in found if t.is_floating_point())


def _mode(model: nn.Module, training: bool | None) -> str:
    mode = model.training if training is None else training
    return "training" if mode else "evaluation"
