import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from bnmlp import load_dataset, orthogonal_, shape_
from bnmlp.diagnosis.cures import Shaped
from bnmlp.layers.activations import gain_schedule
from bnmlp.networks.convolutional import ResNet
from bnmlp.theory.meanfield import gradient_growth


def singular_values(module, *shape):
    """Of the linear map that a module without bias is, by its columns."""
    size = torch.Size(shape).numel()
    columns = module(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1)
    return torch.linalg.svdvals(columns.detach())


MAPS = {
    "square": (nn.Linear(7, 7, bias=False), (7,), 7),
    "tall": (nn.Linear(4, 7, bias=False), (4,), 4),
    "wide": (nn.Linear(7, 4, bias=False), (7,), 4),
    "one dimension": (nn.Conv1d(3, 3, 5, padding=2, bias=False), (3, 6), 18),
    "delta": (nn.Conv2d(4, 4, 3, padding=1, bias=False), (4, 4, 4), 64),
    "dilated": (nn.Conv2d(2, 2, 3, padding=2, dilation=2, bias=False), (2, 5, 5), 50),
    "three dimensions": (nn.Conv3d(2, 3, 3, padding=1, bias=False), (2, 3, 3, 3), 54),
    "strided": (nn.Conv2d(2, 6, 3, 2, padding=1, bias=False), (2, 6, 6), 54),
    "strided tall": (nn.Conv2d(1, 6, 7, 2, padding=3, bias=False), (1, 8, 8), 64),
    "patches": (nn.Conv2d(2, 5, 4, 4, bias=False), (2, 8, 8), 20),
    "one pixel of four": (nn.Conv2d(2, 2, 1, 2, bias=False), (2, 4, 4), 8),
    "groups": (nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), (4, 3, 3), 36),
    "each channel": (nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False), (3, 3, 3), 27),
    "transposed": (nn.ConvTranspose2d(3, 2, 4, 2, padding=1, bias=False), (3, 4, 4), 48),
}


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_all_singular_values_of_a_map_are_the_gain(kind, gain):
    module, shape, rank = MAPS[kind]
    module = copy.deepcopy(module).double()
    before = singular_values(module, *shape)
    assert before[0] > 1.01 * before[rank - 1], "the control: a default weight has a spectrum"
    assert orthogonal_(module, gain) == ["weight"]
    found = singular_values(module, *shape)
    torch.testing.assert_close(found[:rank], torch.full((rank,), gain, dtype=torch.float64))
    assert found[rank:].abs().max() < 1e-12 if len(found) > rank else True


def test_square_weights_are_haar_distributed():
    module = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(2000))).double()
    orthogonal_(module)
    w = torch.stack([part.weight.detach() for part in module])
    assert w[:, 0, 0].mean().abs() < 4 * (1 / 3 / 2000) ** 0.5
    assert abs(w[:, 0, 0].square().mean() - 1 / 3) < 4 * (4 / 45 / 2000) ** 0.5
    traces = w.diagonal(dim1=1, dim2=2).sum(1)
    assert abs(traces.square().mean() - 1) < 0.15  # E tr(W)^2 = 1
    assert 0.45 < (torch.linalg.det(w) > 0).double().mean() < 0.55


def test_the_maps_of_attention_and_gates_are_one_matrix_each():
    attention, lstm = nn.MultiheadAttention(8, 2), nn.LSTM(8, 8, num_layers=2, bidirectional=True)
    other = nn.MultiheadAttention(8, 2, kdim=5, vdim=6)
    cell = nn.GRUCell(4, 4)
    names = orthogonal_(nn.ModuleList([attention, lstm, other, cell]))
    assert names[:2] == ["0.in_proj_weight", "0.out_proj.weight"]
    assert "2.k_proj_weight" in names and "3.weight_hh" in names and len(names) == 2 + 8 + 4 + 2
    for weight, blocks in ((attention.in_proj_weight, 3), (lstm.weight_hh_l1_reverse, 4),
                           (cell.weight_ih, 3)):  # fmt: skip
        for part in weight.chunk(blocks):
            torch.testing.assert_close(part @ part.mT, torch.eye(len(part)), atol=1e-5, rtol=0)
    first, second, _ = attention.in_proj_weight.chunk(3)
    assert not torch.allclose(first, second)


