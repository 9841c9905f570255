"""A measurement leaves everything as it was, bit for bit, also after an error."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from bnmlp import BNMLP, measure
from bnmlp.diagnosis.kept import everything_kept


class Restless(nn.Module):
    """A module that draws all kinds of random numbers, replaces a buffer, and fails if asked."""

    def __init__(self, fails="nowhere"):
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.dropout, self.last = nn.Dropout(0.3), nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("nothing", None)
        self.fails = fails

    def forward(self, x):
        self.seen = self.seen + 1
        random.random()
        np.random.rand()
        if self.fails == "forward":
            raise RuntimeError("on purpose")
        h = self.dropout(self.norm(self.linear(x)).relu_())
        if self.fails == "backward":
            h.register_hook(self.fail)
        return self.last(h)

    def fail(self, gradient):
        raise RuntimeError("on purpose")


def state_of(model):
    """Everything that must not change, tensors by identity and by value."""
    tensors = [*model.parameters(), *model.buffers()]
    hooks = [
        len(getattr(m, kind)) for m in model.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    ]  # fmt: skip
    return {
        "identities": [id(t) for t in tensors],
        "values": [t.detach().clone() for t in tensors],
        "gradients": [(id(p.grad), None if p.grad is None else p.grad.clone())
                      for p in model.parameters()],
        "needed": [t.requires_grad for t in tensors],
        "parameter hooks": [len(p._backward_hooks or ()) for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": hooks,
        "forward": ["forward" in vars(m) for m in model.modules()],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()[2:]]
        + np.random.get_state()[1].tolist(),
        "grad mode": torch.is_grad_enabled(),
    }  # fmt: skip


def assert_same(before, after):
    for name, value in before.items():
        other = after[name]
        if name in ("values", "torch"):
            pairs = zip(value, other, strict=True) if name == "values" else [(value, other)]
            assert all(torch.equal(a, b) for a, b in pairs), name
        elif name == "gradients":
            for (a, x), (b, y) in zip(value, other, strict=True):
                assert a == b and (x is None or torch.equal(x, y)), name
        else:
            assert value == other, name


def prepared(model):
    """Mixed modes, a frozen parameter, gradients on some."""
    x, y = torch.randn(10, 6), torch.randint(3, (10,))
    if getattr(model, "fails", "nowhere") == "nowhere":
        nn.functional.cross_entropy(model(x).view(-1, 3), y).backward()
    first, *_ = model.parameters()
    first.requires_grad_(False)
    model.eval()
    next(model.children(), model).train()
    return x, y


OPTIONS = [{}, {"level": "functions"}, {"spectra": True}, {"jacobian": True}, {"training": None}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ", ".join(o) or "default")
def test_nothing_is_left_behind(options):
    model = Restless()
    x, y = prepared(model)
    before = state_of(model)
    measure(model, x, y, **options)
    assert_same(before, state_of(model))


def test_nor_of_replicas_in_one_module():
    model = BNMLP(6, 5, 4, 3, activation="tanh")
    x, y = prepared(model)
    before = state_of(model)
    measure(model, x, y)
    assert_same(before, state_of(model))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nor_on_a_gpu():
    model = Restless()
    x, y = prepared(model)
    model.cuda()
    before, drawn = state_of(model), torch.cuda.get_rng_state_all()
    measure(model, x.cuda(), y.cuda())
    assert_same(before, state_of(model))
    for a, b in zip(drawn, torch.cuda.get_rng_state_all(), strict=True):
        assert torch.equal(a, b)


def test_nor_of_a_loss_that_draws():
    model = Restless()
    x, y = prepared(model)
    before = state_of(model)
    measure(model, x, y, loss_fn=lambda out, y: (out + torch.randn_like(out)).square().mean())
    assert_same(before, state_of(model))


@pytest.mark.parametrize("fails", ["forward", "backward"])
def test_nothing_is_left_behind_after_an_error(fails):
    model = Restless(fails)
    x, y = prepared(model)
    before = state_of(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        measure(model, x, y)
    assert_same(before, state_of(model))


def test_nor_after_an_error_of_the_loss():
    model = Restless()
    x, y = prepared(model)
    before = state_of(model)
    with pytest.raises(ValueError, match="one number"):
        measure(model, x, y, loss_fn=lambda output, target: output)
    with pytest.raises(ValueError, match="do not fit"):
        measure(model, x, torch.zeros(7).long())
    assert_same(before, state_of(model))


def test_the_control_a_plain_pass_leaves_much_behind():
    model = Restless()
    x, y = prepared(model)
    model.train()
    before = state_of(model)
    nn.functional.cross_entropy(model(x), y).backward()
    after = state_of(model)
    changed = {
        k for k in ("values", "gradients", "torch", "python", "numpy") if _differs(k, before, after)
    }
    assert changed == {"values", "gradients", "torch", "python", "numpy"}


def _differs(name, before, after):
    try:
        assert_same({name: before[name]}, after)
    except AssertionError:
        return True
    return False


def test_measuring_twice_gives_the_same_numbers():
    model = Restless()
    x, y = prepared(model)
    first, second = (measure(model, x, y).to_json() for _ in range(2))
    assert first == second


def test_training_goes_on_as_if_nothing_had_been_measured():
    runs = []
    for measured in (False, True):
        torch.manual_seed(1)
        model = Restless()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            x, y = torch.randn(10, 6), torch.randint(3, (10,))
            if measured:
                measure(model, x, y, optimizer=optimizer)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        runs.append([p.detach().clone() for p in (*model.parameters(), *model.buffers())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_network_of_several_norms_can_be_measured_again_and_trained():
    parts = [part for _ in range(3) for part in (nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())]
    model, x, y = nn.Sequential(*parts), torch.randn(10, 6), torch.randint(3, (10,))
    for _ in range(2):
        before = state_of(model)
        measure(model, x, y)
        assert_same(before, state_of(model))
        nn.functional.cross_entropy(model(x), y).backward()


def test_it_works_where_gradients_are_off_and_leaves_them_off():
    model = Restless()
    x, y = prepared(model)
    expected = measure(model, x, y).rate
    with torch.no_grad():
        assert str(measure(model, x, y).rate) == str(expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        batch = x.clone(), y.clone()
        assert str(measure(model, *batch).rate) == str(expected)
        assert torch.is_inference_mode_enabled()


def test_gradients_are_recorded_inside_only_where_they_were_outside():
    model = nn.Linear(2, 2)
    for outside in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with outside():
            recording = torch.is_grad_enabled()
            with everything_kept(model):
                assert torch.is_grad_enabled() == recording
                assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled() == recording


def test_what_is_kept_comes_back_after_a_change_of_everything():
    model = Restless()
    prepared(model)
    before = state_of(model)
    with pytest.raises(KeyError), everything_kept(model, training=True):
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert all(m.training for m in model.modules())
        model.norm.running_mean.add_(1)
        model.seen = torch.ones(3)
        model.last.weight.grad = torch.ones(3, 8)
        torch.rand(3)
        raise KeyError
    assert_same(before, state_of(model))
