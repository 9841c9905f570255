"""A report as a figure of Matplotlib."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bnmlp.diagnosis.report import Report

GREY = "#767676"  # seen on white pages and on dark ones


def figure_of(report: "Report") -> Figure:
    """Gradients, signals and effective rates of all layers.

    Args:
        report: What was measured.

    Returns:
        A figure that is not registered with pyplot.
    """
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _gradients(left, report)
    for table in report.tables:
        layers = 1 + np.arange(len(table.layers))
        middle.semilogy(layers, _positive(table["input_rms"][table.layers]), ".-", lw=0.8, ms=3)
        right.semilogy(layers, _positive(table["effective_rate"][table.layers]), ".-", lw=0.8, ms=3)
    middle.set(xlabel="layer", title="root mean square of inputs")
    right.set(xlabel="layer", title="effective rate |g|/|W|")
    return figure


def _gradients(ax: "Axes", report: "Report") -> None:
    """Relative gradients in nats, zero at the last layer, with the rate and what theory says."""
    for table in report.tables:
        logs = relative_gradients(table["weight_sensitivity"][table.layers])
        if np.isnan(logs).all():
            logs = relative_gradients(table["sensitivity"][table.layers])
        ax.plot(1 + np.arange(len(logs)), logs, ".-", lw=0.8, ms=3)
    depth = max(len(table.layers) for table in report.tables)
    from_end = np.arange(depth)[::-1]
    rate, prediction = report.rate, report.prediction
    if rate is not None:
        ax.plot(1 + np.arange(depth), rate.value * from_end, "-", color=GREY, lw=1, label="rate")
        if np.isfinite(rate.low):
            ends = (1 + np.arange(depth), rate.low * from_end, rate.high * from_end)
            ax.fill_between(*ends, color=GREY, alpha=0.2, lw=0)
    if prediction.low is not None and prediction.high is not None:
        for value in {prediction.low, prediction.high}:
            ax.plot(1 + np.arange(depth), value * from_end, "--", color=GREY, lw=1, label="theory")
    ax.set(xlabel="layer", title="log of the relative gradient, nats")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)


def relative_gradients(logs: np.ndarray) -> np.ndarray:
    """Logarithms less the last one that is finite; what is not finite is left out."""
    finite = np.flatnonzero(np.isfinite(logs))
    clean = np.where(np.isfinite(logs), logs, np.nan)
    return clean - logs[finite[-1]] if len(finite) else clean


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)
