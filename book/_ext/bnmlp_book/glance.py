"""The directive ``{at-a-glance}``: under a chapter's title, what it answers and how far that holds.

The chapter writes the lines of ``LINES``, each beginning with its word. The directive adds what it
can count: what to read first, claims, minutes, exercises, and the functions that the code uses.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from .execution import results
from .sources import code_cells

LINES = ("Question", "Answer", "Holds", "Stops", "Measured", "Use")
STOPS = re.compile(r"^## (Where it stops holding.*?) *$", re.M)  # to it leads the line Stops
WORDS_A_MINUTE = 200  # of prose with formulas
HOUSEKEEPING = ("bnmlp.book.", "bnmlp.at_scale", "bnmlp.scale", "bnmlp.default_device")
logger = logging.getLogger(__name__)


class AtAGlance(SphinxDirective):
    """The box. Its option ``needs`` names chapters to read first, by their files' names."""

    has_content = True
    option_spec = {"needs": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Write it."""
        written = entries(list(self.content))
        self.refuse(written)
        lines = nodes.definition_list()
        for word, text in written.items():
            term = nodes.term("", "", self.label(word))
            definition = nodes.definition("", *self.parse_text_to_nodes(text))
            lines += nodes.definition_list_item("", term, definition)
        return [nodes.compound("", lines, *self.counted(), classes=["at-a-glance"])]

    def refuse(self, written: dict[str, str]) -> None:
        """Raise what is wrong with the lines."""
        if tuple(written) != LINES:
            raise self.error(f"at-a-glance needs the lines {LINES} in this order, has {[*written]}")
        if len(re.findall(r"\{glue:\w+\}`", written["Answer"])) != 1:
            raise self.error("the Answer of at-a-glance needs one number, which the page glues")

    def label(self, word: str) -> nodes.Node:
        """The word of a line; that of the limits is a link where a section tells more."""
        section = STOPS.search(self.source()) if word == "Stops" else None
        if section is None:
            return nodes.Text(word)
        return nodes.reference("", word, internal=True, refuri=f"#{nodes.make_id(section[1])}")

    def source(self) -> str:
        """The text of the page."""
        return Path(self.env.doc2path(self.env.docname)).read_text(encoding="utf8")

    def counted(self) -> list[nodes.Node]:
        """A paragraph of what is counted, and a folded list of functions if the code uses any."""
        parts = [
            *self.needed(),
            *self.claims(),
            [nodes.Text(f"{minutes_to_read(self.source())} min to read")],
            *numbered(self.source().count("{exercise-start}"), "exercise"),
        ]
        counts = nodes.paragraph(classes=["at-a-glance-counts"])
        for number, part in enumerate(parts):
            counts += [nodes.Text(" · ")] if number else []
            counts += part
        return [counts, *self.functions()]

    def needed(self) -> list[list[nodes.Node]]:
        """Links to the chapters that this one builds on."""
        pages = {name.rpartition("/")[2]: name for name in sorted(self.env.found_docs)}
        links: list[nodes.Node] = []
        for slug in self.options.get("needs", "").split():
            if slug not in pages:
                raise self.error(f"at-a-glance: there is no page {slug} that this one could need")
            links += [nodes.Text(", " if links else "Needs ")]
            links += [reference("std", "doc", f"/{pages[slug]}", slug.replace("-", " "))]
        return [links] if links else []

    def claims(self) -> list[list[nodes.Node]]:
        """How many claims the page makes, what their verdicts are and whether they hold."""
        result = results(self.env).get(self.env.docname)
        if result is None or not result.claims:
            return []
        number = len(result.claims)
        text = "1 claim" if number == 1 else f"{number} claims"
        link = nodes.reference("", text, internal=True, refuri="#check")
        return [[link, nodes.Text(outcome(result.claims))]]

    def functions(self) -> list[nodes.Node]:
        """The functions of the package that the page's code uses and the API pages describe."""
        root = Path(self.env.srcdir)
        api = sorted((root / "book" / "reference").glob("api*.md"))
        for page in api:
            self.env.note_dependency(str(page))
        described = [name for page in api for name in described_names(page)]
        cells = [cell.source for cell in code_cells(Path(self.env.doc2path(self.env.docname)))]
        used = [name for name in used_names(cells) if name in described]
        used = [name for name in used if not name.startswith(HOUSEKEEPING)]
        if not used:
            return []
        listed = nodes.paragraph()
        for number, name in enumerate(sorted(used, key=lambda name: name.rpartition(".")[2])):
            listed += [nodes.Text(", ")] if number else []
            listed += reference("py", "obj", name, name.rpartition(".")[2], nodes.literal)
        summary = f"<summary>{len(used)} functions of the package</summary>"
        summary = summary.replace("1 functions", "1 function") if len(used) == 1 else summary
        return [raw(f"<details>{summary}"), listed, raw("</details>")]


def raw(html: str) -> nodes.raw:
    """HTML as it is."""
    return nodes.raw("", html, format="html")


def reference(domain: str, kind: str, target: str, text: str, look=nodes.inline) -> nodes.Node:
    """A link that Sphinx resolves when all pages are read, and warns of where it can't."""
    return addnodes.pending_xref(
        "", look("", text), refdomain=domain, reftype=kind, reftarget=target,
        refexplicit=True, refwarn=True,
    )  # fmt: skip


def numbered(count: int, what: str) -> list[list[nodes.Node]]:
    """So many of something, if any."""
    return [[nodes.Text(f"{count} {what}{'s' if count > 1 else ''}")]] if count else []


def entries(content: list[str]) -> dict[str, str]:
    """The lines of a box by their first words of ``LINES``; one without goes on with the last.

    Args:
        content: Lines of text, such as ``"Question: Does it hold?"``.

    Returns:
        Texts by word, in their order.
    """
    found: dict[str, list[str]] = {}
    here: list[str] = []
    for line in content:
        word, colon, rest = line.partition(":")
        if colon and word in LINES:
            here = found.setdefault(word, [])
            line = rest
        here.append(line.strip())
    return {word: " ".join(lines).strip() for word, lines in found.items()}


def outcome(claims: list[dict]) -> str:
    """Verdicts in parentheses, and whether the claims hold, as ``" (2 reproduced), all hold"``."""
    verdicts = Counter(claim["verdict"] for claim in claims).most_common()
    named = ", ".join(f"{n} {'own' if name == 'this book' else name}" for name, n in verdicts)
    broken = sum(claim["judged"] and not claim["holds"] for claim in claims)
    if not all(claim["judged"] for claim in claims):
        holding = "not judged at this scale"
    else:
        holding = f"{broken} not holding" if broken else "all hold" if len(claims) > 1 else "holds"
    return f" ({named}), {holding}"


UNREAD = (  # what a reader of the main line does not read: code, what is folded, front matter
    r"\A---\n.*?^---$",
    r"^(`{3,}|:{3,})\{(?:code-cell|literalinclude|dropdown|at-a-glance)\}.*?^\1$",
    r"^(`{3,})\{solution-start\}.*?\{solution-end\}.*?$",
)


def minutes_to_read(text: str) -> int:
    """How long the prose of a page takes, what is folded left out; at least one.

    Args:
        text: Source of the page.

    Returns:
        Minutes.
    """
    for part in UNREAD:
        text = re.sub(part, "", text, flags=re.M | re.S)
    words = [word for word in text.split() if re.search(r"\w", word)]
    return max(1, round(len(words) / WORDS_A_MINUTE))


@cache
def described_names(page: Path) -> tuple[str, ...]:
    """Full names of the functions and classes that a page of the API describes."""
    text = page.read_text(encoding="utf8")
    module = re.search(r"^\.\. currentmodule:: (\S+)", text, re.M)
    names = re.findall(r"^\.\. auto(?:function|class):: ([\w.]+)", text, re.M)
    return tuple(name if "." in name or not module else f"{module[1]}.{name}" for name in names)


def used_names(cells: list[str]) -> list[str]:
    """Full names of what code imports from the package, or takes from a module that it imports.

    Args:
        cells: Sources of code cells.

    Returns:
        Names such as ``"bnmlp.batch_norm"``, each once.
    """
    tree = ast.parse("\n".join(cells))
    places = dict(_imports(tree))
    found = dict.fromkeys(places.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in places:
                found[f"{places[node.value.id]}.{node.attr}"] = None
    return list(found)


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names that imports from the package bind, and what they stand for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("bnmlp."):
            yield from ((a.asname or a.name, f"{node.module}.{a.name}") for a in node.names)
        if isinstance(node, ast.Import):
            yield from ((a.asname or a.name, a.name) for a in node.names if a.name == "bnmlp")


def missing(app: Sphinx, doctree) -> None:
    """Warn of a page that makes claims without a box that says what they amount to."""
    name = app.env.docname
    result = results(app.env).get(name)
    boxes = (node for node in doctree.findall(nodes.compound) if "at-a-glance" in node["classes"])
    if result is not None and result.claims and next(boxes, None) is None:
        logger.warning("makes claims, but has no {at-a-glance} under its title", location=name)
