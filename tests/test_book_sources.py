"""The book's sources keep the conventions that a build doesn't enforce."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from jupyter_book.config import validate_yaml

from bnmlp_book.sources import claims, code_cells, pages

ROOT = Path(__file__).parents[1]
PAGES = pages(ROOT)
NOTEBOOKS = [page for page in PAGES if code_cells(page)]
TEXTS = {page: page.read_text(encoding="utf8") for page in PAGES}
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def front_matter(page: Path) -> dict:
    _, header, _ = TEXTS[page].split("---\n", 2)
    return load_yaml(header)


def load_yaml(text: str) -> dict:
    """Like ``yaml.safe_load``, which lets the last of two equal keys win; here it's an error."""

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"repeated key in {keys}, {node.start_mark}"
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return yaml.load(text, Loader)


def numbered_chapters() -> list[Path]:
    parts = load_yaml((ROOT / "_toc.yml").read_text())["parts"]
    files = [item["file"] for part in parts if part.get("numbered") for item in part["chapters"]]
    return [ROOT / f"{file}.md" for file in files]


def figures() -> list[tuple[Path, dict, dict]]:
    """Page, figure and image metadata of every cell that has either."""
    found = []
    for page in PAGES:
        for cell in code_cells(page):
            metadata = cell.metadata.get("mystnb", {})
            if "figure" in metadata or "image" in metadata:
                found.append((page, metadata.get("figure", {}), metadata.get("image", {})))
    return found


def headings(page: Path) -> list[str]:
    outside_fences = re.sub(r"^(`{3,}|~{3,}|:{3,}).*?^\1", "", TEXTS[page], flags=re.M | re.S)
    return re.findall(r"^## +(.+?) *$", outside_fences, flags=re.M)


def test_the_configuration_has_no_repeated_and_no_unknown_keys():
    config = load_yaml((ROOT / "_config.yml").read_text())
    validate_yaml(config, raise_on_errors=True)
    assert set(config["parse"]) <= {"myst_enable_extensions", "myst_url_schemes"}
    assert config["only_build_toc_files"]
    assert config["execute"]["execute_notebooks"] == "cache"
    assert config["execute"]["allow_errors"] is False
    assert config["sphinx"]["recursive_update"] is True


