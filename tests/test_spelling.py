"""British spelling is asked of prose, wherever it stands, and not of code."""

import re
import sys
from pathlib import Path

import pytest

from bnmlp_book.spelling import misspelt, of_markdown, of_python

PAGE = """
---
file_format: mystnb
---

# A heading word

Prose word, `code()` and ``more `code` here``, {term}`label`, $formula$, [a link](target.md),
and [another
link](other/target.md) on https://example.org/address in file.py with name_of and x=5.

```{code-cell} ipython3
---
mystnb:
  figure:
    name: fig-name
    caption: A caption word
---
value = code("token")  # comment word
sentence = f"message word {code} more"
```

```{code-cell} ipython3
:tags: [hide]

other = code
```

```bash
code --flag
```

:::{note}
The note word.
:::

$$
formula
$$
"""
PROGRAM = '''"""Docstring word.

Args:
    argument: What it is word.

>>> code(1)
"""

def code(argument, way="token"):
    # comment word
    raise ValueError(f"message word {argument.code}: {argument!r} code=3")
'''


@pytest.mark.parametrize(
    ("extract", "text", "words"), [(of_markdown, PAGE, 6), (of_python, PROGRAM, 4)]
)
def test_prose_is_kept_in_its_place_and_code_is_not(extract, text, words):
    left = extract(text)
    assert [len(line) for line in left.split("\n")] == [len(line) for line in text.split("\n")]
    names = r"code|token|formula|target|address|label|argument|name_of|file"
    assert not re.findall(names, left)
    assert left.count("word") == words
    for found in re.finditer("word", left):
        assert text[found.start() : found.end()] == "word"


@pytest.fixture
def british(tmp_path):
    if not Path(sys.executable).with_name("typos").is_file():
        pytest.skip("typos is not installed")

    def found(text, name="page.md"):
        path = tmp_path / name
        path.write_text(text)
        return misspelt(tmp_path, [path])

    return found


def test_american_spelling_and_slips_are_found_with_their_lines(british):
    pairs = {
        "behavior": "behaviour", "center": "centre", "normalization": "normalisation",
        "initialized": "initialised", "modeling": "modelling", "labeled": "labelled",
        "analyze": "analyse", "favor": "favour", "recieve": "receive",
    }  # fmt: skip
    found = british("\n".join(f"A {word} here" for word in pairs))
    expected = [
        f"page.md:{n}: {wrong}, in British English {right}"
        for n, (wrong, right) in enumerate(pairs.items(), 1)
    ]
    assert sorted(found) == sorted(expected)


def test_british_prose_and_american_code_pass(british):
    assert not british(PAGE)
    assert not british('def f(center):\n    """Behaviour of `color`."""\n', "module.py")
    assert british('def f(center):\n    """Behavior of colors."""\n', "module.py")
