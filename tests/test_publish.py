"""Versions of the published book beside each other."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def publish(site, folder, version):
    command = [str(ROOT / ".ci" / "publish"), str(site), str(folder), version]
    return subprocess.run(command, capture_output=True, text=True)


def test_versions_stand_beside_each_other_and_the_address_leads_to_the_latest(tmp_path):
    site, folder = tmp_path / "site", tmp_path / "pages"
    (site / "book").mkdir(parents=True)
    for version in ("v0.9", "v0.10", "latest", "v0.9"):
        (site / "index.html").write_text(version)
        (site / "book" / f"{version}.html").touch()
        assert publish(site, folder, version).returncode == 0
        shutil.rmtree(site / "book")
        (site / "book").mkdir()
    assert (folder / "v0.10" / "index.html").read_text() == "v0.10"
    assert [path.name for path in (folder / "v0.9" / "book").iterdir()] == ["v0.9.html"]
    assert json.loads((folder / "versions.json").read_text()) == ["v0.10", "v0.9", "latest"]
    assert 'url=latest/"' in (folder / "index.html").read_text()
    assert (folder / ".nojekyll").exists()


@pytest.mark.parametrize(("version", "why"), [("main", "named latest"), ("v1", "no index.html")])
def test_what_cannot_be_published_is_named_and_changes_nothing(tmp_path, version, why):
    found = publish(tmp_path, tmp_path / "pages", version)
    assert found.returncode == 2 and why in found.stderr
    assert not (tmp_path / "pages").exists()


def test_the_first_version_is_found_where_there_is_no_latest(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").touch()
    assert publish(tmp_path / "site", tmp_path / "pages", "v2").returncode == 0
    assert 'url=v2/"' in (tmp_path / "pages" / "index.html").read_text()


def test_the_entry_to_cite_says_what_the_citation_file_says():
    yaml = pytest.importorskip("yaml")
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    entry = (ROOT / "book" / "check.md").read_text().split("```bibtex")[1].split("```")[0]
    fields = dict(re.findall(r"^  (\w+) *= \{+(.*?)\}+,?$", entry, re.M))
    assert fields["title"] == told["title"] and fields["version"] == told["version"]
    assert fields["author"] == told["authors"][0]["name"] and fields["license"] == told["license"]
    assert fields["year"] == str(told["date-released"])[:4]
