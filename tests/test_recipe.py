import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from test_mlp import IN, OUT, WIDTH, N, randomise

from bnmlp import BNMLP, evaluate, gradient_norms, sgd_step
from bnmlp.networks.engine import stack_of
from bnmlp.networks.plain import PlainNetwork
from bnmlp.networks.recipe import CHANGEABLE, Recipe
from bnmlp.networks.replicas import subset

pytestmark = pytest.mark.usefixtures("float64")
FIELDS = [field.name for field in dataclasses.fields(Recipe)]
OTHER = {
    "activation": "sin", "gain": 0.5, "gain_exponent": 0.3, "gains": (0.5, 1.0, 2.0, 0.1),
    "center": False, "unit_norm": True, "eps": 0.1, "order": "act_norm",
}  # fmt: skip


def network(**options):
    return BNMLP(IN, WIDTH, 4, OUT, **{"activation": "tanh", "dtype": torch.float64, **options})


def batch():
    return torch.randn(N, IN), torch.arange(N) % OUT


def by_hand(model, x, gains):
    """Logits of one network with batch normalisation before tanh, as the equations have them."""
    h = x.mT
    for weight, gain in zip(model.layer_weights(), gains, strict=True):
        z = weight[0] @ h
        centred = z - z.mean(1, keepdim=True)
        h = torch.tanh(gain * centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt())
    return (model.output_weight[0] @ h).mT


def test_any_gains_are_those_of_the_equations():
    x, _ = batch()
    gains = [0.3, 2.0, 1.0, 0.01]
    model = network().with_gains("tanh", gains)
    torch.testing.assert_close(model.logits(x)[0], by_hand(model, x, gains))
    assert model.gains == tuple(gains)
    assert (model.gain, model.gain_exponent) == (None, None), "they are no schedule"
    for same in (np.array(gains), torch.tensor(gains), tuple(gains)):
        assert network().with_gains("tanh", same).recipe == model.recipe


@pytest.mark.parametrize("name", [name for name in CHANGEABLE if name != "gains"])
def test_other_choices_are_those_of_a_network_made_with_them(name):
    x, y = batch()
    options = {"bias": True, "affine": True, "replicas": 2}
    drawn = randomise(network(**options))
    drawn(x + 1)
    changed = drawn.with_choices(**{name: OTHER[name]})
    made = network(**options | {name: OTHER[name]})
    made.load_state_dict(changed.state_dict())
    assert changed.recipe == made.recipe
    assert repr(changed) == repr(made) != repr(drawn)
    twins = [PlainNetwork(m, 1)(x) for m in (changed, made)]
    parts = [subset(m, [1]).logits(x) for m in (changed, made)]
    assert torch.equal(*twins)
    assert torch.equal(*parts)
    torch.testing.assert_close(twins[0], parts[0][0])
    for measure in (lambda m: m(x), lambda m: gradient_norms(m, x, y),
                    lambda m: evaluate(m, x, y, "running").loss,
                    lambda m: sgd_step(m, x, y, 0.1), lambda m: m.running_var):  # fmt: skip
        assert torch.equal(measure(changed), measure(made)), name
    assert (drawn.logits(x) - made.logits(x)).abs().max() > 1e-3, "the control: it matters"


def test_gains_may_differ_by_replica_and_by_layer():
    x, y = batch()
    rows = [[0.5, 1.0], 2.0, (0.1, 0.1), torch.tensor([1.0, 3.0])]
    model = network(replicas=2, activation="identity").with_gains(("tanh", "sin"), rows)
    norms, logits = gradient_norms(model, x, y), model.logits(x)
    for r, gains in enumerate(([0.5, 2.0, 0.1, 1.0], [1.0, 2.0, 0.1, 3.0])):
        alone = network(streams=(r,)).with_gains(("tanh", "sin")[r], gains)
        part = subset(model, [r])
        assert part.recipe == alone.recipe
        assert part.gains == tuple(gains)
        torch.testing.assert_close(logits[r], alone.logits(x)[0])
        torch.testing.assert_close(norms[:, r], gradient_norms(alone, x, y)[:, 0])
    assert subset(model, [1, 0]).recipe.gains[0] == (1.0, 0.5)


@pytest.mark.parametrize("name", [*FIELDS, "recipe"])
def test_choices_of_a_network_are_fixed(name):
    model = network()
    before = getattr(model, name)
    with pytest.raises(AttributeError, match=f"^{name} of a BNMLP is fixed when it is made"):
        setattr(model, name, OTHER.get(name, 3))
    assert getattr(model, name) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(model.recipe, name, 3)
    with pytest.raises(TypeError):
        model.gains[0] = 2.0


def test_a_copy_of_the_gains_cannot_change_the_network():
    model, (x, _) = network(gain=(1.0, 0.5), replicas=2), batch()
    before = model.logits(x)
    model.gains[0].mul_(2)
    assert torch.equal(model.logits(x), before)


