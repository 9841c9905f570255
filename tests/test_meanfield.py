import math

import pytest
import torch

from bnmlp import BNMLP, sgd_step
from bnmlp.meanfield import gaussian_mean, gradient_growth, running_spread


@pytest.mark.parametrize("variance", [0.0, 1e-6, 1.0, 1e6])
def test_gaussian_means_of_polynomials(variance):
    assert gaussian_mean(torch.ones_like, variance) == pytest.approx(1, rel=1e-12)
    assert gaussian_mean(torch.square, variance) == pytest.approx(variance, rel=1e-12)
    fourth = gaussian_mean(lambda x: x**4, variance)
    assert fourth == pytest.approx(3 * variance**2, rel=1e-12)


def test_kinks_and_steps_cost_no_accuracy():
    assert gaussian_mean(torch.relu) == pytest.approx(1 / math.sqrt(2 * math.pi), rel=1e-12)
    # E tanh^2 of a wide variable: one minus E sech^2, whose integral over the line is 2.
    for variance in (1e6, 1e12):
        missing = 1 - gaussian_mean(lambda x: x.tanh().square(), variance)
        assert missing == pytest.approx(2 / math.sqrt(2 * math.pi * variance), rel=1e-3)


def test_sine_in_closed_form():
    for gain in (0.1, 1.0, 3.0):
        expected = 0.5 * math.log(gain**2 / math.tanh(gain**2))
        assert gradient_growth("sin", gain) == pytest.approx(expected, rel=1e-9)


def test_small_gains_explode_with_their_fourth_power():
    gain = 0.01
    assert gradient_growth("tanh", gain) == pytest.approx(2 / 3 * gain**4, rel=1e-3)
    assert gradient_growth("sin", gain) == pytest.approx(gain**4 / 6, rel=1e-3)


def test_identity_is_the_only_one_that_does_not_grow():
    assert gradient_growth("identity", 0.7) == pytest.approx(0, abs=1e-14)
    assert gradient_growth("leaky_relu", 0.7) > 0
    assert gradient_growth("relu", 0.7) == pytest.approx(gradient_growth("relu", 7.0))


def test_relu_explodes_with_batch_but_not_with_layer_normalisation():
    assert gradient_growth("relu") == pytest.approx(0.5 * math.log(math.pi / (math.pi - 1)))
    assert gradient_growth("relu", norm="layer") == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_mean(torch.relu, -1.0), "variance"),
        (lambda: gradient_growth("cos"), "unknown activation"),
        (lambda: gradient_growth("tanh", 0.0), "gain"),
        (lambda: gradient_growth("tanh", norm="none"), "norm is"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_linear_networks_lose_half_the_log_of_bessels_correction_in_every_layer():
    lost = running_spread(50, "identity", steps=math.inf, batch_size=20, first_variance=0.7)
    expected = -0.5 * math.log(20 / 19) * torch.arange(1, 51)
    torch.testing.assert_close(lost, expected.double())
    # After no batch at all the averages are one, and only the first layer is wrong.
    lost = running_spread(5, "identity", steps=0, batch_size=20, first_variance=0.25)
    torch.testing.assert_close(lost, torch.full((5,), 0.5 * math.log(0.25), dtype=torch.float64))


@pytest.mark.parametrize(("activation", "steps"), [("tanh", 30), ("sin", 50), ("identity", 30)])
def test_what_evaluation_takes_from_real_networks_is_predicted(activation, steps):
    n, depth, exponent = 100, 40, 0.0 if activation == "identity" else 0.4
    model = BNMLP(300, 100, depth, 5, activation=activation, gain_exponent=exponent, replicas=2)
    for _ in range(steps):
        sgd_step(model, torch.randn(n, 300), torch.zeros(n, dtype=torch.int64), 0.0)
    x = torch.randn(n, 300)
    with torch.no_grad():
        trained = [h.var(-1).mean(-1) for *_, h in model.stages(x)]
        first = (model.input_weight @ x.mT).var(-1).mean().item()
        evaluated = [h.var(-1).mean(-1) for *_, h in model.eval().stages(x)]
    measured = 0.5 * (torch.stack(evaluated) / torch.stack(trained)).log().mean(1).double()
    predicted = running_spread(
        depth, activation, gain_exponent=exponent, steps=steps, batch_size=n, first_variance=first
    )
    worst = (measured - predicted).abs().max()
    assert worst < 0.05 * max(1, -predicted.min()), f"{worst} of {predicted.min()}"
    assert (running_spread(depth, "tanh", gain_exponent=0.4, steps=10, batch_size=n)[-1]) < -2


def test_activations_with_a_mean_have_no_such_prediction():
    with pytest.raises(ValueError, match="must be odd, got 'relu'"):
        running_spread(5, "relu", batch_size=10)
