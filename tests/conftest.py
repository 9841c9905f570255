"""One seed for every test; float64 is asked for where it matters."""

import functools
import os
import shutil

import hypothesis
import pytest
import torch

from bnmlp.machine.settings import data_root

if os.environ.get("BNMLP_DATA"):  # notebooks run in their own folders
    os.environ["BNMLP_DATA"] = str(data_root().absolute())

# How long a first call takes says nothing about the code.
hypothesis.settings.register_profile("bnmlp", deadline=None)
hypothesis.settings.load_profile("bnmlp")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give one worker all tests that share a book; xdist's own groups are lost on pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class OneBook(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, _ = nodeid.partition("::")
            return file if file.endswith("test_book_rebuild.py") else nodeid

    return OneBook(config, log)


class WarmKernels:
    """Runs chapters in kernels that start warm, as the build does; nbmake itself asks for none."""

    nursery = None

    def pytest_runtest_setup(self, item):
        if not getattr(item, "nbmake", False) or self.nursery:
            return
        import nbmake.nb_run
        from nbclient import NotebookClient

        from bnmlp_book.kernels import Nursery, WarmKernelManager

        self.nursery = WarmKernelManager.nursery = Nursery().__enter__()
        nbmake.nb_run.NotebookClient = functools.partial(
            NotebookClient, kernel_manager_class=WarmKernelManager
        )

    def pytest_unconfigure(self):
        if self.nursery:
            self.nursery.__exit__()


def pytest_configure(config):
    if hasattr(os, "fork"):
        config.pluginmanager.register(WarmKernels())


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by Playwright."""
    names = "chromium", "google-chrome"
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not path:
        pytest.skip("no Chromium: install it or set CHROMIUM to its path")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def float64():
    """Random tensors of this test in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
