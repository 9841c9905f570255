"""A build always ends with a book, says what it found, and runs again exactly what changed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "rebuild"
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.slow  # one worker runs all of them: see conftest.py


class Book:
    """A copy of the real toolchain around chapters and a package of a few lines."""

    def __init__(self, root: Path):
        self.root = root
        for name in ("Makefile", "_config.yml", "requirements.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, root)
        for name in ("_ext", "_static", "_extra"):
            shutil.copytree(ROOT / "book" / name, root / "book" / name)
        shutil.copytree(FIXTURES, root, dirs_exist_ok=True)
        shutil.copy(ROOT / "bnmlp" / "book" / "claims.py", root / "bnmlp" / "book")
        (root / "installed").touch()
        self.log = root / "log"

    def start(self, target: str = "book", limit: str = "", **variables: str) -> subprocess.Popen:
        """Run a target of the Makefile with the environment that runs the tests."""
        settings = {"PYTHONPATH": str(self.root), "BNMLP_SCALE": "laptop", "BNMLP_SEED": "0"}
        command = f"{limit} exec make {target} BIN={BIN} INSTALLED=installed"
        with self.log.open("w") as log:
            return subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.root,
                env={**os.environ, **settings, **variables},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Tests started in the background of a shell inherit that interrupts are ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def make(self, target: str = "book", limit: str = "", **variables: str) -> tuple[int, str]:
        """Run a target to its end: its exit status and what it printed."""
        status = self.start(target, limit, **variables).wait()
        return status, self.log.read_text()

    def strict(self, command: str = "check") -> tuple[int, str]:
        """The part of ``make check`` that reads what the build found, or another command."""
        done = subprocess.run(
            [sys.executable, "-m", "bnmlp_book", command],
            cwd=self.root, env={**os.environ, "PYTHONPATH": f"{self.root}/book/_ext"},
            capture_output=True, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def answer(self) -> int:
        """The number on the chapter's page, which the landing page repeats."""
        (here,) = re.findall(r"The answer is (\d+)\.", self.text("book/answer"))
        assert f"Elsewhere it is {here}." in self.text("book/index")
        return int(here)

    def text(self, page: str) -> str:
        html = (self.root / f"_build/html/{page}.html").read_text()
        return re.sub(r"<[^>]+>", "", html)


def executed(build: tuple[int, str]) -> list[str]:
    """The chapters that a build ran, which ended well."""
    status, output = build
    assert status == 0, output
    return sorted(re.findall(r"\[\d+/\d+\] book/(\w+) ", output))


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    book = Book(tmp_path_factory.mktemp("rebuild"))
    build = book.make()
    assert executed(build) == ["answer", "other", "slow"]
    assert "3 executed, 0 from cache" in build[1]
    assert "Claims: 1 of 1 hold in this build" in build[1]
    assert "TCP" not in build[1]
    assert "rises from left to right" in (book.root / "_build/html/book/other.html").read_text()
    assert book.strict() == (0, book.strict()[1])
    assert "1 claim (1 reproduced), holds · 1 min to read" in book.text("book/answer")
    assert re.search(r"Answer\s*It is 42\.", book.text("book/answer"))
    written = (book.root / "_build/html/book/answer.html").read_text()
    assert (
        "\N{MINUS SIGN}5\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10<sup>\N{MINUS SIGN}13</sup>"
        in written
    )
    front = (book.root / "_build/html/book/index.html").read_text()
    assert re.search(
        r"It takes a minute, and measures <a[^>]*#claim-answer-is-right\">42</a>", front
    )
    assert "leads to a minute." in front
    return book


def test_a_second_build_changes_nothing(book):
    before = (book.root / "_build/html/book/answer.html").stat().st_mtime_ns
    build = book.make()
    assert executed(build) == []
    assert "0 executed, 3 from cache" in build[1]
    assert (book.root / "_build/html/book/answer.html").stat().st_mtime_ns == before
    assert book.strict()[0] == 0


def test_editing_prose_executes_nothing(book):
    book.edit("book/answer.md", "Some prose.", "Other prose.")
    assert executed(book.make()) == []
    assert "Other prose." in book.text("book/answer")
    assert "Some prose." not in book.text("book/answer")


def test_editing_a_caption_or_a_tag_executes_nothing(book):
    book.edit("book/other.md", "ipython3\n", "ipython3\n:tags: [hide-input]\n\n")
    for _ in range(2):
        assert executed(book.make()) == []
        assert "tag_hide-input" in (book.root / "_build/html/book/other.html").read_text()
    book.edit("book/other.md", ":tags: [hide-input]\n\n", "")
    assert executed(book.make()) == []


def test_damaged_results_are_executed_again(book):
    (held,) = (book.root / "_build/.jupyter_cache/book.other").glob("*/global.db")
    held.write_bytes(b"not a database")
    book.edit("book/other.md", "# Another chapter", "# Another chapter of the book")
    assert executed(book.make()) == ["other"]


def test_editing_one_chapter_executes_only_that_one(book):
    before = book.answer()
    book.edit("book/answer.md", "answer()", "answer() + 10")
    assert executed(book.make()) == ["answer"]
    assert book.answer() == before + 10
    assert str(before + 10) in book.text("book/scoreboard")
    front = (book.root / "_build/html/book/index.html").read_text()
    assert f'#claim-answer-is-right">{before + 10}</a>' in front


