"""What activations do with their inputs."""

import torch

from bnmlp import BNMLP, evaluate
from bnmlp.measurements.activity import (
    accuracy_linear_after,
    layer_nonlinearity,
    nonlinear_share,
    unit_activity,
    units_and_gradients,
)
from bnmlp.networks.skip import SkipMLP


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


def networks(**options):
    return BNMLP(7, 6, 4, 3, gain_exponent=0.4, replicas=2, dtype=torch.float64, **options)


def test_layers_with_small_gains_are_the_more_linear_ones():
    x = torch.randn(20, 7, dtype=torch.float64)
    shares = layer_nonlinearity(networks(activation="tanh"), x)
    assert shares.shape == (4, 2)
    assert (shares[-1] < shares[0] / 2).all(), f"shares {shares.tolist()} do not fall"
    assert layer_nonlinearity(networks(activation="identity"), x).abs().max() < 1e-12


def test_accuracy_without_activations_is_that_of_the_linear_network():
    x, y = torch.randn(30, 7, dtype=torch.float64), torch.randint(3, (30,))
    shaped, linear = networks(activation="tanh"), networks(activation="identity")
    linear.load_state_dict(shaped.state_dict())
    one_batch = {"batch_size": 30}
    for kept, twin in ((0, linear), (4, shaped)):
        found = accuracy_linear_after(shaped, x, y, kept, 30)
        assert torch.equal(found, evaluate(twin, x, y, **one_batch).accuracy)


def test_units_and_gradients_are_those_of_one_batch_and_move_nothing():
    model = SkipMLP(5, "batch", in_features=7, width=6, out_features=3, replicas=2)
    x, y = torch.randn(30, 7), torch.randint(3, (30,))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = units_and_gradients(model, x, y)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    losses = torch.nn.functional.cross_entropy(model(x).mT, y.expand(2, -1), reduction="none")
    losses.mean(1).sum().backward()
    hidden = model.hidden_weight.grad.double().square().sum((-2, -1)).sqrt()  # (3, R)
    for name, layer in (("grad_first", 0), ("grad_middle", 1), ("grad_last", -1)):
        torch.testing.assert_close(found[name], hidden[layer])
    *_, last = model.representations(x)
    torch.testing.assert_close(found["size_last"], last.double().square().mean((1, 2)).sqrt())