def test_networks_of_other_gains_have_the_same_weights_and_averages_of_their_own():
    x, y = batch()
    drawn = network(bias=True, affine=True)
    drawn.hidden_weight.requires_grad_(False)
    drawn.momentum = 0.3
    drawn.eval()
    other = drawn.with_gains("sin", [0.5] * 4)
    assert not other.training
    assert other.momentum == 0.3
    assert [p.requires_grad for p in other.parameters()] == [
        p.requires_grad for p in drawn.parameters()
    ]
    averages = drawn.running_var.clone()
    sgd_step(other.train(), x, y, 0.1)
    for name, p in drawn.named_parameters():
        assert torch.equal(p, getattr(other, name)), name
    assert torch.equal(drawn.running_var, averages)
    assert not torch.equal(other.running_var, averages)
    assert stack_of(other, x) is not stack_of(drawn, x)


def test_networks_of_other_gains_part_when_one_moves():
    drawn = network()
    other = drawn.with_gains("sin").float()
    assert {t.dtype for t in drawn.state_dict().values()} == {torch.float64}
    assert {t.dtype for t in other.state_dict().values()} == {torch.float32}


def test_averages_begin_anew_where_they_are_averages_of_something_else():
    model, (x, _) = network(), batch()
    model(x + 1)
    assert torch.equal(model.with_choices(eps=0.1).running_mean, model.running_mean)
    for choice in ({"center": False}, {"unit_norm": True}):
        other = model.with_choices(**choice)
        assert torch.equal(other.running_mean, torch.zeros_like(model.running_mean))
        assert torch.equal(other.running_var, torch.ones_like(model.running_mean))


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_have_the_recipe(again):
    model, (x, y) = network(gain=(1.0, 0.5), replicas=2), batch()
    before = model.logits(x), sgd_step(model, x, y, 0.0)
    twin = again(model)
    assert twin.recipe == model.recipe
    assert repr(twin) == repr(model)
    assert torch.equal(twin.logits(x), before[0])
    assert torch.equal(sgd_step(twin, x, y, 0.0), before[1])


def test_the_repr_has_every_choice_but_what_follows_from_others():
    text = repr(network(replicas=2, seed=3))
    shown = [name for name in FIELDS[4:] if f"{name}=" in text]
    assert shown == [name for name in FIELDS[4:] if name not in ("streams", "gains")]
    assert f"{IN} -> 4 x {WIDTH} -> {OUT}" in text
    text = repr(network(streams=(5,)).with_gains("sin", [0.5, 0.25, 1.0, 2.0]))
    assert "gains=(0.5, 0.25, 1.0, 2.0)" in text
    assert "streams=(5,)" in text
    assert ", gain=" not in text


def test_equal_choices_for_all_replicas_are_one_choice():
    one = network(replicas=3, gain=0.5)
    each = network(replicas=3, gain=[0.5] * 3, activation=("tanh",) * 3, gain_exponent=np.zeros(3))
    assert each.recipe == one.recipe
    assert hash(each.recipe) == hash(one.recipe)
    mixed = network(replicas=3, activation=("tanh", "sin", "tanh"))
    assert subset(mixed, [0, 2]).activation == "tanh"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"gains": [1.0] * 3}, "gains has 3 entries for 4 layers"),
        ({"gains": [1.0, 1.0, -1.0, 1.0]}, "gain must be a finite number > 0, got -1.0"),
        ({"gains": [1.0, 1.0, float("nan"), 1.0]}, "gain must be a finite number > 0, got nan"),
        ({"gains": [1.0, (1.0, 2.0, 3.0), 1.0, 1.0]}, "the gain of layer 2 has 3 entries for 2"),
        ({"gains": [1.0] * 4, "gain": 2.0}, "give gain and gain_exponent, or else gains"),
        ({"gain": None}, "give gain and gain_exponent, or else gains"),
        ({"activation": "swish"}, "unknown activation 'swish'"),
        ({"center": "no"}, "center must be True or False, got 'no'"),
        ({"eps": -1.0}, "eps must be"),
        ({"width": 9}, "width cannot change while the weights stay; make a new BNMLP"),
        ({"replicas": 9}, "replicas cannot change"),
        ({"norm": "layer"}, "norm cannot change"),
        ({"colour": "red"}, "colour cannot change"),
    ],
)
def test_choices_that_do_not_fit_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        network(replicas=2).with_choices(**choices)


def test_a_schedule_takes_the_place_of_single_gains_and_the_other_way_round():
    drawn = network(gain=2.0, gain_exponent=0.5)
    single = drawn.with_gains("tanh", [0.5, 0.25, 1.0, 2.0])
    again = single.with_choices(gain=2.0, gain_exponent=0.5)
    assert again.recipe == drawn.recipe
    assert single.with_choices(gain=3.0).gains == (3.0,) * 4
    assert single.with_choices(gain_exponent=1.0).gains == (1.0, 1 / 2, 1 / 3, 1 / 4)
    assert single.with_choices(eps=0.1).gains == single.gains
