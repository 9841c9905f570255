"""Letters that more than one page uses in formulas are on the notation page."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from bnmlp_book.sources import pages

markdown_it = pytest.importorskip("markdown_it")
plugins = pytest.importorskip("mdit_py_plugins")
from mdit_py_plugins.colon_fence import colon_fence_plugin  # noqa: E402
from mdit_py_plugins.dollarmath import dollarmath_plugin  # noqa: E402

ROOT = Path(__file__).parents[1]
NOTATION = ROOT / "book" / "reference" / "notation.md"
PARSER = (
    markdown_it.MarkdownIt()
    .enable("table")
    .use(colon_fence_plugin)
    .use(dollarmath_plugin, double_inline=True, allow_labels=True)
)
NO_TEXT = ("{literalinclude}", "{bibliography}", "{toctree}")
UPRIGHT = re.compile(r"\\(?:text|mathrm|operatorname|begin|end|label|tag)\*?\s*\{[^{}]*\}")
SCRIPT = re.compile(r"\\math(?:cal|frak)\s*\{?([A-Z])\}?")
GREEK = re.compile(
    r"\\((?:var)?(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|pi|rho"
    r"|sigma|tau|upsilon|phi|chi|psi|omega)|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi"
    r"|Omega)(?![A-Za-z])"
)


def formulas(text: str) -> list[str]:
    """Those of a text in MyST: in its paragraphs, boxes, tables and captions."""
    found = []
    for token in PARSER.parse(re.sub(r"\A---\n.*?^---\n", "", text, flags=re.M | re.S)):
        found += [t.content for t in token.children or [] if t.type.startswith("math_")]
        if token.type.startswith("math_block") or token.info.startswith("{math}"):
            found.append(re.sub(r"^:\w+:.*$", "", token.content, flags=re.M))
        elif token.info.startswith("{code-cell}"):
            found += formulas(caption(token.content))
        elif token.info.startswith("{") and not token.info.startswith(NO_TEXT):
            found += formulas(token.content)
    return found


def caption(cell: str) -> str:
    header = re.match(r"---\n(.*?)^---\n", cell, re.M | re.S)
    options = yaml.safe_load(header[1]) if header else {}
    return options.get("mystnb", {}).get("figure", {}).get("caption", "")


def letters(formula: str) -> set[str]:
    """Greek, script and capital letters; small Latin ones are mostly indices and samples."""
    formula = UPRIGHT.sub(" ", formula)
    found = {f"script {letter}" for letter in SCRIPT.findall(formula)}
    found |= {f"\\{name}" for name in GREEK.findall(formula)}
    return found | set(re.findall(r"[A-Z]", re.sub(r"\\[A-Za-z]+", " ", SCRIPT.sub(" ", formula))))


def letters_of(text: str) -> set[str]:
    return set().union(*map(letters, formulas(text)))


TEXT = r"""---
title: $A$ is not read
---
A $B_i+\alpha$ costs `$C$`, in a table

| a | b |
| --- | --- |
| $D$ | 1 |

:::{dropdown} Proof
$$
\mathcal E\mathrm{F}\varphi \quad\text{Gamma}
$$
:::

````{prf:theorem} Name
```{math}
:label: H-label
\operatorname{Tr}\Gamma=\Tr J
```
````

```{code-cell} ipython3
---
mystnb:
  figure:
    caption: Against $\lambda$.
---
K = "$M$"
```
"""


def test_letters_are_found_wherever_formulas_stand():
    expected = {"B", "D", "J", "script E", r"\alpha", r"\varphi", r"\Gamma", r"\lambda"}
    assert letters_of(TEXT) == expected


def test_letters_of_several_pages_are_on_the_notation_page():
    used = defaultdict(list)
    for page in pages(ROOT):
        if page != NOTATION:
            for letter in letters_of(page.read_text(encoding="utf8")):
                used[letter].append(page.stem)
    assert len(used) > 40, "the pages have formulas"
    known = letters_of(NOTATION.read_text(encoding="utf8"))
    missing = {a: where for a, where in used.items() if len(where) > 1 and a not in known}
    assert not missing
