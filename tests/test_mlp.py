import itertools

import numpy as np
import pytest
import torch

from bnmlp import ACTIVATIONS, BNMLP, evaluate, gradient_norms, haar_orthogonal, sgd_step
from bnmlp.networks.plain import PlainNetwork

pytestmark = pytest.mark.usefixtures("float64")
IN, WIDTH, OUT, N = 9, 7, 4, 11


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def randomise(model):
    """Biases and affine parameters that matter."""
    with torch.no_grad():
        for p in (model.layer_bias, model.output_bias, model.norm_bias):
            if p is not None:
                p.normal_(std=0.1)
        if model.norm_weight is not None:
            model.norm_weight.uniform_(0.8, 1.2)
    return model


@pytest.mark.parametrize("depth", [1, 2, 30])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_equals_plain_pytorch(norm, activation, depth):
    flags = itertools.product(
        ("norm_act", "act_norm"), (True, False), (True, False), (True, False), (True, False)
    )
    x, y = torch.randn(N, IN), torch.arange(N) % OUT
    for order, center, unit, bias, affine in flags:
        model = BNMLP(
            IN, WIDTH, depth, OUT,
            norm=norm, activation=activation, order=order, center=center, unit_norm=unit,
            bias=bias, affine=affine, gain=0.9, gain_exponent=0.2, replicas=2, seed=3,
            dtype=torch.float64,
        )  # fmt: skip
        randomise(model)
        logits, norms = model.logits(x), gradient_norms(model, x, y)
        for r in range(2):
            plain = PlainNetwork(model, r)
            error = relative(logits[r], plain(x))
            assert error < 1e-9, f"logits differ by {error:.1e} for {model}"
            expected = plain.gradient_norms(x, y)
            if expected.max() == 0:  # every unit is dead
                assert norms[:, r].max() == 0
                continue
            # Where samples have collapsed onto each other, gradients are rounding errors.
            visible = expected > 1e-12 * expected.max()
            error = ((norms[:, r] - expected).abs() / expected)[visible].max().item()
            assert error < 1e-9, f"gradient norms differ by {error:.1e} for {model}"


@pytest.mark.parametrize("affine", [True, False])
def test_running_averages_and_evaluation_are_those_of_batchnorm1d(affine):
    model = randomise(
        BNMLP(IN, WIDTH, 4, OUT, activation="tanh", affine=affine, bias=True, replicas=2,
              dtype=torch.float64)
    )  # fmt: skip
    plain = [PlainNetwork(model, r) for r in range(2)]
    for _ in range(5):
        x = 2 * torch.randn(N, IN) + 1
        model(x)
        for p in plain:
            p(x)
    model.eval()
    for r, p in enumerate(plain):
        p.eval()
        for i, norm in enumerate(p.norms):
            torch.testing.assert_close(model.running_mean[i, r], norm.running_mean)
            torch.testing.assert_close(model.running_var[i, r], norm.running_var)
        assert relative(model(x)[r], p(x)) < 1e-12


@pytest.mark.parametrize(("center", "unit"), [(True, True), (False, True), (False, False)])
def test_evaluating_a_batch_whose_averages_have_settled_is_training_on_it(center, unit):
    model = BNMLP(IN, WIDTH, 3, OUT, center=center, unit_norm=unit, dtype=torch.float64)
    x = torch.randn(N, IN)
    for _ in range(400):
        trained = model(x)
    assert relative(model.eval()(x), trained) < 1e-9
    assert relative(model(torch.randn(N, IN)), trained) > 0.1


def test_measuring_leaves_the_running_averages_alone():
    model = BNMLP(IN, WIDTH, 3, OUT, dtype=torch.float64)
    x, y = torch.randn(N, IN) + 1, torch.arange(N) % OUT
    before = model.running_mean.clone(), model.running_var.clone()
    model.logits(x)
    model.representations(x)
    gradient_norms(model, x, y)
    assert torch.equal(before[0], model.running_mean)
    assert torch.equal(before[1], model.running_var)
    model(x)
    assert not torch.equal(before[1], model.running_var)


