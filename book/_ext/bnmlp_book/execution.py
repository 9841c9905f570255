"""Run the chapters that have no cached results, several at a time, before the pages are read."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from jupyter_cache import get_cache
from myst_nb.core.execute import create_client
from myst_nb.core.read import create_nb_reader
from sphinx.application import Sphinx
from sphinx.util import logging

JOBS = 2


class PageLogger(logging.SphinxLoggerAdapter):
    """Says in each message which page it is about."""

    def process(self, msg, kwargs):
        """Add the page's location."""
        return super().process(msg, kwargs | {"location": self.extra["page"]})


def share_cores(app: Sphinx, config) -> None:
    """Give each kernel its part of the cores: competing for them makes kernels far slower."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // JOBS)))


def execute_ahead(app: Sphinx, env, docnames: list[str]) -> None:
    """Fill the execution cache for the pages about to be read; MyST-NB reads them one by one."""
    get_cache(env.mystnb_config.execution_cache_path).list_cache_records()  # creates the database
    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(partial(execute, env), docnames))


def execute(env, docname: str) -> None:
    """Run one page as MyST-NB would; a page without code, or with cached results, costs nothing.

    Raises:
        ExecutionError: If a cell fails.
    """
    page = Path(env.doc2path(docname))
    text = page.read_text(encoding="utf8")
    reader = create_nb_reader(str(page), env.myst_config, env.mystnb_config, text)
    if reader is None:
        return
    notebook = reader.read(text)
    config = env.mystnb_config.copy(**notebook.metadata.get("mystnb", {}))
    logger = PageLogger(logging.getLogger(__name__).logger, {"page": docname})
    with create_client(notebook, str(page), config, logger, reader.read_fmt):
        pass
