import contextlib
import gc
import itertools
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_mlp import IN, OUT, WIDTH, N, randomise

from bnmlp import ACTIVATIONS, BNMLP, evaluate, gradient_norms, sgd_step
from bnmlp.networks import engine, fused
from bnmlp.networks.eager import _tanh
from bnmlp.networks.plain import PlainNetwork
from bnmlp.networks.replicas import subset
from bnmlp.training import step
from bnmlp.training.step import _graph_key

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(params=["compiled", "eager"])
def passes(request, monkeypatch):
    """The two ways between the matrix products; one alone where there is no compiler."""
    if request.param == "eager":
        monkeypatch.setattr(fused, "library", lambda x: None)
    elif fused.library(torch.zeros(1)) is None:
        pytest.skip("no C compiler here")
    return request.param


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_steps_are_those_of_plain_pytorch(norm, activation, passes):
    flags = itertools.product(
        ("norm_act", "act_norm"), (True, False), (True, False), (True, False), (True, False)
    )
    for order, center, unit, bias, affine in flags:
        model = randomise(
            BNMLP(
                IN,
                WIDTH,
                5,
                OUT,
                norm=norm,
                activation=activation,
                order=order,
                center=center,
                unit_norm=unit,
                bias=bias,
                affine=affine,
                gain=0.9,
                gain_exponent=0.2,
                replicas=2,
                dtype=torch.float64,
            )  # fmt: skip
        )
        plain = [PlainNetwork(model, r) for r in range(2)]
        optimisers = [torch.optim.SGD(p.parameters(), lr=0.05) for p in plain]
        for number in range(4):
            x, y = torch.randn(2, N, IN), torch.randint(OUT, (2, N))
            losses = sgd_step(model, x, y, 0.05)
            for r, (p, optimiser) in enumerate(zip(plain, optimisers, strict=True)):
                optimiser.zero_grad()
                loss = F.cross_entropy(p(x[r]), y[r])
                loss.backward()
                optimiser.step()
                assert losses[r].item() == pytest.approx(loss.item(), rel=1e-9), f"{number} {model}"
        x = torch.randn(2, N, IN)
        for training in (False, True):  # a plain forward pass in training moves averages
            model.train(training)
            for r, p in enumerate(plain):
                is_torch_norm = norm != "batch" or (center and not unit)
                if not training and not is_torch_norm:
                    continue  # the hand-written reference keeps no running averages
                torch.testing.assert_close(
                    model.logits(x)[r], p.train(training)(x[r]), rtol=1e-9, atol=1e-10
                )


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("unit", [True, False])
def test_running_averages_of_a_step_are_those_of_a_forward_pass(center, unit, passes):
    def build():
        return BNMLP(IN, WIDTH, 6, OUT, activation="tanh", center=center, unit_norm=unit,
                     replicas=2, dtype=torch.float64)  # fmt: skip

    stepped, called = build(), build()
    for _ in range(3):
        x, y = torch.randn(N, IN), torch.randint(OUT, (N,))
        sgd_step(stepped, x, y, 0.0)
        called(x)
    torch.testing.assert_close(stepped.running_mean, called.running_mean)
    torch.testing.assert_close(stepped.running_var, called.running_var)


def test_buffers_follow_the_batch_size():
    model = BNMLP(IN, WIDTH, 4, OUT, activation="tanh", dtype=torch.float64)
    for n in (N, 5, N, 20):
        x, y = torch.randn(n, IN), torch.randint(OUT, (n,))
        expected = F.cross_entropy(model.logits(x)[0], y)
        torch.testing.assert_close(sgd_step(model, x, y, 0.1)[0], expected.detach())


def test_buffers_go_with_their_model():
    model = BNMLP(IN, WIDTH, 4, OUT, dtype=torch.float64)
    sgd_step(model, torch.randn(N, IN), torch.randint(OUT, (N,)), 0.1)
    stack = weakref.ref(engine.stack_of(model, torch.randn(N, IN)))
    assert stack() is not None
    del model
    gc.collect()
    assert stack() is None, "the buffers outlive the model"


def test_a_step_lowers_the_loss_of_every_replica():
    model = BNMLP(IN, WIDTH, 4, OUT, activation="tanh", replicas=5, dtype=torch.float64)
    x, y = torch.randn(N, IN), torch.randint(OUT, (N,))
    first = sgd_step(model, x, y, 0.05)
    assert (sgd_step(model, x, y, 0.05) < first).all()


@pytest.mark.parametrize("learning_rate", [-1.0, float("nan"), float("inf")])
def test_bad_learning_rates_are_refused(learning_rate):
    model = BNMLP(IN, WIDTH, 2, OUT, dtype=torch.float64)
    before = model.hidden_weight.clone()
    with pytest.raises(ValueError, match="learning_rate must be"):
        sgd_step(model, torch.randn(N, IN), torch.zeros(N, dtype=torch.int64), learning_rate)
    with pytest.raises(ValueError, match="labels"):
        sgd_step(model, torch.randn(N, IN), torch.full((N,), OUT), 0.1)
    assert torch.equal(before, model.hidden_weight)


