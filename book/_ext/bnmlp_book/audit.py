"""Measure every claim again under what it must survive: seeds, threads, instruction sets, rounding.

``python -m bnmlp_book.audit`` runs the code of all chapters once for each build of ``BUILDS`` and
writes ``book/data/audit/claims.csv``. Results of chapters whose code, data and package have not
changed are kept in ``_build/audit``, so it can be stopped at any time and goes on.
"""

import argparse
import ast
import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from .dependencies import Package, data_files
from .environment import data_folder
from .sources import claims, code_cells, pages

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "_build" / "audit"
TABLE = ROOT / "book" / "data" / "audit" / "claims.csv"
SECONDS = TABLE.with_name("seconds.csv")

# What differs from a plain build on one thread. On MKL's side the two last follow its own names.
BUILDS = {f"seed-{seed}": {"BNMLP_SEED": str(seed)} for seed in range(9)} | {
    "two-threads": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "plain": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3",
        "BNMLP_COMPILER": "none",
    },
    "rounding": {},
}
# Distance that a live claim keeps from its bounds, in standard deviations over the builds.
LEAST_MARGIN = 3

# Modules that show results and change none.
SHOWING = ("bnmlp.book.claims", "bnmlp.book.plotting")

# Weights of the build "rounding" differ from the others' in their last digit.
ROUNDING = (
    "layers/initialization.py",
    "matrix.normal_(generator=generator)",
    "matrix.normal_(generator=generator).mul_("
    "1 + 1e-7 * torch.randn(matrix.shape, generator=torch.Generator().manual_seed(offset)))",
)