class Language(nn.Module):
    """Embedding tied to the logits, one linear map used twice, a norm, a frozen map."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.shared = nn.Linear(6, 6)
        self.again = self.shared
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.shared.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.own = nn.Linear(6, 6)
        self.logits = nn.Linear(6, 11, bias=False)
        self.logits.weight = self.words.weight


def test_shared_weights_are_drawn_once_and_all_others_stay():
    module = Language()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    drawn = orthogonal_(module)
    assert drawn == ["shared.weight", "own.weight"]
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"shared.weight", "again.weight", "tied.weight", "own.weight"}


def test_a_weight_depends_on_seed_and_place_alone():
    def weights(dtype=torch.float32, **options):
        module = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(2, 2, 3), nn.Linear(4, 4)).to(dtype)
        orthogonal_(module, **options)
        return [module[i].weight.detach().double() for i in range(3)]

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = weights()
    again = weights(exclude=["1"])
    assert torch.equal(first[0], again[0]) and torch.equal(first[2], again[2])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[0], weights(seed=1)[0])
    torch.testing.assert_close(weights(torch.float64)[1], first[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(weights(torch.bfloat16)[0], first[0], atol=4e-3, rtol=0)
    torch.manual_seed(1)
    nn.Sequential(nn.Linear(4, 4), nn.Conv2d(2, 2, 3), nn.Linear(4, 4))
    module = nn.Linear(4, 4)
    state = torch.get_rng_state()
    orthogonal_(module)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_drawn_is_refused_in_words_and_nothing_has_changed():
    normed = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4)))
    spectral = nn.Sequential(nn.Linear(4, 4), nn.utils.spectral_norm(nn.Linear(4, 4)))
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    for module, options, words in (
        (normed, {}, r"1\.weight is computed from other parameters"),
        (spectral, {}, r"1\.weight is computed from other parameters"),
        (nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3)), {}, "put one batch through"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta")), {}, "on meta"),
        (nn.Linear(4, 4, dtype=torch.complex64), {}, "complex64"),
        (nn.BatchNorm1d(3), {}, "found no weight"),
        (plain, {"exclude": ["0", "1"]}, "found no weight"),
        (plain, {"exclude": ["head"]}, "'head', which the module lacks; it has 0, 1, 0.weight"),
        (plain, {"exclude": "0"}, "must be a list of names"),
        (plain, {"gain": 0.0}, "gain must be a finite number > 0"),
    ):
        first = next(module.parameters()).clone()
        with pytest.raises(ValueError, match=words):
            orthogonal_(module, **options)
        assert torch.equal(next(module.parameters()), first)
    assert orthogonal_(normed, exclude=["1"]) == ["0.weight"]
    assert orthogonal_(plain, exclude=["1.weight"]) == ["0.weight"]


class Tanhs(nn.Module):
    """Called in another order than registered."""

    def __init__(self, depth=3, kind=nn.Tanh):
        super().__init__()
        self.acts = nn.ModuleList(kind() for _ in range(depth))
        self.maps = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(depth))

    def forward(self, x):
        for i in reversed(range(len(self.maps))):
            x = self.acts[i](self.norms[i](self.maps[i](x)))
        return x


def test_gains_fall_in_the_order_of_calls_or_of_registration():
    x, gains = torch.randn(9, 4), gain_schedule(3, 0.9, 0.4).tolist()
    module, names = Tanhs(), ["acts.0", "acts.1", "acts.2"]
    assert shape_(module, 0.4, gain=0.9) == dict(zip(names, gains, strict=True))
    found = shape_(module, 0.4, x, gain=0.9)
    assert found == dict(zip(names[::-1], gains, strict=True))
    assert [act.gain for act in module.acts] == gains[::-1]
    h = x
    for i, gain in zip((2, 1, 0), gains, strict=True):
        h = torch.tanh(gain * module.norms[i](module.maps[i](h)))
    torch.testing.assert_close(module(x), h)


def test_shaping_again_replaces_gains_and_exponent_zero_takes_them_out():
    module, x = Tanhs().eval(), torch.randn(9, 4)
    original, before, names = list(module.acts), module(x), list(module.state_dict())
    shape_(module, 1.0, x)
    shaped = module(x)
    shape_(module, 1.0, x)
    assert torch.equal(module(x), shaped) and not torch.equal(shaped, before)
    assert all(type(act) is Shaped and type(act.activation) is nn.Tanh for act in module.acts)
    assert list(module.state_dict()) == names and not module.acts[0].training
    torch.testing.assert_close(copy.deepcopy(module)(x), shaped)
    shape_(module, 0.0)
    assert all(a is b for a, b in zip(module.acts, original, strict=True))
    assert torch.equal(module(x), before)


@pytest.mark.parametrize(
    "kind", [nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.ELU, nn.Mish]
)
def test_a_small_gain_makes_a_smooth_activation_linear(kind):
    module, x = nn.Sequential(kind(), kind()), torch.randn(50, dtype=torch.float64)
    shape_(module, 12.0)  # the second gain is 1/4096
    z = module[1](x)
    slope, offset = torch.linalg.lstsq(torch.stack([x, x.new_ones(50)], 1), z[:, None])[0]
    assert (z - slope * x - offset).abs().max() < 1e-3 * slope.abs() * x.abs().max()


@pytest.mark.parametrize("kind", [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.SELU, nn.ReLU6])
def test_an_activation_with_a_kink_is_refused_for_its_reason(kind):
    module = Tanhs(2, kind).double()
    with pytest.raises(ValueError, match=r"acts.0, acts.1 has a kink.*use a smooth activation"):
        shape_(module, 0.5)
    assert all(type(act) is kind for act in module.acts)
    x = torch.randn(9, dtype=torch.float64) * 1e-3  # the reason: only a factor comes out
    torch.testing.assert_close(module.acts[0](0.1 * x), 0.1 * module.acts[0](x), rtol=1e-3, atol=0)
    module.acts[1] = nn.Tanh()
    with pytest.warns(UserWarning, match=r"acts.0 has a kink.*it keeps gain one"):
        assert shape_(module, 1.0) == {"acts.1": 0.5}
    assert type(module.acts[0]) is kind


def test_one_module_in_several_places_gets_a_gain_in_each():
    tanh = nn.Tanh()
    module = nn.Sequential(nn.Linear(4, 4), tanh, nn.Linear(4, 4), tanh)
    x = torch.randn(5, 4)
    assert shape_(module, 1.0, x) == {"1": 1.0, "3": 0.5}
    h = torch.tanh(module[0](x))
    torch.testing.assert_close(module(x), torch.tanh(0.5 * module[2](h)))
    shape_(module, 0.0)
    assert module[1] is tanh and module[3] is tanh


def test_what_cannot_be_shaped_is_refused_in_words_and_stays():
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.Tanh()

        def forward(self, x):
            return self.act(self.act(x))

    class Functional(nn.Module):
        def forward(self, x):
            return torch.tanh(x)

    x = torch.randn(3, 4)
    for module, arguments, options, words in (
        (Once(), (1.0, x), {}, "act is called 2 times.*a module of its own"),
        (Functional(), (1.0, x), {}, r"found no activation module.*make it a module, nn.Tanh\(\)"),
        (Tanhs(), (1.0, torch.randn(3, 5)), {}, None),
        (Tanhs(), (1.0,), {"exclude": ["acts.9"]}, "which the module lacks"),
        (Tanhs(), (1.0,), {"gain": -1.0}, "gain must be a finite number > 0"),
        (Tanhs(), (float("nan"),), {}, "exponent must be finite"),
    ):
        shape_(module, 0.3) if isinstance(module, Tanhs) else None
        before = repr(module)
        with pytest.raises((ValueError, RuntimeError), match=words):
            shape_(module, *arguments, **options)
        assert repr(module) == before
        assert not any(m._forward_pre_hooks for m in module.modules())


def test_gates_may_be_left_out_and_other_activations_named():
    class Sine(nn.Module):
        def forward(self, x):
            return torch.sin(x)

    module = nn.Sequential(Sine(), nn.Sigmoid(), Sine())
    assert shape_(module, 1.0, exclude=["1"], kinds=(Sine,)) == {"0": 1.0, "2": 0.5}


def test_a_fused_transformer_layer_does_not_forget_the_gain():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, activation=nn.GELU(), batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    layer.activation = nn.GELU()
    shape_(layer, 0.5, gain=0.1)
    with torch.no_grad():
        fused = layer(x)
    torch.testing.assert_close(fused, layer(x.requires_grad_()).detach())
    shape_(layer, 0.0)
    assert layer.activation_relu_or_gelu == 2


def test_modes_averages_and_random_numbers_stay():
    module, x = Tanhs(2, lambda: nn.Sequential(nn.Tanh(), nn.Dropout(0.5))), torch.randn(9, 4)
    module.norms[0].eval()
    modes = [m.training for m in module.norms]
    before, state = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    shape_(module, 0.5, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in module.norms] == modes
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


DEPTH, WIDTH = 60, 100


def deep(activation):
    """Linear map, batch norm and activation, sixty times, with Gaussian weights."""
    layers = []
    for i in range(DEPTH):
        layers += [nn.Linear(784 if i == 0 else WIDTH, WIDTH, bias=False), nn.BatchNorm1d(WIDTH)]
        layers += [activation()]
    module = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    for part in module:
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
    return module


def growth(module):
    """Log gradient norm of the second map over that of the last of the sixty, in nats."""
    x, y = load_dataset("mnist5k").batch(200)
    maps = [part for part in module if isinstance(part, nn.Linear)][1:-1]
    loss = F.cross_entropy(module(x), y)
    gradients = torch.autograd.grad(loss, [part.weight for part in maps])
    return (gradients[0].norm() / gradients[-1].norm()).log().item()


def test_orthogonal_weights_and_shaping_take_the_explosion_out_of_a_tanh_network():
    module = deep(nn.Tanh)
    layers = DEPTH - 2  # between the two gradients
    assert growth(module) == pytest.approx(layers * gradient_growth("tanh"), rel=0.25)
    orthogonal_(module)
    unshaped = growth(module)
    assert unshaped == pytest.approx(layers * gradient_growth("tanh"), rel=0.25)
    gains = shape_(module, 0.5)
    predicted = sum(gradient_growth("tanh", gain) for gain in list(gains.values())[1:-1])
    assert growth(module) == pytest.approx(predicted, abs=0.35)
    assert growth(module) < 0.2 * unshaped


def test_a_relu_network_explodes_with_orthogonal_weights_too():
    module = deep(nn.ReLU)
    expected = pytest.approx((DEPTH - 2) * gradient_growth("relu"), rel=0.2)
    assert growth(module) == expected
    orthogonal_(module)
    assert growth(module) == expected


def test_a_convolutional_network_is_drawn_whole():
    model = ResNet(1, 4, in_channels=1)
    assert len(orthogonal_(model, exclude=["last"])) == len(model.convolutions())
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8)
    F.cross_entropy(model(x), y).backward()
    assert all(c.weight.grad.isfinite().all() for c in model.convolutions())
