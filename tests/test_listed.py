"""What a page says of the whole book and of its own history."""

import subprocess
from datetime import date

import pytest
from docutils import nodes

from bnmlp_book import changed, listed


def commit(folder, day, **files):
    for name, text in files.items():
        (folder / "book").mkdir(exist_ok=True)
        (folder / "book" / f"{name}.md").write_text(text)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, "add", "."], check=True)
    subprocess.run(
        ["git", "-C", folder, *identity, "commit", "-q", "-m", "x", "--date", f"{day}T12:00:00Z"],
        check=True, env={"GIT_COMMITTER_DATE": f"{day}T12:00:00Z", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


@pytest.fixture
def clone(tmp_path):
    folder = tmp_path / "clone"
    subprocess.run(["git", "init", "-q", folder], check=True)
    commit(folder, "2026-01-02", one="a", two="a")
    commit(folder, "2026-03-04", two="b")
    return folder


def test_a_page_has_the_day_of_the_last_commit_that_changed_it(clone):
    assert changed.dates(clone) == {
        "book/one.md": date(2026, 1, 2),
        "book/two.md": date(2026, 3, 4),
    }


def test_without_a_history_of_its_own_a_book_has_no_days(clone, tmp_path):
    (clone / "copied").mkdir()
    assert changed.dates(clone / "copied") == changed.dates(tmp_path) == {}
    shallow = tmp_path / "shallow"
    source = f"file://{clone}"
    subprocess.run(["git", "clone", "-q", "--depth", "1", source, shallow], check=True)
    assert changed.dates(shallow) == {}


def test_a_caption_is_listed_by_its_first_sentence():
    half, rest = nodes.math("", "n = 0.5"), nodes.Text(" digits. Left: more. End.")
    caption = nodes.caption("", "", nodes.Text("A batch of "), half, rest)
    said = [node.astext() for node in listed.first_sentence(caption)]
    assert said == ["A batch of ", "n = 0.5", " digits."]
    short = nodes.caption("", "", nodes.Text("No end"))
    assert [node.astext() for node in listed.first_sentence(short)] == ["No end"]


def test_a_theorem_is_listed_without_the_parentheses_of_its_title():
    parts = nodes.Text(" (Rank "), nodes.math("", "d"), nodes.Text(" (this book))")
    said = [node.astext() for node in listed.title(nodes.title("", "", *parts))]
    assert said == ["Rank ", "d", " (this book)"]
    whole = nodes.title("", "", nodes.Text(" (Whole)"))
    assert [node.astext() for node in listed.title(whole)] == ["Whole"]
    assert listed.title(nodes.title()) == []
