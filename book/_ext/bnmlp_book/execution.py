"""Run the chapters that have no cached results, several at a time, before the pages are read.

A chapter whose cell fails is kept with its traceback, for this build only; every other one runs.
"""

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from myst_nb.core.read import create_nb_reader
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_output
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging
from traitlets.config import Config

from . import cache, plotted
from .kernels import Nursery, WarmKernelManager

CLAIM = "bnmlp-claim"  # in the metadata of an output, as bnmlp.book.claims writes it
logger = logging.getLogger(__name__)


@dataclass
class Result:
    """What became of a page's code.

    ``state`` is executed, cached or failed; ``path`` the execution cache that holds its outputs.
    """

    key: str
    state: str
    path: str
    seconds: float
    made: float  # seconds since the epoch
    claims: list[dict] = field(default_factory=list)
    error: str = ""


def jobs() -> int:
    """Chapters at a time: as many as there are cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def share_cores(app: Sphinx, config) -> None:
    """Give each kernel its part of the cores: competing for them makes kernels far slower."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])


def write_in_parallel(app: Sphinx, env) -> None:
    """Write pages on all cores, after they have been read one by one."""
    app.parallel = max(app.parallel, jobs())


def results(env) -> dict[str, Result]:
    """What became of every page with code, in this build or the one that made its page."""
    if not hasattr(env, "bnmlp_results"):
        env.bnmlp_results = {}
    return env.bnmlp_results


def begin(app: Sphinx) -> None:
    """Keys are computed once in each build; what failed in the last is tried again."""
    app.bnmlp_keys = cache.Keys(Path(app.srcdir))
    for result in results(app.env).values():
        if result.state == "executed":
            result.state = "cached"
    for broken in (Path(app.outdir).parent / ".jupyter_cache").glob("*/*.failed"):
        shutil.rmtree(broken)


def stale(app: Sphinx, env) -> list[str]:
    """Pages whose code, package, data or settings changed, and those that failed."""
    found = results(env)
    return [
        name
        for name in env.found_docs
        if (key := app.bnmlp_keys.key(Path(env.doc2path(name))))
        and (name not in found or found[name].key != key or found[name].state == "failed")
    ]


def execute_ahead(app: Sphinx, env, docnames: list[str]) -> None:
    """Fill the execution caches for the pages about to be read."""
    started = time.monotonic()
    waiting = {}
    for name in docnames:
        key = app.bnmlp_keys.key(Path(env.doc2path(name)))
        if key is None:
            continue
        path = cache.folder(app, name) / key
        try:
            notebook = read(env, name)
            results(env)[name] = cached_result(notebook, Path(env.doc2path(name)), path)
            plotted.keep(app, notebook)
            os.utime(path)
        except Exception as error:  # none, or one that can't be read
            if path.exists():
                logger.info(f"{name}: its cached results are damaged ({error!r}), executing it")
            waiting[name] = key
    if waiting:
        with Nursery() if hasattr(os, "fork") else contextlib.nullcontext() as nursery:
            WarmKernelManager.nursery = nursery
            interruptible(Run(app, env, waiting).all())
    app.bnmlp_seconds = time.monotonic() - started


def use_cache(app: Sphinx, docname: str, source: list[str]) -> None:
    """Let MyST-NB take a page's outputs from the cache of its key."""
    result = results(app.env).get(docname)
    if result and app.bnmlp_keys.key(Path(app.env.doc2path(docname))):
        app.env.mystnb_config = app.env.mystnb_config.copy(execution_cache_path=result.path)


def read(env, docname: str) -> NotebookNode:
    """The notebook of a page, not executed."""
    page = Path(env.doc2path(docname))
    text = page.read_text(encoding="utf8")
    return create_nb_reader(str(page), env.myst_config, env.mystnb_config, text).read(text)


def cached_result(notebook: NotebookNode, page: Path, path: Path) -> Result:
    """What a cache holds for a notebook whose code it has executed.

    Captions and tags are part of what the cache matches, but not of the code: where they differ,
    the outputs are stored anew beside them.

    Args:
        notebook: The notebook.
        page: Its source.
        path: Folder of the cache.

    Returns:
        The result.

    Raises:
        FileNotFoundError: If there is no such cache.
        Exception: If it is damaged.
    """
    if not path.is_dir():
        raise FileNotFoundError(path)
    held = get_cache(path)
    (record,) = held.list_cache_records()
    outputs = iter(held.get_cache_bundle(record.pk).nb.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            executed = next(outputs)
            cell.outputs, cell.execution_count = executed.outputs, executed.execution_count
    seconds, made = record.data["execution_seconds"], record.created.timestamp()
    if held.create_hashed_notebook(notebook)[1] != record.hashkey:
        store(notebook, page, path, seconds)
    return Result(path.name, "cached", str(path), seconds, made, claims_in(notebook))


def claims_in(notebook: NotebookNode) -> list[dict]:
    """The claims that a notebook's outputs show."""
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.get("outputs", [])]
    return [dict(o.metadata[CLAIM]) for o in outputs if CLAIM in o.get("metadata", {})]


