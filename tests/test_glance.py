"""The box under a chapter's title: its lines, what it counts, and the functions that it finds."""

import pytest

from bnmlp_book import glance

LINES = [
    "Question: Is it so?",
    "Answer: Yes, $d:n$ is {glue:text}`rate:.2f`,",
    "  and: so on.",
    "Holds: always.",
]


def test_lines_begin_with_their_words_and_go_on_without():
    assert glance.entries(LINES) == {
        "Question": "Is it so?",
        "Answer": "Yes, $d:n$ is {glue:text}`rate:.2f`, and: so on.",
        "Holds": "always.",
    }


def claim(verdict: str, holds: bool = True, judged: bool = True) -> dict:
    return {"verdict": verdict, "holds": holds, "judged": judged}


@pytest.mark.parametrize(
    ("claims", "text"),
    [
        ([claim("reproduced")], " (1 reproduced), holds"),
        ([claim("corrected"), *2 * [claim("this book")]], " (2 own, 1 corrected), all hold"),
        ([claim("this book"), claim("this book", holds=False)], " (2 own), 1 not holding"),
        ([claim("this book", judged=False)], " (1 own), not judged at this scale"),
    ],
)
def test_verdicts_are_counted_and_what_does_not_hold_is_said(claims, text):
    assert glance.outcome(claims) == text


def test_reading_takes_the_main_line_only():
    words = "word " * glance.WORDS_A_MINUTE
    unread = [
        f"```{{code-cell}} ipython3\n{words}\n```",
        f":::{{dropdown}} Proof\n{words}\n\n```{{math}}\nx\n```\n{words}\n:::",
        f"````{{solution-start}} ex\n````\n{words}\n````{{solution-end}}\n````",
        f":::{{at-a-glance}}\n{words}\n:::",
    ]
    page = "\n\n".join([f"---\nkey: {words}\n---\n# A title", words, *unread, words])
    assert glance.minutes_to_read(page) == 2
    assert glance.minutes_to_read("# A title\n") == 1


def test_functions_are_known_by_import_and_by_module():
    cells = [
        "import bnmlp\nfrom bnmlp import batch_norm as bn\nfrom bnmlp.theory import meanfield",
        "import torch\nfrom bnmlpish import other",
        "bn(torch.ones(2)), meanfield.chi(1), bnmlp.measure(1), other.chi()",
    ]
    names = glance.used_names(cells)
    assert {"bnmlp.batch_norm", "bnmlp.theory.meanfield.chi", "bnmlp.measure"} <= set(names)
    assert not [name for name in names if "torch" in name or "other" in name]
    assert len(names) == len(set(names))


def test_described_names_are_full_names(tmp_path):
    page = tmp_path / "api.md"
    page.write_text(
        ".. currentmodule:: bnmlp\n\n.. autofunction:: batch_norm\n\n"
        ".. autoclass:: BNMLP\n   :members: forward\n\n.. autofunction:: bnmlp.theory.chi\n"
    )
    names = glance.described_names(page)
    assert names == ("bnmlp.batch_norm", "bnmlp.BNMLP", "bnmlp.theory.chi")
