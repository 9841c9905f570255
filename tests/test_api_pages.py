"""The pages on the package list what is public."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import bnmlp

ROOT = Path(__file__).parents[1]
PAGES = ("api.md", "api-measure.md", "api-theory.md", "api-networks.md")
LISTED = [
    name if name.startswith("bnmlp.") else f"bnmlp.{name}"
    for page in PAGES
    for name in re.findall(
        r"^\.\. auto\w+:: ([\w.]+)", (ROOT / "book/reference" / page).read_text("utf8"), re.M
    )
]
MODULES = [
    *(f"bnmlp.measurements.{path.stem}" for path in (ROOT / "bnmlp/measurements").glob("[!_]*.py")),
    *("bnmlp.book.making", "bnmlp.networks.recipe", "bnmlp.training.until"),
]
# What other modules share, and a reader of the package does not call.
SHARED = {
    "bnmlp.book.making": {"section"},
    "bnmlp.measurements.curvature": {"flat"},
    "bnmlp.measurements.noise": {"sound_batches", "kept_randomness", "ties_samples"},
    "bnmlp.measurements.rates": {"lengths"},
    "bnmlp.measurements.recalibration": {
        "Moments",
        "before_calls",
        "call_module",
        "input_of",
        "moments",
        "output_behind",
        "recalibrate_module",
        "tracking",
        "without_compiler",
        "write",
    },  # fmt: skip
    "bnmlp.networks.recipe": {"draw", "first_averages", "first_numbers"},
}


def found(name):
    """The object of a dotted name, in whichever module it is."""
    parts = name.split(".")
    for i in range(len(parts) - 1, 0, -1):
        try:
            place = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            place = getattr(place, part)
        return place
    raise AttributeError(name)


OBJECTS = [found(name) for name in LISTED]


def test_nothing_is_listed_twice():
    assert len(set(LISTED)) == len(LISTED)
    assert len({id(thing) for thing in OBJECTS}) == len(OBJECTS)


def test_the_face_of_the_package_is_listed():
    face = [getattr(bnmlp, name) for name in bnmlp.__all__]
    assert [f for f in face if callable(f) and not any(f is thing for thing in OBJECTS)] == []


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_of_a_module_are_listed_or_known_to_be_shared(name):
    module = importlib.import_module(name)
    own = {
        key
        for key, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == name
        and not key.startswith("_")
    }
    listed = {key for key in own if any(vars(module)[key] is thing for thing in OBJECTS)}
    assert own - listed == SHARED.get(name, set())
