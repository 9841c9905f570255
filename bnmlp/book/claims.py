"""Claims: a measured number, the bounds it must meet, and the verdict on the source.

A chapter states each claim in a visible cell. One that does not hold never stops the page: its
box says so, the end of ``make book`` lists it, and ``make check`` fails. At smoke scale sizes are
too small to judge.
"""

import html
import math
from typing import Literal

from bnmlp.machine.settings import scale

ELSEWHERE = "seen differently here"
VERDICTS = ("reproduced", "sharpened", "corrected", ELSEWHERE, "this book", "not testable here")
KINDS = {
    "live": "measured in this build, on networks drawn from its seed",
    "stored": "read from results of a long run that come with the book",
    "exact": "an identity or a theorem, exact up to rounding for any seed",
}
RECORD = "bnmlp-claim"  # in the metadata of an output


def claim(
    name: str,
    statement: str,
    *,
    value: float,
    low: float | None = None,
    high: float | None = None,
    source: str,
    verdict: str,
    unit: str = "",
    fmt: str = ".3g",
    reported: str = "",
    setting: str = "",
    kind: Literal["live", "stored", "exact"] = "live",
) -> bool:
    """State a result, judge it, show it, and hand it to the scoreboard.

    Args:
        name: Slug, unique in the book, as ``gap-decay-rate``.
        statement: One sentence a reader can check, in plain text.
        value: What was measured.
        low: Smallest value for which the claim holds; None for no lower bound.
        high: Largest value for which it holds.
        source: Whose claim it is, as ``Theorem 1`` or ``this book``.
        verdict: One of ``VERDICTS``: what the measurement makes of the source's claim.
        unit: Unit of ``value``.
        fmt: Format of the numbers.
        reported: The source's own value, as text: "2.85, read off".
        setting: What differs from the source's setting, for the verdict ``ELSEWHERE``, which needs
            it: "MNIST in place of CIFAR-10".
        kind: One of ``KINDS``: where the value comes from, and so what the audit asks of it. A
            live claim keeps a distance from its bounds, measured in its spread over seeds and
            machines.

    Returns:
        Whether the value is finite and within the bounds.

    Raises:
        ValueError: If no bound is given, the verdict or the kind is unknown, or the verdict is
            that of another setting and the setting is missing.
    """
    if low is None and high is None:
        raise ValueError(f"claim {name!r} cannot fail: give low, high or both")
    if verdict not in VERDICTS:
        raise ValueError(f"claim {name!r}: verdict must be one of {', '.join(VERDICTS)}")
    if bool(setting) != (verdict == ELSEWHERE):
        raise ValueError(f"claim {name!r}: setting goes with the verdict {ELSEWHERE!r}")
    if kind not in KINDS:
        raise ValueError(f"claim {name!r}: kind must be one of {', '.join(KINDS)}")
    value = float(value)
    holds = within(value, low, high)
    _show(
        {
            "name": name,
            "statement": statement,
            "value": repr(value),  # JSON has no nan
            "measured": f"{value:{fmt}} {unit}".strip(),
            "low": None if low is None else float(low),
            "high": None if high is None else float(high),
            "bounds": _bounds(low, high, fmt),
            "reported": reported,
            "setting": setting,
            "source": source,
            "verdict": verdict,
            "kind": kind,
            "holds": holds,
            "judged": scale() != "smoke",
        }
    )
    return holds


def within(value: float, low: float | None, high: float | None) -> bool:
    """Whether a value is finite and within bounds, of which None is no bound."""
    return (
        math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)
    )


def _bounds(low: float | None, high: float | None, fmt: str) -> str:
    if low is None:
        return f"≤ {high:{fmt}}"
    if high is None:
        return f"≥ {low:{fmt}}"
    return f"{low:{fmt}} to {high:{fmt}}"


def _show(record: dict[str, object]) -> None:
    """The box on the page, with the record in it, and the number for other pages."""
    from IPython.display import display
    from myst_nb import glue

    glue(f"claim-{record['name']}-value", record["measured"], display=False)
    text = {key: html.escape(str(value)) for key, value in record.items()}
    state, outcome = _outcome(record)
    verdict = text["verdict"]
    if text["source"] != verdict:
        verdict = f"{text['source']}: {verdict}"
    if text["setting"]:
        verdict += f", {text['setting']}"
    reported = f", reported {text['reported']}" if text["reported"] else ""
    box = (
        f'<div class="claim claim-{state}" id="claim-{text["name"]}">'
        f'<p class="claim-statement">{text["statement"]}</p>'
        f"<p>Measured <strong>{text['measured']}</strong>, needs {text['bounds']}{reported}: "
        f'<span class="claim-outcome">{outcome}</span>. '
        f'<span class="claim-verdict">{verdict}</span></p></div>'
    )
    data = {"text/html": box, "text/plain": record["statement"]}
    display(data, metadata={RECORD: record}, raw=True)


def _outcome(record: dict[str, object]) -> tuple[str, str]:
    """Class of the box, and what it says."""
    if not record["judged"]:
        return "open", "not judged at smoke scale"
    if record["holds"]:
        return "holds", "holds"
    return "fails", "does not hold in this build"