def test_the_fast_hyperbolic_tangent_is_accurate_in_float32():
    x = torch.cat([torch.linspace(-12, 12, 200_001), torch.logspace(-8, 0, 1000)]).float()
    fast, exact = _tanh(x, torch.empty_like(x)), torch.tanh(x.double())
    error = (fast - exact).abs().max().item()
    assert error < 2e-7, f"absolute error {error:.1e}"
    small = x.double()
    torch.testing.assert_close(_tanh(small, torch.empty_like(small)), exact)


def test_steps_with_other_choices_are_those_of_autograd(passes):
    x, y = torch.randn(N, IN), torch.randint(OUT, (N,))
    changed = BNMLP(IN, WIDTH, 4, OUT, activation="tanh", dtype=torch.float64)
    for name, value in (("activation", "sin"), ("order", "act_norm"), ("center", False),
                        ("unit_norm", True), ("eps", 0.1), ("gain_exponent", 0.5),
                        ("gains", [0.3, 1.0, 0.5, 2.0])):  # fmt: skip
        sgd_step(changed, x, y, 0.1)
        changed = changed.with_choices(**{name: value})
        expected = torch.autograd.grad(
            F.cross_entropy(changed.logits(x)[0], y), changed.input_weight
        )[0]
        before = changed.input_weight.detach().clone()
        sgd_step(changed, x, y, 1.0)
        torch.testing.assert_close(before - changed.input_weight.detach(), expected)


@pytest.mark.parametrize("order", ["norm_act", "act_norm"])
@pytest.mark.parametrize("options", [{}, {"affine": True, "bias": True}, {"norm": "none"}])
def test_replicas_of_different_kinds_are_the_networks_they_are_alone(order, options, passes):
    kinds = [("identity", 0.0), ("tanh", 0.4), ("tanh", 0.0), ("sin", 0.2), ("relu", 0.0)]
    common = {"order": order, "dtype": torch.float64, **options}
    activation, exponent = zip(*kinds, strict=True)
    mixed = BNMLP(
        9, 8, 5, 4, activation=activation, gain_exponent=exponent, replicas=5,
        streams=(0, 1, 0, 1, 2), **common,
    )  # fmt: skip
    x, y = torch.randn(12, 9), torch.randint(4, (12,))
    before = gradient_norms(mixed, x, y)
    stages = mixed.representations(x)["activation"]
    losses = sgd_step(mixed, x, y, 0.1)
    statistics = "running" if mixed.norm == "batch" else "batch"
    scores = evaluate(mixed, x, y, statistics).loss
    for r, (name, e) in enumerate(kinds):
        stream = (mixed.streams[r],)
        alone = BNMLP(9, 8, 5, 4, activation=name, gain_exponent=e, streams=stream, **common)
        torch.testing.assert_close(gradient_norms(alone, x, y)[:, 0], before[:, r])
        torch.testing.assert_close(alone.representations(x)["activation"][:, 0], stages[:, r])
        torch.testing.assert_close(sgd_step(alone, x, y, 0.1)[0], losses[r])
        torch.testing.assert_close(alone.hidden_weight[:, 0], mixed.hidden_weight[:, r])
        torch.testing.assert_close(evaluate(alone, x, y, statistics).loss[0], scores[r])
        torch.testing.assert_close(subset(mixed, [r]).logits(x)[0], mixed.logits(x)[r])


def test_choices_for_replicas_must_be_as_many():
    with pytest.raises(ValueError, match="activation has 2 entries for 3 replicas"):
        BNMLP(3, 4, 2, 2, activation=("tanh", "sin"), replicas=3)
    with pytest.raises(ValueError, match="unknown activation 'cos'"):
        BNMLP(3, 4, 2, 2, activation=("tanh", "cos"), replicas=2)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_a_single_sample_is_refused_before_anything_moves_where_it_would_be_centred(center, unit):
    model = BNMLP(IN, WIDTH, 3, OUT, bias=True, affine=True, center=center, unit_norm=unit,
                  replicas=2, dtype=torch.float64)  # fmt: skip
    before, x, y = state(model), torch.randn(1, IN), torch.tensor([2])
    if center:
        for call in (lambda: sgd_step(model, x, y, 0.1), lambda: gradient_norms(model, x, y)):
            with pytest.raises(ValueError, match=r"centring a batch of 1 .* center=False"):
                call()
        assert all(torch.equal(before[name], value) for name, value in state(model).items())
    else:
        expected = F.cross_entropy(model.logits(x)[0], y)
        assert sgd_step(model, x, y, 0.1)[0].item() == pytest.approx(expected.item())
    model.eval()  # a sample has its own gradient where averages normalise
    loss = F.cross_entropy(model.logits(x)[1], y)
    expected = torch.autograd.grad(loss, model.output_weight)[0][1].norm()
    assert gradient_norms(model, x, y)[-1, 1].item() == pytest.approx(expected.item())


