import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call

from bnmlp import BNMLP, deep_gradient_norms, explosion_rate, gradient_norms
from bnmlp.measurements.gradients import _norm
from bnmlp.networks.plain import PlainNetwork
from bnmlp.networks.replicas import subset

pytestmark = pytest.mark.usefixtures("float64")


@given(
    rate=st.floats(-2, 2),
    offset=st.floats(-5, 5),
    depth=st.integers(4, 40),
)
def test_rate_of_an_exponential_is_its_exponent(rate, offset, depth):
    layer = torch.arange(depth + 1, dtype=torch.float64)
    norms = (offset - rate * layer).exp()[:, None].expand(-1, 3)
    torch.testing.assert_close(
        explosion_rate(norms), torch.full((3,), rate, dtype=torch.float64), atol=1e-9, rtol=1e-9
    )


def test_rate_ignores_the_rectangular_layers_unless_they_are_named():
    norms = torch.exp(-0.3 * torch.arange(8.0))[:, None].clone()
    norms[0], norms[-1] = 100.0, 100.0
    assert explosion_rate(norms).item() == pytest.approx(0.3)
    assert explosion_rate(norms, layers=range(8)).item() != pytest.approx(0.3, abs=0.1)
    assert explosion_rate(norms, layers=[2, 5]).item() == pytest.approx(0.3)


def test_rate_is_positive_when_gradients_grow_towards_the_input():
    norms = torch.tensor([[9.0], [8.0], [4.0], [2.0], [9.0]])
    assert explosion_rate(norms) > 0


def test_norms_agree_with_finite_differences_along_the_gradient():
    model = BNMLP(6, 5, 4, 3, activation="tanh", dtype=torch.float64)
    x, y = torch.randn(8, 6), torch.arange(8) % 3
    weights = dict(model.named_parameters())

    def loss(weights):
        logits = functional_call(model, weights, (x,))
        return torch.nn.functional.cross_entropy(logits[0], y)

    norms = gradient_norms(model, x, y)
    for row, (name, i) in enumerate(
        [("input_weight", None), *(("hidden_weight", i) for i in range(3)), ("output_weight", None)]
    ):
        grad = torch.autograd.grad(loss(weights), weights[name])[0]
        direction = torch.zeros_like(grad)
        part = grad if i is None else grad[i]
        (direction if i is None else direction[i]).copy_(part / part.norm())
        step = 1e-5
        up = loss({**weights, name: weights[name] + step * direction})
        down = loss({**weights, name: weights[name] - step * direction})
        assert ((up - down) / (2 * step)).item() == pytest.approx(norms[row, 0].item(), rel=1e-7)


def test_a_gradient_beyond_float32s_squares_still_has_a_norm():
    assert _norm(torch.full((3, 4), 1e30, dtype=torch.float32)).item() == pytest.approx(
        1e30 * 12**0.5
    )
    assert _norm(torch.full((3, 4), 1e-30, dtype=torch.float32)).item() == pytest.approx(
        1e-30 * 12**0.5
    )
    assert _norm(torch.zeros(3, 4)).item() == 0


@pytest.mark.slow
def test_orthogonal_gradients_stay_where_gaussian_ones_explode():
    x, y = torch.randn(40, 60), torch.arange(40) % 5

    def growth(init):
        def norm(depth):
            model = BNMLP(60, 40, depth, 5, center=False, init=init, replicas=8,
                          dtype=torch.float64)  # fmt: skip
            return gradient_norms(model, x, y)[1].log().mean().item()

        return norm(300) - norm(5)

    orthogonal, gaussian = growth("orthogonal"), growth("gaussian")
    assert abs(orthogonal) < 1, f"orthogonal: {orthogonal:.2f} nats"
    assert gaussian > 2, f"gaussian: {gaussian:.2f} nats"


def norms_of(y, x=None):
    model = BNMLP(6, 5, 2, 3, replicas=2, dtype=torch.float64)
    return gradient_norms(model, torch.randn(8, 6) if x is None else x, y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(7, dtype=torch.int64), r"labels of shape \(8,\) or \(2, 8\)"),
        (torch.zeros(8), r"call y\.long\(\)"),
        (torch.full((8,), 3), "out_features of the model is the number of classes"),
        (torch.full((8,), -1), r"labels must lie in 0\.\.2"),
    ],
)
def test_bad_labels_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        norms_of(y)


def test_gradients_that_are_not_finite_are_refused_with_the_remedy():
    x = torch.randn(8, 6)
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="float64"):
        norms_of(torch.zeros(8, dtype=torch.int64), x)


