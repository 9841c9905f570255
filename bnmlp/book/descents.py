"""Tables of what gradient descent did to effective rates."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from bnmlp.book.intervals import median_interval
from bnmlp.measurements.rates import spread, tilt
from bnmlp.theory.weight_dynamics import rate_path
from bnmlp.training.descent import Moment


def path_table(run: Moment, steps: Sequence[int]) -> pd.DataFrame:
    """Medians over networks at some steps.

    Args:
        run: All steps, of :func:`bnmlp.training.descent.history`.
        steps: Which to show, from 0.

    Returns:
        Indexed by step. ``spread`` of the rates with its interval ``low`` to ``high``; the same
        with base norms as at first (``map``), of base norms (``base``) and of squared weight norms
        (``norms``); ``tilt`` of the rates and of base norms; learning ``rate`` of the last matrix.
        Of an even number all but ``spread`` are the lower of the two medians.
    """
    mapped = rate_path(run.rates[0], run.learning_rates[:-1])
    interval = median_interval(run.spread[steps])
    others = {
        "map": _spread(mapped), "base": _spread(run.base_norms), "norms": 2 * _spread(run.norms),
        "tilt": tilt(run.rates), "base_tilt": tilt(run.base_norms),
        "rate": run.learning_rates[:, -1],
    }  # fmt: skip
    medians = {name: values[steps].median(1).values for name, values in others.items()}
    columns = dict(zip(("spread", "low", "high"), interval, strict=True)) | medians
    return pd.DataFrame(columns, pd.Index(steps, name="step"))


def path_tables(runs: Mapping[object, Moment], names: Sequence[str]) -> pd.DataFrame:
    """:func:`path_table` of several runs, at steps from the first to the last.

    Args:
        runs: By labels.
        names: Of the labels.

    Returns:
        Indexed by the labels and the step.
    """
    tables = {}
    for label, run in runs.items():
        tables[label] = path_table(run, spaced_steps(len(run.losses) - 1, 14, range(4)))
    return pd.concat(tables, names=names)


def ends_table(run: Moment, last: int) -> pd.DataFrame:
    """How each network ended.

    Args:
        run: All steps, of :func:`bnmlp.training.descent.history`.
        last: Steps to average over.

    Returns:
        Indexed by replica: ``loss`` of the last steps, ``mean_spread`` of all and ``last_spread``.
    """
    columns = {
        "loss": run.losses[-last:].mean(0),
        "mean_spread": run.spread.mean(0), "last_spread": run.spread[-last:].mean(0),
    }  # fmt: skip
    return pd.DataFrame(columns, pd.RangeIndex(run.losses.shape[1], name="replica"))


def window_table(run: Moment, steps: Sequence[int], unit: float) -> pd.DataFrame:
    """Root mean squares of rates over windows that grow: the last fifth of the steps so far.

    Args:
        run: All steps, of :func:`bnmlp.training.descent.history`.
        steps: Ends of the windows, from 0.
        unit: Of the rates.

    Returns:
        Indexed by step. Medians over networks of the rates in this unit, by the number of the
        matrix, from 1; ``log_base``, mean over the matrices but the first and networks of the log
        of the root mean square of base norms; median ``loss``, the mean over the window.
    """
    rows = {}
    for step in steps:
        window = slice(max(0, step - max(step // 5, 1) + 1), step + 1)
        # Root mean squares, since it's squared gradients that norms add up.
        rates = run.rates[window].square().mean(0).sqrt() / unit
        base = run.base_norms[window, 1:].square().mean(0)
        rows[step] = dict(enumerate(rates.median(1).values.tolist(), 1)) | {
            "log_base": base.log().mean().item() / 2,
            "loss": run.losses[window].mean(0).median().item(),
        }
    return pd.DataFrame(rows).T.rename_axis("step")


def spaced_steps(last: int, count: int, first: Sequence[int] = (0, 1)) -> list[int]:
    """Some first steps, and others up to the last at even ratios.

    Args:
        last: The last step.
        count: Of the others.
        first: The first ones.

    Returns:
        Ascending.

    Examples:
        >>> spaced_steps(100, 3)
        [0, 1, 2, 14, 100]
    """
    start = max(first) + 1
    return np.unique([*first, *np.geomspace(start, last, count).round().astype(int)]).tolist()


def _spread(values: Tensor) -> Tensor:
    """Over the matrices ``(steps, M, R)``."""
    return spread(values.movedim(1, 0))
