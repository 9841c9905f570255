"""A report as one HTML file: no script, no style and no font from elsewhere."""

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bnmlp.diagnosis.findings import Finding, ordered, summary_of
from bnmlp.diagnosis.table import COLUMNS, Table

if TYPE_CHECKING:
    from bnmlp.diagnosis.report import Report

WIDTH, HEIGHT, MARGIN = 420, 220, 46
HIDDEN = ("layer", "sensitivity", "weight_sensitivity", "invariance")  # in JSON and .layers only
RATES = {
    "weights": "Gradients towards the input, at weights",
    "outputs": "Gradients towards the input, at outputs",
    "signals": "Signals towards the output",
}
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fff; --soft: #f3f3f6; --line: #d5d5dc;
  --accent: #0b62b5; --bad: #b3261e; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6ea; --paper: #16161a; --soft: #222228;
  --line: #3d3d46; --accent: #7fb8f0; --bad: #ff8a80; --warn: #f0c060; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 0 auto; padding: 1.5rem; max-width: 72rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; } code { font-size: .9em; }
.finding { border-left: 4px solid var(--line); background: var(--soft); padding: .6rem 1rem;
  margin: .6rem 0; }
.broken, .serious { border-color: var(--bad); } .note { border-color: var(--warn); }
.severity { font-weight: 600; text-transform: uppercase; font-size: .8rem; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; flex: 1 1 20rem; }
figcaption { font-size: .9rem; } svg { width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
.axis { stroke: var(--line); } .data { fill: none; stroke: var(--accent); stroke-width: 1.4; }
.fit { fill: none; stroke: var(--ink); } .theory { fill: none; stroke: var(--ink);
  stroke-dasharray: 5 4; }
.wide { overflow: auto; max-height: 34rem; border: 1px solid var(--line); }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .6rem; text-align: right; white-space: nowrap; }
thead th { position: sticky; top: 0; background: var(--soft); }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
tbody tr:nth-child(even) { background: var(--soft); } dt { font-weight: 600; }
"""


def page_of(report: "Report") -> str:
    """The page.

    Args:
        report: What was measured.

    Returns:
        HTML.
    """
    facts = report.facts
    title = f"{facts.network}: {_verdict(report)}"
    body = [
        f"<h1>{_text(title)}</h1>",
        *(f"<p>{_text(line.strip())}</p>" for line in report.headline().splitlines()),
        "<h2>What was found</h2>",
        *(_finding(finding) for finding in ordered(list(report.findings))),
        *(f"<p>{_text(text)}.</p>" for text in report.undecided),
        "<h2>Growth along the layers</h2>",
        *_rates(report),
        '<div class="charts">', *_charts(report), "</div>",
        *_extra(report),
        *(part for r, table in enumerate(report.tables) for part in _calls(report, r, table)),
        "<h2>What the columns mean</h2><dl>",
        *(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in COLUMNS.items()
          if k not in HIDDEN),
        "</dl>",
    ]  # fmt: skip
    return "\n".join(
        ["<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
         '<meta name="viewport" content="width=device-width, initial-scale=1">',
         f"<title>{_text(title)}</title>", f"<style>{STYLE}</style>", "</head>", "<body>",
         *body, "</body>", "</html>", ""]
    )  # fmt: skip


def _text(value: object) -> str:
    return html.escape(str(value))


def _verdict(report: "Report") -> str:
    if report.verdict == "none":
        return "nothing wrong found"
    return report.verdict.replace("-", " ")


def _finding(finding: Finding) -> str:
    parts = [f'<div class="finding {finding.severity}">',
             f'<span class="severity">{finding.severity}</span>',
             f"<p>{_text(finding.sentence)}</p>"]  # fmt: skip
    if finding.advice:
        parts.append(f"<p><strong>What helps:</strong> {_text(finding.advice)}.</p>")
    if finding.chapter:
        parts.append(f"<p>See the chapter <code>{_text(finding.chapter)}</code>.</p>")
    return "".join([*parts, "</div>"])


def _rates(report: "Report") -> list[str]:
    lines = []
    for name, words in RATES.items():
        rate = report.rates[name]
        if rate is not None:
            total = f"{rate.total:+.1f} nats over {rate.layers} layers"
            lines.append(f"<p>{_text(words)}: {_text(rate)}, {total}.</p>")
    lines.append(f"<p>Predicted, for gradients: {_text(report.prediction)}.</p>")
    if math.isfinite(report.rate_spread):
        lines.append(
            f"<p>Effective rates |g|/|W|, largest to least: {report.rate_spread:.1f} nats.</p>"
        )
    return lines


def _charts(report: "Report") -> list[str]:
    tables = report.tables
    sensitivity = [_gradient_logs(table) for table in tables]
    lines: list[tuple[str, float, float]] = []
    if report.rate is not None:
        lines.append(("fit", report.rate.value, 0.0))
    low, high = report.prediction.low, report.prediction.high
    if low is not None and high is not None:
        lines += [("theory", value, 0.0) for value in sorted({low, high})]
    charts = [
        _chart(sensitivity, "Log of the relative gradient by layer, in nats, zero at the last; "
               "solid the rate, dashed theory", lines),
        _chart([_log(t["input_rms"][t.layers]) for t in tables],
               "Log of the root mean square of each layer's input, in nats"),
        _chart([_log(t["effective_rate"][t.layers]) for t in tables],
               "Log of the effective rate |g|/|W| by layer, in nats"),
    ]  # fmt: skip
    return [chart for chart in charts if chart]


def _gradient_logs(table: Table) -> np.ndarray:
    logs = table["weight_sensitivity"][table.layers]
    logs = logs if np.isfinite(logs).any() else table["sensitivity"][table.layers]
    finite = np.flatnonzero(np.isfinite(logs))
    return logs - logs[finite[-1]] if len(finite) else logs


def _log(values: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(np.log(values))


def _chart(
    series: Sequence[np.ndarray], caption: str, lines: Sequence[tuple[str, float, float]] = ()
) -> str:
    """Curves against the layer; ``lines`` have a slope per layer towards the input, and an end."""
    finite = np.concatenate([s[np.isfinite(s)] for s in series]) if series else np.empty(0)
    depth = max((len(s) for s in series), default=0)
    if not len(finite) or depth < 2:
        return ""
    ends = [slope * (depth - 1) + end for _, slope, end in lines]
    low, high = float(min([finite.min(), *ends, 0])), float(max([finite.max(), *ends, 0]))
    span = max(high - low, 1e-9)

    def place(layer: float, value: float) -> str:
        x = MARGIN + (WIDTH - MARGIN - 10) * layer / (depth - 1)
        y = 10 + (HEIGHT - MARGIN - 10) * (high - value) / span
        return f"{x:.1f},{y:.1f}"

    parts = [_axes(depth, low, high)]
    for values in series:
        points = [place(i, float(v)) for i, v in enumerate(values) if np.isfinite(v)]
        parts.append(f'<polyline class="data" points="{" ".join(points)}"/>')
    for kind, slope, end in lines:
        points = [place(0, slope * (depth - 1) + end), place(depth - 1, end)]
        parts.append(f'<polyline class="{kind}" points="{" ".join(points)}"/>')
    drawn = "".join(parts)
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_text(caption)}">'
        f"{drawn}</svg><figcaption>{_text(caption)}</figcaption></figure>"
    )


def _axes(depth: int, low: float, high: float) -> str:
    bottom, left = HEIGHT - MARGIN, MARGIN
    parts = [
        f'<line class="axis" x1="{left}" y1="{bottom}" x2="{WIDTH - 10}" y2="{bottom}"/>',
        f'<line class="axis" x1="{left}" y1="10" x2="{left}" y2="{bottom}"/>',
        f'<text x="{(WIDTH + left) / 2}" y="{HEIGHT - 8}" text-anchor="middle">layer</text>',
    ]
    for layer in sorted({0, depth // 2, depth - 1}):
        x = left + (WIDTH - left - 10) * layer / (depth - 1)
        parts.append(f'<text x="{x:.0f}" y="{bottom + 16}" text-anchor="middle">{layer + 1}</text>')
    for value in (low, (low + high) / 2, high):
        y = 10 + (bottom - 10) * (high - value) / max(high - low, 1e-9)
        parts.append(f'<text x="{left - 5}" y="{y + 4:.0f}" text-anchor="end">{value:.3g}</text>')
    return "".join(parts)


def _extra(report: "Report") -> list[str]:
    """Statistics and Jacobians, where they were measured."""
    parts: list[str] = []
    if summary := summary_of(report.statistics):
        parts.append("<h2>Running against batch statistics</h2>")
        parts += [f"<p>{_text(name)}: {_cell(value)}</p>" for name, value in summary.items()]
    if report.jacobian:
        parts.append("<h2>Singular values of Jacobians</h2>")
        parts += [f"<p>{_text(name)}: {_text(s)}</p>" for name, s in report.jacobian.items()]
    return parts


def _calls(report: "Report", replica: int, table: Table) -> list[str]:
    shown = [k for k in COLUMNS if k not in HIDDEN and not np.isnan(table[k]).all()]
    which = f" of replica {replica}" if len(report.tables) > 1 else ""
    titles = ("call", "kind", "shape", *(k.replace("_", " ") for k in shown))
    head = "".join(f"<th>{_text(title)}</th>" for title in titles)
    rows = []
    for i, name in enumerate(table.name):
        cells = [f"<code>{_text(name)}</code>", _text(table.kind[i]),
                 "×".join(map(str, table.shape[i]))]  # fmt: skip
        cells += [_cell(float(table[k][i])) for k in shown]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return [f"<h2>Calls{which}, first to last</h2>", '<div class="wide"><table>',
            f"<thead><tr>{head}</tr></thead><tbody>", *rows, "</tbody></table></div>"]  # fmt: skip


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return _text(value)
    return "" if math.isnan(value) else f"{value:.4g}"
