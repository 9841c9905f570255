"""What is distributed holds the whole package, and works away from a clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "bnmlp", "book/data")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("build")
    pytest.importorskip("setuptools", "77")
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, folder)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_says_that_it_is_typed(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("bnmlp/")}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "bnmlp").rglob("*.py")}
    stored = {f"bnmlp/{path.relative_to(ROOT)}" for path in (ROOT / "book/data").rglob("*.csv")}
    assert held == modules | stored | {"bnmlp/py.typed", "bnmlp/networks/layer.c"}


@pytest.mark.slow
def test_a_wheel_works_away_from_a_clone(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "import bnmlp; print(bnmlp.__file__, bnmlp.isometry_gap(bnmlp.haar_orthogonal(9)) < 1e-9)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert found.stdout.split() == [str(tmp_path / "bnmlp" / "__init__.py"), "tensor(True)"], found


@pytest.mark.slow
@pytest.mark.parametrize("chapter", ["network/the-network", "training/gain-while-training"])
def test_a_chapter_runs_as_a_notebook_away_from_a_clone(wheel, tmp_path, chapter):
    """One that reads stored results, and one that does not."""
    from nbclient import NotebookClient

    nbformat = pytest.importorskip("nbformat")
    from bnmlp_book import notebooks

    zipfile.ZipFile(wheel).extractall(tmp_path)
    found = notebooks.notebook(ROOT / "book" / f"{chapter}.md")
    path = tmp_path / "chapter.ipynb"
    notebooks.write(found, path)
    where = "import bnmlp; print(bnmlp.__file__)"
    found.cells.insert(0, nbformat.v4.new_code_cell(where))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "BNMLP_SCALE": "smoke"}
    client = NotebookClient(found, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=environment)
    assert str(tmp_path) in found.cells[0].outputs[0]["text"]
    assert ("stored_table(" in path.read_text()) == (chapter != "network/the-network")