@pytest.mark.parametrize(
    ("norms", "layers", "message"),
    [
        (torch.ones(5), None, r"shape \(depth \+ 1, R\)"),
        (torch.ones(3, 2), None, "a slope needs two layers, got 1"),
        (torch.ones(5, 2), [1, 1], "a slope needs two layers"),
        (torch.ones(5, 2), [1, 9], r"layers must lie in 0\.\.4"),
        (torch.zeros(5, 2), None, "positive and finite"),
        (torch.full((5, 2), torch.inf), None, "float64"),
    ],
)
def test_bad_norms_are_refused(norms, layers, message):
    with pytest.raises(ValueError, match=message):
        explosion_rate(norms, layers)


@pytest.mark.parametrize("init", ["orthogonal", "gaussian"])
@pytest.mark.parametrize("depth", [1, 2, 7, 50])
@pytest.mark.parametrize("activation", ["identity", "tanh", "sin"])
def test_drawing_weights_twice_changes_nothing(init, depth, activation):
    options = {"init": init, "activation": activation, "gain": 0.7, "replicas": 3, "seed": 4}
    x, y = torch.randn(3, 8, 6), torch.randint(3, (3, 8))
    model = BNMLP(6, 5, depth, 3, dtype=torch.float64, **options)
    deep = deep_gradient_norms(x, y, width=5, depth=depth, out_features=3, **options)
    torch.testing.assert_close(deep, gradient_norms(model, x, y), rtol=1e-12, atol=0)


def test_layer_normalisation_goes_as_deep():
    options = {"norm": "layer", "activation": "sin", "replicas": 2, "unit_norm": True}
    x, y = torch.randn(8, 6), torch.randint(3, (8,))
    model = BNMLP(6, 5, 30, 3, dtype=torch.float64, **options)
    deep = deep_gradient_norms(x, y, width=5, depth=30, out_features=3, **options)
    plain = [PlainNetwork(model, r).gradient_norms(x, y) for r in range(2)]
    torch.testing.assert_close(deep, torch.stack(plain, 1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("stacks", [0, 1, 4, 6, 7])
def test_spare_memory_changes_nothing(stacks, monkeypatch):
    x, y = torch.randn(3, 8, 6), torch.randint(3, (3, 8))
    model = BNMLP(6, 5, 50, 3, activation="tanh", dtype=torch.float64, replicas=3)
    all_kept = gradient_norms(model, x, y)
    bytes_of_a_segment = 2 * 7 * 3 * 5 * 8 * 8
    monkeypatch.setattr("bnmlp.measurements.gradients.SPARE", stacks * bytes_of_a_segment)
    assert torch.equal(gradient_norms(model, x, y), all_kept)


def test_logarithms_go_where_float32_overflows():
    # tanh without gain explodes by about a tenth of a nat per layer: float32 ends near depth 900.
    x, y = torch.randn(12, 9), torch.arange(12) % 3
    options = {"activation": "sin", "gain": 3.0, "seed": 1}
    model = BNMLP(9, 10, 400, 3, dtype=torch.float32, **options)
    logs = gradient_norms(model, x.float(), y, log=True)
    reference = BNMLP(9, 10, 400, 3, dtype=torch.float64, **options)
    exact = gradient_norms(reference, x, y, log=True)
    assert logs[1].item() > 100, f"only {logs[1].item():.0f} nats"
    # Chaotic dynamics: float32 and float64 trajectories differ, their growth does not.
    assert logs[1].item() == pytest.approx(exact[1].item(), rel=0.3)
    torch.testing.assert_close(gradient_norms(reference, x, y).log(), exact)


@pytest.mark.slow
def test_deep_norms_equal_autograd_at_depth_2000():
    x, y = torch.randn(20, 30), torch.arange(20) % 3
    deep = deep_gradient_norms(x, y, width=20, depth=2000, out_features=3, activation="tanh",
                               gain=0.3)  # fmt: skip
    model = BNMLP(30, 20, 2000, 3, activation="tanh", gain=0.3, dtype=torch.float64)
    plain = PlainNetwork(model).gradient_norms(x, y)[:, None]
    error = ((deep - plain).abs() / plain).max().item()
    assert error < 1e-6, f"relative error {error:.1e}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": True}, "change nothing"),
        ({"dtype": torch.float32}, "convert x"),
        ({"depth": 0}, "depth must be"),
    ],
)
def test_deep_norms_refuse_what_they_cannot_do(options, message):
    sizes = {"width": 5, "depth": 3, "out_features": 3}
    with pytest.raises(ValueError, match=message):
        deep_gradient_norms(torch.randn(8, 6), torch.zeros(8).long(), **{**sizes, **options})


