"""Directives that show the claims of all pages as they came out in this build."""

import csv
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
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
    """One table for each page that makes claims, in a box for each part of the book.

    The page's script finds its way by classes; without script all tables are shown.
    """

    def run(self) -> list[nodes.Node]:
        """Write the tables."""
        root = Path(self.env.srcdir)
        audited, parts, here = audit(audit_path(root)), parts_of(root), self.claims()
        offer = nodes.paragraph("", "", nodes.reference("", "All of it as CSV", refuri=CSV_NAME))
        found: list[nodes.Node] = [offer]
        for part, pages_of_part in parts.items():
            named = [page for page in pages_of_part if page in here]
            if named:
                box = nodes.container(classes=["score-part"])
                box += nodes.paragraph("", part, classes=["score-part-name"])
                for page in named:
                    inner = nodes.container(classes=["score-page"])
                    inner += self.parse_text_to_nodes(f"**[](/{page}.md)**")
                    inner += self.table(page, here[page], audited)
                    box += inner
                found.append(box)
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
            body += row(cells, claim)
        group += [head, body]
        return nodes.table("", group, classes=["scoreboard"])


def row(cells: Sequence[str | nodes.Node], claim: dict | None = None) -> nodes.row:
    """A row of texts and links; that of a claim has an address, and classes to find it by."""
    found = nodes.row("")
    if claim is not None:
        fails = claim["judged"] and not claim["holds"]
        verdict = claim["verdict"].replace(" ", "-")
        found["ids"] = [f"score-{claim['name']}"]
        found["classes"] = [f"kind-{claim['kind']}", f"verdict-{verdict}"]
        found["classes"] += ["claim-row-fails"] if fails else []
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


CSV_NAME = "claims.csv"  # beside the scoreboard's page
CSV_COLUMNS = (
    "name", "page", "part", "statement", "value", "measured", "low", "high", "holds", "verdict",
    "source", "reported", "setting", "kind", "builds", "held", "margin",
)  # fmt: skip


def write_csv(app: Sphinx, exception: Exception | None) -> None:
    """All claims beside the scoreboard, in the book's order."""
    folder = Path(app.outdir) / "book" / "reference"
    if exception is not None or not (folder / "scoreboard.html").exists():
        return
    root = Path(app.srcdir)
    audited, found = audit(audit_path(root)), results(app.env)
    rows = []
    for part, names in parts_of(root).items():
        for page in (name for name in names if name in found):
            for claim in found[page].claims or ():
                told = audited.get(claim["name"], {})
                kept = {key: told.get(key, "") for key in ("builds", "held", "margin")}
                holds = claim["holds"] if claim["judged"] else ""
                rows.append(claim | {"page": page, "part": part, "holds": holds} | kept)
    with (folder / CSV_NAME).open("w", encoding="utf8", newline="") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def parts_of(root: Path) -> dict[str, list[str]]:
    """Names of pages by the part of the book, in its order; those before any part have none."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf8"))
    parts = {"": [toc["root"]]}
    for part in toc.get("parts", [{"caption": "", "chapters": toc.get("chapters", [])}]):
        parts.setdefault(part.get("caption", ""), []).extend(c["file"] for c in part["chapters"])
    return parts


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
