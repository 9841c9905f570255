"""From numbers to sentences: what is wrong, how sure that is, and what a chapter advises.

A wrong diagnosis is worse than none. A verdict on growth takes both an interval away from zero and
a growth that matters: its lower end, over the whole network, must reach a factor of a thousand
(``MATTERS`` nats). Networks that train well stay below, residual ones of 150 layers included, whose
gradients grow in earnest, but by a power of the depth. What stays below is reported as undecided,
with its numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bnmlp.diagnosis.findings import Finding, Severity
from bnmlp.diagnosis.growth import LEAST, Rate, rate_of
from bnmlp.diagnosis.prediction import Prediction
from bnmlp.diagnosis.table import Table, spread_of_rates

MATTERS = math.log(1000)
ALIGNED, ONE = 0.99, 0.999  # mean cosines of samples: nearly, and all but one direction
DEAD = 0.75  # share of features of a rectifier; where samples align it is near a half
CLOSE = 3.0  # nats to overflow

CHAIN = (
    "Put a skip connection around every block; or keep the chain, with tanh in place of ReLU, "
    "orthogonal weights and gains that fall with the layer: bnmlp.orthogonal_(model), "
    "bnmlp.shape_(model, 0.4)",
    "practice/measure-your-network",
)
CALM = (
    "Divide the last matrix of each of the L branches by the root of L: what they add up to is "
    "then no larger than the stream",
    "practice/measure-your-network",
)
BRANCHES = 8  # from which on their number matters
ADVICE = {
    "relu-batch": CHAIN,
    "linear-gaussian": (
        "Start from orthogonal weights (bnmlp.haar_orthogonal): gradients stay level",
        "initialisation/gradients-depth",
    ),
    "linear-deficient": (
        "Give batches at least as many distinct samples as layers are wide",
        "initialisation/degenerate-batches",
    ),
}
SHAPE = (
    "Scale the input of the activation of layer l by l^-0.4: the growth stays bounded",
    "initialisation/gain-exponent",
)
APART = (
    "Batch normalisation with mean reduction keeps samples apart, at the price of an explosion",
    "initialisation/activations-and-norms",
)
CRITICAL = (
    "Set the weights' variance to its critical value, 1 over the width for tanh and 2 for ReLU",
    "history/edge-of-chaos",
)


@dataclass
class Diagnosis:
    """What was found, and what was looked at without a verdict."""

    findings: list[Finding] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)


def rates_of(tables: Sequence[Table]) -> dict[str, Rate | None]:
    """Growth along the layers, the first and the last left out where enough remain.

    Gradients are compared as sensitivities, which do not depend on how wide layers are or how their
    values are scaled. At an output f that is |dL/df| times the root mean square of f, the response
    of the loss to a random relative change of f: the gradient scale coefficient of
    :eq:`gsc` up to a constant. At a weight it is |dL/dW| |W| over the root of the number of
    entries. Where W has independent entries of mean square 1/columns, |W|^2 is the number of rows,
    and with inputs of unit mean square |dL/dW|^2 is the columns times |dL/df|^2: both
    sensitivities are |dL/df|, in layers of any width, dense or convolutional.

    Args:
        tables: Of replicas, or of one network.

    Returns:
        ``"weights"`` and ``"outputs"``, growth towards the input, and ``"signals"``, growth of the
        root mean square of layers' inputs towards the output.
    """
    series: dict[str, list[np.ndarray]] = {"weights": [], "outputs": [], "signals": []}
    for table in tables:
        places = table.layers[1:-1] if len(table.layers) >= LEAST + 2 else table.layers
        alone = np.where(table["shared"][places] == 1, table["weight_sensitivity"][places], np.nan)
        series["weights"].append(-alone)
        series["outputs"].append(-table["sensitivity"][places])
        with np.errstate(all="ignore"):
            series["signals"].append(np.log(table["input_rms"][places]))
    return {name: rate_of(logs) for name, logs in series.items()}


def diagnose(
    tables: Sequence[Table],
    rates: dict[str, Rate | None],
    prediction: Prediction,
    loss: float,
    input_faults: int = 0,
    unused: Sequence[str] = (),
    target_faults: int = 0,
) -> Diagnosis:
    """Everything that the tables support.

    Args:
        tables: Of replicas, or of one network.
        rates: Of these.
        prediction: What theory says.
        loss: Its value.
        input_faults: Nan and infinite entries of the input.
        unused: Names of parameters that the loss does not depend on.
        target_faults: Nan and infinite entries of the targets.

    Returns:
        Findings, and what stays undecided.
    """
    found = Diagnosis()
    _not_finite(found, tables, loss, input_faults, target_faults)
    _gradients(found, tables, rates, prediction)
    _signals(found, tables, rates, prediction)
    _aligned(found, tables, prediction)
    for check in (_dead, _zero, _headroom):
        check(found, tables)
    if unused:
        found.findings.append(
            Finding(
                "unused-parameters", "note",
                f"The loss does not depend on {len(unused)} parameters: {_some(unused)}.",
                {"parameters": list(unused)},
            )
        )  # fmt: skip
    return found


def _not_finite(
    found: Diagnosis, tables: Sequence[Table], loss: float, input_faults: int, target_faults: int
) -> None:
    if input_faults:
        found.findings.append(
            Finding("input-not-finite", "broken",
                    f"The input holds {input_faults} values that are nan or infinite.",
                    {"entries": input_faults})
        )  # fmt: skip
    for r, table in enumerate(tables):
        which = f" of replica {r}" if len(tables) > 1 else ""
        for column, kind, what, first in _FAULTS:
            if column == "gradient_faults" and not math.isfinite(loss):
                continue  # where the loss is not finite they cannot be, either
            bad = np.flatnonzero(table[column] > 0)
            if not len(bad):
                continue
            place = int(bad[first])
            entries = int(table[column][place])
            sentence = (
                f"{what}{which} not finite at {table.name[place]} ({table.kind[place]}, call "
                f"{place + 1} of {len(table)}): {entries} values there, {len(bad)} calls in all."
            )
            evidence = {"call": table.name[place], "number": place + 1, "entries": entries,
                        "calls": [table.name[i] for i in bad]}  # fmt: skip
            found.findings.append(Finding(kind, "broken", sentence, evidence))
            break  # the rest follows from it
    if not math.isfinite(loss) and not found.findings:
        cause = f": the targets hold {target_faults} values that are not" if target_faults else ""
        found.findings.append(
            Finding("loss-not-finite", "broken",
                    f"The loss is {loss}, though every output is finite{cause}.",
                    {"loss": str(loss), "targets": target_faults})
        )  # fmt: skip


_FAULTS: tuple[tuple[str, str, str, int], ...] = (
    ("weight_faults", "weight-not-finite", "Weights are", 0),
    ("output_faults", "output-not-finite", "Signals are first", 0),
    ("gradient_faults", "gradient-not-finite", "On the way back gradients are first", -1),
)


def _gradients(
    found: Diagnosis, tables: Sequence[Table], rates: dict[str, Rate | None], prediction: Prediction
) -> None:
    rate, other = rates["weights"], rates["outputs"]
    if rate is None:
        rate, other = other, None
    if rate is None:
        found.undecided.append(f"No verdict on gradients: {_without_rate(tables)}")
        return
    grows = _matters(rate) and (other is None or other.low > 0)
    shrinks = _matters(rate, -1) and (other is None or other.high < 0)
    if not (grows or shrinks):
        found.undecided.append(_undecided("gradients", "towards the input", rate, other))
        return
    kind, word = ("gradient-explosion", "explode") if grows else ("gradient-vanishing", "vanish")
    against = "weights" if rates["weights"] is rate else "what layers put out"
    sentence = (
        f"Gradients {word}: relative to {against} they {'grow' if grows else 'shrink'} by "
        f"{_rate(rate)} per layer towards the input, {_fold(rate.total)} over {rate.layers} layers"
        f"{_recurrent(tables)}{_left_out(rate)}; {_theory(rate, prediction)}."
    )
    advice, chapter = _advice(prediction, grows)
    evidence = {"rate": rate.to_dict(), "at_outputs": other.to_dict() if other else None,
                "prediction": prediction.to_dict(),
                "rate_spread": spread_of_rates(tables)}  # fmt: skip
    found.findings.append(Finding(kind, "serious", sentence, evidence, advice, chapter))


def _signals(
    found: Diagnosis, tables: Sequence[Table], rates: dict[str, Rate | None], prediction: Prediction
) -> None:
    rate = rates["signals"]
    if rate is None:
        return
    if not (_matters(rate) or _matters(rate, -1)):
        if abs(rate.total) > MATTERS:
            found.undecided.append(_undecided("signals", "towards the output", rate, None))
        return
    grows = rate.value > 0
    kind = "signal-explosion" if grows else "signal-vanishing"
    sentence = (
        f"Signals {'explode' if grows else 'vanish'}: what layers are given "
        f"{'grows' if grows else 'shrinks'} by {_rate(rate)} per layer, {_fold(rate.total)} over "
        f"{rate.layers} layers{_left_out(rate)}."
    )
    advice, chapter = CRITICAL if _has_critical_value(prediction) else (None, None)
    if grows and all(map(_is_bare_stream, tables)):
        advice, chapter = CALM
    found.findings.append(
        Finding(kind, "serious", sentence, {"rate": rate.to_dict()}, advice, chapter)
    )


def _is_bare_stream(table: Table) -> bool:
    """Whether many branches are added to a stream, and nothing is normalised."""
    sums = int((~np.isnan(table["branch_over_stream"])).sum())
    return sums >= BRANCHES and not any("norm" in kind.lower() for kind in table.kind)


def _aligned(found: Diagnosis, tables: Sequence[Table], prediction: Prediction) -> None:
    """Samples that differ at the input and not before the last layer."""
    for r, table in enumerate(tables):
        places = table.layers
        if len(places) < LEAST or (table["dead"] == 1).any():  # that is why, and has a finding
            continue
        cosine = table["cosine"][places]
        last = cosine[-max(2, len(places) // 10) - 1 : -1]
        if not (np.isfinite(last).all() and last.min() > ALIGNED and cosine[0] < 0.9):
            continue
        sentence = (
            f"Samples{_of_replica(r, tables)} align: their mean cosine rises from {cosine[0]:.2f} "
            f"after the first layer to {last[-1]:.4f} before the last, so the network tells them "
            "apart less and less."
        )
        advice, chapter = APART if prediction.applies else (None, None)
        severity: Severity = "serious" if last.min() > ONE else "note"
        evidence = {"first": float(cosine[0]), "last": float(last[-1])}
        found.findings.append(
            Finding("samples-align", severity, sentence, evidence, advice, chapter)
        )


def _dead(found: Diagnosis, tables: Sequence[Table]) -> None:
    for r, table in enumerate(tables):
        dead = table["dead"]
        many = np.flatnonzero(dead > DEAD)
        if not len(many):
            continue
        worst = int(many[np.argmax(dead[many])])
        sentence = (
            f"In {len(many)} of {int(np.isfinite(dead).sum())} rectifiers{_of_replica(r, tables)} "
            f"more than three quarters of the features are zero for every sample, most at "
            f"{table.name[worst]}: {dead[worst]:.0%}."
        )
        evidence = {"calls": [table.name[i] for i in many], "largest": float(dead[worst])}
        found.findings.append(Finding("dead-units", "serious", sentence, evidence))


def _zero(found: Diagnosis, tables: Sequence[Table]) -> None:
    """Gradients that are exactly zero, and the weight of zeros that stops them."""
    for r, table in enumerate(tables):
        places = table.layers
        gradient = table["weight_gradient_norm"][places]
        zero = places[gradient == 0]
        if not len(zero):
            continue
        empty = [table.name[i] for i in places if table["weight_norm"][i] == 0]
        cause = f"; the weight of {_some(empty)} is all zeros" if empty else _off(table)
        flat = _is_flat(table)
        if flat:
            cause = "; so is the slope of the loss in the output: it is flat there, or saturated"
        sentence = (
            f"Gradients{_of_replica(r, tables)} are exactly zero at {len(zero)} of {len(places)} "
            f"layers: {_some([table.name[i] for i in zero])}{cause}."
        )
        evidence = {"layers": [table.name[i] for i in zero], "zero_weights": empty}
        severity: Severity = "note" if empty or flat else "serious"
        found.findings.append(Finding("zero-gradients", severity, sentence, evidence))


def _off(table: Table) -> str:
    """Rectifiers that are zero for every sample, in words."""
    off = [table.name[i] for i in np.flatnonzero(table["dead"] == 1)]
    return f"; {_some(off)} {'is' if len(off) == 1 else 'are'} zero for every sample" if off else ""


def _is_flat(table: Table) -> bool:
    """Whether no call's output has a gradient other than zero: the loss itself has none."""
    known = table["gradient_norm"][np.isfinite(table["gradient_norm"])]
    return len(known) > 0 and not known.any()


