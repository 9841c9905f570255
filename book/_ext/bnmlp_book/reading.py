"""Roles for pages that lead to others: how long they take, and what claims found in this build."""

import re
from pathlib import Path

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

from .execution import results
from .glance import minutes_to_read
from .pages import number_nodes

MINUTES = re.compile(r"\{minutes\}`([^`@]+)`")
logger = logging.getLogger(__name__)


class Minutes(SphinxRole):
    """How long a page of ``book/`` takes to read; ``@page``: all those that a page leads to."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Write the number."""
        book = Path(self.env.srcdir) / "book"
        paths = [book / f"{self.text.lstrip('@')}.md"]
        if self.text.startswith("@"):
            self.env.note_dependency(str(paths[0]))
            paths = [book / f"{name}.md" for name in MINUTES.findall(read(paths[0]))]
        minutes = 0
        for path in paths:
            self.env.note_dependency(str(path))
            minutes += minutes_to_read(read(path))
        return [nodes.Text(f"{minutes} minutes" if minutes > 1 else "a minute")], []


class Measured(SphinxRole):
    """The value of a claim in this build, linked to its box."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Write the value."""
        self.env.metadata[self.env.docname]["shows_claims"] = True
        for page, result in results(self.env).items():
            for claim in result.claims or ():
                if claim["name"] == self.text:
                    address = self.env.app.builder.get_relative_uri(self.env.docname, page)
                    uri = f"{address}#claim-{self.text}"
                    link = nodes.reference("", "", internal=True, refuri=uri)
                    link += number_nodes(claim["measured"])
                    return [link], []
        logger.warning("no claim %s in this build", self.text, location=self.get_location())
        return [nodes.Text("?")], []


def read(path: Path) -> str:
    """The source of a page."""
    return path.read_text(encoding="utf8")
