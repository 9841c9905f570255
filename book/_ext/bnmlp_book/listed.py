"""The directive ``{list-of} results``, ``figures`` or ``tables``: all of the book, by chapter."""

from collections import defaultdict
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx_proof.proof_type import PROOF_TYPES

from .captions import KINDS, TableFigure
from .sources import pages

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
        return [Listing(kinds=WHAT[self.arguments[0]])]


def entries(env) -> dict[str, list[tuple[str, str, str, list[nodes.Node]]]]:
    """What every page has to list: kind, counter, label, and what it says."""
    if not hasattr(env, "bnmlp_listed"):
        env.bnmlp_listed = {}
    return env.bnmlp_listed


def note(app: Sphinx, doctree) -> None:
    """Remember what a page has to list."""
    found = entries(app.env)[app.env.docname] = []
    for node in doctree.findall(nodes.Element):
        if "realtype" in node:
            title = [child.deepcopy() for child in node[0].children]
            found.append((node["realtype"], node["countertype"], node["label"], title))
        elif isinstance(node, nodes.figure) and node["ids"]:
            kind = "table" if isinstance(node, TableFigure) else "figure"
            for caption in [child for child in node if isinstance(child, nodes.caption)]:
                found.append((kind, kind, node["ids"][0], first_sentence(caption)))


def first_sentence(caption: nodes.caption) -> list[nodes.Node]:
    """The parts of a caption up to the end of its first sentence."""
    found: list[nodes.Node] = []
    for child in caption.children:
        text, end, _ = child.astext().partition(". ") if isinstance(child, nodes.Text) else 3 * [""]
        found.append(nodes.Text(text + end.strip()) if end else child.deepcopy())
        if end:
            break
    return found


def write(app: Sphinx, doctree, docname: str) -> None:
    """Put the lists where room was left for them."""
    for listing in list(doctree.findall(Listing)):
        root = Path(app.srcdir)
        names = [page.relative_to(root).with_suffix("").as_posix() for page in pages(root)]
        kinds, written = listing["kinds"], []
        for page in names:
            here = [entry for entry in entries(app.env).get(page, []) if entry[0] in kinds]
            if here:
                written += [heading(app, docname, page), of_page(app, docname, page, here)]
        listing.replace_self(written)


def heading(app: Sphinx, docname: str, page: str) -> nodes.paragraph:
    """The title of a page, which leads to it."""
    address = app.builder.get_relative_uri(docname, page)
    title = [child.deepcopy() for child in app.env.titles[page].children]
    link = nodes.reference("", "", *title, internal=True, refuri=address)
    return nodes.paragraph("", "", nodes.strong("", "", link))


def of_page(app: Sphinx, docname: str, page: str, listed: list) -> nodes.bullet_list:
    """What one page has, each with its number and what it says."""
    found = nodes.bullet_list()
    numbers = defaultdict(dict, app.env.toc_fignumbers.get(page, {}))
    for kind, counter, label, said in listed:
        number = ".".join(map(str, numbers[counter].get(label, ())))
        name = f"{KINDS.get(kind, kind.title())} {number}".strip()
        address = f"{app.builder.get_relative_uri(docname, page)}#{label}"
        line = nodes.paragraph("", "", nodes.reference("", name, internal=True, refuri=address))
        line += [nodes.Text(": ") if said else nodes.Text(""), *(n.deepcopy() for n in said)]
        found += nodes.list_item("", line)
    return found