def test_editing_a_function_executes_the_chapters_that_use_it(book):
    before = book.answer()
    book.edit("bnmlp/answer.py", "return", "return 3 +")
    assert executed(book.make()) == ["answer"]
    assert book.answer() == before + 3
    book.edit("bnmlp/product.py", "6 * 7", "6 * 8")
    assert executed(book.make()) == ["other"]
    assert "48" in book.text("book/other")
    book.edit("bnmlp/product.py", "The product that", "What")
    assert executed(book.make()) == [], "a docstring decides no result"


def test_another_seed_is_another_experiment_and_the_first_is_kept(book):
    told = 'import os\n\nprint(os.environ.get("BNMLP_DATA"))\n'
    book.edit("book/other.md", "\nproduct()\n", f"\n{told}product()\n")
    assert executed(book.make()) == ["other"]
    there = book.make(BNMLP_SEED="1", BNMLP_DATA="some folder")
    assert executed(there) == ["answer", "other", "slow"]
    assert f"{book.root}/some folder" in book.text("book/other"), "chapters run in another folder"
    assert executed(book.make()) == []


def test_a_claim_that_does_not_hold_is_shown_and_named_and_refused(book):
    book.edit("book/answer.md", "high=100", "high=1")
    for attempt in ("first", "second"):
        status, output = book.make()
        assert status == 0, output
        assert "Claims: 0 of 1 hold in this build" in output, attempt
        assert re.search(
            r"does not hold: answer-is-right .book/answer.: measured \d+, needs ≤ 1", output
        )
        assert "does not hold in this build" in book.text("book/answer")
        assert "does not hold" in book.text("book/scoreboard")
        assert "Not in this build: answer-is-right" in book.text("book/index")
        status, output = book.strict()
        assert status == 1
        assert "claim answer-is-right does not hold" in output
    book.edit("book/answer.md", "high=1,", "high=100,")
    executed(book.make())
    assert book.strict()[0] == 0


def test_a_cell_that_fails_is_shown_and_named_and_refused(book):
    book.edit("book/answer.md", "result = ", "result = 1 / 0 + ")
    for attempt in ("first", "second"):
        status, output = book.make()
        assert status == 0, output
        assert "failed: book/answer: ZeroDivisionError" in output, attempt
        assert "ZeroDivisionError" in book.text("book/answer")
        assert "48" in book.text("book/other")
        assert "A cell failed on" in book.text("book/index")
        status, output = book.strict()
        assert status == 1
        assert "a cell fails on book/answer" in output
    book.edit("book/answer.md", "1 / 0 + ", "")
    assert executed(book.make()) == []
    assert book.strict()[0] == 0


def test_a_number_that_nobody_measured_is_refused_until_it_is_repaired(book):
    book.edit("book/answer.md", "{glue:text}`answer`", "{glue:text}`question`")
    for attempt in ("first", "second"):
        assert executed(book.make()) == []
        status, output = book.strict()
        assert status == 1, attempt
        assert "question" in output
    book.edit("book/answer.md", "{glue:text}`question`", "{glue:text}`answer`")
    assert executed(book.make()) == []
    assert book.strict()[0] == 0


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("{at-a-glance}", "{note}", "has no {at-a-glance} under its title"),
        ("Stops: nowhere.", "", "needs the lines"),
        ("Answer: It is {glue:text}`answer:d`.", "Answer: It is 42.", "needs one number"),
        (":needs: other", ":needs: nothing", "there is no page nothing"),
    ],
)
def test_a_box_that_is_missing_or_wrong_is_refused(book, old, new, problem):
    book.edit("book/answer.md", old, new)
    assert executed(book.make()) == []
    status, output = book.strict()
    assert status == 1 and problem in output, output
    book.edit("book/answer.md", new or "Measured: here.", old if new else f"{old}\nMeasured: here.")
    assert executed(book.make()) == []
    assert book.strict()[0] == 0


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_keeps_what_was_executed(book, end):
    word = f"x + {end.name!r}"
    for name in ("answer", "other", "slow"):
        book.edit(f"book/{name}.md", "ipython3\n", f"ipython3\n# {word}\n")
    process = book.start(SECONDS_TO_SLEEP="1000")
    deadline = time.monotonic() + 120
    while len(re.findall(r"\[\d/3\]", book.log.read_text())) < 2:
        assert time.monotonic() < deadline, book.log.read_text()
        time.sleep(0.1)
    status, output = book.strict("build")
    assert status == 1 and re.search(r"another build .* .process \d+", output), output
    os.killpg(process.pid, end)
    assert process.wait(timeout=60) != 0
    if end == signal.SIGINT:
        assert "make book goes on" in book.log.read_text()
    assert executed(book.make()) == ["slow"]
    assert book.answer() > 0


def test_a_full_disk_loses_nothing_that_was_executed(book):
    for name in ("answer", "slow"):
        book.edit(f"book/{name}.md", "ipython3\n", "ipython3\n# full disk\n")
    full = "ulimit -f 2000;"  # kilobytes in a file: the slow chapter shows more than that
    status, output = book.make(limit=full, LETTERS_TO_SHOW="3000000")
    assert status != 0
    assert "cannot keep the results of book/slow" in output, output
    assert "make book goes on" in output
    assert executed(book.make()) == ["slow"]
    assert book.strict()[0] == 0
