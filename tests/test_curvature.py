import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnmlp import BNMLP
from bnmlp.measurements.curvature import (
    curvature_table,
    dense_hessian,
    gauss_newton,
    hessian,
    overlaps,
    row_lengths,
    spectral_density,
    spectrum_ends,
)
from bnmlp.measurements.noise import covariance_eigenvalues, gradient, sample_gradients
from bnmlp.networks.skip import SkipMLP


@pytest.fixture
def network(float64):
    return nn.Sequential(
        nn.Linear(10, 15), nn.Tanh(), nn.Linear(15, 10), nn.Tanh(), nn.Linear(10, 4)
    )


@pytest.fixture
def batches(float64):
    return [(torch.randn(20, 10), torch.randint(4, (20,))) for _ in range(3)]


def naive_hessian(model, batches):
    shapes = [p.shape for p in model.parameters()]
    names = [n for n, _ in model.named_parameters()]

    def loss(vector):
        parts = vector.split([s.numel() for s in shapes])
        values = {n: v.view(s) for n, v, s in zip(names, parts, shapes, strict=True)}
        losses = [
            F.cross_entropy(torch.func.functional_call(model, values, (x,)).squeeze(0), y)
            for x, y in batches
        ]
        return torch.stack(losses).mean()

    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    return torch.autograd.functional.hessian(loss, vector)


def test_ends_of_the_spectrum_are_those_of_the_naive_hessian(network, batches):
    expected = torch.linalg.eigvalsh(naive_hessian(network, batches)).flip(0)
    values, vectors = spectrum_ends(hessian(network, batches), 5, 2, tolerance=1e-9)
    torch.testing.assert_close(values, torch.cat([expected[:5], expected[-2:]]), rtol=1e-6, atol=0)
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(7), rtol=0, atol=1e-8)


def test_so_are_those_of_a_network_with_batch_normalisation(batches):
    model = BNMLP(10, 6, 3, 4, activation="tanh", dtype=torch.float64)
    expected = torch.linalg.eigvalsh(naive_hessian(model.train(), batches)).flip(0)
    before = model.running_var.clone()
    values, _ = spectrum_ends(hessian(model, batches), 5, 2, tolerance=1e-9)
    torch.testing.assert_close(values, torch.cat([expected[:5], expected[-2:]]), rtol=1e-5, atol=0)
    assert torch.equal(model.running_var, before)


def test_the_operator_is_symmetric_and_deterministic(network, batches):
    operator = hessian(network, batches)
    u, v = torch.randn(2, operator.shape[0])
    assert u @ (operator @ v) == pytest.approx((v @ (operator @ u)).item(), rel=1e-10)
    assert torch.equal(operator @ v, operator @ v)


def test_gauss_newton_has_no_negative_eigenvalue(network, batches):
    operator, semi = hessian(network, batches), gauss_newton(network, batches)
    lowest = spectrum_ends(operator, 0, 1)[1][:, 0]
    assert lowest @ (operator @ lowest) < -1e-3
    for v in (lowest, *torch.randn(5, operator.shape[0])):
        assert v @ (semi @ v) > 0


def test_spectral_density_has_mass_one_and_the_mean_of_the_trace(network, batches):
    operator = hessian(network, batches)
    grid, density = spectral_density(operator, vectors=30, repeats=4)
    step = grid[1] - grid[0]
    assert (density.sum() * step).item() == pytest.approx(1, abs=0.05)
    mean = naive_hessian(network, batches).trace() / operator.shape[0]
    spread = grid[-1] - grid[0]
    assert abs((grid * density).sum() * step - mean) < 0.02 * spread
    again = spectral_density(operator, vectors=30, repeats=4)[1]
    assert torch.equal(again, density)


def test_sample_gradients_average_to_the_gradient(network, batches):
    x, y = batches[0]
    each = sample_gradients(network, x, y)
    torch.testing.assert_close(each.mean(0), gradient(network, x, y), rtol=1e-10, atol=1e-12)
    alone = gradient(network, x[7:8], y[7:8])
    torch.testing.assert_close(each[7], alone, rtol=1e-10, atol=1e-12)


def test_covariance_eigenvalues_are_those_of_the_dense_covariance(network, batches):
    each = sample_gradients(network, *batches[0])
    dense = torch.linalg.eigvalsh(torch.cov(each.mT, correction=0)).flip(0)
    found = covariance_eigenvalues(each)
    torch.testing.assert_close(found, dense[: len(found)], rtol=1e-5, atol=1e-14)
    assert dense[len(found)] < 1e-14