def interruptible(coroutine: Coroutine) -> None:
    """Run to the end in another thread, where nbclient can't catch signals; Ctrl-C cancels it."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(coroutine)
    with ThreadPoolExecutor(1) as pool, contextlib.closing(loop):
        future = pool.submit(loop.run_until_complete, task)
        try:
            future.result()
        except KeyboardInterrupt:
            loop.call_soon_threadsafe(task.cancel)
            wait([future])  # until the kernels have ended
            raise


class Run:
    """The executions of one build: longest first, a line for each."""

    def __init__(self, app: Sphinx, env, waiting: dict[str, str]) -> None:
        self.app, self.env = app, env
        self.expected = {name: self._expected(name) for name in waiting}
        self.waiting = dict(sorted(waiting.items(), key=lambda item: -self.expected[item[0]]))
        self.total, self.done = len(waiting), 0
        self.spent = self.foreseen = 0.0
        self.full = ""  # why nothing more can be kept

    def _expected(self, name: str) -> float:
        """Seconds of the last build, or of the table that comes with the book, or a guess."""
        if name in results(self.env):
            return results(self.env)[name].seconds
        table = Path(self.app.srcdir) / "book" / "data" / "audit" / "seconds.csv"
        lines = table.read_text(encoding="utf8").splitlines() if table.exists() else []
        told = dict(line.split(",") for line in lines if line[:1] != "#")
        return float(told.get(name, Path(self.env.doc2path(name)).stat().st_size / 1500))

    async def all(self) -> None:
        """Run everything."""
        logger.info(f"{self.total} chapters to execute, {jobs()} at a time")
        queue = list(self.waiting.items())

        async def worker() -> None:
            while queue and not self.full:
                name, key = queue.pop(0)
                try:
                    await self.one(name, key)
                except OSError as error:  # the others end what they have begun
                    self.full = f"cannot keep the results of {name}: {error}"

        await asyncio.gather(*(worker() for _ in range(jobs())))
        if self.full:
            raise ExtensionError(f"{self.full}; make room, make book goes on from here")

    async def one(self, name: str, key: str) -> None:
        """Run one page and keep what it showed."""
        start = time.monotonic()
        notebook = read(self.env, name)
        config = self.env.mystnb_config.copy(**notebook.metadata.get("mystnb", {}))
        page = Path(self.env.doc2path(name))
        error = await execute(notebook, page.parent, config.execution_timeout)
        seconds = time.monotonic() - start
        path = cache.folder(self.app, name) / (key + (".failed" if error else ""))
        store(notebook, page, path, seconds)
        results(self.env)[name] = Result(
            key, "failed" if error else "executed", str(path), seconds, time.time(),
            claims_in(notebook), error,
        )  # fmt: skip
        plotted.keep(self.app, notebook)
        cache.forget_old(self.app, name)
        self._say(name, seconds, error)

    def _say(self, name: str, seconds: float, error: str) -> None:
        self.done += 1
        self.spent += seconds
        self.foreseen += self.expected.pop(name)
        left = sum(self.expected.values()) * self.spent / max(self.foreseen, 1e-9) / jobs()
        end = f", about {minutes(left)} left" if self.expected else ""
        state = f" FAILED: {error.splitlines()[-1]}" if error else ""
        logger.info(f"[{self.done}/{self.total}] {name} {seconds:.0f} s{state}{end}")


def minutes(seconds: float) -> str:
    """A duration as a person says it."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


async def execute(notebook: NotebookNode, folder: Path, timeout: int) -> str:
    """Run a notebook in place.

    Returns:
        The traceback of the cell that failed, without colours; empty if none did.
    """
    with tempfile.TemporaryDirectory(prefix="bnmlp-") as sockets:
        # Between processes of one machine there is no need for the network.
        local = {"transport": "ipc", "ip": f"{sockets}/kernel"} if os.name == "posix" else {}
        client = NotebookClient(
            notebook,
            kernel_name=notebook.metadata.kernelspec.name,
            kernel_manager_class=WarmKernelManager,
            record_timing=False,  # cells with times would match no cells without
            timeout=timeout,
            # Outputs come through another socket: on a busy machine they may be seconds late.
            iopub_timeout=timeout,
            raise_on_iopub_timeout=True,
            resources={"metadata": {"path": str(folder)}},
            config=Config({"KernelManager": local}),
        )
        return await finish(client)


async def finish(client: NotebookClient) -> str:
    """Run a client to its end; see :func:`execute`."""
    try:
        await client.async_execute()
    except CellExecutionError as error:
        return re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()
    except (CellTimeoutError, DeadKernelError) as error:
        cell = next(
            (c for c in client.nb.cells if c.cell_type == "code" and not c.execution_count),
            client.nb.cells[-1],
        )
        text = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        cell.outputs = [
            new_output("error", ename=type(error).__name__, evalue=text, traceback=[text])
        ]
        return text
    return ""


def store(notebook: NotebookNode, page: Path, path: Path, seconds: float) -> None:
    """Keep an executed notebook in a cache of its own, which appears complete or not at all."""
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)
    bundle = CacheBundleIn(notebook, str(page), data={"execution_seconds": seconds})
    get_cache(part).cache_notebook_bundle(bundle, check_validity=False)
    part.rename(path)
