"""Directives that show the claims of all pages as they came out in this build."""

import csv
import math
from functools import cache
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from .execution import results
from .sources import pages

COLUMNS = ("Claim", "Measured", "In this build", "In the audit", "Verdict", "Bounds", "Source")


class ClaimsDirective(SphinxDirective):
    """What both directives share: this page is read again whenever any page has new results."""

    def claims(self) -> dict[str, list[dict]]:
        """The claims of every page, by its name, in the book's order."""
        self.env.metadata[self.env.docname]["shows_claims"] = True
        root = Path(self.env.srcdir)
        self.env.note_dependency(str(root / "_toc.yml"))
        self.env.note_dependency(str(audit_path(root)))
        names = [page.relative_to(root).with_suffix("").as_posix() for page in pages(root)]
        found = results(self.env)
        return {name: found[name].claims for name in names if name in found and found[name].claims}


class ClaimCount(ClaimsDirective):
    """One paragraph: how many claims hold in this build and in the audit, and which do not."""

    def run(self) -> list[nodes.Node]:
        """Write it."""
        claims = self.claims()
        everything = [claim for here in claims.values() for claim in here]
        broken = [
            (p, c) for p, here in claims.items() for c in here if c["judged"] and not c["holds"]
        ]
        failed = [n for n, result in results(self.env).items() if result.state == "failed"]
        text = f"This copy measures {len(everything)} claims. "
        if not any(claim["judged"] for claim in everything):
            text += "They are not judged at smoke scale."
        elif not broken and not failed:
            text += "All of them hold in this build."
        else:
            text += f"{len(everything) - len(broken)} hold in this build."
        if broken:
            shown = ", ".join(f"[{c['name']}](/{page}.md#claim-{c['name']})" for page, c in broken)
            text += f" Not in this build: {shown}."
        if failed:
            shown = ", ".join(f"[](/{name}.md)" for name in failed)
            text += f" A cell failed on: {shown}."
        if audited := audit(audit_path(Path(self.env.srcdir))):
            always = sum(row["held"] == row["builds"] for row in audited.values())
            builds = max(int(row["builds"]) for row in audited.values())
            text += f" In the audit {always} of {len(audited)} hold in each of {builds} builds"
            text += " (other seeds, threads, instruction sets)."
        return self.parse_text_to_nodes(text)


class Scoreboard(ClaimsDirective):
    """One table for each page that makes claims."""

    def run(self) -> list[nodes.Node]:
        """Write the tables."""
        audited = audit(audit_path(Path(self.env.srcdir)))
        found = []
        for page, here in self.claims().items():
            found += self.parse_text_to_nodes(f"**[](/{page}.md)**")
            found.append(table(page, here, audited))
        return found


def table(page: str, claims: list[dict], audited: dict[str, dict[str, str]]) -> nodes.table:
    """The claims of one page."""
    group = nodes.tgroup(cols=len(COLUMNS))
    group += [nodes.colspec(colwidth=1) for _ in COLUMNS]
    head, body = nodes.thead(), nodes.tbody()
    head += row(COLUMNS)
    for claim in claims:
        outcome = "—"
        if claim["judged"]:
            outcome = "holds" if claim["holds"] else "does not hold"
        source = claim["source"] + (f"; reported {claim['reported']}" if claim["reported"] else "")
        body += row(
            [
                claim["statement"], claim["measured"], outcome, audited_text(claim, audited),
                claim["verdict"], claim["bounds"], source,
            ],
            classes=[] if claim["holds"] or not claim["judged"] else ["claim-row-fails"],
        )  # fmt: skip
    group += [head, body]
    return nodes.table("", group, classes=["scoreboard"])


def row(cells: list[str], classes: list[str] = ()) -> nodes.row:
    """A row of plain texts."""
    return nodes.row(
        "", *(nodes.entry("", nodes.paragraph("", cell)) for cell in cells), classes=[*classes]
    )


def audited_text(claim: dict, audited: dict[str, dict[str, str]]) -> str:
    """In how many builds of the audit a claim held, and how far it is from its bounds."""
    found = audited.get(claim["name"])
    if found is None:
        return "—"
    text = f"{found['held']}/{found['builds']}"
    margin = float(found["margin"] or "nan")
    if claim["kind"] != "live":
        return f"{text}, {claim['kind']}"
    return text if math.isinf(margin) else f"{text}, {margin:.1f} σ"


def audit_path(root: Path) -> Path:
    """The table of the audit."""
    return root / "book" / "data" / "audit" / "claims.csv"


@cache
def audit(path: Path) -> dict[str, dict[str, str]]:
    """The rows of the audit by claim; none without a table."""
    if not path.exists():
        return {}
    lines = [line for line in path.read_text(encoding="utf8").splitlines() if line[:1] != "#"]
    return {row["claim"]: row for row in csv.DictReader(lines)}
