"""Batch norm in training and in evaluation: what is wrong with running averages, and its price."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnmlp.diagnosis.averages import (
    CHAPTER,
    RECALIBRATE,
    Calls,
    Prediction,
    Row,
    averages_table,
    findings_of_averages,
    number,
    prediction,
)
from bnmlp.diagnosis.chain import unwatched, watched
from bnmlp.diagnosis.findings import Finding, ordered
from bnmlp.diagnosis.forms import LossFunction, logits_of, loss_called
from bnmlp.diagnosis.kept import everything_kept
from bnmlp.diagnosis.stacks import is_stack
from bnmlp.machine.modes import outside_modes
from bnmlp.machine.precision import float64
from bnmlp.machine.randomness import random_state_kept
from bnmlp.machine.structures import joined, mapped, moved, samples_of, sliced
from bnmlp.measurements.recalibration import (
    INSTANCE_NORMS,
    Norm,
    before_calls,
    call_module,
    moments,
    output_behind,
    tracking,
    without_compiler,
)
from bnmlp.networks.losses import default_loss, right_labels
from bnmlp.networks.wrappers import unwrapped

PARTS = 16  # of the samples, whose losses tell how sure a difference is
SURE = 4.0  # standard errors
ALONE, ALIKE = 2, 1e-2  # samples whose output alone is compared, and how close it has to be
UNCOUNTED = "the input has no tensor that counts samples"
WORSE = 0.1  # share by which a loss or an accuracy has to change to be worth a word


@dataclass
class Statistics:
    """Norms in training and in evaluation.

    Attributes:
        layers: A row for each call of a norm, in order of calls. Besides its state (``name``,
            ``kind``, ``training``, ``channels``, ``numbers`` behind a statistic, ``momentum``,
            ``batches`` seen, ``memory``, the weight of the first value in the averages,
            ``never_updated``, channels ``not_finite`` and ``negative``): ``mean_error``, the
            squared difference of batch mean and running mean in running variances, mean over
            channels, and ``noise``, what a batch of independent numbers would make of it;
            ``variance_ratio``, of batch over running variance, median over channels, smallest
            (``_low``), largest (``_high``), and ``_mean`` by size; ``log_spread``, half the log of
            the variance of normalised numbers in evaluation over that in training, and ``offset``,
            their squared mean in evaluation, each with its ``_predicted`` from the rows before by
            :func:`bnmlp.theory.evaluation.evaluation_spread`. None where something is not defined
            or the theory does not reach.
        summary: ``loss``, ``accuracy`` and ``log_spread`` (log of the deviation of logits over
            samples) with ``_batch``, ``_running`` and ``_recalibrated`` statistics; ``unscored``,
            why there is no loss, if so; ``spread_lost`` in evaluation, nats, and
            ``spread_lost_predicted``; ``assumption`` of the theory that fails, in words; ``sure``,
            standard errors by which recalibration lowers the loss; ``not_recalibrated``, why there
            are no such averages, if so.
        findings: The worst first.
    """

    layers: list[Row]
    summary: Row
    findings: list[Finding]


class _Score(NamedTuple):
    losses: Tensor | None = None  # of each part of the samples
    right: Tensor | None = None  # one or zero for each label
    log_spread: float | None = None


class _UnscoredError(ValueError):
    """Why an output has no loss."""


@outside_modes
@torch.no_grad()
def compare(
    model: nn.Module,
    x: Any,
    y: Any = None,
    loss_fn: LossFunction | None = None,
    *,
    calibration: Tensor | Iterable[Any] | None = None,
) -> Statistics | None:
    """Compare a module's running averages with the statistics of a batch, and say what they cost.

    Norms are in training or in evaluation mode; everything else, dropout too, is in evaluation
    mode. Without calibration samples even samples are judged with statistics of the odd ones and
    the other way round, so that no sample is judged with statistics that it is part of. The module
    and all random numbers stay as they were. Where synchronised norms train in several processes,
    each has to call this.

    Args:
        model: Any module.
        x: Samples, a tuple of arguments or a dict of named ones; their first axis counts samples.
        y: Labels or targets; without them and a loss only statistics and spreads are compared.
        loss_fn: Called with output and targets of some of the samples, and of all where it takes no
            others; outputs are leaves for autograd. If omitted cross entropy for integer targets,
            mean squared error for others.
        calibration: Samples, or batches of them, for the recalibrated statistics.

    Returns:
        What was found; None where no norm of PyTorch in the module keeps running averages.

    Raises:
        ValueError: If a norm is lazy, or the module holds several networks in one.
    """
    model, _ = unwrapped(model)
    norms = tracking(model)
    if not norms:
        return None
    if is_stack(model):
        raise ValueError(
            "compare: the module holds the averages of all its networks in one tensor; compare "
            "each as a module of its own"
        )
    place = norms[0].running_mean.device
    x, y = moved(x, place), moved(y, place)
    with everything_kept(model, training=False), without_compiler():
        with watched(norms) as path:  # first, so that what moments compute counts as the norm's
            evaluated, running = _pass(model, norms, x)
        why = _inseparable(model, x, running) if calibration is None else None
        trained, batch = _pass_in_training(model, norms, x, evaluated)
        fresh = None
        if why is None:
            fresh, why = _recalibrated(model, x, calibration)
        outputs = {"batch": batch, "running": running, "recalibrated": fresh}
        scores, unscored = _scores(outputs, y, samples_of(x) or 0, loss_fn)
    called = [norm for norm, _ in evaluated]
    rows = averages_table(model, evaluated, trained)
    told = prediction(called, rows, path)
    _add_predictions(rows, told)
    summary = _summary(scores, told) | {"unscored": unscored, "not_recalibrated": why}
    findings = findings_of_averages(rows, called)
    made = all(row["never_updated"] for row in rows)
    if made and not _has_learnt(summary, y):  # a network that was just made: nothing is lost
        kind = "statistics-never-updated"
        findings = [replace(f, severity="note") if f.kind == kind else f for f in findings]
    else:
        findings += findings_of_costs(summary, y)
    return Statistics(rows, summary, ordered(findings))


def _pass(model: nn.Module, norms: list[Norm], x: Any) -> tuple[Calls, Any]:
    """Moments of what each call of a norm is given, and the output; modes as they are."""
    calls: Calls = []

    def note(norm: Norm, given: Tensor) -> None:
        with unwatched(given):
            calls.append((norm, moments(norm, given, least=1)))

    with before_calls(norms, note):
        output = call_module(model, x)
    return calls, output


def _pass_in_training(
    model: nn.Module, norms: list[Norm], x: Any, evaluated: Calls
) -> tuple[Calls | None, Any]:
    """The same with norms in training mode, unless one would normalise a single number."""
    if any(seen.count < 2 and not isinstance(n, INSTANCE_NORMS) for n, seen in evaluated):
        return None, None
    for norm in norms:
        norm.training = True
    found = _pass(model, norms, x)
    for norm in norms:
        norm.training = False
    return found


def _inseparable(model: nn.Module, x: Any, output: Any) -> str | None:
    """Why some samples cannot be judged without the others, in evaluation; None if they can."""
    n = samples_of(x) or 0
    if n < 2:
        return UNCOUNTED if n < 1 else "there is one sample"
    try:
        if _apart(model, x, output, torch.arange(0, n, 2)[:ALONE], n):
            return None
    except Exception as error:  # a size that is built in, or nodes of a graph
        return f"some samples cannot be taken alone ({type(error).__name__})"
    return "samples have a part in each other's output, as in a graph"


def _recalibrated(
    model: nn.Module, x: Any, calibration: Tensor | Iterable[Any] | None
) -> tuple[Any, str | None]:
    """The output with statistics of other samples; None where there is none, and why."""
    if calibration is not None:
        batches = [calibration] if isinstance(calibration, Tensor) else calibration
        return output_behind(model, batches, x), None
    n = samples_of(x) or 0
    halves = torch.arange(0, n, 2), torch.arange(1, n, 2)
    try:
        parts = [
            (judged, output_behind(model, [(sliced(x, others, n),)], sliced(x, judged, n)))
            for judged, others in (halves, halves[::-1])
        ]
    except Exception as error:  # too few samples, or a size that is built in
        return None, f"half of the samples cannot be taken alone ({type(error).__name__})"
    return joined(parts, n), None


def _apart(model: Any, x: Any, output: Any, index: Tensor, n: int) -> bool:
    """Whether samples have no part in each other's output: not nodes of a graph, nor words."""
    some = sliced(x, index, n)
    alone, together = logits_of(call_module(model, some)), logits_of(sliced(output, index, n))
    if alone is None or together is None or not alone.ndim or alone.shape != together.shape:
        return True  # no output for each sample, which scoring will say
    if _alike(alone, together):
        return True
    again = logits_of(call_module(model, some))  # a network that draws differs from itself
    return again is not None and not _alike(alone, again)


