"""The directive ``{list-of} results``, ``figures`` or ``tables``: all of the book, by chapter."""

from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective
from sphinx_proof.proof_type import PROOF_TYPES

from .captions import KINDS, TableFigure
from .sources import pages

Entry = tuple[str, str, str, list[nodes.Node]]  # kind, counter, label, and what it says
WHAT = {"results": tuple(PROOF_TYPES), "figures": ("figure",), "tables": ("table",)}


class Listing(nodes.Element):
    """Stands for the list until all pages are read."""


class ListOf(SphinxDirective):
    """The page is read again whenever another one is."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Leave room for the list."""
        self.env.metadata[self.env.docname]["shows_claims"] = True
        if self.arguments[0] not in WHAT:
            raise self.error(f"list-of knows {', '.join(WHAT)}, not {self.arguments[0]}")
        # Sphinx loads what typesets formulas where a page has one when it is read.
        return [Listing("", nodes.math("", ""), kinds=WHAT[self.arguments[0]])]


def entries(env) -> dict[str, list[Entry]]:
    """What every page has to list."""
    if not hasattr(env, "bnmlp_listed"):
        env.bnmlp_listed = {}
    return env.bnmlp_listed


def note(app: Sphinx, doctree) -> None:
    """Remember what a page has to list."""
    found = entries(app.env)[app.env.docname] = []
    for node in doctree.findall(nodes.Element):
        if "realtype" in node:
            said = (node["realtype"], node["countertype"], node["label"], title(node[0]))
            found.append(said)
        elif isinstance(node, nodes.figure) and node["ids"]:
            kind = "table" if isinstance(node, TableFigure) else "figure"
            for caption in [child for child in node if isinstance(child, nodes.caption)]:
                found.append((kind, kind, node["ids"][0], first_sentence(caption)))


def title(named: nodes.title) -> list[nodes.Node]:
    """The title of a theorem without the parentheses around it."""
    found = [child.deepcopy() for child in named.children]
    if found:
        found[0] = nodes.Text(found[0].astext().lstrip().removeprefix("("))
        found[-1] = nodes.Text(found[-1].astext().removesuffix(")"))
    return found


def first_sentence(caption: nodes.caption) -> list[nodes.Node]:
    """The parts of a caption up to the end of its first sentence."""
    found: list[nodes.Node] = []
    for child in caption.children:
        text, end, _ = child.astext().partition(". ") if isinstance(child, nodes.Text) else 3 * [""]
        found.append(nodes.Text(text + end.strip()) if end else child.deepcopy())
        if end:
            break
    return found


class WriteLists(SphinxPostTransform):
    """Put the lists where room was left for them, before references are resolved."""

    default_priority = 1

    def run(self, **options) -> None:
        """Write what there is of every page, in the book's order."""
        for listing in list(self.document.findall(Listing)):
            root, written = Path(self.env.srcdir), []
            for page in pages(root):
                name = page.relative_to(root).with_suffix("").as_posix()
                found = entries(self.env).get(name, [])
                if here := [entry for entry in found if entry[0] in listing["kinds"]]:
                    written += [self.heading(name), self.of_page(name, here)]
            listing.replace_self(written)

    def link(self, page: str, anchor: str, *said: nodes.Node) -> nodes.reference:
        """A link to a page, or to a place on it."""
        address = self.app.builder.get_relative_uri(self.env.docname, page) + anchor
        return nodes.reference("", "", *said, internal=True, refuri=address)

    def heading(self, page: str) -> nodes.paragraph:
        """The title of a page, which leads to it."""
        title = self.copies(self.env.titles[page].children)
        return nodes.paragraph("", "", nodes.strong("", "", self.link(page, "", *title)))

    def of_page(self, page: str, listed: list[Entry]) -> nodes.bullet_list:
        """What one page has, each with its number and what it says."""
        found = nodes.bullet_list()
        numbers = self.env.toc_fignumbers.get(page, {})
        for kind, counter, label, said in listed:
            number = ".".join(map(str, numbers.get(counter, {}).get(label, ())))
            name = nodes.Text(f"{KINDS.get(kind, kind.title())} {number}".strip())
            line = nodes.paragraph("", "", self.link(page, f"#{label}", name))
            line += [nodes.Text(": "), *self.copies(said)] if said else []
            found += nodes.list_item("", line)
        return found

    def copies(self, said: list[nodes.Node]) -> list[nodes.Node]:
        """Copies whose references are seen from this page."""
        found = [node.deepcopy() for node in said]
        for reference in [r for node in found for r in node.findall(addnodes.pending_xref)]:
            reference["refdoc"] = self.env.docname
        return found