NAMES = ("input_weight", "hidden_weight", "output_weight", "layer_bias", "output_bias",
         "norm_weight", "norm_bias")  # fmt: skip


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("frozen", [*((name,) for name in NAMES), NAMES])
def test_frozen_parameters_stay_and_the_others_move_as_with_torchs_optimiser(frozen, norm, passes):
    def build():
        model = BNMLP(IN, WIDTH, 4, OUT, activation="tanh", norm=norm, bias=True, affine=True,
                      replicas=2, dtype=torch.float64)  # fmt: skip
        for name in frozen:
            getattr(model, name).requires_grad_(False)
        return model

    ours, theirs = build(), build()
    before, free = state(ours), gradient_norms(build().requires_grad_(True), *fixed_batch())
    torch.testing.assert_close(gradient_norms(ours, *fixed_batch()), free, rtol=1e-9, atol=1e-12)
    x, y = fixed_batch()
    losses = sgd_step(ours, x, y, 0.1)
    loss = torch.stack([F.cross_entropy(z, y) for z in theirs(x)])
    torch.testing.assert_close(losses, loss.detach())
    if len(frozen) < len(NAMES):
        optimiser = torch.optim.SGD(theirs.parameters(), lr=0.1)
        loss.sum().backward()
        optimiser.step()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-9, atol=1e-12, msg=name)
        if name in frozen:
            assert torch.equal(ours.state_dict()[name], before[name]), name
            assert not getattr(ours, name).requires_grad


def fixed_batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(N, IN, generator=generator), torch.arange(N) % OUT


@pytest.mark.parametrize("scale", [1e-5, 1e-4, 1e-2, 1.0])
def test_running_variances_of_nearly_constant_rows_are_not_negative(scale, passes):
    model = BNMLP(IN, WIDTH, 3, OUT, init_gain=scale)
    x, y = torch.randn(N, IN).float(), torch.randint(OUT, (N,))
    model.momentum = 1.0
    plain = PlainNetwork(model)
    sgd_step(model, x, y, 0.0)
    assert (model.running_var >= 0).all(), f"variance {model.running_var.min().item():.1e}"
    plain(x)
    expected = torch.stack([norm.running_var for norm in plain.norms])
    torch.testing.assert_close(model.running_var[:, 0], expected, rtol=1e-3, atol=1e-7)


def test_a_graph_is_keyed_by_everything_it_has_fixed():
    model = BNMLP(IN, WIDTH, 3, OUT, activation=("tanh", "sin"), gain=(1.0, 0.5), bias=True,
                  affine=True, replicas=2, dtype=torch.float64)  # fmt: skip
    x = torch.randn(N, IN)
    key = _graph_key(model, x)
    sgd_step(model, x, torch.zeros(N, dtype=torch.int64), 0.1)
    assert _graph_key(model, torch.randn(N, IN)) == key, "numbers are copied into the graph"
    assert _graph_key(model, torch.randn(N - 1, IN)) != key
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert len(tensors) == 9
    for name, tensor in tensors.items():
        kept, tensor.data = tensor.data, tensor.data.clone()
        assert _graph_key(model, x) != key, f"{name} was replaced"
        tensor.data = kept
        assert _graph_key(model, x) == key
    model.momentum = 0.2
    assert _graph_key(model, x) != key
    model.momentum = 0.1
    assert _graph_key(model, x) == key
    for name, value in (("eps", 0.1), ("center", False), ("activation", "sin"), ("gain", 0.5)):
        kept = {name: p for name, p in model.named_buffers()}
        other = model.with_choices(**{name: value})
        other.load_state_dict(kept, strict=False, assign=True)  # reads and writes where it does
        assert _graph_key(other, x)[-1] == key[-1]
        assert _graph_key(other, x) != key, name
    address = model.gains_like(x)[0].data_ptr()
    model.gains_like(x.float())
    assert model.gains_like(x)[0].data_ptr() == address, "gains in a graph stay where they are"


