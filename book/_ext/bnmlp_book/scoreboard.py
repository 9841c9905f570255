"""The directive ``{scoreboard}``: every claim of the book with its measured value."""

from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from .sources import Claim, claims, pages
from .tables import list_table

COLUMNS = {
    "Claim": "statement",
    "Measured": "value",
    "Verdict": "verdict",
    "Bounds": "bounds",
    "Source": "source",
    "Reported": "reported",
}


class Scoreboard(SphinxDirective):
    """One table for each page that makes claims, found in the pages' sources."""

    def run(self) -> list[nodes.Node]:
        """Write the tables; this page is read again when any page or the toc changes."""
        root = Path(self.env.srcdir)
        self.env.note_dependency(str(root / "_toc.yml"))
        found = []
        for page in pages(root):
            self.env.note_dependency(str(page))
            if here := claims(page):
                name = page.relative_to(root).as_posix()
                table = list_table("scoreboard", [*COLUMNS], [row(name, claim) for claim in here])
                head = f"**[](/{name})** ([check](/{name}#check))"
                found += self.parse_text_to_nodes(f"{head}\n\n{table}")
        return found


def row(page: str, claim: Claim) -> list[str]:
    """What the chapter glued for a claim."""
    return [f"{{glue:text}}`/{page}::claim-{claim.id}-{key}:s`" for key in COLUMNS.values()]