def test_batch_gradients_times_batch_size_estimate_the_same_trace(network, float64):
    x, y = torch.randn(4000, 10), torch.randint(4, (4000,))
    trace = covariance_eigenvalues(sample_gradients(network, x, y)).sum()
    parts = zip(x.split(20), y.split(20), strict=True)
    gradients = torch.stack([gradient(network, *part) for part in parts])
    estimate = covariance_eigenvalues(gradients, correction=1).sum() * 20
    assert estimate == pytest.approx(trace.item(), rel=0.05)


def test_overlaps_of_a_vector_in_the_plane(float64):
    cosines, cumulative = overlaps(torch.tensor([3.0, 4.0, 12.0]), torch.eye(3)[:, :2])
    torch.testing.assert_close(cosines, torch.tensor([3 / 13, 4 / 13]))
    assert cumulative[1] == pytest.approx(5 / 13)


def test_the_table_holds_every_quantity(network, batches):
    start = nn.utils.parameters_to_vector(network.parameters()).detach()
    with torch.no_grad():
        network[0].weight += 0.1
    table = curvature_table(network, start, batches).set_index(["quantity", "index"])["value"]
    assert len(table["hessian_largest"]) == 5
    assert len(table["hessian_smallest"]) == 2
    assert table["distance_from_start", 1] == pytest.approx(0.1 * math.sqrt(150))
    mean = torch.stack([gradient(network, *b) for b in batches]).mean(0)
    assert table["gradient_norm", 1] == pytest.approx(mean.norm().item())
    assert table["overlap_cumulative", 5] <= 1
    assert 0 < table["cosine_to_start", 1] < 1
    assert "hessian_scaled" not in table.index.get_level_values(0)


def test_the_scaled_eigenvalue_does_not_see_factors_on_normalised_rows(batches):
    model = BNMLP(10, 6, 3, 4, activation="tanh", dtype=torch.float64, eps=0.0)
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    found = []
    for _ in range(2):
        table = curvature_table(model, start, batches, ["hessian"], tolerance=1e-9)
        found.append(table.set_index(["quantity", "index"])["value"])
        with torch.no_grad():
            model.hidden_weight *= 0.1 + torch.rand(2, 1, 6, 1)
            model.input_weight *= 7
    assert found[1]["hessian_scaled", 1] == pytest.approx(found[0]["hessian_scaled", 1], rel=1e-6)
    assert found[1]["hessian_largest", 1] != pytest.approx(found[0]["hessian_largest", 1], rel=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: sample_gradients(BNMLP(10, 6, 2, 4), x.float(), y), "depend on its batch"),
        (lambda x, y: hessian(BNMLP(10, 6, 2, 4, replicas=2), [(x, y)]), "one network at a time"),
        (lambda x, y: gradient(BNMLP(10, 6, 2, 4, replicas=2), x.float(), y), "one network"),
        (lambda x, y: hessian(nn.Linear(10, 4), [(x, y), (x[:3], y[:3])]), "one size"),
        (
            lambda x, y: curvature_table(nn.Linear(10, 4), x, [(x, y), (x[:3], y[:3])], ["loss"]),
            "one size",
        ),
        (lambda x, y: curvature_table(nn.Linear(10, 4), x, [], ["loss"]), "one size"),
        (lambda x, y: curvature_table(nn.Linear(10, 4), x, [(x, y)], ["jerk"]), "jerk"),
        (
            lambda x, y: curvature_table(
                BNMLP(10, 6, 2, 4, dtype=x.dtype), x, [(x, y)], ["covariance"]
            ),
            "at least two batches",
        ),
    ],
)
def test_bad_input_is_refused(call, message, batches):
    with pytest.raises(ValueError, match=message):
        call(*batches[0])


def normalised_network():
    """A network with everything that a measurement must leave alone."""
    return nn.Sequential(
        nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 4)
    )


def measurements(model, batches):
    """Every measurement of a network, by name."""
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    vector = torch.linspace(-1, 1, len(start))
    return {
        "hessian": lambda: hessian(model, batches) @ vector,
        "gauss_newton": lambda: gauss_newton(model, batches) @ vector,
        "gradient": lambda: gradient(model, *batches[0]),
        "table": lambda: curvature_table(model, start, batches).value.tolist(),
    }


def test_averages_mode_and_random_numbers_are_left_alone(batches):
    model = normalised_network()
    model(batches[0][0])  # averages that are not those of the start
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    for name, measure in measurements(model, batches).items():
        measure()
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), f"{name} moved {key}"
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    model(batches[0][0])
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int8, torch.int16])
def test_labels_may_be_integers_of_any_size(network, batches, dtype):
    short = [(x, y.to(dtype)) for x, y in batches]
    expected = measurements(network, batches)
    for name, measure in measurements(network, short).items():
        torch.testing.assert_close(measure(), expected[name](), rtol=0, atol=0, msg=name)
    (x, y), (_, y_short) = batches[0], short[0]
    assert torch.equal(sample_gradients(network, x, y_short), sample_gradients(network, x, y))