def units(bias=True, affine=True, **options):
    options = {"activation": ("tanh", "sin"), "replicas": 2} | options
    return randomise(BNMLP(IN, WIDTH, 60, OUT, bias=bias, affine=affine, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", ["norm_act", "act_norm"])
def test_recomputing_changes_no_bit(dtype, order):
    """Also where gradients grow by many powers of ten on the way."""
    torch.manual_seed(0)
    kept = units(order=order, dtype=dtype)
    again = kept.with_choices()
    for name, p in again.named_parameters():  # memory of its own
        setattr(again, name, torch.nn.Parameter(p.detach().clone()))
    x, y = torch.randn(N, IN, dtype=dtype), torch.randint(OUT, (N,))
    for _ in range(3):
        losses = sgd_step(kept, x, y, 1e-6, recompute=False)
        assert torch.equal(sgd_step(again, x, y, 1e-6, recompute=True), losses)
    for name, value in kept.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    moved = units(order=order, dtype=dtype).hidden_weight - kept.hidden_weight
    assert moved.abs().max() > 0


def test_buffers_that_would_take_a_quarter_of_the_memory_are_recomputed(monkeypatch):
    model = units(dtype=torch.float64)
    x, y = torch.randn(N, IN), torch.randint(OUT, (N,))
    needed = engine.step_bytes(model, N) * 60 * 2
    for memory, kept in ((4.1 * needed, True), (3.9 * needed, False)):
        monkeypatch.setattr(step, "_memory", lambda size=memory: size)
        engine._STACKS.clear()
        sgd_step(model, x, y, 0.1)
        assert (model in engine._STACKS) == kept


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("order", ["norm_act", "act_norm"])
def test_the_memory_of_a_step_is_the_formula(norm, affine, order):
    held = {}
    for depth in (3, 10):
        model = BNMLP(IN, WIDTH, depth, OUT, norm=norm, affine=affine, bias=affine, order=order,
                      replicas=2, dtype=torch.float64)  # fmt: skip
        stack = engine.Stack(model, torch.randn(N, IN))
        own = [t for v in vars(stack).values() for t in (v if isinstance(v, tuple) else [v])]
        tensors = [*own, *stack.spare, *model.parameters(), *model.buffers()]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                    for t in tensors if isinstance(t, torch.Tensor)}  # fmt: skip
        held[depth] = sum(storages.values())
    each = (held[10] - held[3]) / 7 / 2
    assert each == engine.step_bytes(model, N), f"{each} bytes"


# The peak of getrusage is inherited from the process that starts another; that of /proc is not.
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_ten_thousand_layers_train_in_two_gibibytes():
    code = """
import re, torch
from bnmlp import BNMLP, sgd_step
x, y = torch.randn(100, 784), torch.arange(100) % 10
model = BNMLP(784, 100, 10_000, 10, activation="tanh", gain_exponent=0.4)
before = model.running_var.clone()
for _ in range(2):
    print(sgd_step(model, x, y, 1e-3, recompute=True).item())
assert not torch.equal(before, model.running_var)
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    first, second, gibibytes = map(float, found.stdout.split())
    assert second < first
    assert gibibytes < 2


class Recorded:
    """A CUDA graph on a CPU: what was called while it was recorded is called again."""

    def __init__(self):
        self.calls = []

    def replay(self):
        for function, arguments, results in self.calls:
            for kept, value in zip(results, function(*arguments), strict=True):
                kept.copy_(value)


@pytest.fixture
def graphs(monkeypatch):
    """The path of CUDA graphs on this CPU, and the graphs that were made."""
    made, by_hand = [], step._step_by_hand

    @contextlib.contextmanager
    def recording(graph):
        made.append(graph)

        def record(*arguments):
            results = by_hand(*arguments)
            graph.calls.append((by_hand, arguments, results))
            return results

        with monkeypatch.context() as patch:
            patch.setattr(step, "_step_by_hand", record)
            yield

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(fused, "library", lambda x: None)  # as on a GPU
    return made


@pytest.mark.parametrize("options", [{}, {"affine": True, "bias": True}, {"order": "act_norm"}])
def test_steps_of_a_replayed_graph_are_those_without_one(options, graphs):
    def build():
        return randomise_alike(BNMLP(IN, WIDTH, 4, OUT, activation=("tanh", "sin"), replicas=2,
                                     dtype=torch.float64, **options))  # fmt: skip

    replayed, plain = build(), build()
    for number, n in enumerate((N, N, N - 1, N)):
        x, y = torch.randn(n, IN), torch.randint(OUT, (2, n))
        rate = 0.1 / (1 + number)
        found = step._graphed_step(replayed, x, y, rate)
        expected = step._step_by_hand(plain, x, y, torch.tensor(rate))
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)
        for name, value in plain.state_dict().items():
            assert torch.equal(replayed.state_dict()[name], value), f"step {number}: {name}"
    assert len(graphs) == 3, "one for each change of the batch's size, none where it stays"
    replayed.momentum = 0.5
    step._graphed_step(replayed, x, y, 0.1)
    assert len(graphs) == 4, "a graph has the momentum in it"


def randomise_alike(model):
    torch.manual_seed(5)
    return randomise(model)
