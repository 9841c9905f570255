import math

import pytest
import torch

from bnmlp import BNMLP, sgd_step
from bnmlp.theory.gaussian import gaussian_mean, gaussian_product
from bnmlp.theory.meanfield import (
    chi,
    correlation_map,
    critical_weight_variance,
    depth_scales,
    fixed_correlation,
    fixed_length,
    gradient_growth,
    length_map,
    residual_recursion,
    running_spread,
)


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
        (lambda: length_map("tanh", 1.0, -1.0), "weight variance"),
        (lambda: fixed_length("relu", 2.0, 0.1), "without bound"),
        (lambda: fixed_length("tanh", 2.0, -0.1), "bias variance"),
        (lambda: critical_weight_variance("relu", 0.1), "no critical point"),
        (lambda: critical_weight_variance(torch.square), "no slopes at zero, or is flat"),
        (lambda: critical_weight_variance(lambda x: x.abs().sqrt()), "no slopes at zero"),
        (lambda: critical_weight_variance(torch.nn.functional.softplus), "no critical point"),
        (lambda: gaussian_product(torch.tanh, 1.0, 1.1), "needs"),
        (lambda: correlation_map("relu", 1.1, 1.0, 2.0), "a correlation"),
        (lambda: correlation_map("tanh", 0.5, 0.0, 1.0), "needs q > 0"),
        (lambda: residual_recursion("tanh", [-1.0], 2.0), "weight variance"),
        (lambda: running_spread(3, "tanh", batch_size=1), "two samples"),
        (lambda: running_spread(3, "tanh", batch_size=9, momentum=2.0), r"\[0, 1\]"),
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


@pytest.mark.parametrize(
    ("bias", "weight", "length"),
    [
        (0.0, 1.0, 0.0),
        (0.0025, 1.2601, 0.154),
        (0.01, 1.4242, 0.273),
        (0.05, 1.7610, 0.570),
        (0.1, 1.9861, 0.806),
        (0.3, 2.5051, 1.461),
    ],
)
def test_critical_points_of_tanh(bias, weight, length):
    critical = critical_weight_variance("tanh", bias)
    assert critical == pytest.approx(weight, abs=6e-5)
    q = fixed_length("tanh", critical, bias)
    assert q == pytest.approx(length, abs=6e-4)
    assert length_map("tanh", q, critical, bias) == pytest.approx(q, abs=1e-8)
    assert chi("tanh", q, critical) == pytest.approx(1, abs=1e-8)


def test_lengths_of_relu_in_closed_form():
    assert fixed_length("relu", 1.5, 0.1) == pytest.approx(0.4, abs=1e-8)
    assert fixed_length("tanh", 0.9) == 0.0
    assert fixed_length("tanh", 0.5, 1e-16) == pytest.approx(2e-16, rel=1e-8, abs=0)
    assert chi("relu", 3.0, 2.0) == pytest.approx(1, rel=1e-12)
    assert chi("relu", 3.0, 2.0, order=2) == 0.0


def test_fixed_correlation_is_one_when_ordered_and_below_when_chaotic():
    assert fixed_correlation("tanh", 1.5, 0.05) == 1.0
    chaotic = fixed_correlation("tanh", 4.0, 0.05)
    q = fixed_length("tanh", 4.0, 0.05)
    assert 0.1 < chaotic < 0.3
    assert correlation_map("tanh", chaotic, q, 4.0, 0.05) == pytest.approx(chaotic, abs=1e-8)
    assert fixed_correlation("tanh", 4.0) == 0.0


def test_slope_of_the_correlation_map_at_one_is_chi():
    q = fixed_length("tanh", 2.0, 0.05)
    step = 1e-6
    slope = (1 - correlation_map("tanh", 1 - step, q, 2.0, 0.05)) / step
    assert slope == pytest.approx(chi("tanh", q, 2.0), rel=1e-4)


def test_relu_correlations_in_closed_form_and_by_quadrature():
    for c in (0.0, 0.4, 0.95):
        quadrature = gaussian_product(torch.relu, 2.0, c) / gaussian_mean(
            lambda x: x.relu().square(), 2.0
        )
        assert correlation_map("relu", c, 2.0, 2.0) == pytest.approx(quadrature, rel=3e-3)


def test_depth_scales_describe_how_the_maps_converge():
    weight, bias = 4.0, 0.05
    q_star = fixed_length("tanh", weight, bias)
    c_star = fixed_correlation("tanh", weight, bias)
    xi_q, xi_c = depth_scales("tanh", weight, bias)
    step = 1e-5
    after_q = length_map("tanh", q_star + step, weight, bias) - q_star
    after_c = correlation_map("tanh", c_star + step, q_star, weight, bias) - c_star
    assert abs(after_q / step) == pytest.approx(math.exp(-1 / xi_q), rel=1e-3)
    assert abs(after_c / step) == pytest.approx(math.exp(-1 / xi_c), rel=1e-3)


def test_correlations_forget_slowest_at_the_critical_point():
    critical = critical_weight_variance("tanh", 0.05)
    at, near, far = (depth_scales("tanh", w * critical, 0.05)[1] for w in (1.0, 0.98, 0.7))
    assert at > 1000
    assert at > near > far


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("relu", 2.0),
        ("leaky_relu", 2 / (1 + 0.01**2)),
        ("selu", 2 / (1.0507009873554805**2 * (1 + 1.6732632423543772**2))),
        (torch.nn.functional.elu, 1.0),
        (torch.nn.functional.softsign, 1.0),
    ],
)
def test_a_kink_at_zero_counts_with_both_slopes(activation, expected):
    critical = critical_weight_variance(activation)
    assert critical == pytest.approx(expected, rel=1e-14)
    assert chi(activation, 1e-12, critical) == pytest.approx(1, abs=1e-5)


