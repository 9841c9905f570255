"""Chapters as Jupyter notebooks: for nbmake, and to be downloaded from their pages."""

from pathlib import Path

import nbformat
from myst_nb.core.read import read_myst_markdown_notebook
from sphinx.application import Sphinx

from . import sources

FOLDER = "_sources"  # where the theme looks for what a page offers
PREFACE = """\
> A chapter of *{book}* as a notebook{address}. It runs wherever the package is installed with
> what the book needs: `pip install ".[book]"` in a clone of its repository{repository}. Stored
> results come with the package. For a first try set `BNMLP_SCALE=smoke` in the environment:
> seconds instead of minutes. Text is in MyST Markdown, which JupyterLab shows with
> `jupyterlab-myst`.
"""


def notebook(page: Path) -> nbformat.NotebookNode:
    """A chapter, not executed.

    Args:
        page: Its source.

    Returns:
        The notebook.
    """
    return read_myst_markdown_notebook(page.read_text("utf8"), path=page)


def write(found: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(found, path)


def offer(app: Sphinx, pagename, templatename, context, doctree) -> None:
    """Let the theme's download menu have the notebook of a page with code."""
    if pagename in app.env.all_docs and sources.code_cells(Path(app.env.doc2path(pagename))):
        context["ipynb_source"] = f"{pagename}.ipynb"


def write_all(app: Sphinx, exception: Exception | None) -> None:
    """Write the notebooks that pages offer."""
    if exception is not None or app.builder.name != "html":
        return
    site, repository = app.config.html_baseurl, app.config.html_theme_options["repository_url"]
    for name in sorted(app.env.all_docs):
        page = Path(app.env.doc2path(name))
        if not sources.code_cells(page):
            continue
        preface = PREFACE.format(
            book=app.config.project,
            address=f", from {site}{name}.html" if site else "",
            repository=f", {repository}" if repository else "",
        )
        found = notebook(page)
        found.cells.insert(0, nbformat.v4.new_markdown_cell(preface, id="preface"))
        write(found, Path(app.outdir) / FOLDER / f"{name}.ipynb")