def test_replicas_with_their_own_batches_do_not_mix():
    model = BNMLP(IN, WIDTH, 5, OUT, activation="tanh", replicas=3, dtype=torch.float64)
    x, y = torch.randn(3, N, IN), torch.randint(OUT, (3, N))
    logits, norms = model.logits(x), gradient_norms(model, x, y)
    for r in range(3):
        alone, alone_norms = model.logits(x[r])[r], gradient_norms(model, x[r], y[r])[:, r]
        torch.testing.assert_close(logits[r], alone)
        torch.testing.assert_close(norms[:, r], alone_norms)
    assert (logits[0] - model.logits(x[1])[0]).abs().max() > 1e-3


@pytest.mark.parametrize("order", ["norm_act", "act_norm"])
def test_representations_are_the_stages_of_each_layer(order):
    model = BNMLP(IN, WIDTH, 3, OUT, activation="tanh", gain=0.5, order=order, replicas=2,
                  dtype=torch.float64)  # fmt: skip
    x = torch.randn(N, IN)
    stages = model.representations(x)
    assert all(s.shape == (3, 2, WIDTH, N) for s in stages.values())
    torch.testing.assert_close(stages["linear"][0], model.input_weight @ x.T)
    last = stages["activation" if order == "norm_act" else "norm"]
    torch.testing.assert_close(stages["linear"][1:], model.hidden_weight @ last[:-1])
    source = stages["norm" if order == "norm_act" else "linear"]
    torch.testing.assert_close(stages["activation"], torch.tanh(0.5 * source))
    torch.testing.assert_close(model.logits(x).mT, model.output_weight @ last[-1])


def test_chosen_layers_are_those_of_the_whole():
    model = BNMLP(IN, WIDTH, 6, OUT, activation="tanh", dtype=torch.float64)
    x = torch.randn(N, IN)
    whole, some = model.representations(x), model.representations(x, layers=[1, 4])
    for name in whole:
        assert torch.equal(some[name], whole[name][[1, 4]])
    for bad in ([4, 1], [2, 2], [6], [-1]):
        with pytest.raises(ValueError, match=r"ascend within 0\.\.5"):
            model.representations(x, layers=bad)


def test_state_dict_restores_the_network():
    model = BNMLP(IN, WIDTH, 3, OUT, replicas=2, affine=True, bias=True, dtype=torch.float64)
    model(torch.randn(N, IN))
    copy = BNMLP(IN, WIDTH, 3, OUT, replicas=2, affine=True, bias=True, seed=9, dtype=torch.float64)
    copy.load_state_dict(model.state_dict())
    x = torch.randn(N, IN)
    assert torch.equal(model.eval()(x), copy.eval()(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth must be a positive integer"),
        ({"width": 2.5}, "width must be a positive integer"),
        ({"replicas": -1}, "replicas must be"),
        ({"in_features": True}, "in_features must be"),
        ({"activation": "swish"}, "unknown activation 'swish'; use one of identity, tanh"),
        ({"norm": "group"}, "unknown norm 'group'; use one of batch, layer, none"),
        ({"order": "norm"}, "unknown order"),
        ({"init": "xavier"}, "unknown init 'xavier'; use one of orthogonal, gaussian"),
        ({"gain": 0.0}, "gain must be"),
        ({"gain": float("nan")}, "gain must be"),
        ({"gain_exponent": float("inf")}, "gain_exponent must be"),
        ({"init_gain": -1.0}, "init_gain must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 0.5}, "seed must be"),
        ({"dtype": torch.int32}, "dtype must be floating point"),
        ({"eps": -1.0}, "eps must be"),
    ],
)
def test_bad_sizes_and_names_are_refused(options, message):
    sizes = {"in_features": IN, "width": WIDTH, "depth": 3, "out_features": OUT}
    with pytest.raises(ValueError, match=message):
        BNMLP(**{**sizes, **options})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(N, IN + 1), "samples are rows here"),
        (torch.randn(IN), "expected samples of shape"),
        (torch.randn(3, N, IN), r"\(2, n, 9\)"),
        (torch.randn(0, IN), "expected samples"),
        (torch.randn(N, IN, dtype=torch.float32), "build the model with dtype"),
        (torch.randn(1, IN, dtype=torch.float64), "at least 2 columns"),
    ],
)
def test_bad_batches_are_refused(x, message):
    model = BNMLP(IN, WIDTH, 3, OUT, replicas=2, dtype=torch.float64)
    for call in (model, model.logits, model.representations):
        with pytest.raises(ValueError, match=message):
            call(x)


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
def test_sizes_and_seeds_may_be_numpys_integers(integer):
    plain = BNMLP(9, 7, 3, 4, replicas=2, seed=5)
    sizes = map(integer, (9, 7, 3, 4))
    model = BNMLP(*sizes, replicas=integer(2), seed=integer(5))
    assert torch.equal(model.hidden_weight, plain.hidden_weight)
    assert type(model.depth) is int
    assert repr(model) == repr(plain)
    assert haar_orthogonal(integer(3), integer(4)).shape == (3, 4, 4)
    gains = BNMLP(9, 7, 3, 4, gain=np.array([1.0, 0.5]), replicas=2).gains
    assert [g.flatten().tolist() for g in gains] == [[1.0, 0.5]] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("init", ["orthogonal", "gaussian"])
