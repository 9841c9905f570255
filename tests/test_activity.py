"""What activations do with their inputs."""

import torch

from bnmlp.measurements.activity import nonlinear_share, unit_activity


def test_units_that_never_or_always_answer_are_counted():
    h = torch.tensor([[[0.0, 0.0], [0.0, 2.0], [1.0, 1.0], [3.0, 5.0]]])  # (1, 4, 2)
    found = unit_activity([torch.ones_like(h), h])
    assert found["dead_last"].item() == 0.25
    assert found["dead"].item() == 0.125, "the mean over layers"
    assert found["always_last"].item() == 0.5
    assert torch.isclose(found["size_last"] ** 2, h.double().square().mean())
    assert torch.isclose(found["spread_last"] ** 2, torch.tensor(2 / 4).double())  # 0, 1, 0, 1


def test_the_nonlinear_share_is_zero_for_multiples_alone():
    z = torch.randn(3, 5, 7)
    assert nonlinear_share(z, 0.3 * z).abs().max() < 1e-6
    share = nonlinear_share(z, z.tanh())
    assert torch.allclose(nonlinear_share(10 * z, z.tanh()), share)
    assert (share > 1e-3).all()
    even = torch.tensor([[-1.0, 1.0]])
    assert nonlinear_share(even, even.abs()).item() == 1
