"""What PyTorch's global state may do to results: nothing."""

import pytest
import torch

from bnmlp import (
    BNMLP,
    TrainingRun,
    deep_gradient_norms,
    evaluate,
    gain_schedule,
    gradient_norms,
    haar_orthogonal,
    isometry_gap,
    load_dataset,
    load_model,
    perturbed_identity,
    recalibrate,
    sgd_step,
    train,
)
from bnmlp.layers.seeds import random_source
from bnmlp.machine.modes import outside_modes
from bnmlp.measurements.curvature import hessian, spectral_density, spectrum_ends
from bnmlp.measurements.noise import gradient
from bnmlp.measurements.rates import effective_rates
from bnmlp.networks.replicas import subset
from bnmlp.theory.weight_dynamics import random_walk

KINDS = {
    "batch": {"affine": True, "bias": True},
    "layer": {"norm": "layer"},
    "none": {"norm": "none"},
    "mixed": {"activation": ("tanh", "sin"), "gain": (1.0, 0.3), "replicas": 2},
}


def network(kind="batch", **options):
    return BNMLP(6, 5, 4, 3, **{"activation": "tanh", "device": "cpu", **KINDS[kind], **options})


def batch(n=12):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=generator, device="cpu", dtype=torch.float32)
    return x, torch.arange(n, device="cpu") % 3


def results(kind):
    """What a reader gets from the package, one entry for each thing that computes."""
    model, (x, y) = network(kind), batch()
    yield "norms", gradient_norms(model, x, y)
    yield "rates", effective_rates(model, x, y)
    if kind == "batch":
        yield from zip(
            ("eigenvalue", "eigenvector"),
            spectrum_ends(hessian(model, [(x, y)]), 1, 0),
            strict=True,
        )
    yield "gradient", gradient(subset(model, [0]), x, y)
    for statistics in ("batch", "running", "recalibrated"):
        yield statistics, evaluate(model, x, y, statistics, calibration=x).loss
    recalibrate(model, x)
    yield "loss", sgd_step(model, x, y, 0.1)
    yield from model.state_dict().items()
    yield "deep", deep_gradient_norms(x, y, width=5, depth=9, out_features=3)
    yield "gap", isometry_gap(x.mT[:4])
    near = torch.eye(6, dtype=torch.float64, device="cpu")
    near += 1e-3 * haar_orthogonal(6, generator=random_source(3), dtype=torch.float64)
    yield "small gap", isometry_gap(near)
    yield "walk", random_walk(x[0].abs(), x[1].abs(), [5] * 6, [0.1], generator=random_source(2))
    yield "gains", gain_schedule(3, 2.0, 0.5)


def assert_equal(kind, mode):
    expected = dict(results(kind))
    with mode:
        found = dict(results(kind))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "mode",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.device("meta"),
    ],
    ids=["autocast", "inference", "no grad", "default device"],
)
def test_results_do_not_depend_on_the_mode_they_are_computed_in(kind, mode):
    assert_equal(kind, mode())


@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_depend_on_the_default_type(kind, float64):
    torch.set_default_dtype(torch.float32)
    expected = dict(results(kind))
    for default in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(default)
        for name, value in results(kind):
            torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)


def test_autocast_does_round_what_is_not_kept_from_it():
    a, b = torch.randn(2, 30, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, kept = a @ b, outside_modes(torch.matmul)(a, b)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(kept, a @ b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_may_be_called_under_autocast_as_other_modules(kind):
    model, plain, (x, _) = network(kind), network(kind), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
        model.representations(x)
    expected = plain(x)
    assert not torch.equal(logits.float(), expected), "autocasting changed nothing"
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=0.05)
    if kind == "batch":
        assert model.running_var.dtype == torch.float32
        torch.testing.assert_close(model.running_var, plain.running_var, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_made_in_inference_mode_can_be_trained(kind):
    expected, (x, y) = network(kind), batch()
    with torch.inference_mode():
        made = network(kind)
        made.logits(x)
        evaluate(made, x, y)
        gradient_norms(made, x, y)
        sgd_step(made, x, y, 0.1)
        shared = x.clone()
    sgd_step(expected, x, y, 0.1)
    for model in (made, expected):
        sgd_step(model, x, y, 0.1)
        model(x).sum().backward()
    assert torch.equal(made.hidden_weight, expected.hidden_weight)
    assert torch.equal(made.hidden_weight.grad, expected.hidden_weight.grad)
    torch.testing.assert_close(gradient_norms(made, shared, y), gradient_norms(expected, x, y))


def test_networks_live_on_the_default_device_with_the_weights_of_their_seed():
    with torch.device("meta"):
        described = network(device=None)
        assert {t.device.type for t in described.state_dict().values()} == {"meta"}
        drawn = described.draw_weights(range(1, 4))
        made = network()
        assert haar_orthogonal(4).device.type == "meta"
    for found, weights, expected in zip(
        drawn, made.hidden_weight, network().hidden_weight, strict=True
    ):
        assert torch.equal(found, expected)
        assert torch.equal(weights, expected)


def test_products_of_the_hessian_are_refused_under_autocast():
    model, (x, y) = network(), batch()
    operator = hessian(model, [(x, y)])
    vector = torch.ones(operator.shape[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ValueError, match="multiply outside"):
            operator @ vector
        inside = spectral_density(operator, vectors=5)[1]
    torch.testing.assert_close(inside, spectral_density(operator, vectors=5)[1], rtol=0, atol=0)


def test_data_and_training_do_not_depend_on_the_default_device(tmp_path):
    run = TrainingRun(dataset="digits", width=6, depth=3, replicas=2, epochs=1, batch_size=100)
    expected = train(run, tmp_path / "expected", device="cpu")
    with torch.device("meta"):
        data = load_dataset("digits")
        x, y = data.batch(5, seed=2)
        found = train(run, tmp_path / "found", device="cpu")
        weights = load_model(tmp_path / "found").hidden_weight
        identity = perturbed_identity(3, seed=1)
    assert {data.train_x.device.type, x.device.type, y.device.type} == {"cpu"}
    assert torch.equal(x, load_dataset("digits").batch(5, seed=2)[0])
    assert torch.equal(identity, perturbed_identity(3, seed=1))
    assert found.equals(expected)
    assert torch.equal(weights, load_model(tmp_path / "expected").hidden_weight)