def _headroom(found: Diagnosis, tables: Sequence[Table]) -> None:
    for table in tables:
        room = table["headroom"]
        room = np.where(np.isfinite(room), room, np.nan)  # what overflows is reported as such
        if np.isnan(room).all():
            continue
        least = int(np.nanargmin(room))
        if room[least] < CLOSE:
            sentence = (
                f"{table.name[least]} comes within {room[least]:.1f} nats (a factor of "
                f"{math.exp(room[least]):.0f}) of the largest number of {table.dtype[least]}."
            )
            evidence = {"call": table.name[least], "nats": float(room[least])}
            found.findings.append(Finding("near-overflow", "serious", sentence, evidence))
            return


def _matters(rate: Rate, sign: int = 1) -> bool:
    """Whether growth, at the nearer end of its interval, reaches a factor of a thousand."""
    near = rate.low if sign > 0 else -rate.high
    return math.isfinite(near) and near * (rate.layers - 1) >= MATTERS


def _undecided(what: str, where: str, rate: Rate, other: Rate | None) -> str:
    if not math.isfinite(rate.low):
        layers = f"{rate.layers} layers are too few for an interval"
        return f"No verdict on {what} {where}: {layers} ({_rate(rate)} per layer)"
    if 0 in rate and (rate.high - rate.low) / 2 * (rate.layers - 1) > MATTERS:
        return f"No verdict on {what} {where}: layers differ too much for a rate, {rate}"
    if 0 in rate:
        return f"{what.capitalize()} are level {where}: {rate}, zero within the interval"
    if other is not None and _matters(rate, 1 if rate.value > 0 else -1):
        return f"No verdict on {what} {where}: {rate} at weights, but {other} at outputs"
    verb = "grow" if rate.value > 0 else "shrink"
    return (
        f"No verdict on {what}: they {verb} {where}, by {_rate(rate)} per layer, "
        f"{_fold(rate.total)} in all, less than the thousandfold that a verdict takes"
    )