def vanishing(activation, dtype, depth=400, **options):
    """A signal that halves in each layer, or a little more: -185 nats and below."""
    options = {"norm": "none", "activation": activation, "gain": 0.5, "replicas": 2} | options
    return BNMLP(6, 5, depth, 3, dtype=dtype, **options)


@pytest.mark.parametrize(
    ("activation", "options"),
    [
        ("identity", {}),
        ("tanh", {}),
        ("tanh", {"gain": 0.01, "depth": 80}),
        ("tanh", {"norm": "batch", "gain": 1e-3, "eps": 1.0, "depth": 40}),
        ("tanh", {"norm": "layer", "gain": 1e-4, "eps": 1.0, "depth": 20}),
    ],
)
def test_signals_below_float32_have_the_gradients_of_float64(activation, options):
    model = vanishing(activation, torch.float32, **options)
    exact = subset(model, range(2)).double()
    x, y = torch.randn(8, 6).float(), torch.arange(8) % 3
    expected = gradient_norms(exact, x.double(), y, log=True)
    assert expected[0].max() < -100, f"only {expected[0].max().item():.0f} nats"
    found = gradient_norms(model, x, y, log=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient_norms(model, x, y), expected.exp(), rtol=1e-6, atol=0)
    assert model.input_weight.dtype == torch.float32


def test_networks_beside_one_whose_signal_is_lost_stay_in_their_type():
    x, y = torch.randn(2, 8, 6).float(), torch.randint(3, (2, 8))
    options = {"norm": "none", "activation": "tanh", "dtype": torch.float32}
    both = BNMLP(6, 5, 200, 3, gain=(1.0, 0.5), replicas=2, **options)
    alive = BNMLP(6, 5, 200, 3, gain=(1.0, 0.9), replicas=2, **options)
    found = gradient_norms(both, x, y, log=True)
    beside = gradient_norms(alive, x, y, log=True)
    torch.testing.assert_close(found[:, 0], beside[:, 0], rtol=0, atol=1e-6)
    own_type = subset(both, [0]).double()
    error = (gradient_norms(own_type, x[0].double(), y[0], log=True)[:, 0] - found[:, 0]).abs()
    assert error.max() > 1e-9, "computed in float64"
    exact = gradient_norms(subset(both, [1]).double(), x[1].double(), y[1], log=True)
    torch.testing.assert_close(found[:, 1:], exact)
    deep = deep_gradient_norms(
        x, y, width=5, depth=200, out_features=3, log=True, norm="none", activation="tanh",
        gain=(1.0, 0.5), replicas=2,
    )  # fmt: skip
    torch.testing.assert_close(deep, found, rtol=1e-6, atol=1e-6)


def test_so_have_those_of_networks_deeper_than_memory():
    x, y = torch.randn(8, 6).float(), torch.arange(8) % 3
    options = {"norm": "none", "gain": 0.5}
    found = deep_gradient_norms(x, y, width=5, depth=400, out_features=3, log=True, **options)
    expected = gradient_norms(vanishing("identity", torch.float64, replicas=1), x.double(), y,
                              log=True)  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_gradient_that_is_zero_has_the_logarithm_of_zero():
    model = BNMLP(6, 5, 3, 3, norm="none", activation="relu", bias=True)
    with torch.no_grad():
        model.layer_bias[1] = -100
    logs = gradient_norms(model, torch.randn(8, 6).float(), torch.arange(8) % 3, log=True)
    assert logs.isneginf().all()


def test_deep_norms_of_batches_that_do_not_fit_name_the_remedy():
    sizes = {"width": 5, "depth": 3, "out_features": 3}
    with pytest.raises(ValueError, match="centring a batch of 1"):
        deep_gradient_norms(torch.randn(1, 6), torch.tensor([0]), **sizes)
    with pytest.raises(ValueError, match=r"\(2, n, 6\)"):
        deep_gradient_norms(torch.randn(3, 8, 6), torch.zeros(8).long(), replicas=2, **sizes)


def test_the_rate_of_logarithms_is_that_of_the_norms_also_where_these_overflow():
    logs = -0.3 * torch.arange(9.0)[:, None] + torch.randn(9, 2)
    torch.testing.assert_close(explosion_rate(logs, log=True), explosion_rate(logs.exp()))
    torch.testing.assert_close(explosion_rate(logs + 1e4, log=True), explosion_rate(logs.exp()))
    with pytest.raises(ValueError, match="finite"):
        explosion_rate(logs + 1e4 * logs.new_tensor(torch.inf), log=True)
