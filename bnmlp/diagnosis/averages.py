"""Running averages of norms, call by call, beside the statistics of a batch."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bnmlp.diagnosis.chain import Stretch, obstacle_between
from bnmlp.diagnosis.findings import Finding, Severity
from bnmlp.machine.precision import float64
from bnmlp.measurements.recalibration import INSTANCE_NORMS, Moments, Norm
from bnmlp.theory.evaluation import evaluation_spread

CHAPTER = "training/running-statistics"
YOUNG = 0.01  # weight of its first value from which an average is worth a word
FEW = 16  # numbers behind a statistic, from which its error is below a fifth
APART = 0.1  # squared distance of means, in variances, that two uses of one norm may have

Calls = list[tuple[Norm, Moments]]
Row = dict[str, Any]


class Prediction(NamedTuple):
    """What the theory says evaluation does to the signal.

    Attributes:
        layers: Variance and squared offset at each norm as far as the theory goes.
        behind: Variance behind the last activation; None where it does not go that far.
        obstacle: Why it stops, in words; None if it does not.
    """

    layers: list[tuple[float, float]]
    behind: float | None
    obstacle: str | None


def averages_table(module: nn.Module, evaluated: Calls, trained: Calls | None) -> list[Row]:
    """A row for each call of a norm.

    Args:
        module: Holds the norms, with the averages that are judged.
        evaluated: Moments of what each call is given in evaluation.
        trained: The same in training; None where training cannot run.

    Returns:
        Rows as :class:`bnmlp.diagnosis.statistics.Statistics` describes them, without predictions.
    """
    names = {part: name or "model" for name, part in module.named_modules()}
    numbers: Counter[Norm] = Counter()
    rows = []
    for (norm, seen), sizes in zip(evaluated, _sizes(evaluated, trained), strict=True):
        numbers[norm] += 1
        name = names[norm] if numbers[norm] == 1 else f"{names[norm]}#{numbers[norm]}"
        row = {"name": name, "kind": type(norm).__name__} | _state(norm, seen)
        rows.append(row | sizes)
    return rows


def _state(norm: Norm, seen: Moments) -> Row:
    tracked = None if norm.num_batches_tracked is None else int(norm.num_batches_tracked)
    memory = None if tracked is None else (1 - (norm.momentum or 0.0)) ** tracked
    return {
        "training": norm.training,
        "instances": isinstance(norm, INSTANCE_NORMS),
        "channels": len(norm.running_mean),
        "numbers": seen.count,
        "momentum": norm.momentum,
        "batches": tracked,
        "memory": 0.0 if norm.momentum is None and tracked else memory,
    }


def _sizes(evaluated: Calls, trained: Calls | None) -> list[Row]:
    """What is computed from averages and moments, of all calls with as many channels at once."""
    rows: list[Row] = [{} for _ in evaluated]
    alike: dict[Any, list[int]] = {}
    for i, (norm, _) in enumerate(evaluated):
        alike.setdefault((len(norm.running_mean), norm.running_mean.device), []).append(i)
    for places in alike.values():
        norms = [evaluated[i][0] for i in places]
        mean, var = _stacked([(norm.running_mean, norm.running_var) for norm in norms])
        columns = _flaws(mean, var) | dict.fromkeys(DISTANCES, [None] * len(places))
        if trained:
            seen, batch = ([calls[i][1] for i in places] for calls in (evaluated, trained))
            columns |= _distances(norms, mean, var, seen, batch)
        for i, *values in zip(places, *columns.values(), strict=True):
            rows[i] = dict(zip(columns, values, strict=True))
    return rows


def _stacked(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Means and variances of several calls, float64. Each of shape ``(calls, C)``."""
    mean, var = (float64(torch.stack(column)) for column in zip(*pairs, strict=True))
    return mean, var


def _flaws(mean: Tensor, var: Tensor) -> dict[str, list[Any]]:
    """What running averages hold that none should."""
    return {
        "never_updated": ((mean == 0) & (var == 1)).all(1).tolist(),
        "not_finite": (~(mean.isfinite() & var.isfinite())).sum(1).tolist(),
        "negative": (var < 0).sum(1).tolist(),
    }