@pytest.mark.parametrize("name", ["hessian", "gauss_newton", "table"])
def test_a_network_that_computes_something_else_at_each_call_is_refused(batches, name):
    model = normalised_network()
    model[3].p = 0.5
    with pytest.raises(ValueError, match="if it has dropout, call .eval"):
        measurements(model, batches)[name]()
    model[3].eval()
    assert torch.as_tensor(measurements(model, batches)[name]()).isfinite().all()


NORMALISATIONS = {
    "batch": lambda: nn.BatchNorm1d(8),
    "evaluated": lambda: nn.BatchNorm1d(8).eval(),
    "layer": lambda: nn.LayerNorm(8),
    "groups": lambda: nn.GroupNorm(2, 8),
    "groups of images": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 2, 1)), nn.GroupNorm(2, 4, eps=0.1), nn.Flatten()
    ),
    "rms": lambda: nn.RMSNorm(8),
    "images": lambda: nn.Sequential(nn.Unflatten(1, (4, 2, 1)), nn.BatchNorm2d(4), nn.Flatten()),
    "instance": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 2)), nn.InstanceNorm1d(4, affine=True), nn.Flatten()
    ),
}


@pytest.mark.parametrize("kind", NORMALISATIONS)
def test_products_are_those_of_double_backward_behind_every_normalisation(kind, batches):
    model = nn.Sequential(nn.Linear(10, 8), NORMALISATIONS[kind](), nn.Tanh(), nn.Linear(8, 4))
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    parameters, (x, y) = list(model.parameters()), batches[0]
    vector = [torch.randn_like(p) for p in parameters]
    flat = torch.cat([v.flatten() for v in vector])
    first = torch.autograd.grad(F.cross_entropy(model(x), y), parameters, create_graph=True)
    expected = torch.autograd.grad(first, parameters, vector)
    found = hessian(model, [(x, y)]) @ flat
    error = (found - torch.cat([e.flatten() for e in expected])).norm() / found.norm()
    assert error < 1e-10, f"relative error {error.item():.1e}"


def test_frozen_parameters_are_measured_with_the_others(network, batches):
    expected = {name: measure() for name, measure in measurements(network, batches).items()}
    network[2].requires_grad_(False)
    for name, measure in measurements(network, batches).items():
        torch.testing.assert_close(measure(), expected[name], rtol=0, atol=0, msg=name)
    assert [p.requires_grad for p in network.parameters()] == [True, True, False, False, True, True]


def test_one_network_of_a_kind_that_holds_several_is_measured(batches):
    model = SkipMLP(3, "plain", in_features=10, width=6, out_features=4, dtype=torch.float64)
    found = gradient(model, *batches[0])
    loss = F.cross_entropy(model(batches[0][0])[0], batches[0][1])
    parts = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    torch.testing.assert_close(found, torch.cat([p.flatten() for p in parts]))


@pytest.mark.parametrize("name", ["hessian", "gauss_newton", "gradient", "table"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: BNMLP(10, 6, 2, 4, replicas=3, dtype=torch.float64), "at a time, got 3"),
        (lambda: SkipMLP(3, "plain", in_features=10, width=6, out_features=4, replicas=3,
                         dtype=torch.float64), "at a time, got 3"),
        (lambda: nn.Sequential(nn.Linear(10, 4), nn.Unflatten(1, (2, 2))), r"got \(20, 2, 2\)"),
        (lambda: nn.Linear(10, 2), r"labels must lie in 0\.\.1"),
    ],
)  # fmt: skip
def test_networks_that_do_not_fit_are_refused(model, message, name, batches):
    with pytest.raises(ValueError, match=message):
        measurements(model(), batches)[name]()


def test_lengths_of_several_networks_are_refused():
    with pytest.raises(ValueError, match="one network at a time"):
        row_lengths(BNMLP(10, 6, 2, 4, replicas=3))


def test_the_dense_hessian_has_the_products_of_the_operator(network, batches):
    for model in (network, BNMLP(10, 6, 3, 4, activation="tanh", dtype=torch.float64)):
        dense = dense_hessian(model, batches)
        units = torch.eye(len(dense))
        torch.testing.assert_close(hessian(model, batches) @ units, dense, rtol=1e-9, atol=1e-12)