def test_half_precision_works_as_in_other_networks(init, dtype):
    half, single = (
        BNMLP(9, 7, 3, 4, activation="tanh", init=init, dtype=d) for d in (dtype, torch.float32)
    )
    resolution = torch.finfo(dtype).eps
    for name, value in single.state_dict().items():
        assert half.state_dict()[name].dtype == dtype
        error = (half.state_dict()[name].float() - value).abs().max().item()
        assert error <= 2 * resolution, f"{name} differs by {error:.1e}"
    x, y = torch.randn(30, 9).float(), torch.randint(4, (30,))
    for found, expected in (
        (half(x.to(dtype)), single(x)),
        (gradient_norms(half, x.to(dtype), y), gradient_norms(single, x, y)),
        (evaluate(half, x.to(dtype), y).loss, evaluate(single, x, y).loss),
        (sgd_step(half, x.to(dtype), y, 0.1), sgd_step(single, x, y, 0.1)),
        (half.hidden_weight, single.hidden_weight),
    ):
        torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=10 * resolution)
    frames = haar_orthogonal(3, 8, dtype=dtype)
    error = (frames.float() @ frames.float().mT - torch.eye(8)).abs().max().item()
    assert frames.dtype == dtype
    assert error < 10 * resolution, f"rows are orthogonal to {error:.1e}"


def test_gains_keep_their_digits_when_a_network_changes_its_type():
    options = {"gain": (0.1, 0.7), "gain_exponent": (0.3, 0.0), "replicas": 2}
    model = BNMLP(IN, WIDTH, 3, OUT, **options)
    exact, x = model.gains, torch.randn(N, IN)
    assert torch.equal(exact[2].flatten(), torch.tensor([0.1 * 3**-0.3, 0.7]))
    model(x.float())
    rounded = model.gains_like(x.float())
    assert all(torch.equal(r, e.float()) for r, e in zip(rounded, exact, strict=True))
    model.double()(x)
    for found in (model.gains, model.gains_like(x)):
        assert all(torch.equal(g, e) for g, e in zip(found, exact, strict=True))
    twice = model.with_gains("identity", [2 * g for g in exact])
    twice.float()(x.float())
    assert torch.equal(twice.double().gains_like(x)[1], 2 * exact[1])


@pytest.mark.parametrize("order", ["norm_act", "act_norm"])
def test_the_plain_twin_has_the_choices_of_networks_with_other_gains(order):
    model = BNMLP(IN, WIDTH, 4, OUT, activation="tanh", order=order, dtype=torch.float64)
    mixed = BNMLP(IN, WIDTH, 4, OUT, activation="tanh", order=order, gain=(1.0, 0.5), replicas=2,
                  dtype=torch.float64)  # fmt: skip
    model.momentum = 0.3
    x, y = torch.randn(N, IN), torch.arange(N) % OUT
    for _ in range(2):
        model(x + 1)
    for drawn in (model, mixed):
        network = drawn.with_gains("sin", [g * 0.1 * (i + 1) for i, g in enumerate(drawn.gains)])
        for r in range(network.replicas):
            p = PlainNetwork(network, r)
            assert relative(network.logits(x)[r], p(x)) < 1e-9
            assert relative(gradient_norms(network, x, y)[:, r], p.gradient_norms(x, y)) < 1e-9
    plain = PlainNetwork(model)
    model(2 * x)
    plain(2 * x)
    assert relative(model.eval()(x)[0], plain.eval()(x)) < 1e-9