def main() -> None:
    """Run the builds that are missing, then write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="chapters at a time")
    parser.add_argument("--builds", nargs="*", default=list(BUILDS), choices=list(BUILDS))
    parser.add_argument("--chapters", nargs="*", help="slugs; all if omitted")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--mutate", action="store_true", help="break the package on purpose")
    parser.add_argument("--budget", type=float, default=60, help="seconds at a time, each mutation")
    parser.add_argument("--mutations", nargs="*", default=[], help="names; all if omitted")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker), options.jobs)
        return
    if options.mutate:
        from . import mutations

        mutations.run(options.jobs, options.budget, options.mutations)
        return
    chapters = {page.stem: page for page in pages(ROOT) if code_cells(page)}
    if options.chapters:
        chapters = {slug: chapters[slug] for slug in options.chapters}
    if not options.table_only:
        for name in options.builds:
            edit = ROUNDING if name == "rounding" else None
            run_build(name, chapters, options.jobs, BUILDS[name], edit)
    write_table()
    weak, text = weak_claims(set(chapters))
    print(text)
    left = [
        f"{slug} in {name}"
        for slug, page in chapters.items()
        for name in options.builds
        if not options.table_only and not result_path(name, page).exists()
    ]
    if left:
        print(f"without a result: {', '.join(left)}", file=sys.stderr)
    sys.exit(1 if weak or left else 0)


def run_build(
    name: str,
    chapters: dict[str, Path],
    jobs: int,
    environment: dict[str, str],
    edit: tuple[str, str, str] | None = None,
) -> None:
    """Run chapters in one build, longest first; those with results are left alone.

    Args:
        name: Folder of the results.
        chapters: Their pages.
        jobs: How many at a time.
        environment: Variables set for the build.
        edit: File of the package, a text in it, and another in its place.
    """
    todo = {}
    for slug, page in sorted(chapters.items(), key=lambda item: -expected_seconds(item[1])):
        changed = page.stat().st_mtime_ns  # as it is now; the worker runs no later version
        path = result_path(name, page)
        if not path.exists():
            todo[slug] = str(path), changed
    if not todo:
        return
    variables = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "BNMLP_SEED": "0", **environment}
    if not environment.get("OPENBLAS_CORETYPE"):
        variables["OPENBLAS_CORETYPE"] = os.environ.get("OPENBLAS_CORETYPE", "")
    variables = {key: value for key, value in variables.items() if value}
    with edited_package(edit) as path:
        search = os.pathsep.join([*path, str(Path(__file__).parents[1]), str(ROOT)])
        # -P: the folder at hand, with the package as it is, must not come before the copy.
        command = [sys.executable, "-P", "-m", "bnmlp_book.audit", "--jobs", str(jobs), "--worker"]
        jobs_of_worker = [[str(chapters[slug]), *found] for slug, found in todo.items()]
        print(f"{name}: {len(todo)} chapters", flush=True)
        subprocess.run(
            [*command, json.dumps(jobs_of_worker)],
            env={
                **os.environ,
                **data_folder(),
                "MPLBACKEND": "agg",
                **variables,
                "PYTHONPATH": search,
            },
            check=True,
        )


@contextlib.contextmanager
def edited_package(edit: tuple[str, str, str] | None) -> Iterable[list[str]]:
    """Folders to put before the search path: one with an edited copy of the package, or none."""
    if edit is None:
        yield []
        return
    import tempfile

    file, old, new = edit
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "bnmlp"
        shutil.copytree(ROOT / "bnmlp", copy, ignore=shutil.ignore_patterns("__pycache__"))
        text = (copy / file).read_text(encoding="utf8")
        if text.count(old) != 1:
            raise ValueError(f"{file} has {text.count(old)} places that read {old!r}, wanted one")
        (copy / file).write_text(text.replace(old, new), encoding="utf8")
        (Path(folder) / "book").symlink_to(ROOT / "book")  # where stored results are looked for
        yield [folder]


def work(jobs: list[tuple[str, str, int]], at_a_time: int) -> None:
    """Run chapters in children of this process, which has the libraries already."""
    import matplotlib.pyplot  # noqa: F401
    import matplotlib_inline.backend_inline
    import pandas  # noqa: F401

    import bnmlp  # noqa: F401

    matplotlib_inline.backend_inline.set_matplotlib_formats = lambda *_, **__: None
    running: dict[int, tuple[str, float]] = {}
    for number, (page, result, changed) in enumerate(jobs, 1):
        if len(running) == at_a_time:
            _wait(running)
        child = os.fork()
        if child == 0:
            _run(Path(page), Path(result), changed)
            os._exit(0)
        running[child] = f"[{number}/{len(jobs)}] {Path(page).stem}", time.monotonic()
    while running:
        _wait(running)


def _wait(running: dict[int, tuple[str, float]]) -> None:
    child, status = os.wait()
    name, start = running.pop(child)
    print(f"  {name} {time.monotonic() - start:.1f} s" + (" FAILED" if status else ""), flush=True)


def _run(page: Path, result: Path, changed: int) -> None:
    """Run the cells of a page in one namespace and store its claims, or the traceback."""
    cells = code_cells(page)
    if page.stat().st_mtime_ns != changed:
        print(f"{page.stem} has changed meanwhile, left for the next call", file=sys.stderr)
        os._exit(1)
    import matplotlib.pyplot as plt

    import bnmlp.book.claims

    records, namespace, error, seconds = [], {"__name__": "__main__"}, None, []
    bnmlp.book.claims._show = records.append
    start = time.process_time()  # of the processor: other work on the machine does not count
    os.chdir(page.parent)
    for number, cell in enumerate(cells, 1):
        begun = time.process_time()
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                exec(compile(cell.source, f"{page.stem}, cell {number}", "exec"), namespace)
        except Exception:
            error = traceback.format_exc()
            break
        plt.close("all")
        seconds.append(round(time.process_time() - begun, 2))
    if error:  # no result: the next call tries again
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
    found = {"seconds": time.process_time() - start, "claims": records}
    found["cells"] = seconds
    result.parent.mkdir(parents=True, exist_ok=True)
    part = result.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(found))
    part.replace(result)


_PACKAGE = Package(ROOT / "bnmlp")


def result_path(build: str, page: Path) -> Path:
    """Where the results of a page in a build are, keyed by everything that decides them."""
    code = measured_code(page)
    digest = hashlib.sha256(code.encode())
    digest.update(_PACKAGE.digest(code, without=SHOWING).encode())
    for path in data_files(code, ROOT / "book" / "data", page.stem):
        digest.update(path.read_bytes())
    digest.update(f"{version('torch')} {version('numpy')} {version('scipy')}".encode())
    return RESULTS / build / f"{page.stem}-{digest.hexdigest()[:12]}.json"


def measured_code(page: Path) -> str:
    """The code of a page less what claims say of their values: a changed bound measures nothing."""

    class Values(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.Call:  # noqa: N802
            self.generic_visit(node)
            if getattr(node.func, "id", None) == "claim":
                node.args = node.args[:1]
                node.keywords = [k for k in node.keywords if k.arg in (None, "value")]
            return node

    code = "\n".join(cell.source for cell in code_cells(page))
    return ast.unparse(Values().visit(ast.parse(code)))


def expected_seconds(page: Path) -> float:
    """How long a page took in any earlier build; a guess from its length without one."""
    found = sorted(RESULTS.glob(f"*/{page.stem}-*.json"), key=os.path.getmtime)
    if found:
        return json.loads(found[-1].read_text())["seconds"]
    return page.stat().st_size / 1000


def write_table() -> None:
    """Gather the results of all builds, one row for each claim.

    Pages that no build here has run, as where an audit was of some chapters only, keep the rows
    that the table has for them.
    """
    import numpy as np
    import pandas as pd

    from bnmlp.book.claims import within

    rows: list[dict] = []
    before, seconds = _stored()
    for page in pages(ROOT):
        if not code_cells(page):
            continue
        plain = result_path("seed-0", page)
        if plain.exists():
            took = json.loads(plain.read_text())["seconds"]
            seconds[page.relative_to(ROOT).with_suffix("").as_posix()] = took
        said = {claim.id: claim.fields for claim in claims(page)}
        if not any((RESULTS / build / plain.name).exists() for build in BUILDS):
            rows += [row for row in before if row["page"] == page.stem and row["claim"] in said]
            continue
        found: dict[str, dict[str, dict]] = {}
        for build in BUILDS:
            path = RESULTS / build / plain.name
            if path.exists():
                for record in json.loads(path.read_text())["claims"]:
                    found.setdefault(record["name"], {})[build] = record
        for name, records in found.items():
            if plain.exists() and "seed-0" not in records:
                continue  # of a claim that the page makes no more
            first = {**next(iter(records.values())), "kind": "live", **said.get(name, {})}
            values = np.array([float(record["value"]) for record in records.values()])
            low, high = first["low"], first["high"]
            rows.append(
                {
                    "claim": name, "page": page.stem, "kind": first["kind"],
                    "low": low, "high": high, "builds": len(records),
                    "held": sum(within(value, low, high) for value in values),
                    "median": np.median(values), "spread": values.std(ddof=min(1, len(values) - 1)),
                    "margin": margin(values, low, high),
                    **dict(zip(records, values, strict=True)),
                }
            )  # fmt: skip
    if not rows:
        return
    table = pd.DataFrame(rows)
    table = table[[*table.columns[:10], *(b for b in BUILDS if b in table)]]
    about = (
        "# Every claim in every build of the audit: in how many it held; median and standard\n"
        "# deviation of its value; distance of the median from the nearest bound in deviations\n"
        f"# command: make audit; {platform.machine()}, torch {version('torch')}\n"
    )
    _replace(TABLE, about + table.to_csv(index=False, float_format="%.4g"))
    order = [page.relative_to(ROOT).with_suffix("").as_posix() for page in pages(ROOT)]
    lines = "".join(f"{name},{seconds[name]:.1f}\n" for name in order if name in seconds)
    head = "# What a first build expects each page to take, on one thread\npage,seconds\n"
    _replace(SECONDS, head + lines)


def _stored() -> tuple[list[dict], dict[str, float]]:
    """Rows of the table, and seconds by page, as they are stored."""
    import pandas as pd

    rows = pd.read_csv(TABLE, comment="#").to_dict("records") if TABLE.exists() else []
    if not SECONDS.exists():
        return rows, {}
    return rows, dict(pd.read_csv(SECONDS, comment="#").itertuples(index=False))


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(text, encoding="utf8")
    part.replace(path)


def weak_claims(chapters: set[str]) -> tuple[int, str]:
    """The claims of some chapters that miss the audit's rule: hold always, live ones with room."""
    import pandas as pd

    table = pd.read_csv(TABLE, comment="#")
    table = table[table["page"].isin(chapters)]
    lost = table["held"] < table["builds"]
    near = (table["kind"] == "live") & (table["margin"] < LEAST_MARGIN)
    shown = table.loc[lost | near, [*table.columns[:10]]]
    head = (
        f"{len(table)} claims; not always holding, or within {LEAST_MARGIN} spreads: {len(shown)}"
    )
    return len(shown), head + ("" if shown.empty else "\n" + shown.to_string(index=False))


def margin(values: Iterable[float], low: float | None, high: float | None) -> float:
    """Distance of the median from the nearest bound, in standard deviations of the values."""
    import numpy as np

    values = np.asarray(values, dtype=float)
    middle, spread = np.median(values), values.std(ddof=min(1, len(values) - 1))
    nearest = min(
        middle - (-np.inf if low is None else low), (np.inf if high is None else high) - middle
    )
    return float(nearest / spread) if spread > 0 else float(np.copysign(np.inf, nearest))


if __name__ == "__main__":
    main()
