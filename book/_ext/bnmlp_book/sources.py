"""Read the sources of the book: its pages in order, their code cells, and the claims in them."""

import ast
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from myst_nb.core.read import read_myst_markdown_notebook
from sphinx_external_toc.parsing import parse_toc_yaml


@dataclass(frozen=True)
class Claim:
    """One call of ``claim``: its id, None if that is no literal, and the tags of its cell.

    ``fields`` holds what else it says in literals, as the bounds.
    """

    id: str | None
    tags: tuple[str, ...]
    fields: dict[str, object] = field(default_factory=dict)


def pages(root: Path) -> list[Path]:
    """The pages that ``_toc.yml`` in ``root`` lists, in their order."""
    toc = parse_toc_yaml(root / "_toc.yml")

    def below(document) -> Iterator[str]:
        yield document.docname
        for tree in document.subtrees:
            for item in tree.items:
                yield from below(toc[item])

    return [root / f"{name}.md" for name in below(toc.root)]


def code_cells(page: Path) -> list:
    """The code cells of a page, as nbformat nodes; none where it is no notebook."""
    notebook = read_myst_markdown_notebook(page.read_text(encoding="utf8"))
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def claims(page: Path) -> list[Claim]:
    """Every claim of a page, in order."""
    return [
        Claim(_first_argument(call), tuple(cell.metadata.get("tags", ())), _literals(call))
        for cell in code_cells(page)
        for call in _calls_of_claim(cell.source)
    ]


def _calls_of_claim(source: str) -> list[ast.Call]:
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [call for call in calls if getattr(call.func, "id", None) == "claim"]
    return sorted(named, key=lambda call: call.lineno)


def _literals(call: ast.Call) -> dict[str, object]:
    """Arguments that are literals, or arithmetic as ``1 / 3``; None for a bound not given."""
    given = {keyword.arg for keyword in call.keywords}
    found: dict[str, object] = dict.fromkeys({"low", "high"} - given)
    for keyword in call.keywords:
        names = {node.id for node in ast.walk(keyword.value) if isinstance(node, ast.Name)}
        if names <= {"math"}:
            code = compile(ast.Expression(keyword.value), "claim", "eval")
            found[keyword.arg] = eval(code, {"math": math, "__builtins__": {}})
    return found


def _first_argument(call: ast.Call) -> str | None:
    match call.args:
        case [ast.Constant(value=str(name)), *_]:
            return name
    return None
