import pytest
import torch

from bnmlp import at_scale, default_device, scale
from bnmlp.machine.settings import data_root


@pytest.mark.parametrize("name", ["smoke", "laptop", "paper"])
def test_scale_picks_the_size(monkeypatch, name):
    monkeypatch.setenv("BNMLP_SCALE", name)
    assert scale() == name
    assert at_scale(smoke="smoke", laptop="laptop", paper="paper") == name


def test_laptop_is_the_default(monkeypatch):
    monkeypatch.delenv("BNMLP_SCALE", raising=False)
    assert scale() == "laptop"


def test_device_defaults_to_what_there_is(monkeypatch):
    monkeypatch.delenv("BNMLP_DEVICE", raising=False)
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setenv("BNMLP_DEVICE", "cpu")
    assert default_device().type == "cpu"


def test_float64_never_goes_to_mps(monkeypatch):
    monkeypatch.setenv("BNMLP_DEVICE", "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert default_device().type == "mps"
    assert default_device(torch.float64).type == "cpu"


def test_data_root_is_argument_then_variable_then_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BNMLP_DATA", str(tmp_path / "a"))
    assert data_root() == tmp_path / "a"
    assert data_root(tmp_path / "b") == tmp_path / "b"
    monkeypatch.delenv("BNMLP_DATA")
    assert data_root().parts[-2:] == (".cache", "bnmlp")


def test_unknown_settings_are_refused_with_the_choices(monkeypatch):
    monkeypatch.setenv("BNMLP_SCALE", "huge")
    with pytest.raises(ValueError, match="smoke, laptop, paper"):
        scale()
    monkeypatch.setenv("BNMLP_DEVICE", "tpu")
    with pytest.raises(ValueError, match="auto, cpu, cuda or mps"):
        default_device()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("BNMLP_DEVICE", "cuda")
    with pytest.raises(RuntimeError, match="set it to auto"):
        default_device()
