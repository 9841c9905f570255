"""British spelling of whatever readers read: ``python -m bnmlp_book.spelling``.

Pages, docstrings, comments and messages are given to ``typos``, with everything that is code
blanked out, so that places stay. Words that it should let pass stand in ``pyproject.toml``.
"""

import io
import json
import re
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[3]
TEXTS = ("*.md", "*.yml", "book/**/*.md", "bnmlp/**/*.py", "book/**/*.py")
CODE_IN_STRINGS = {"book/_ext/bnmlp_book/mutations.py"}
CELL = re.compile(
    r"^(`{3,})\{code-cell\}[^\n]*\n(?P<about>---\n.*?^---\n|(?::[^\n]*\n)*)(?P<code>.*?)^\1 *$",
    re.M | re.S,
)
CODE = re.compile(
    r"^ *(`{3,})(?:(?!\{)|\{(?:math|literalinclude|code-block|bibliography)\})[^\n]*\n.*?^ *\1 *$",
    re.M | re.S,
)
EXAMPLE = re.compile(r"^ *(?:>>>|\.\.\.) .*$", re.M)
PARTS = (
    r"(?<!`)(`+)(?!`)(?:(?!\n\s*\n).)+?(?<!`)\1(?!`)",  # code in a paragraph, contents of roles
    r"\$\$.+?\$\$|\$[^$\n]+\$",  # formulas
    r"\]\([^)\s]+\)|https?://\S+|[\w*/-]*/[\w*./-]+",  # targets of links, addresses, paths
    r"\{[^{}\n]*\}|^:[\w-]+: [\w.-]+$",  # names of roles, values of f-strings, options
    r"^ {4,}\w+: |\b\w+=\S*",  # names of arguments
    r"\b\w+\.\w+[\w.]*|\b\w+_\w*|\b_\w+",  # other names
)
NO_PROSE = re.compile("|".join(PARTS), re.M | re.S)
Span = tuple[int, int]


def main() -> int:
    """Print every word that is not spelt the British way, with its place."""
    paths = {path for pattern in TEXTS for path in ROOT.glob(pattern)}
    found = misspelt(ROOT, paths - {ROOT / name for name in CODE_IN_STRINGS})
    for place in found:
        print(place)
    return 1 if found else 0


def misspelt(root: Path, paths: Iterable[Path]) -> list[str]:
    """Places of misspelt words in files below ``root``, with what may be meant."""
    typos = Path(sys.executable).with_name("typos")  # its wheel brings a program, no module
    if not typos.is_file():
        raise RuntimeError(f"no {typos}: remove .venv/.installed and run make lint again")
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            copy = Path(folder, f"{path.relative_to(root)}.txt")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(prose(path), encoding="utf8")
        command = [typos, "--config", ROOT / "pyproject.toml", "--locale", "en-gb", "--sort"]
        done = subprocess.run(
            [*command, "--format", "json", "--no-check-filenames", folder],
            capture_output=True, text=True,
        )  # fmt: skip
    if done.stderr:
        raise RuntimeError(f"typos: {done.stderr}")
    return [_place(json.loads(line), folder) for line in done.stdout.splitlines()]


def _place(found: dict, folder: str) -> str:
    path = Path(found["path"]).relative_to(folder).with_suffix("")
    meant = " or ".join(found["corrections"])
    return f"{path}:{found['line_num']}: {found['typo']}, in British English {meant}"


def prose(path: Path) -> str:
    """The text of a file in its lines, with blanks for all that is not prose."""
    text = path.read_text(encoding="utf8")
    return of_python(text) if path.suffix == ".py" else of_markdown(text)


def of_markdown(text: str) -> str:
    """Prose of a page; of its code cells captions, comments, docstrings and sentences."""
    return _blank(CELL.sub(_of_cell, text), CODE, NO_PROSE)


def _of_cell(cell: re.Match) -> str:
    first, last = cell.start("about") - cell.start(), cell.end("code") - cell.start()
    return (
        " " * (first - 1)
        + "\n"
        + cell["about"]
        + of_python(cell["code"])
        + " " * (len(cell[0]) - last)
    )


def of_python(text: str) -> str:
    """Comments and strings with blanks in them, of a program, in its lines."""
    kept = [" " if letter != "\n" else "\n" for letter in text]
    for start, end in _sentences(text):
        kept[start:end] = text[start:end]
    return _blank("".join(kept), EXAMPLE, NO_PROSE)


def _sentences(text: str) -> Iterable[Span]:
    """Where comments, docstrings and other strings of more than a word are."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    wanted = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in wanted and " " in token.string:
            (row, column), (last, end) = token.start, token.end
            yield starts[row - 1] + column, starts[last - 1] + end


def _blank(text: str, *patterns: re.Pattern) -> str:
    for pattern in patterns:
        text = pattern.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    return text


if __name__ == "__main__":
    sys.exit(main())