def _alike(a: Tensor, b: Tensor) -> bool:
    size = torch.nan_to_num(b, 0.0, 0.0, 0.0).abs().max()
    return torch.allclose(a, b, 0.0, ALIKE * float(size), equal_nan=True)


def _logits(output: Any, n: int) -> Tensor:
    """What is said of each sample."""
    found = logits_of(output)
    if found is None or not found.ndim or len(found) != n:
        raise _UnscoredError(
            f"an output of type {type(output).__name__} has no row for each sample"
        )
    return found


def _scores(
    outputs: dict[str, Any], y: Any, n: int, loss_fn: LossFunction | None
) -> tuple[dict[str, _Score], str | None]:
    """Scores by name, without losses where these cannot be had, and why not."""
    if n < 1:
        return dict.fromkeys(outputs, _Score()), UNCOUNTED
    try:
        return {name: _score(found, y, n, loss_fn) for name, found in outputs.items()}, None
    except _UnscoredError as error:
        why = str(error)
    try:
        return {name: _score(found, None, n, None) for name, found in outputs.items()}, why
    except _UnscoredError:
        return dict.fromkeys(outputs, _Score()), why


def _score(output: Any, y: Any, n: int, loss_fn: LossFunction | None) -> _Score:
    """Losses of parts of the samples, labels that are right, and spread of an output."""
    if output is None:
        return _Score()
    logits = _logits(output, n)
    spread = number(logits.flatten(1).double().var(0, correction=0).mean().log() / 2)
    if y is None and loss_fn is None:
        return _Score(log_spread=spread)
    right = right_labels(logits, y)
    losses = _default_losses(logits, y) if loss_fn is None else _losses(output, y, n, loss_fn)
    return _Score(losses, None if right is None else float64(right), spread)


