"""What figures bring with them: their data as CSV below each, and pictures for links to pages."""

import base64
import shutil
from html import escape
from pathlib import Path
from urllib.parse import urljoin

from docutils import nodes
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.osutil import relative_uri

from .captions import numbered_name

FOLDER = "figures"  # in the site, and beside it while it is built
DATA, PICTURE = "bnmlp-data", "bnmlp-picture"  # as bnmlp.book.plotting has them in images' metadata
ELSEWHERE = "fig-landing.png"  # for pages without a figure of their own


def folder(app: Sphinx) -> Path:
    """Where what figures bring is kept, as long as their pages are not read again."""
    return Path(app.outdir).parent / FOLDER


def keep(app: Sphinx, notebook: NotebookNode) -> None:
    """Write down what the named figures of a notebook bring."""
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        for output in cell.get("outputs", []) if name else ():
            told = output.get("metadata", {}).get("image/svg+xml", {})
            folder(app).mkdir(parents=True, exist_ok=True)
            if told.get(DATA):
                text = f"# {name}, {app.config.project}\n{told[DATA]}"
                (folder(app) / f"{name}.csv").write_text(text, encoding="utf8")
            if told.get(PICTURE):
                (folder(app) / f"{name}.png").write_bytes(base64.b64decode(told[PICTURE]))


def kept(app: Sphinx, figure: nodes.figure, suffix: str) -> str | None:
    """The file that is kept of a figure, by the end of its name; None without one."""
    names = (f"{name}{suffix}" for name in figure["names"])
    return next((name for name in names if (folder(app) / name).exists()), None)


class OfferData(SphinxPostTransform):
    """Put a link to its data below each figure, before its folded code."""

    default_priority = 220  # after captions.FoldCode
    formats = ("html",)

    def run(self, **options) -> None:
        """Look for figures whose data are kept."""
        for figure in list(self.document.findall(nodes.figure)):
            if name := kept(self.app, figure, ".csv"):
                figure.parent.insert(figure.parent.index(figure) + 1, self.link(figure, name))

    def link(self, figure: nodes.figure, name: str) -> nodes.raw:
        """It names its figure to those who do not see it stand there."""
        here = self.app.builder.get_target_uri(self.env.docname)
        of = escape(numbered_name(self, figure) or "the figure")
        html = (
            f'<p class="figure-data"><a download href="{relative_uri(here, f"{FOLDER}/{name}")}">'
            f'Data (CSV)<span class="visually-hidden"> of {of}</span></a></p>'
        )
        return nodes.raw("", html, format="html")


def show_picture(app: Sphinx, pagename, templatename, context, doctree) -> None:
    """Let links to a page be shown with its first picture."""
    if doctree is None:
        return
    name, alt = ELSEWHERE, None
    for figure in doctree.findall(nodes.figure):
        if found := kept(app, figure, ".png"):
            name, alt = found, next(iter(figure.findall(nodes.image))).get("alt")
            break
    address = f"{FOLDER}/{name}"
    here, base = app.builder.get_target_uri(pagename), app.config.html_baseurl
    image = urljoin(base, address) if base else relative_uri(here, address)
    told = {"og:image": image} | ({"og:image:alt": alt} if alt else {})
    context["meta"] = {**(context["meta"] or {}), **told}  # a copy: what is there is kept


def write_all(app: Sphinx, exception: Exception | None) -> None:
    """Put what is kept into the site."""
    if exception is None and app.builder.name == "html" and folder(app).is_dir():
        shutil.copytree(folder(app), Path(app.outdir) / FOLDER, dirs_exist_ok=True)
