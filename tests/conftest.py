"""One seed for every test; float64 is asked for where it matters."""

import os

import hypothesis
import pytest
import torch

from bnmlp.machine.settings import data_root

if os.environ.get("BNMLP_DATA"):  # notebooks run in their own folders
    os.environ["BNMLP_DATA"] = str(data_root().absolute())

# How long a first call takes says nothing about the code.
hypothesis.settings.register_profile("bnmlp", deadline=None)
hypothesis.settings.load_profile("bnmlp")


def pytest_xdist_make_scheduler(config, log):
    """Give one worker all tests that share a book; xdist's own groups are lost on pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class OneBook(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, _ = nodeid.partition("::")
            return file if file.endswith("test_book_rebuild.py") else nodeid

    return OneBook(config, log)


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