def _advice(prediction: Prediction, grows: bool) -> tuple[str | None, str | None]:
    """What a chapter has tested for exactly this network; nothing elsewhere."""
    if not prediction.applies:
        return None, None
    if _has_critical_value(prediction):
        return CRITICAL
    if not grows:
        return None, None
    if prediction.rule == "activation-batch" and prediction.formula.startswith(("tanh", "sin")):
        return SHAPE
    if prediction.rule == "activation-batch" and prediction.formula.startswith("relu"):
        return CHAIN
    return ADVICE.get(prediction.rule, (None, None))


def _without_rate(tables: Sequence[Table]) -> str:
    layers = max(len(table.layers) for table in tables)
    if layers > 1:
        return "no two layers have one that is finite and not zero"
    count = "1 layer is" if layers else "no layers are"
    return (
        f"{count} seen; layers are modules with a matrix of their own, not matrices in a "
        "ParameterList or an attribute that forward multiplies with"
    )


def _has_critical_value(prediction: Prediction) -> bool:
    """Whether the chapter has the critical variance of this activation without normalisation."""
    return prediction.rule == "mean-field" and prediction.formula.startswith(("tanh ", "relu "))


def _recurrent(tables: Sequence[Table]) -> str:
    """That most layers are calls of one weight, if so."""
    shared = [table["shared"][table.layers] for table in tables]
    if min(float(np.nanmedian(s)) if np.isfinite(s).any() else 0.0 for s in shared) <= 1:
        return ""
    return ", most of them calls of one weight, as the steps of a recurrence are"


def _theory(rate: Rate, prediction: Prediction) -> str:
    if prediction.low is None or prediction.high is None:
        return str(prediction)
    inside = prediction.low <= rate.high and prediction.high >= rate.low
    word = "within the interval" if inside else "outside the interval"
    return f"theory gives {prediction}, {word}"


def _rate(rate: Rate) -> str:
    half = (rate.high - rate.low) / 2
    error = f" ± {half:.3f}" if math.isfinite(half) else ""
    return f"{abs(rate.value):.3f}{error} nats (a factor of {math.exp(abs(rate.value)):.2f})"


def _fold(total: float) -> str:
    nats = abs(total)
    fold = f"{math.exp(nats):,.0f}" if nats < 14 else f"e^{nats:.0f}"
    return f"{nats:.1f} nats ({fold}-fold)"


def _left_out(rate: Rate) -> str:
    if not rate.left_out:
        return ""
    return f" ({rate.left_out} more have no finite logarithm: zero, out of range, or shared)"


def _of_replica(r: int, tables: Sequence[Table]) -> str:
    return f" of replica {r}" if len(tables) > 1 else ""


def _some(names: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