DISTANCES = (
    "mean_error", "noise", "variance_ratio", "variance_ratio_low", "variance_ratio_high",
    "variance_ratio_mean", "log_spread", "offset",
)  # fmt: skip


def _distances(
    norms: Sequence[Norm],
    mean: Tensor,
    var: Tensor,
    evaluated: Sequence[Moments],
    trained: Sequence[Moments],
) -> dict[str, list[Any]]:
    """The columns of ``DISTANCES``, of calls of norms with running averages ``(calls, C)``."""
    eps = var.new_tensor([norm.eps for norm in norms])[:, None]
    memory = [norm.momentum or 0.0 for norm in norms]
    var = var + eps
    (seen_mean, seen_var), (batch_mean, batch_var) = (
        _stacked([(found.mean, found.var) for found in calls]) for calls in (evaluated, trained)
    )
    ratio = (batch_var + eps) / var
    low, high = torch.aminmax(ratio, dim=1)
    size = (batch_var / (batch_var + eps)).sum(1)
    return {
        "mean_error": _numbers(((batch_mean - mean).square() / var).mean(1)),
        "noise": [
            (1 + m / (2 - m)) / found.count for m, found in zip(memory, evaluated, strict=True)
        ],
        "variance_ratio": _numbers(ratio.median(1).values),
        "variance_ratio_low": _numbers(low),
        "variance_ratio_high": _numbers(high),
        "variance_ratio_mean": _numbers((batch_var / var).sum(1) / size),
        "log_spread": _numbers(((seen_var / var).sum(1) / size).log() / 2),
        "offset": _numbers(((seen_mean - mean).square() / var).mean(1)),
    }


def _numbers(x: Tensor) -> list[float | None]:
    """Numbers that JSON can hold: None where one is not finite."""
    return [value if math.isfinite(value) else None for value in x.tolist()]


def number(x: Tensor) -> float | None:
    """A number that JSON can hold: None where it is not finite."""
    return _numbers(x.reshape(1))[0]


def prediction(norms: Sequence[Norm], rows: list[Row], path: list[Stretch]) -> Prediction:
    """What measured ratios and errors do to the signal in evaluation, by the theory of chains.

    Args:
        norms: In order of calls.
        rows: Of the same calls.
        path: What is computed before, between and behind them.

    Returns:
        As far as the assumptions hold.
    """
    reach, obstacle = _reach(norms, rows, path)
    if reach == 0:
        return Prediction([], None, obstacle)
    found = evaluation_spread(
        [row["variance_ratio_mean"] for row in rows[:reach]],
        [row["mean_error"] for row in rows[:reach]],
        [stretch.activation for stretch in path[1 : reach + 1]],
        [norm.weight for norm in norms[:reach]],
        [norm.bias for norm in norms[:reach]],
    )
    behind = None if obstacle else found[-1, 0].item()
    return Prediction([(w, p) for w, p in found[:-1].tolist()], behind, obstacle)


def _reach(norms: Sequence[Norm], rows: list[Row], path: list[Stretch]) -> tuple[int, str | None]:
    """How many norms the theory describes, and what stops it."""
    for i, (norm, row) in enumerate(zip(norms, rows, strict=True)):
        if i and (obstacle := obstacle_between(path[i])):
            return i, f"between {rows[i - 1]['name']} and {row['name']} {obstacle}"
        if isinstance(norm, INSTANCE_NORMS) or not type(norm).__module__.startswith("torch."):
            return i, f"{row['name']} is no batch norm of PyTorch but {row['kind']}"
        if row["variance_ratio_mean"] is None or row["mean_error"] is None:
            return i, f"the statistics of {row['name']} are not finite"
        if row["negative"]:
            return i, f"running variances of {row['name']} are negative"
    last = path[len(rows)].obstacle
    return len(rows), f"behind {rows[-1]['name']} {last}" if last else None


class Rule(NamedTuple):
    """Something that may be wrong with the averages of one call.

    Attributes:
        kind: As :class:`bnmlp.diagnosis.findings.Finding` has it.
        severity: The same.
        key: Of the number in a row that is the evidence.
        applies: Whether it is wrong there.
        words: The sentence; ``{where}`` names the calls.
        advice: What helps, where the chapter has tested it.
    """

    kind: str
    severity: Severity
    key: str
    applies: Callable[[Row], Any]
    words: str
    advice: str | None = None


