"""A rebuild runs again exactly what changed, and a book with a failure never passes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "rebuild"
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("rebuild")]


class Book:
    """A copy of the real toolchain around a chapter and a package of a few lines."""

    def __init__(self, root: Path):
        self.root = root
        for name in ("Makefile", "_config.yml", "requirements.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, root)
        for name in ("_ext", "_static", "_extra"):
            shutil.copytree(ROOT / "book" / name, root / "book" / name)
        shutil.copytree(FIXTURES, root, dirs_exist_ok=True)
        shutil.copy(ROOT / "bnmlp" / "claims.py", root / "bnmlp")
        (root / "installed").touch()

    def make(self) -> subprocess.CompletedProcess:
        """Run ``make book`` with the environment that runs the tests."""
        environment = {**os.environ, "PYTHONPATH": str(self.root), "BNMLP_SCALE": "laptop"}
        return subprocess.run(
            ["make", "book", f"BIN={BIN}", "INSTALLED=installed"],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
        )

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def answer(self) -> int:
        """The number on the chapter's page, which the landing page repeats."""
        (here,) = re.findall(r"The answer is (\d+)\.", self.text("book/answer"))
        assert f"Elsewhere it is {here}." in self.text("book/index")
        return int(here)

    def text(self, page: str) -> str:
        html = (self.root / f"_build/html/{page}.html").read_text()
        return re.sub(r"<[^>]+>", "", html)


def executed(build: subprocess.CompletedProcess) -> list[str]:
    assert build.returncode == 0, build.stdout + build.stderr
    return re.findall(r"(\w+)\.md: Executed notebook", build.stdout + build.stderr)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    book = Book(tmp_path_factory.mktemp("rebuild"))
    assert sorted(executed(book.make())) == ["answer", "other"]
    return book


def test_a_second_build_changes_nothing(book):
    before = (book.root / "_build/html/book/answer.html").stat().st_mtime_ns
    assert executed(book.make()) == []
    assert (book.root / "_build/html/book/answer.html").stat().st_mtime_ns == before


def test_editing_prose_executes_nothing(book):
    book.edit("book/answer.md", "Some prose.", "Other prose.")
    assert executed(book.make()) == []
    assert "Other prose." in book.text("book/answer")
    assert "Some prose." not in book.text("book/answer")


def test_editing_one_chapter_executes_only_that_one(book):
    before = book.answer()
    book.edit("book/answer.md", "answer()", "answer() + 10")
    assert executed(book.make()) == ["answer"]
    assert book.answer() == before + 10
    assert str(before + 10) in book.text("book/scoreboard")


def test_editing_the_package_executes_again(book):
    before = book.answer()
    book.edit("bnmlp/answer.py", "return", "return 3 +")
    assert sorted(executed(book.make())) == ["answer", "other"]
    assert book.answer() == before + 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("high=100", "high=1", "claim 'answer-is-right' fails"),
        ("result = ", "result = 1 / 0 + ", "ZeroDivisionError"),
        ("{glue:text}`answer`", "{glue:text}`question`", "question"),
    ],
    ids=["a claim that fails", "a cell that fails", "a number that nobody measured"],
)
def test_a_failure_stops_every_build_until_it_is_repaired(book, old, new, message):
    book.edit("book/answer.md", old, new)
    for attempt in ("first", "second"):
        build = book.make()
        assert build.returncode != 0, f"the {attempt} build passed"
        assert message in build.stdout + build.stderr
    book.edit("book/answer.md", new, old)
    assert executed(book.make()) == []
