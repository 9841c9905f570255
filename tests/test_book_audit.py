"""The audit: what it found, what it keys its results by, and mutations that fit the package."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bnmlp.machine.compiled import compiled
from bnmlp_book import audit
from bnmlp_book.dependencies import Package, data_files
from bnmlp_book.mutations import MUTATIONS, TABLE
from bnmlp_book.sources import claims, pages

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_mutation_changes_one_place_and_stays_a_program(mutation, tmp_path):
    text = (ROOT / "bnmlp" / mutation.file).read_text()
    assert text.count(mutation.old) == 1
    mutated = text.replace(mutation.old, mutation.new)
    if mutation.file.endswith(".py"):
        compile(mutated, mutation.file, "exec")
    elif compiled(ROOT / "bnmlp" / mutation.file) is not None:
        (tmp_path / "mutated.c").write_text(mutated)
        assert compiled(tmp_path / "mutated.c") is not None


def test_the_build_with_rounding_changes_one_place():
    file, old, new = audit.ROUNDING
    text = (ROOT / "bnmlp" / file).read_text()
    assert text.count(old) == 1
    compile(text.replace(old, new), file, "exec")


def test_the_margin_is_the_distance_of_the_median_in_deviations():
    values = np.array([1.0, 2.0, 3.0])
    assert audit.margin(values, 0, None) == pytest.approx(2)
    assert audit.margin(values, 0, 2.5) == pytest.approx(0.5)
    assert audit.margin(values, None, 1.0) == pytest.approx(-1)
    assert audit.margin([2.0, 2.0], 1, 3) == math.inf
    assert audit.margin([2.0, 2.0], 3, None) == -math.inf


def test_bounds_and_statements_are_no_part_of_what_is_measured(tmp_path):
    page = tmp_path / "page.md"
    cell = '```{{code-cell}} ipython3\nx = 1  # {}\nclaim("a", "{}", value=x{}, high={})\n```\n'
    header = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n"

    def code(*words):
        page.write_text(header + cell.format(*words))
        return audit.measured_code(page)

    assert code("note", "It is.", "", 2) == code("other note", "It is small.", "", 3)
    assert code("note", "It is.", "", 2) != code("note", "It is.", " + 1", 2)


@pytest.fixture
def package(tmp_path):
    """A package of three modules and a subpackage that re-exports; one name comes late."""
    files = {
        "__init__.py": "from toy.a import f\nif TYPE_CHECKING:\n    from toy.sub import h\n",
        "a.py": '"""Doc."""\nK = 2\n\ndef f(x):\n    """Doc."""\n    return g(x) * K\n\n'
        "def g(x):\n    return x\n\ndef unused():\n    from toy import b\n    return b.w()\n",
        "b.py": "def w():\n    return 1\n\ndef v():\n    return 2\n",
        "sub/__init__.py": "from toy.sub.c import h\n",
        "sub/c.py": "import toy.b as other\n\ndef h():\n    return other.v()\n",
    }
    for name, text in files.items():
        path = tmp_path / "toy" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    return tmp_path / "toy"


def names(package, code):
    return {name for _, name in Package(package, "toy").reached(code) if name}


def test_a_program_reaches_what_its_names_lead_to(package):
    assert names(package, "from toy import f\nf(1)") == {"f", "g", "K"}
    assert names(package, "from toy import h\nh()") == {"h", "v"}
    assert names(package, "import toy\ntoy.sub.h()") >= {"h", "v"}
    assert names(package, "from toy.a import unused\nunused()") == {"unused", "w"}
    assert names(package, "from toy import b\nmap(b, [])") == {"w", "v"}
    assert names(package, "import math") == set()


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("return x\n", "return x + 1\n", True),
        ("K = 2", "K = 3", True),
        ('    """Doc."""\n', '    """Other."""\n', False),
        ("return b.w()", "return b.v()", False),
    ],
)
def test_the_digest_changes_with_what_is_reached(package, old, new, changes):
    code = "from toy import f\nf(1)"
    before = Package(package, "toy").digest(code)
    path = package / "a.py"
    path.write_text(path.read_text().replace(old, new))
    assert (Package(package, "toy").digest(code) != before) is changes


def test_the_digest_changes_with_files_in_c_that_are_named(package):
    path, code = package / "a.py", "from toy import f\nf(1)"
    path.write_text(path.read_text().replace("K = 2", 'K = "layer.c"'))
    (package / "layer.c").write_text("int one(void);")
    before = Package(package, "toy").digest(code)
    (package / "layer.c").write_text("int two(void);")
    assert Package(package, "toy").digest(code) != before


def test_a_chapter_reads_its_own_data_and_what_it_names(tmp_path):
    for name in ("own/a.csv", "own/make.py", "named/b.csv", "other/c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    code = 'stored_table("named/b.csv")\n"/"\n'
    assert [p.name for p in data_files(code, tmp_path, "own")] == ["b.csv", "a.csv"]


def audited() -> pd.DataFrame:
    if not audit.TABLE.exists():
        pytest.skip("no table yet: make audit")
    return pd.read_csv(audit.TABLE, comment="#").set_index("claim")


def test_every_claim_was_audited_and_holds_in_every_build():
    table = audited()
    stated = {claim.id for page in pages(ROOT) for claim in claims(page)}
    assert set(table.index) == stated
    lost = table[table["held"] < table["builds"]]
    assert lost.empty, lost[["page", "builds", "held", "median", "spread"]]


def test_pages_that_were_not_audited_anew_keep_their_rows(tmp_path, monkeypatch):
    table = audited()
    for name in ("TABLE", "SECONDS"):
        path = tmp_path / getattr(audit, name).name
        path.write_text(getattr(audit, name).read_text())
        monkeypatch.setattr(audit, name, path)
    monkeypatch.setattr(audit, "RESULTS", tmp_path)
    page = next(page for page in pages(ROOT) if page.stem == "gap-decay")
    slug = claims(page)[0].id
    record = {"name": slug, "value": "0.125", "low": 0.0, "high": 1.0}
    result = tmp_path / "seed-0" / audit.result_path("seed-0", page).name
    result.parent.mkdir()
    result.write_text(json.dumps({"claims": [record], "seconds": 2.5}))
    audit.write_table()
    after, others = audited(), table["page"] != "gap-decay"
    pd.testing.assert_frame_equal(after.drop(slug), table[others])
    assert after.loc[slug, "median"] == 0.125
    seconds = pd.read_csv(audit.SECONDS, comment="#").set_index("page")["seconds"]
    assert len(seconds) > 40 and seconds["book/initialisation/gap-decay"] == 2.5


def complete(table: pd.DataFrame) -> pd.Series:
    """Which claims were measured in all builds."""
    return table["builds"] == len(audit.BUILDS)


def test_live_claims_keep_their_distance_from_their_bounds():
    table = audited()
    near = (table["kind"] == "live") & (table["margin"] < audit.LEAST_MARGIN)
    near = table[near & complete(table)]
    assert near.empty, near[["page", "low", "high", "median", "spread", "margin"]]


def test_the_audit_is_complete():
    table = audited()
    if not complete(table).all():
        left = table[~complete(table)].groupby("page")["builds"].min()
        pytest.xfail(f"make audit has not measured these in all {len(audit.BUILDS)} builds: {left}")


def test_the_table_has_the_bounds_that_chapters_state():
    table = audited()
    for page in pages(ROOT):
        for claim in claims(page):
            for end in ("low", "high"):
                bound = claim.fields.get(end)
                if claim.id in table.index and bound is not None:
                    assert table.loc[claim.id, end] == pytest.approx(bound, rel=1e-3), claim.id


def test_every_mutation_is_noticed_by_a_claim_and_a_test():
    if not TABLE.exists():
        pytest.skip("no table yet: make audit MUTATE=1")
    table = pd.read_csv(TABLE, comment="#").set_index("mutation")
    assert set(table.index) == {mutation.name for mutation in MUTATIONS}
    assert (table["claims"] > 0).all(), table.index[table["claims"] == 0].tolist()
    assert table["test"].notna().all(), table.index[table["test"].isna()].tolist()
