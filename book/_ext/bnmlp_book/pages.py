"""Which pages to read again, and repairs of the HTML on them."""

import re
from pathlib import Path

from docutils import nodes
from myst_nb.ext.glue.utils import PendingGlueReference
from sphinx.application import Sphinx

from .execution import results, stale
from .status import commit


def note_numbers_from_elsewhere(app: Sphinx, doctree) -> None:
    """Remember whether a page shows numbers that another page measured."""
    found = any(True for _ in doctree.findall(PendingGlueReference))
    app.env.metadata[app.env.docname]["numbers_from_elsewhere"] = found


def share_description(app: Sphinx, doctree) -> None:
    """Use a page's description for previews too: the text made for them has raw formulas."""
    for meta in doctree.findall(nodes.meta):
        if meta.get("name") == "description":
            app.env.metadata[app.env.docname]["og:description"] = meta["content"]


def outdated(app: Sphinx, env, added, changed, removed) -> list[str]:
    """Pages to read again: those with other results, and those that show what others measured.

    A build that changes nothing leaves them as they are.

    Args:
        app: Sphinx.
        env: Its environment.
        added: New pages.
        changed: Pages whose source differs.
        removed: Pages that are gone.

    Returns:
        Names of pages.
    """
    for name in removed:
        results(env).pop(name, None)
    rerun = stale(app, env)
    something = bool(added or changed or removed or rerun)
    now = commit(Path(app.srcdir))
    return rerun + [
        name
        for name, data in env.metadata.items()
        if (something and (data.get("numbers_from_elsewhere") or data.get("shows_claims")))
        or ("commit" in data and (something or data["commit"] != now))
    ]


POWER = re.compile(r"(-?)(\d(?:\.\d+)?)e([+-])0*(\d+)(?=$| )")
MINUS, SPACE = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"


def number_nodes(text: str) -> list[nodes.Node]:
    """A measured number such as 5e+65 as readers write it; others as they are."""
    found = POWER.match(text)
    if not found:
        return [nodes.Text(text)]
    sign, digits, below, exponent = found.groups()
    power = nodes.superscript("", (MINUS if below == "-" else "") + exponent)
    factor = f"{MINUS if sign else ''}{digits}{SPACE}×{SPACE}10"
    return [nodes.Text(factor), power, nodes.Text(text[found.end() :])]


def write_powers(app: Sphinx, doctree, docname: str) -> None:
    """Write the numbers that a page pastes into its text with :func:`number_nodes`."""
    for inline in list(doctree.findall(nodes.inline)):
        if "pasted-text" in inline["classes"] and POWER.fullmatch(inline.astext()):
            written = number_nodes(inline.astext())
            inline.children = []
            inline += written


def name_once(app: Sphinx, pagename, templatename, context, doctree) -> None:
    """Let the first page, whose title is the book's, not have it twice."""
    if pagename == app.config.root_doc:
        context["docstitle"] = ""


def drop_repeated_scripts(app: Sphinx, pagename, templatename, context, doctree) -> None:
    """Drop inline scripts that are listed twice: a second ``const`` is an error in the console."""
    bodies = set()
    kept = []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        if body is None or body not in bodies:
            kept.append(script)
        bodies.add(body)
    context["script_files"] = kept


def drop_empty_heads(app: Sphinx, pagename, templatename, context, doctree) -> None:
    """Make cells of the empty heads of tables: a head without words is none."""
    if "body" in context:
        context["body"] = re.sub(
            r"<th\b([^>]*)>\s*(?:&nbsp;)?\s*</th>", r"<td\1></td>", context["body"]
        )


def drop_plain_spans(app: Sphinx, pagename, templatename, context, doctree) -> None:
    """Drop the tags of code that has the colour of plain text anyway: a third of its bytes."""
    if "body" in context:
        context["body"] = re.sub(
            r'<span class="(?:n|p|w|nn)">([^<]*)</span>', r"\1", context["body"]
        )


def drop_list_roles(app: Sphinx, pagename, templatename, context, doctree) -> None:
    """A bibliography is announced as a list, but has anchors between its entries."""
    body = context.get("body")
    if body and "citation-list" in body:
        context["body"] = body.replace('role="list" class="citation-list"', 'class="citation-list"')
