"""Captions that say what they belong to: tables among the figures, and code that is folded."""

from html import escape

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.application import Sphinx
from sphinx.domains.std import StandardDomain
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform

TABLE = "tab-"  # how names of tables begin
KINDS = {"figure": "Figure", "table": "Table"}


class TableFigure(nodes.figure):
    """A figure that shows a table: it is numbered among the tables."""


class FoldedCode(nodes.Element):
    """Code of a cell, folded under one line that says what it draws and how long it is."""


class NameTables(SphinxTransform):
    """Make tables of the figures that are named as such, before labels are noted."""

    default_priority = 800

    def apply(self, **options) -> None:
        """Put one node for the other."""
        for figure in list(self.document.findall(nodes.figure)):
            if any(name.startswith(TABLE) for name in figure["names"]):
                table = TableFigure("", *figure.children, **figure.attributes)
                table.source, table.line = figure.source, figure.line
                figure.replace_self(table)
                self.document.ids.update(dict.fromkeys(table["ids"], table))


class FoldCode(SphinxPostTransform):
    """Fold hidden code below what it draws, once myst-nb has wrapped it."""

    default_priority = 210
    formats = ("html",)

    def run(self, **options) -> None:
        """Put one node for the other, behind the cell's outputs."""
        for cell in self.document.findall(nodes.container):
            for hidden in [c for c in cell.children if isinstance(c, HideCodeCellNode)]:
                if "above-input" in hidden["classes"]:
                    folded = FoldedCode("", *hidden.children, label=self.label(cell))
                    cell.children.remove(hidden)  # its parent may not be noted
                    cell.append(folded)

    def label(self, cell: nodes.Element) -> str:
        """What the code of a cell draws, and how long it is."""
        lines = sum(
            len(block.astext().strip().splitlines())
            for block in cell.findall(nodes.literal_block)
            if block.parent.get("nb_element") == "cell_code_source"
        )
        drawn = [n for figure in cell.findall(nodes.figure) if (n := numbered_name(self, figure))]
        of = f" of {' and '.join(drawn)}" if drawn else ""
        return f"Code{of}, {lines} line{'s' * (lines != 1)}"


def numbered_name(transform: SphinxPostTransform, figure: nodes.figure) -> str | None:
    """Kind and number of a figure, as the page under way has them; None for one without."""
    domain, page = transform.env.domains["std"], transform.env.docname
    kind = domain.get_enumerable_node_type(figure)
    try:
        number = domain.get_fignumber(transform.env, transform.app.builder, kind, page, figure)
    except ValueError:
        return None
    return f"{KINDS[kind]} {'.'.join(map(str, number))}" if number else None


def open_fold(translator, node: FoldedCode) -> None:
    """Begin the HTML of folded code."""
    translator.body.append(
        f'<details class="folded-code">\n<summary>{escape(node["label"])}</summary>\n'
    )


def close_fold(translator, node: FoldedCode) -> None:
    """End it."""
    translator.body.append("</details>\n")


def setup(app: Sphinx) -> None:
    """Register nodes and transforms."""
    caption_of = StandardDomain.enumerable_nodes[nodes.figure][1]
    app.add_enumerable_node(TableFigure, "table", caption_of)
    app.add_node(FoldedCode, html=(open_fold, close_fold))
    app.add_transform(NameTables)
    app.add_post_transform(FoldCode)