def _parts(n: int) -> list[Tensor]:
    """Samples of each part: an even number of parts, since even and odd ones are judged apart."""
    parts = max(2, min(PARTS, n // 4 * 2))
    return [torch.arange(i, n, parts) for i in range(parts) if i < n]


def _default_losses(logits: Tensor, y: Any) -> Tensor:
    n = len(logits)
    try:
        default_loss(logits, y)  # refuses what does not fit in terms of the whole
        pairs = ((sliced(logits, part, n), sliced(y, part, n)) for part in _parts(n))
        return float64(torch.stack([default_loss(*pair)[0] for pair in pairs]))
    except ValueError as error:
        raise _UnscoredError(str(error)) from error


def _losses(output: Any, y: Any, n: int, loss_fn: LossFunction) -> Tensor:
    """What a loss of one's own says of the parts, or of the whole if it takes no parts."""
    whole = torch.arange(n)
    for parts in (_parts(n), [whole]):
        try:
            with random_state_kept(), torch.enable_grad():  # some draw, some differentiate
                free = mapped(output, _on_its_own)
                found = [
                    loss_called(loss_fn, sliced(free, part, n), sliced(y, part, n))
                    for part in parts
                ]
            values = [float(torch.as_tensor(loss).detach()) for loss in found]
            return torch.tensor(values, dtype=torch.float64)
        except Exception as error:  # whatever a function of the reader's raises
            why = f"loss_fn raised {type(error).__name__}: {error}"
    raise _UnscoredError(why)


def _on_its_own(x: Tensor) -> Tensor:
    """A copy that autograd follows from here, and a loss may overwrite."""
    return x.detach().requires_grad_().clone() if x.is_floating_point() else x


def _add_predictions(rows: list[Row], told: Prediction) -> None:
    for i, row in enumerate(rows):
        w, p = told.layers[i] if i < len(told.layers) else (None, None)
        row["log_spread_predicted"] = None if w is None else math.log(w) / 2
        row["offset_predicted"] = p


def _summary(scores: dict[str, _Score], told: Prediction) -> Row:
    found: Row = {}
    for name, score in scores.items():
        found[f"loss_{name}"] = None if score.losses is None else number(score.losses.mean())
        found[f"accuracy_{name}"] = _share(score.right)
        found[f"log_spread_{name}"] = score.log_spread
    before, after = found["log_spread_batch"], found["log_spread_running"]
    lost = None if before is None or after is None else before - after
    predicted = None if not told.behind else -math.log(told.behind) / 2
    found |= {"spread_lost": lost, "spread_lost_predicted": predicted}
    found["assumption"] = told.obstacle
    found["sure"] = _sureness(scores["running"], scores["recalibrated"])
    return found


def _share(right: Tensor | None) -> float | None:
    return None if right is None or not len(right) else float(right.mean())


def _sureness(worse: _Score, better: _Score) -> float | None:
    """Mean difference of the losses of parts, or else of labels, in standard errors."""
    if (found := _standard_errors(worse.losses, better.losses)) is not None:
        return found
    return _standard_errors(better.right, worse.right)


def _standard_errors(larger: Tensor | None, smaller: Tensor | None) -> float | None:
    if larger is None or smaller is None or len(larger) != len(smaller) or len(larger) < 3:
        return None
    gaps = larger - smaller
    return number(gaps.mean() / (gaps.std() / math.sqrt(len(gaps))))


def findings_of_costs(summary: Row, y: Any) -> list[Finding]:
    """What running averages cost, if that is sure, and what they do to the logits.

    Args:
        summary: Of :class:`Statistics`.
        y: Labels or targets.

    Returns:
        Findings, the worst first.
    """
    return [f for f in (_cost(summary, y), _changed_spread(summary)) if f is not None]


def _cost(summary: Row, y: Any) -> Finding | None:
    running, fresh, sure = (summary[k] for k in ("loss_running", "loss_recalibrated", "sure"))
    if fresh is None or (running is not None and (sure is None or sure < SURE)):
        return None
    before, after = summary["accuracy_running"], summary["accuracy_recalibrated"]
    lost = 0.0 if before is None else after - before
    if running is not None and running - fresh < WORSE * abs(fresh) and lost < WORSE:
        return None
    broken = running is None or (lost >= WORSE and lost > 0.5 * (after - _chance(y)))
    confident = running is not None and before is not None and lost < WORSE  # as often right
    evidence = {
        k: v for k, v in summary.items() if k.startswith(("loss", "accuracy")) or k == "sure"
    }
    return Finding(
        "running-statistics-fail", "note" if confident else "broken" if broken else "serious",
        _cost_words(summary, "loss" if confident or before is None else "accuracy"),
        evidence, RECALIBRATE, CHAPTER,
    )  # fmt: skip


def _cost_words(summary: Row, key: str) -> str:
    what = "Accuracy" if key == "accuracy" else "The loss"
    batch, running, fresh = (
        "not finite" if value is None else f"{value:.3g}"
        for value in (summary[f"{key}_{kind}"] for kind in ("batch", "running", "recalibrated"))
    )
    return (
        f"{what} is {running} with running averages, {fresh} with averages recalibrated on other "
        f"samples and {batch} with those of the batch: the weights are better than evaluation says."
    )


def _chance(y: Any) -> float:
    """Share of the most frequent label."""
    known = y[y >= 0]
    return float(known.unique(return_counts=True)[1].max() / known.numel())


def _has_learnt(summary: Row, y: Any) -> bool:
    """Whether recalibrated accuracy is above chance by more than that many guesses would be."""
    accuracy = summary["accuracy_recalibrated"]
    if accuracy is None:
        return False
    chance, n = _chance(y), int((y >= 0).sum())
    return bool(accuracy - chance > SURE * math.sqrt(chance * (1 - chance) / n) > 0)


def _changed_spread(summary: Row) -> Finding | None:
    lost, predicted = summary["spread_lost"], summary["spread_lost_predicted"]
    if lost is None or abs(lost) < math.log(2):
        return None
    words = (
        f"Logits differ {math.exp(abs(lost)):.3g} times {'less' if lost > 0 else 'more'} between "
        "samples with running averages than with those of the batch"
    )
    if predicted is not None:
        change = f"{math.exp(abs(predicted)):.3g} times {'less' if predicted > 0 else 'more'}"
        words += f"; from the averages alone the theory says {change}"
    evidence = {"spread_lost": lost, "spread_lost_predicted": predicted}
    return Finding("logit-spread", "note", f"{words}.", evidence)
