"""Builds keep out of each other's way, and chapters find what the build was told."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bnmlp_book import environment, lock, status

ROOT = Path(__file__).parents[1]
EXTENSION = {**os.environ, "PYTHONPATH": str(ROOT / "book" / "_ext")}

HOLDER = """
import subprocess, sys, pathlib
from bnmlp_book.lock import only_build
with only_build(pathlib.Path("_build")):
    child = subprocess.Popen([sys.executable, "-c", "input()"])
    print(child.pid, flush=True)
    input()
"""

pytestmark = pytest.mark.skipif(lock.fcntl is None, reason="locks of POSIX")


@contextlib.contextmanager
def holder(folder):
    """A process that builds, with a child that outlives it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=folder, env=EXTENSION, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        child = int(process.stdout.readline())
        yield process
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_a_second_build_is_refused_and_told_the_process(tmp_path):
    page = tmp_path / "_build" / "html" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("a page of the build that runs")
    with holder(tmp_path) as process:
        done = subprocess.run(
            [sys.executable, "-m", "bnmlp_book", "build"],
            cwd=tmp_path, env=EXTENSION, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"another build of this book runs in {tmp_path}/_build" in done.stderr
    assert f"(process {process.pid})" in done.stderr
    assert page.exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_build_that_dies_keeps_nobody_out(tmp_path, end):
    with holder(tmp_path) as process:
        process.send_signal(end)
        with lock.only_build(tmp_path / "_build"):
            written = (tmp_path / "_build" / "build.lock").read_text()
    assert written == str(os.getpid())


def test_other_folders_are_not_kept_out(tmp_path):
    with lock.only_build(tmp_path / "one"):
        start = time.monotonic()
        with lock.only_build(tmp_path / "two"):
            assert time.monotonic() - start < lock.PATIENCE


@pytest.mark.parametrize("given", ["data", "./data", "~/data", "/data", "", None])
def test_every_chapter_finds_the_folder_that_the_build_was_told(given, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("BNMLP_DATA", raising=False)
    if given is not None:
        monkeypatch.setenv("BNMLP_DATA", given)
    expected = "/data" if given == "/data" else f"{tmp_path}/data"
    assert environment.data_folder() == ({"BNMLP_DATA": expected} if given else {})


def test_a_damaged_dataset_is_named_and_costs_no_page(monkeypatch, tmp_path):
    monkeypatch.setenv("BNMLP_DATA", str(tmp_path))
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_bytes(b"half a file")
    rows = {name: row for name, *row in status.dataset_rows()}
    assert "cifar10" not in rows
    assert re.match("damaged: .*train-images-idx3-ubyte is truncated", rows["mnist"][0])
    assert re.fullmatch("`[0-9a-f]{64}`", rows["mnist5k"][1])
