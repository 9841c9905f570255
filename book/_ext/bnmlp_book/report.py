"""What a build found, for the summary at its end and for ``make check``."""

import json
import logging
import sys
import time
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.logging import WarningSuppressor

from .execution import minutes, results

REPORT = "report.json"  # beside the pages' folder


class Warnings(logging.Handler):
    """Collects what Sphinx warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning with its place."""
        place = getattr(record, "location", None)
        if isinstance(place, tuple):
            place = ":".join(str(part) for part in place if part)
        self.found.append(f"{place}: {record.getMessage()}" if place else record.getMessage())


def begin(app: Sphinx) -> None:
    """Listen to warnings."""
    app.bnmlp_warnings = Warnings()
    app.bnmlp_warnings.addFilter(WarningSuppressor(app))  # what _config.yml leaves out
    logging.getLogger("sphinx").addHandler(app.bnmlp_warnings)


def write(app: Sphinx, exception: Exception | None) -> None:
    """Store what this build found, unless it was stopped."""
    logging.getLogger("sphinx").removeHandler(app.bnmlp_warnings)
    if exception is not None:
        return
    site = Path(app.outdir)
    pages = [
        {
            "page": name, "state": result.state, "seconds": round(result.seconds, 1),
            "made": result.made, "error": result.error, "claims": result.claims,
        }
        for name, result in sorted(results(app.env).items())
    ]  # fmt: skip
    report = {
        "written": time.time(),
        "seconds_executing": getattr(app, "bnmlp_seconds", 0.0),
        "missing": [n for n in sorted(app.env.all_docs) if not (site / f"{n}.html").exists()],
        "warnings": app.bnmlp_warnings.found,
        "pages": pages,
    }
    (site.parent / REPORT).write_text(json.dumps(report), encoding="utf8")


def summary(report: dict, site: Path, seconds: float | None = None) -> str:
    """What a person wants to know of a build.

    Args:
        report: What :func:`write` stored.
        site: Folder of the built pages.
        seconds: How long the build took.

    Returns:
        Lines of text.
    """
    pages = report["pages"]
    states = [page["state"] for page in pages]
    judged = [(p, c) for p in pages for c in p["claims"] if c["judged"]]
    broken = broken_claims(report)
    lines = [
        f"The book: {site / 'index.html'}"
        + ("" if seconds is None else f", built in {minutes(seconds)}"),
        f"Chapters: {states.count('executed')} executed, {states.count('cached')} from cache, "
        f"{states.count('failed')} with a cell that failed",
    ]
    if judged:
        lines.append(f"Claims: {len(judged) - len(broken)} of {len(judged)} hold in this build")
    else:
        lines.append("Claims: not judged at smoke scale")
    lines += [
        f"  does not hold: {c['name']} ({p['page']}): measured {c['measured']}, needs {c['bounds']}"
        for p, c in broken
    ]
    lines += [f"  failed: {p['page']}: {p['error'].splitlines()[-1]}" for p in pages if p["error"]]
    lines += [f"  missing: {name}.html" for name in report["missing"]]
    if report["warnings"]:
        lines.append(f"Warnings: {len(report['warnings'])}; make check lists them")
    return "\n".join(lines)


def broken_claims(report: dict) -> list[tuple[dict, dict]]:
    """Page and claim, for every claim that does not hold."""
    return [(p, c) for p in report["pages"] for c in p["claims"] if c["judged"] and not c["holds"]]


def problems(report: dict) -> list[str]:
    """Everything that a strict check refuses: claims, cells, missing pages and warnings."""
    return [
        *(f"claim {c['name']} does not hold ({p['page']})" for p, c in broken_claims(report)),
        *(f"a cell fails on {p['page']}:\n{p['error']}" for p in report["pages"] if p["error"]),
        *(f"{name}.html is missing" for name in report["missing"]),
        *(f"warning: {text}" for text in report["warnings"]),
    ]


def read(site: Path) -> dict:
    """The report of the finished build in a folder.

    Args:
        site: Folder of the built pages.

    Returns:
        What :func:`write` stored.

    Raises:
        SystemExit: If there is none.
    """
    path = site.parent / REPORT
    if not path.exists():
        sys.exit(f"no finished book in {site}: make book first")
    return json.loads(path.read_text(encoding="utf8"))