RECALIBRATE = "bnmlp.recalibrate(model, loader) sets all averages anew, layer by layer"
RULES = (
    Rule("statistics-not-finite", "broken", "not_finite", lambda r: r["not_finite"],
         "Running averages hold nan or inf, and so does all that is behind them in evaluation: "
         "{where}."),
    Rule("statistics-negative", "broken", "negative", lambda r: r["negative"],
         "Running variances are negative, so evaluation gives nan: {where}."),
    Rule("statistics-one-number", "broken", "numbers",
         lambda r: r["numbers"] == 1 and not r["instances"],
         "A batch has one number for each channel, whose variance is zero, so training cannot run: "
         "{where}."),
    Rule("statistics-few-numbers", "note", "numbers",
         lambda r: 1 < r["numbers"] < FEW and not r["instances"],
         f"Fewer than {FEW} numbers are behind each statistic of this batch, whose standard "
         "deviations are then off by more than 18 % themselves: {where}."),
    Rule("statistics-never-updated", "serious", "batches", lambda r: r["never_updated"],
         "Running averages are still 0 and 1, as made: no batch passed in training mode, or "
         "momentum is zero: {where}.", RECALIBRATE),
    Rule("statistics-young", "note", "memory",
         lambda r: not r["never_updated"] and (r["memory"] or 0) > YOUNG and r["batches"],
         f"Running averages still give their first value a weight above {YOUNG:.0%}, after the "
         "batches that they have seen: {where}.", RECALIBRATE),
    Rule("statistics-cumulative", "note", "batches", lambda r: r["momentum"] is None,
         "With momentum=None the average weighs all batches since the start alike, those of old "
         "weights too: {where}."),
)  # fmt: skip


def findings_of_averages(rows: list[Row], norms: Sequence[Norm]) -> list[Finding]:
    """What is wrong with the averages themselves, whatever it costs.

    Args:
        rows: Of :func:`averages_table`.
        norms: The norm of each row.

    Returns:
        Findings, in no order.
    """
    found = [_judged(rule, rows) for rule in RULES]
    found += [_mixed_modes(rows), *_reused(rows, norms)]
    return [finding for finding in found if finding is not None]


def _judged(rule: Rule, rows: list[Row]) -> Finding | None:
    bad = {row["name"]: row[rule.key] for row in rows if rule.applies(row)}
    if not bad:
        return None
    words = rule.words.format(where=where(list(bad)))
    chapter = CHAPTER if rule.advice else None
    return Finding(rule.kind, rule.severity, words, {rule.key: bad}, rule.advice, chapter)


def _mixed_modes(rows: list[Row]) -> Finding | None:
    frozen = [row["name"] for row in rows if not row["training"]]
    if not 0 < len(frozen) < len(rows):
        return None
    words = f"In evaluation mode while others are in training mode: {where(frozen)}."
    return Finding("statistics-mixed-modes", "note", words, {"evaluating": frozen})


def _reused(rows: list[Row], norms: Sequence[Norm]) -> list[Finding]:
    """Norms whose calls normalise different things with one pair of averages."""
    found = []
    of_norm: dict[Norm, list[Row]] = {}
    for norm, row in zip(norms, rows, strict=True):
        of_norm.setdefault(norm, []).append(row)
    for calls in of_norm.values():
        errors = [row["mean_error"] for row in calls if row["mean_error"] is not None]
        if len(calls) > 1 and errors and max(errors) > APART:
            words = (
                f"{calls[0]['name']} is called {len(calls)} times with one pair of averages, and "
                f"the means of a call are off by {max(errors):.2g} variances: no pair fits all."
            )
            evidence = {"mean_error": {row["name"]: row["mean_error"] for row in calls}}
            found.append(Finding("statistics-reused", "note", words, evidence))
    return found


def where(names: Sequence[str]) -> str:
    """Names in a sentence: the first three, and how many more."""
    first, more = ", ".join(names[:3]), len(names) - 3
    return f"{first} and {more} more" if more > 0 else first
