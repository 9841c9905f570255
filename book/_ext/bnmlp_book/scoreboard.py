"""Directives that show the claims of all pages as they came out in this build."""

import csv
import math
from collections.abc import Sequence
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
        claims = [(page, claim) for page, here in self.claims().items() for claim in here]
        judged = [(page, claim) for page, claim in claims if claim["judged"]]
        broken = [(page, claim) for page, claim in judged if not claim["holds"]]
        failed = [n for n, result in results(self.env).items() if result.state == "failed"]
        found = nodes.paragraph("", f"This copy makes {len(claims)} claims. ")
        if not judged:
            found += nodes.Text("They are not judged at smoke scale.")
        else:
            which = "All" if not broken else str(len(judged) - len(broken))
            found += nodes.Text(f"{which} of them hold in this build.")
        for word, links in (
            ("Not in this build:", [link(self, p, c["name"], c["name"]) for p, c in broken]),
            ("A cell failed on:", [link(self, name, "", name) for name in failed]),
        ):
            for number, each in enumerate(links):
                found += [nodes.Text(", " if number else f" {word} "), each]
            found += nodes.Text("." if links else "")
        found += nodes.Text(self.of_the_audit())
        return [found]

    def of_the_audit(self) -> str:
        """How many claims always hold; nothing without a table."""
        audited = audit(audit_path(Path(self.env.srcdir)))
        if not audited:
            return ""
        always = sum(row["held"] == row["builds"] for row in audited.values())
        builds = [int(row["builds"]) for row in audited.values()]
        number = str(max(builds)) if min(builds) == max(builds) else f"up to {max(builds)}"
        return (
            f" In the audit, {number} builds with other seeds, threads, instruction sets or "
            f"rounding, {always} of {len(audited)} hold every time."
        )


def link(directive: SphinxDirective, page: str, claim: str, text: str) -> nodes.reference:
    """A link to a claim's box, or to a page."""
    address = directive.env.app.builder.get_relative_uri(directive.env.docname, page)
    address += f"#claim-{claim}" if claim else ""
    return nodes.reference("", text, internal=True, refuri=address)


class Scoreboard(ClaimsDirective):
    """One table for each page that makes claims."""

    def run(self) -> list[nodes.Node]:
        """Write the tables."""
        audited = audit(audit_path(Path(self.env.srcdir)))
        found = []
        for page, here in self.claims().items():
            found += self.parse_text_to_nodes(f"**[](/{page}.md)**")
            found.append(self.table(page, here, audited))
        return found

    def table(self, page: str, claims: list[dict], audited: dict[str, dict]) -> nodes.table:
        """The claims of one page."""
        group = nodes.tgroup(cols=len(COLUMNS))
        group += [nodes.colspec(colwidth=1) for _ in COLUMNS]
        head, body = nodes.thead(), nodes.tbody()
        head += row(COLUMNS)
        for claim in claims:
            outcome = "—"
            if claim["judged"]:
                outcome = "holds" if claim["holds"] else "does not hold"
            reported = f"; reported {claim['reported']}" if claim["reported"] else ""
            reported += f"; here {claim['setting']}" if claim["setting"] else ""
            cells = (
                link(self, page, claim["name"], claim["statement"]), claim["measured"], outcome,
                audited_text(claim, audited), claim["verdict"], claim["bounds"],
                claim["source"] + reported,
            )  # fmt: skip
            body += row(cells, fails=claim["judged"] and not claim["holds"])
        group += [head, body]
        return nodes.table("", group, classes=["scoreboard"])


def row(cells: Sequence[str | nodes.Node], fails: bool = False) -> nodes.row:
    """A row of texts and links."""
    found = nodes.row("", classes=["claim-row-fails"] if fails else [])
    for cell in cells:
        content = nodes.Text(cell) if isinstance(cell, str) else cell
        found += nodes.entry("", nodes.paragraph("", "", content))
    return found


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
