"""Imports go one way, and the package needs none of the book's packages."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bnmlp"

# From the ground up: a room imports rooms of lower floors only. `book` is beside the house: it
# imports what it likes, and nothing imports it.
FLOORS = [
    {"checks", "machine"},
    {"layers"},
    {"data", "networks"},
    {"measurements", "theory"},
    {"training", "diagnosis"},
    {"bench"},
    {"cli"},
]
HEIGHT = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
EXCEPTIONS: set[tuple[str, str]] = set()  # pairs of modules, each with its reason

# What chapters and the book's tools use, and a reader of the package alone does not install.
BOOK = ("sphinx", "jupyter_book", "myst_nb", "myst_parser", "docutils", "IPython", "ipykernel")


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def running(node: ast.AST) -> Iterator[ast.AST]:
    """A tree without what stands under ``if TYPE_CHECKING``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from running(child)


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, also inside functions, not for types alone."""
    found = set()
    for node in running(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {part if part in MODULES else node.module for part in parts}
    return {name for name in found if name == "bnmlp" or name.startswith("bnmlp.")}


def upward() -> set[tuple[str, str]]:
    """Imports of a room on the same floor or above, or of the face of the package."""
    return {
        (module, other)
        for module, path in MODULES.items()
        if room(module) in HEIGHT
        for other in imports(path)
        if room(other) != room(module)
        and not (other == "bnmlp" and room(module) == "cli")
        and HEIGHT.get(room(other), 99) >= HEIGHT[room(module)]
    }


def test_every_room_has_its_floor():
    assert {room(module) for module in MODULES} == {*HEIGHT, "", "book"}


def test_imports_go_one_way():
    assert upward() == EXCEPTIONS, "an import that runs up or across (or an exception that is gone)"


def test_nothing_imports_what_chapters_use():
    for module, path in MODULES.items():
        if room(module) != "book":
            assert not [other for other in imports(path) if room(other) == "book"], module


def test_no_two_modules_import_each_other():
    open_, done = [], set()

    def visit(module: str) -> None:
        assert module not in open_, f"a circle: {' -> '.join([*open_, module])}"
        if module in done or module not in MODULES:
            return
        open_.append(module)
        for other in sorted(imports(MODULES[module])):
            visit(other)
        done.add(open_.pop())

    for module in MODULES:
        visit(module)


def without(blocked: tuple[str, ...], program: str) -> subprocess.CompletedProcess:
    """Run a program that cannot import some packages."""
    block = f"""
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
"""
    command = [sys.executable, "-c", block + program]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_package_measures_without_the_packages_of_the_book():
    program = """
import bnmlp, bnmlp.cli, bnmlp.theory.meanfield, bnmlp.measurements.curvature
data = bnmlp.load_dataset("digits")
x, y = data.batch(20)
model = bnmlp.BNMLP(64, 20, depth=5, out_features=10, center=False)
bnmlp.explosion_rate(bnmlp.gradient_norms(model, x, y))
"""
    found = without(BOOK, program)
    assert found.returncode == 0, found.stderr


CORE = "pandas matplotlib scipy sklearn tqdm pydantic typer filelock torchvision mlxtend curvlinops"


def test_measuring_needs_torch_numpy_and_the_types_of_shapes_only():
    """Each of these is asked for late: by a table, a plot, a run, a dataset."""
    program = """
import torch, bnmlp
from torch import nn
layers = [m for _ in range(9) for m in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())]
model, x, y = nn.Sequential(*layers), torch.randn(20, 8), torch.randint(8, (20,))
report = bnmlp.measure(model, x, y, spectra=True, jacobian=True)
bnmlp.recalibrate(model, x), bnmlp.orthogonal_(model), bnmlp.watch(model, file="unused.csv").close()
print(report), report.to_json(), report.to_html()
for ask in (lambda: report.layers, report.plot, lambda: bnmlp.TrainingRun, lambda: bnmlp.data):
    try:
        ask()
    except ModuleNotFoundError as error:
        print("late:", error)
"""
    found = without(tuple(CORE.split()), program)
    assert found.returncode == 0, found.stderr
    late = [line.removeprefix("late: ") for line in found.stdout.splitlines() if "late: " in line]
    assert late[:2] == ["pandas", "matplotlib"] and len(late) == 4, late


def test_names_that_come_late_are_those_of_the_package():
    import bnmlp

    assert set(bnmlp.__all__) <= set(dir(bnmlp))
    for name in bnmlp.__all__:
        assert getattr(bnmlp, name) is not None, name
    assert bnmlp.training.train is bnmlp.train and bnmlp.data.load_dataset is bnmlp.load_dataset
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(bnmlp, "nothing")  # noqa: B009


def test_the_control_claims_of_the_book_need_them():
    program = """
from bnmlp.book.claims import claim
claim("name", "a statement", value=1, low=0, source="this book", verdict="this book")
"""
    assert without((), program).returncode == 0
    assert "ModuleNotFoundError: IPython" in without(BOOK, program).stderr
