"""``python -m bnmlp_book build`` builds the book and says what it found; ``check`` is strict.

``notebooks`` writes every chapter as a notebook.
"""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import lock, report

ROOT = Path.cwd()
SITE = ROOT / "_build" / "html"


def build() -> int:
    """Build what has changed, unless another build is at it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what it started, as Ctrl-C
    try:
        with lock.only_build(SITE.parent):
            return build_alone()
    except lock.BusyError as error:
        print(error, file=sys.stderr)
        return 1


def build_alone() -> int:
    """Build; an interrupted or unclean build is written anew, from its results."""
    path = SITE.parent / report.REPORT
    clean = path.exists() and not report.read(SITE)["warnings"]
    if not clean:  # Sphinx reads unchanged pages no more, and would forget what it warned of
        for name in ("html", ".doctrees", "jupyter_execute", "figures"):
            shutil.rmtree(SITE.parent / name, ignore_errors=True)
    path.unlink(missing_ok=True)
    start = time.monotonic()
    try:
        command = [Path(sys.executable).with_name("jupyter-book"), "build", ".", "-n"]
        status = subprocess.run(command).returncode
    except KeyboardInterrupt:
        print("\ninterrupted: what was executed is kept, make book goes on", file=sys.stderr)
        return 130
    if not path.exists():
        print("no book: the build ended with an error, see above", file=sys.stderr)
        return status or 1
    found = report.read(SITE)
    print("\n" + report.summary(found, SITE, time.monotonic() - start))
    return 1 if found["missing"] else 0


def check() -> int:
    """Refuse whatever a reader should not meet."""
    found = report.read(SITE)
    print(report.summary(found, SITE))
    problems = report.problems(found)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def notebooks() -> int:
    """Write every chapter as a notebook into ``.notebooks``, for nbmake."""
    from . import notebooks, sources

    for page in sources.pages(ROOT):
        if sources.code_cells(page):
            path = (ROOT / ".notebooks" / page.relative_to(ROOT)).with_suffix(".ipynb")
            notebooks.write(notebooks.notebook(page), path)
    return 0


if __name__ == "__main__":
    sys.exit({"build": build, "check": check, "notebooks": notebooks}[sys.argv[1]]())