def test_every_page_is_in_the_table_of_contents():
    found = {name(page) for page in (ROOT / "book").rglob("*.md")}
    found = {page for page in found if not page.startswith(("book/_extra/", "book/data/"))}
    assert found == {name(page) for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_describes_itself(page):
    description = front_matter(page)["myst"]["html_meta"]["description lang=en"]
    assert 20 <= len(description) <= 200
    assert not re.search(r"[$\\`]", description), "search engines show no maths or markup"


@pytest.mark.parametrize("page", NOTEBOOKS, ids=name)
def test_a_notebook_names_its_kernel_and_forgives_no_error(page):
    header = front_matter(page)
    assert header["file_format"] == "mystnb"
    assert header["kernelspec"] == KERNELSPEC
    assert "allow_errors" not in TEXTS[page]
    book = header.get("mystnb", {}).get("execution_timeout")
    assert book == header.get("execution", {}).get("timeout"), "nbmake and myst-nb differ"


@pytest.mark.parametrize("page", NOTEBOOKS, ids=name)
def test_a_notebook_runs_wherever_its_kernel_starts(page):
    for cell in code_cells(page):
        assert not re.search(r"""["']\.\.?/""", cell.source), f"relative path in {cell.source}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_needs_nothing_from_outside(page):
    assert "colab" not in TEXTS[page].lower()
    assert not re.search(r"<(script|iframe|link|img)\b[^>]*https?:", TEXTS[page])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_fence_is_one(page):
    broken = re.findall(r"^```+[^`\n]+`.*$", TEXTS[page], re.M)
    assert not broken, f"no fence, since it holds a backtick; write ::: instead: {broken}"


def test_every_figure_has_a_name_a_caption_and_alternative_text():
    for page, figure, image in figures():
        where = f"{name(page)}: {figure.get('name')}"
        assert len(figure.get("caption", "")) >= 20, where
        if figure.get("name", "").startswith("tab-"):
            continue  # a table is text already
        assert figure.get("name", "").startswith("fig-"), where
        assert len(image.get("alt", "")) >= 20, where
        assert "$" not in image["alt"], f"{where}: alternative text can't hold maths"


def test_every_static_figure_has_a_caption_and_alternative_text():
    for page, text in TEXTS.items():
        for block in re.findall(
            r"^(?:`{3,}|:{3,})\{figure\}.*?^(?:`{3,}|:{3,})$", text, re.M | re.S
        ):
            assert re.search(r"^:alt: .{20,}", block, re.M), f"{name(page)}: {block}"
            assert re.search(r"^:name: fig-", block, re.M), f"{name(page)}: {block}"


def test_every_figure_is_named_once_and_referred_to():
    everything = "\n".join(TEXTS.values())
    names = [figure.get("name") for _, figure, _ in figures()]
    names += re.findall(r"^:name: ((?:fig|tab)-\S+)", everything, re.M)
    assert len(names) == len(set(names))
    references = set(re.findall(r"\{numref\}`(?:[^`]*<)?((?:fig|tab)-[^`>]+)>?`", everything))
    assert not set(names) - references, "figures that no text mentions"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_figure_cell_shows_only_its_figure(page):
    for cell in code_cells(page):
        if "figure" in cell.metadata.get("mystnb", {}):
            assert "print(" not in cell.source, cell.source
            assert "glue(" not in cell.source, cell.source


@pytest.mark.parametrize("page", [p for p in numbered_chapters() if p in NOTEBOOKS], ids=name)
def test_a_chapter_ends_with_its_check_and_its_differences(page):
    check, differences = headings(page)[-2:]
    assert check == "Check"
    assert differences in ("Differences from the paper", "Differences from the sources")
    check = TEXTS[page].split("\n## Check")[1]
    assert claims(page), f"{name(page)} makes no claim"
    assert len(re.findall(r"^\s*claim\(", check, re.M)) == len(claims(page))


def test_claims_can_be_listed_and_seen():
    ids = []
    for page in PAGES:
        for claim in claims(page):
            where = f"{name(page)}: {claim}"
            assert claim.id is not None, f"{where}: the first argument must be a literal"
            assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", claim.id), where
            assert not [tag for tag in claim.tags if tag.startswith(("hide", "remove"))], where
            ids.append(claim.id)
    assert len(ids) == len(set(ids)), "two claims with the same id"


LONGEST = 10  # lines of a definition in a chapter, with its docstring


@pytest.mark.parametrize("page", NOTEBOOKS, ids=name)
def test_a_chapter_defines_nothing_long(page):
    long = {d.name: n for d in definitions(page) if (n := d.end_lineno - d.lineno + 1) > LONGEST}
    assert not long, f"split them, or take them from the package: {long}"


def test_chapters_do_not_define_the_same_twice():
    pages_of = {}
    for page in NOTEBOOKS:
        for d in definitions(page):
            doc = ast.get_docstring(d) is not None
            does = ast.dump(d.args) + "".join(map(ast.dump, d.body[doc:]))
            pages_of.setdefault(does, {})[name(page)] = d.name
    again = [found for found in pages_of.values() if len(found) > 1]
    assert not again, f"move them into the package: {again}"


def definitions(page: Path) -> list[ast.FunctionDef]:
    """Functions and methods, also inside others, of the code cells of a page."""
    nodes = [node for cell in code_cells(page) for node in ast.walk(ast.parse(cell.source))]
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("page", NOTEBOOKS, ids=name)
def test_a_chapter_imports_in_one_sorted_block(page):
    body = [node for cell in code_cells(page) for node in ast.parse(cell.source).body]
    places = [i for i, node in enumerate(body) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert places == list(range(len(places))), "imports belong to the top of the first cell"
    own = [n for n in body if isinstance(n, ast.ImportFrom) and n.module.startswith("bnmlp")]
    modules = [node.module for node in own]
    assert modules == sorted(set(modules)), f"one line for each module, sorted: {modules}"
    for node in own:
        names = [alias.name for alias in node.names]
        assert names == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))


GENERATORS = re.compile(
    r"Generator\(|manual_seed\((?!seed_of\()|default_rng\((?!seed_of\()|RandomState|"
    r"np\.random\.(?!default_rng|SeedSequence|get_state|set_state)|"
    r"(?<![\w.])random\.(?:random|seed|choice|gauss)|initial_seed"
)
# The second moves on from seed_of by layer, the third draws nothing: it keeps what is there.
ROOTS = (
    "bnmlp/layers/seeds.py", "bnmlp/layers/initialization.py", "bnmlp/machine/randomness.py",
)  # fmt: skip


@pytest.mark.parametrize("page", NOTEBOOKS, ids=name)
def test_every_random_number_of_a_page_starts_from_the_base_seed(page):
    for cell in code_cells(page):
        assert not GENERATORS.search(cell.source), f"use bnmlp.layers.seeds: {cell.source}"


def test_every_random_number_of_the_package_starts_from_the_base_seed():
    for path in sorted((ROOT / "bnmlp").rglob("*.py")):
        if path.relative_to(ROOT).as_posix() not in ROOTS:
            code = ast.unparse(ast.parse(path.read_text(encoding="utf8")))  # without comments
            found = [m for m in re.findall(r".*", code) if GENERATORS.search(m)]
            found = [line for line in found if "torch.Generator |" not in line]
            assert not found, f"{path.name}: use bnmlp.layers.seeds: {found}"


def test_every_claim_is_on_the_scoreboard():
    scoreboard = TEXTS[ROOT / "book/reference/scoreboard.md"]
    assert re.search(r"^(```|:::)\{scoreboard\}", scoreboard, re.M), "the directive lists them all"
