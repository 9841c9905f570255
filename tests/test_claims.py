import json

import numpy as np
import pytest

from bnmlp.book.claims import RECORD, claim

STATEMENT = {"source": "Theorem 1", "verdict": "reproduced"}


@pytest.fixture
def shown(monkeypatch):
    """What claims display: the record and the box of each."""
    pytest.importorskip("myst_nb")
    found = []

    def display(data, metadata=None, **_):
        if isinstance(data, dict) and RECORD in (metadata or {}):
            found.append((metadata[RECORD], data["text/html"]))

    monkeypatch.setattr("IPython.display.display", display)
    return found


@pytest.mark.parametrize("scale", ["laptop", "paper"])
@pytest.mark.parametrize(
    ("value", "bounds"),
    [(2.0, {"high": 1}), (0.0, {"low": 1}), (3, {"low": 0, "high": 1}), (float("nan"), {"low": 0})],
)
def test_a_claim_that_does_not_hold_says_so_and_goes_on(monkeypatch, shown, scale, value, bounds):
    monkeypatch.setenv("BNMLP_SCALE", scale)
    assert claim("size", "it is small", value=value, **bounds, **STATEMENT) is False
    ((record, box),) = shown
    assert record["judged"] and not record["holds"]
    assert "does not hold in this build" in box
    assert "claim-fails" in box
    json.dumps(record, allow_nan=False)


def test_at_smoke_scale_it_is_shown_but_not_judged(monkeypatch, shown):
    monkeypatch.setenv("BNMLP_SCALE", "smoke")
    claim("size", "it is small", value=2.0, high=1, **STATEMENT)
    ((record, box),) = shown
    assert not record["judged"]
    assert "not judged at smoke scale" in box


def test_a_claim_that_holds_shows_value_bounds_and_verdict(monkeypatch, shown):
    monkeypatch.setenv("BNMLP_SCALE", "laptop")
    given = {"unit": "nats", "reported": "0.6", "kind": "exact"}
    assert claim("size", "a < b", value=np.float32(0.51234), low=0.5, **given, **STATEMENT) is True
    ((record, box),) = shown
    assert record["kind"] == "exact"
    parts = ("a &lt; b", "0.512 nats", "≥ 0.5", "reported 0.6", "holds", "Theorem 1: reproduced")
    for part in parts:
        assert part in box, box


def test_a_claim_seen_in_another_setting_says_what_differs(monkeypatch, shown):
    monkeypatch.setenv("BNMLP_SCALE", "laptop")
    elsewhere = {"source": "Figure 3", "verdict": "seen differently here"}
    claim("size", "it is", value=1.0, low=0, setting="digits for photographs", **elsewhere)
    ((_, box),) = shown
    assert "Figure 3: seen differently here, digits for photographs" in box
    for given in (elsewhere, STATEMENT | {"setting": "digits for photographs"}):
        with pytest.raises(ValueError, match="setting goes with the verdict"):
            claim("size", "it is", value=1.0, low=0, **given)


def test_a_claim_without_bounds_or_verdict_is_refused():
    with pytest.raises(ValueError, match="cannot fail"):
        claim("size", "it is", value=1.0, **STATEMENT)
    with pytest.raises(ValueError, match="verdict must be one of"):
        claim("size", "it is", value=1.0, low=0, source="x", verdict="proved")
    with pytest.raises(ValueError, match="kind must be one of"):
        claim("size", "it is", value=1.0, low=0, kind="typed", **STATEMENT)
