"""What was measured and found: as text, as a table, as a plot, and in files."""

import json
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnmlp.diagnosis.findings import Finding, ordered, summary_of
from bnmlp.diagnosis.growth import Rate
from bnmlp.diagnosis.prediction import Prediction
from bnmlp.diagnosis.table import COLUMNS, Table, spread_of_rates

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

    from bnmlp.diagnosis.jacobian import Spectrum

SCHEMA = "bnmlp.report/1"
SHOWN = 24  # rows of the table in print
PRINTED = {
    "mean_square": "mean sq", "cosine": "cosine", "dead": "dead", "gradient_norm": "|dL/dx|",
    "weight_gradient_norm": "|dL/dW|", "effective_rate": "|g|/|W|", "update": "|dW|/|W|",
    "branch_over_stream": "branch",
}  # fmt: skip
RATES = {
    "weights": "gradients towards the input, at weights",
    "outputs": "gradients towards the input, at outputs",
    "signals": "signals towards the output",
}


@dataclass(frozen=True)
class Facts:
    """What was measured, and on what.

    Attributes:
        network: Class of the module.
        parameters: How many numbers they are.
        samples: In a batch, None if unknown.
        batches: That were averaged.
        loss: Mean over batches and replicas.
        loss_is: What the loss is.
        accuracy: Share of labels that are right, or None.
        mode: ``"training"`` or ``"evaluation"``.
        replicas: Independent networks in one module.
        notes: What a reader should know of how it was done.
    """

    network: str
    parameters: int
    samples: int | None
    batches: int
    loss: float
    loss_is: str
    accuracy: float | None
    mode: str
    replicas: int = 1
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """The result of :func:`bnmlp.measure`. ``print`` it first.

    Attributes:
        facts: What was measured, and on what.
        tables: Rows of every call, for each replica.
        spreads: Standard deviations over batches of some columns; zero for one batch.
        rates: Growth of gradients towards the input (``"weights"``, ``"outputs"``) and of signals
            towards the output (``"signals"``), None where there is none.
        prediction: What theory says of the first.
        findings: What is wrong, the worst first.
        undecided: What was looked at without a verdict, in words.
        statistics: Running against batch statistics; None without batch normalisation.
        jacobian: Spectra by block, where asked for.
    """

    facts: Facts
    tables: Sequence[Table] = field(repr=False)
    spreads: Mapping[str, np.ndarray] = field(repr=False)
    rates: Mapping[str, Rate | None]
    prediction: Prediction
    findings: Sequence[Finding]
    undecided: Sequence[str] = ()
    statistics: Any = None
    jacobian: "Mapping[str, Spectrum] | None" = None

    @property
    def rate(self) -> Rate | None:
        """Growth of gradients towards the input at weights, or else at outputs."""
        return self.rates["weights"] or self.rates["outputs"]

    @property
    def verdict(self) -> str:
        """Slug of the worst finding; ``"none"`` if nothing was found to be wrong."""
        wrong = [f for f in ordered(list(self.findings)) if f.severity != "note"]
        return wrong[0].kind if wrong else "none"

    @property
    def rate_spread(self) -> float:
        """Log-ratio of the largest to the smallest effective rate over the layers, in nats."""
        return spread_of_rates(self.tables)

    @property
    def layers(self) -> "pandas.DataFrame":
        """One row for each call, in the order of execution; the columns are described in COLUMNS.

        Several replicas follow each other, told apart by the column ``replica``.
        """
        import pandas as pd

        frames = []
        for r, table in enumerate(self.tables):
            head = {"name": table.name, "kind": table.kind, "shape": table.shape,
                    "dtype": table.dtype}  # fmt: skip
            if len(self.tables) > 1:
                head = {"replica": [r] * len(table)} | head
            frame = pd.DataFrame(head | dict(table.columns))
            for column in ("layer", "shared"):
                frame[column] = frame[column].astype("Int64")
            frame["scale_invariant"] = frame["scale_invariant"].astype("boolean")
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def __str__(self) -> str:
        return "\n".join(
            [self.headline(), "", *self._verdicts(), "", *self._measured(), "", *self._rows()]
        )

    def plot(self) -> "matplotlib.figure.Figure":
        """Gradients, signals and effective rates against depth, with what theory says.

        Returns:
            A figure of Matplotlib that is shown by notebooks and saved by ``savefig``.
        """
        from bnmlp.diagnosis.plots import figure_of

        return figure_of(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it.

        Returns:
            See ``schema``. A number that does not exist is null; ``absent`` says why, by column,
            and a row's ``not_finite`` names what is nan or infinite instead.
        """
        return {
            "schema": SCHEMA,
            "facts": _plain(asdict(self.facts)),
            "verdict": self.verdict,
            "findings": [_plain(asdict(finding)) for finding in self.findings],
            "undecided": list(self.undecided),
            "rates": {k: _plain(r.to_dict()) if r else None for k, r in self.rates.items()},
            "rate_spread": _plain(self.rate_spread),
            "prediction": _plain(self.prediction.to_dict()),
            "statistics": _statistics(self.statistics),
            "jacobian": {k: s.to_dict() for k, s in self.jacobian.items()}
            if self.jacobian
            else None,
            "columns": COLUMNS,
            "absent": ABSENT,
            "layers": [row for r, table in enumerate(self.tables) for row in rows_of(table, r)],
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Everything as text, and into a file if one is named.

        Args:
            path: The file.

        Returns:
            The text.
        """
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            Path(path).write_text(text, encoding="utf8")
        return text

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """One self-contained page, light and dark, without scripts from elsewhere.

        Args:
            path: Write it into this file.

        Returns:
            The page.
        """
        from bnmlp.diagnosis.page import page_of

        text = page_of(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf8")
        return text

    def noted(self, *notes: str) -> "Report":
        """The same report with more notes on how it was done."""
        return replace(self, facts=replace(self.facts, notes=(*self.facts.notes, *notes)))

    def headline(self) -> str:
        """One line on what was measured, and one for each note."""
        return headline(self.facts, self.tables[0])

    def _verdicts(self) -> list[str]:
        lines = ["Found" if self.findings else "Found: nothing wrong"]
        for finding in ordered(list(self.findings)):
            lines += _wrapped(finding.sentence, f"  {finding.severity.upper():9}")
            if finding.advice:
                lines += _wrapped(f"What helps: {finding.advice}.", " " * 11)
            if finding.chapter:
                lines.append(f"{'':11}See the chapter {finding.chapter}.")
        for text in self.undecided:
            lines += _wrapped(f"{text}.", "  ")
        return lines

    def _measured(self) -> list[str]:
        lines = ["Measured"]
        for name, words in RATES.items():
            rate = self.rates[name]
            if rate is not None:
                lines.append(f"  {words:41} {rate}, {rate.total:+.1f} over {rate.layers} layers")
        lines.append(f"  {'predicted, for gradients':41} {self.prediction}")
        if math.isfinite(self.rate_spread):
            text = "effective rates |g|/|W|, largest to least"
            lines.append(f"  {text:41} {self.rate_spread:.1f} nats")
        for name, value in summary_of(self.statistics).items():
            lines.append(f"  {name:41} {_short(value)}")
        for name, spectrum in (self.jacobian or {}).items():
            lines.append(f"  {'singular values of ' + name:41} {spectrum}")
        return lines

    def _rows(self) -> list[str]:
        return printed(self.tables[0])


ABSENT = {
    "dead": "counted for rectifiers only",
    "largest": "looked at in layers, functions, and numbers of 16 bits",
    "headroom": "as largest",
    "branch_over_stream": "of sums only",
    "input_rms": "of layers only",
    "layer": "of calls that multiply with a matrix of their own",
    "update": "no optimiser was given, or it does not hold the weight",
    "participation_ratio": "measured with spectra=True",
    "isometry_gap": "measured with spectra=True; infinite with fewer samples than features",
    "gradient_norm": "the loss does not depend on this output, or no gradient reached it",
    "scale_invariant": "eps of a normalisation is not small against the variance, or rounding",
    "weight_norm": "the call has no weight of its own",
}


def rows_of(table: Table, replica: int = 0) -> list[dict[str, Any]]:
    """Rows as JSON can hold them.

    Args:
        table: Of one network.
        replica: Its number.

    Returns:
        One dict for each call.
    """
    rows = []
    for i, name in enumerate(table.name):
        row: dict[str, Any] = {"replica": replica, "name": name, "kind": table.kind[i],
                               "shape": list(table.shape[i]), "dtype": table.dtype[i]}  # fmt: skip
        faulty = table["output_faults"][i] > 0 or table["gradient_faults"][i] > 0
        strange = {}
        for column, values in table.columns.items():
            value = float(values[i])
            row[column] = value if math.isfinite(value) else None
            if math.isinf(value) or (faulty and math.isnan(value) and column not in ABSENT):
                strange[column] = str(value)
        if strange:
            row["not_finite"] = strange
        rows.append(row)
    return rows


def headline(facts: Facts, table: Table) -> str:
    """One line on what was measured.

    Args:
        facts: What is known.
        table: Of the first replica.

    Returns:
        The line, and one for each note.
    """
    batch = "" if facts.samples is None else f"; batch of {facts.samples}"
    if facts.batches > 1:
        batch = f"; {facts.batches} batches of about {facts.samples}"
    accuracy = "" if facts.accuracy is None else f", accuracy {facts.accuracy:.3f}"
    several = f"{facts.replicas} replicas of " if facts.replicas > 1 else ""
    line = (
        f"{several}{facts.network}: {len(table.layers)} layers, {len(table)} calls, "
        f"{facts.parameters:,} parameters{batch}, {facts.mode} mode; "
        f"{facts.loss_is} {facts.loss:.4g}{accuracy}"
    )
    return "\n".join([line, *(f"  ({note})" for note in facts.notes)])


def printed(table: Table) -> list[str]:
    """The table of layers as lines, some of its rows where there are many.

    Args:
        table: Of one network.

    Returns:
        Lines.
    """
    columns = {k: v for k, v in PRINTED.items() if not np.isnan(table[k]).all()}
    kept = _kept(len(table))
    width = min(34, max([4, *(len(table.name[i]) for i in kept)]))
    lines = [
        "Calls, first to last"
        + ("" if len(kept) == len(table) else f" ({len(kept)} of {len(table)}; .layers has all)")
    ]
    lines.append(
        f"  {'name':{width}} {'kind':14}" + "".join(f"{title:>11}" for title in columns.values())
    )
    for i in kept:
        numbers = "".join(f"{_cell(table[k][i]):>11}" for k in columns)
        name = table.name[i]
        name = name if len(name) <= width else "…" + name[-width + 1 :]
        lines.append(f"  {name:{width}} {table.kind[i][:14]:14}{numbers}".rstrip())
    return lines


def _wrapped(text: str, first: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=first, subsequent_indent=" " * len(first))


def _kept(rows: int) -> list[int]:
    if rows <= SHOWN:
        return list(range(rows))
    return sorted({int(i) for i in np.linspace(0, rows - 1, SHOWN).round()})


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _statistics(found: Any) -> Any:
    if found is None:
        return None
    return _plain({"summary": found.summary, "layers": found.layers})


def _plain(value: Any) -> Any:
    """Numbers, text, lists and dicts; what is not finite is null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value if value is None else str(value)