def test_vectors_of_length_zero_see_both_slopes_of_a_kink():
    assert chi("relu", 0.0, 3.0) == pytest.approx(1.5, rel=1e-14)
    assert depth_scales("relu", 1.0)[1] == pytest.approx(1 / math.log(2), rel=1e-12)
    assert chi("tanh", 0.0, 3.0) == pytest.approx(3, rel=1e-14)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_every_length_of_a_piecewise_linear_activation_is_critical(activation):
    critical = critical_weight_variance(activation)
    for q in (1e-6, 1.0, 1e3):
        assert length_map(activation, q, critical) == pytest.approx(q, rel=1e-12)
        assert chi(activation, q, critical) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(("activation", "bias"), [("selu", 0.1), (torch.sigmoid, 0.0)])
def test_critical_points_away_from_zero_are_fixed_and_neither_grow_nor_decay(activation, bias):
    critical = critical_weight_variance(activation, bias)
    q = fixed_length(activation, critical, bias)
    assert q > 0.01
    assert chi(activation, q, critical) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("above", [1e-4, 1e-6, 1e-8, 1e-10, 1e-12])
@pytest.mark.parametrize("bias", [0.0025, 0.05, 0.3])
def test_just_above_the_critical_point_rounding_costs_no_answer(bias, above):
    critical = critical_weight_variance("tanh", bias)
    clear, near = (
        (
            (1 - fixed_correlation("tanh", weight, bias)) / (chi("tanh", q, weight) - 1),
            depth_scales("tanh", weight, bias)[1] * (chi("tanh", q, weight) - 1),
        )
        for weight in (critical * (1 + 1e-3), critical * (1 + above))
        for q in [fixed_length("tanh", weight, bias)]
    )
    assert near == pytest.approx(clear, rel=5e-3)  # both are proportional to the distance
    assert near[1] == pytest.approx(1, rel=2e-3)


@pytest.mark.parametrize("above", [1e-2, 1e-5])
def test_without_biases_odd_chaos_makes_inputs_orthogonal_at_the_rate_of_its_linear_part(above):
    q = fixed_length("tanh", 1 + above)
    assert fixed_correlation("tanh", 1 + above) == 0
    slope = (1 + above) * gaussian_mean(lambda x: 1 - x.tanh().square(), q) ** 2
    assert depth_scales("tanh", 1 + above)[1] == pytest.approx(-1 / math.log(slope), rel=1e-4)


def test_a_wide_network_follows_length_correlation_and_gradient():
    weight, bias, width, networks = 2.5, 0.1, 400, 30
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, c = fixed_length("tanh", weight, bias), 0.6
    h = normal(networks, width, 2)
    h[..., 1] = c * h[..., 0] + math.sqrt(1 - c * c) * h[..., 1]
    h = (math.sqrt(q) * h).requires_grad_()
    w = normal(networks, width, width) * math.sqrt(weight / width)
    after = w @ h.tanh() + math.sqrt(bias) * normal(networks, width, 1)
    length = after.square().mean(1)[:, 0].detach()
    overlap = after.prod(2).mean(1).detach() / q
    back = torch.autograd.grad((after * normal(networks, width, 2)).sum(), h)[0]
    squared_gradient = back.square().mean(1)[:, 0]
    for measured, predicted in (
        (length, q),
        (overlap, correlation_map("tanh", c, q, weight, bias)),
        (squared_gradient, chi("tanh", q, weight)),
    ):
        error = measured.std() / math.sqrt(networks)
        assert abs(measured.mean() - predicted) < 4 * error
        assert error < 0.03 * predicted


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_wide_residual_network_follows_the_recursion(activation):
    depth, width, networks, weight, branch = 10, 300, 30, 1.5, 0.5
    generator = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    first = x = normal(networks, width, 1).requires_grad_()
    for _ in range(depth):
        w = normal(networks, width, width) * math.sqrt(weight / width)
        v = normal(networks, width, width) * math.sqrt(branch / width)
        x = x + v @ getattr(torch, activation)(w @ x)
    out = normal(networks, width, 1)
    back = torch.autograd.grad((x * out).sum(), first)[0]
    lengths, growth = residual_recursion(activation, [weight] * depth, branch_variance=branch)
    for measured, predicted in (
        (x.detach().square().mean((1, 2)), lengths[-1]),
        (back.square().sum((1, 2)) / out.square().sum((1, 2)), (2 * growth[0]).exp()),
    ):
        error = measured.std() / math.sqrt(networks)
        assert abs(measured.mean() - predicted) < 4 * error
        assert error < 0.1 * predicted


def test_residual_gradients_of_tanh_grow_with_the_square_root_of_depth():
    for weight in (1.0, 4.0):
        _, growth = residual_recursion("tanh", [weight] * 4000)
        slope = growth[1000] / (math.sqrt(4000) - math.sqrt(1000))
        expected = 4 / (3 * math.sqrt(2 * math.pi)) * math.sqrt(weight)
        assert slope == pytest.approx(expected, rel=0.02)
