"""Claims: a measured number, the bounds it must meet, and the verdict on the source.

A chapter states each claim in a visible cell. A claim that fails stops the build, except at
smoke scale, where sizes are too small to judge. The scoreboard of the book lists them all.
"""

import html
import math

from bnmlp.settings import scale

VERDICTS = ("reproduced", "sharpened", "corrected", "this book", "not testable here")


class ClaimError(AssertionError):
    """A measured value lies outside the bounds of its claim."""


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
) -> None:
    """State a result, check it, show it, and hand it to the scoreboard.

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

    Raises:
        ClaimError: If the value is outside the bounds, at laptop and paper scale.
        ValueError: If no bound is given or the verdict is unknown.
    """
    if low is None and high is None:
        raise ValueError(f"claim {name!r} cannot fail: give low, high or both")
    if verdict not in VERDICTS:
        raise ValueError(f"claim {name!r}: verdict must be one of {', '.join(VERDICTS)}")
    value = float(value)
    holds = (
        math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)
    )
    judged = scale() != "smoke"
    outcome = ("holds" if holds else "fails") if judged else "not judged at smoke scale"
    bounds = _bounds(low, high, fmt)
    if judged and not holds:
        raise ClaimError(
            f"claim {name!r} fails: {statement} Measured {value:{fmt}} {unit}, needs {bounds}."
        )
    _show(
        {
            "statement": statement,
            "value": f"{value:{fmt}} {unit}".strip(),
            "bounds": bounds,
            "reported": reported or "—",
            "source": source,
            "verdict": verdict,
            "outcome": outcome,
        },
        name,
    )


def _bounds(low: float | None, high: float | None, fmt: str) -> str:
    if low is None:
        return f"≤ {high:{fmt}}"
    if high is None:
        return f"≥ {low:{fmt}}"
    return f"{low:{fmt}} to {high:{fmt}}"


def _show(fields: dict[str, str], name: str) -> None:
    from IPython.display import HTML, display
    from myst_nb import glue

    for key, text in fields.items():
        glue(f"claim-{name}-{key}", text, display=False)
    text = {key: html.escape(value) for key, value in fields.items()}
    verdict = text["verdict"]
    reported = f", reported {text['reported']}" if fields["reported"] != "—" else ""
    if text["source"] != verdict:
        verdict = f"{text['source']}: {verdict}"
    state = "holds" if fields["outcome"] == "holds" else "open"
    display(
        HTML(
            f'<div class="claim claim-{state}" id="claim-{name}">'
            f'<p class="claim-statement">{text["statement"]}</p>'
            f"<p>Measured <strong>{text['value']}</strong>, needs {text['bounds']}{reported}: "
            f'{text["outcome"]}. <span class="claim-verdict">{verdict}</span></p></div>'
        )
    )
