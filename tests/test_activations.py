import pytest
import torch

from bnmlp import ACTIVATIONS, gain_schedule


def test_gain_falls_as_a_power_of_the_layer():
    torch.testing.assert_close(
        gain_schedule(4, 2.0, 0.5), torch.tensor([2, 2 / 2**0.5, 2 / 3**0.5, 1]).double()
    )


def test_every_activation_but_the_shifted_ones_keeps_zero():
    for name, activation in ACTIVATIONS.items():
        assert activation(torch.zeros(1)).item() == 0, name


@pytest.mark.parametrize(
    ("gain", "exponent"), [(0, 0), (-1, 0), (float("inf"), 0), (1, float("nan"))]
)
def test_bad_gains_are_refused(gain, exponent):
    with pytest.raises(ValueError, match="must be"):
        gain_schedule(3, gain, exponent)


def test_gains_are_cut_after_some_layers():
    whole, cut = gain_schedule(6, exponent=0.5), gain_schedule(6, exponent=0.5, cut=(2, 0.1))
    assert torch.equal(cut[:2], whole[:2])
    assert cut[2:].tolist() == [0.1] * 4
