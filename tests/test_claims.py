import pytest

from bnmlp.claims import ClaimError, claim

STATEMENT = {"source": "Theorem 1", "verdict": "reproduced"}


@pytest.mark.parametrize("scale", ["laptop", "paper"])
@pytest.mark.parametrize(
    ("value", "bounds"),
    [(2.0, {"high": 1}), (0.0, {"low": 1}), (3, {"low": 0, "high": 1}), (float("nan"), {"low": 0})],
)
def test_a_claim_that_fails_stops_the_build(monkeypatch, scale, value, bounds):
    monkeypatch.setenv("BNMLP_SCALE", scale)
    with pytest.raises(ClaimError, match="it is small.*Measured"):
        claim("size", "it is small", value=value, **bounds, **STATEMENT)


def test_at_smoke_scale_it_is_shown_but_not_judged(monkeypatch, capsys):
    pytest.importorskip("myst_nb")
    monkeypatch.setenv("BNMLP_SCALE", "smoke")
    claim("size", "it is small", value=2.0, high=1, **STATEMENT)


def test_a_claim_that_holds_shows_value_bounds_and_verdict(monkeypatch):
    pytest.importorskip("myst_nb")
    monkeypatch.setenv("BNMLP_SCALE", "laptop")
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda obj, **_: shown.append(obj))
    claim("size", "a < b", value=0.51234, low=0.5, unit="nats", reported="0.6", **STATEMENT)
    text = shown[-1].data
    for part in (
        "a &lt; b",
        "0.512 nats",
        "≥ 0.5",
        "reported 0.6",
        "holds",
        "Theorem 1: reproduced",
    ):
        assert part in text, text


def test_a_claim_without_bounds_or_verdict_is_refused():
    with pytest.raises(ValueError, match="cannot fail"):
        claim("size", "it is", value=1.0, **STATEMENT)
    with pytest.raises(ValueError, match="verdict must be one of"):
        claim("size", "it is", value=1.0, low=0, source="x", verdict="proved")
