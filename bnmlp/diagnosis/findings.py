"""One thing that was found in a network, with its evidence and what a chapter advises."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bnmlp.checks import check_name

Severity = Literal["broken", "serious", "note"]
SEVERITIES: tuple[Severity, ...] = ("broken", "serious", "note")  # the worst first


@dataclass(frozen=True)
class Finding:
    """A statement about a network that its measurement supports.

    Attributes:
        kind: Slug that names it, such as ``"gradient-explosion"``; stable, for programs.
        severity: ``"broken"``: the network cannot train or be evaluated so; ``"serious"``: it will
            do so badly; ``"note"``: worth knowing.
        sentence: What was found, with its numbers and how sure they are.
        evidence: The numbers behind it, by name; JSON can hold them.
        advice: What to do, where a chapter of the book has tested it; None elsewhere.
        chapter: That chapter, as its file is named: ``"initialisation/activations-and-norms"``.

    Raises:
        ValueError: If the severity is unknown, or advice has no chapter.
    """

    kind: str
    severity: Severity
    sentence: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    advice: str | None = None
    chapter: str | None = None

    def __post_init__(self) -> None:
        check_name("severity", self.severity, SEVERITIES)
        if self.advice and not self.chapter:
            raise ValueError(f"advice on {self.kind} names no chapter that has tested it")

    @property
    def link(self) -> str | None:
        """The chapter's page in the built book, relative to its root."""
        return f"{self.chapter}.html" if self.chapter else None


def ordered(findings: list[Finding]) -> list[Finding]:
    """The worst first, otherwise as they were found."""
    return sorted(findings, key=lambda found: SEVERITIES.index(found.severity))


KINDS = ("batch", "running", "recalibrated")
LABELS = {
    **{f"loss_{kind}": f"loss, {kind} statistics" for kind in KINDS},
    **{f"accuracy_{kind}": f"accuracy, {kind} statistics" for kind in KINDS},
    **{f"log_spread_{kind}": f"log spread of logits, {kind}" for kind in KINDS},
    "spread_lost": "spread of logits lost in evaluation, nats",
    "spread_lost_predicted": "the same, predicted from the averages",
    "assumption": "why it is not predicted",
    "sure": "recalibration gains in loss, std errors",
    "unscored": "why there is no loss",
    "not_recalibrated": "why none are recalibrated",
}


def summary_of(statistics: Any) -> dict[str, object]:
    """What is known of running and batch statistics, in words and numbers.

    Args:
        statistics: A :class:`bnmlp.diagnosis.statistics.Statistics`, or None.

    Returns:
        Values by labels, without those that are None.
    """
    summary = getattr(statistics, "summary", None) or {}
    return {LABELS.get(k, str(k)): v for k, v in summary.items() if v is not None}
