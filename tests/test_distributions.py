"""What is distributed holds the whole package, and works away from a clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "bnmlp")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("build")
    pytest.importorskip("setuptools", "77")
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
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
    assert held == modules | {"bnmlp/py.typed", "bnmlp/networks/layer.c"}


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
