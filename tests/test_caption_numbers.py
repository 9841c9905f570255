"""Numbers of networks, depths and widths in captions are those of the code that they describe.

The code of a figure is its cell and every statement before it that its names come from, so a
number that was changed there and left in the caption is found, unless it is another size there.
"""

import ast
import inspect
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from bnmlp.book.tables import DATA, stored_table
from bnmlp_book.sources import code_cells, pages

ROOT = Path(__file__).parents[1]
PAGES = [page for page in pages(ROOT) if code_cells(page)]
SMALL = "one two three four five six seven eight nine ten eleven twelve".split()
COUNT = r"(?<![\d.,^])(\d[\d,]*\d|\d|" + "|".join(SMALL) + ")"
THINGS = r"(?:networks|seeds|draws|runs|initialisations)\b"
SAID = re.compile(
    rf"\b{COUNT}\s+(?:\w+\s+){{0,2}}?{THINGS}|\b(?:depth|width)s?\s+{COUNT}\b", re.IGNORECASE
)
# What the code has in another form.
ELSEWHERE = {
    ("fig-shaping-width", 16_000): "twice 8,000",
    ("fig-patient-perceptron", 60): "the package's perceptron is that deep",
    ("fig-patient-transformer", 32): "the package's transformer is that wide",
    ("tab-attention-runs", 3): "seeds 0 to 2",
}


def number(text: str) -> int:
    return SMALL.index(text.lower()) + 1 if text.lower() in SMALL else int(text.replace(",", ""))


def said(caption: str) -> set[int]:
    """Numbers of networks, seeds, draws and runs, depths and widths in a caption."""
    found = SAID.findall(" ".join(caption.split()))
    return {number(text) for groups in found for text in groups if text}


def given(statement: ast.stmt) -> set[str]:
    """Names that a statement binds, or whose objects it changes."""
    names = set()
    for node in ast.walk(statement):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store()):
                names.add(name)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
                names.add(name)
            case ast.alias(name=name, asname=alias):
                names.add(alias or name)
    return names


def needed(statement: ast.stmt) -> set[str]:
    nodes = ast.walk(statement)
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def code_of(own: str, before: str) -> list[ast.stmt]:
    """Statements of a cell and those before it that its names come from, in turn."""
    kept = list(ast.parse(own).body)
    earlier = [(statement, given(statement)) for statement in ast.parse(before).body]
    todo, done = set().union(*map(needed, kept)), set()
    while todo:
        name = todo.pop()
        done.add(name)
        new = [s for s, names in earlier if name in names and s not in kept]
        kept += new
        todo |= set().union(*map(needed, new)) - done
    return kept


def numbers(statements: list[ast.stmt]) -> set[float]:
    """Numbers in code, in the stored tables that it reads, defaults of what it imports."""
    found = set()
    used = set().union(*map(needed, statements))
    for node in (node for statement in statements for node in ast.walk(statement)):
        match node:
            case ast.Constant(value=int() | float() as value):
                found.add(value)
            case ast.Constant(value=str(name)) if name.endswith(".csv"):
                found |= numbers_of_table(name)
            case ast.JoinedStr(values=[ast.Constant(value=str(start)), *_]):
                for path in sorted(DATA.glob(f"{start}*.csv")) if "/" in start else []:
                    found |= numbers_of_table(path.relative_to(DATA).as_posix())
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("bnmlp"):
                mine = {alias.name for alias in names} & used
                found |= set().union(*(defaults(module, name) for name in mine))
    return found


@cache
def numbers_of_table(name: str) -> set[float]:
    if not (DATA / name).is_file():
        return set()
    table = stored_table(name)
    found = {number(text) for text in re.findall(r"\d[\d,]*\d|\d", table.attrs["provenance"])}
    values = [table.index, *(table[column] for column in table.columns), table.columns]
    for column in values:
        column = pd.to_numeric(pd.Series(column), errors="coerce").dropna()
        found |= set(column.unique()) if column.nunique() < 60 else {column.max()}
    return found


def defaults(module: str, name: str) -> set[float]:
    thing = getattr(import_module(module), name)
    if not callable(thing):
        return set()
    parameters = inspect.signature(thing).parameters.values()
    return {p.default for p in parameters if isinstance(p.default, int | float)}


def strange(cells: list[tuple[str, str]]) -> list[int]:
    """Numbers that the last caption says and its code does not have.

    Args:
        cells: Source and caption of each cell up to that of the figure.
    """
    own, caption = cells[-1]
    statements = code_of(own, "\n".join(source for source, _ in cells[:-1]))
    return sorted(said(caption) - numbers(statements))


def test_a_caption_that_the_code_contradicts_is_found():
    before = "networks, depth = at_scale(smoke=2, laptop=10), 300\nother = 5\nrows = []"
    loop = "for _ in range(networks):\n    rows.append(depth)"
    caption = "Mean over ten networks of depth 300, with 2,000 draws; ten more."
    assert strange([(before, ""), (loop, ""), ("draw(rows, 2000)", caption)]) == []
    caption = caption.replace("ten", "five").replace("300", "400")
    assert strange([(before, ""), (loop, ""), ("draw(rows, 2000)", caption)]) == [5, 400]


def test_numbers_are_read_from_the_words_around_them():
    caption = (
        "Width 50, 10 trained networks, depths 30 and 2,000, $10^{3}$ networks, 3 samples, 1.5 runs"
    )
    assert said(caption) == {50, 10, 30}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_captions_say_the_numbers_of_their_code(page):
    cells = []
    for cell in code_cells(page):
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        cells.append((cell.source, f"{figure.get('caption', '')}\n{alt}"))
        if figure:
            wrong = [n for n in strange(cells) if (figure["name"], n) not in ELSEWHERE]
            assert not wrong, f"{figure['name']}: no {wrong} in its code"
