"""The compiled passes against PyTorch's operators, and the compiler that is not there."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from test_mlp import randomise

from bnmlp import ACTIVATIONS, BNMLP, gradient_norms, sgd_step
from bnmlp.machine import compiled as machine
from bnmlp.networks import eager, engine, fused
from bnmlp.networks.plain import PlainNetwork

needs_compiler = pytest.mark.skipif(
    fused.library(torch.zeros(1)) is None, reason="no C compiler here"
)
KINDS = ("identity", "tanh", "sin", "relu", "leaky_relu", "selu")
OPTIONS = [
    {}, {"center": False, "unit_norm": True}, {"norm": "none"}, {"norm": "layer"},
    {"affine": True, "bias": True},
]  # fmt: skip


def network(dtype=torch.float32, width=37, replicas=6, **options):
    options = {"activation": KINDS, "gain_exponent": 0.3} | options
    return randomise(BNMLP(19, width, 5, 7, replicas=replicas, dtype=dtype, **options))


def batch(dtype=torch.float32, n=53):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 19, dtype=torch.float64, generator=generator)
    return x.to(dtype), torch.arange(n) % 7


def test_every_activation_has_its_number_in_c():
    assert fused.KINDS == KINDS and set(KINDS) == set(ACTIVATIONS)


@needs_compiler
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("order", ["norm_act", "act_norm"])
@pytest.mark.parametrize("options", OPTIONS)
def test_both_ways_step_alike_in_both_precisions(options, order, training, monkeypatch):
    exact = network(torch.float64, order=order, **options).train(training)
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-12)):
        ours, theirs = copy.deepcopy(exact).to(dtype), copy.deepcopy(exact).to(dtype)
        x, y = batch(dtype)
        made = engine.stack_of(ours, x).passes
        compiled = options.get("norm") != "layer"
        assert isinstance(made, fused.Fused if compiled else eager.Eager)
        losses = sgd_step(ours, x, y, 0.1)
        with monkeypatch.context() as patch:
            patch.setattr(fused, "library", lambda x: None)
            torch.testing.assert_close(sgd_step(theirs, x, y, 0.1), losses, rtol=tolerance, atol=0)
        for name, value in ours.state_dict().items():
            error = (value - theirs.state_dict()[name]).abs().max().item()
            assert error <= tolerance * value.abs().max().item(), f"{name} {error:.1e}"


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_modules_in_evaluation_mode_and_layer_norm_have_plain_gradients(
    norm, compiled, monkeypatch
):
    if not compiled:
        monkeypatch.setattr(fused, "library", lambda x: None)
    model = network(torch.float64, norm=norm, affine=True, bias=True)
    x, y = batch(torch.float64)
    model(x)  # averages that differ from the batch's statistics
    model.eval()
    found = gradient_norms(model, x, y)
    for r in range(6):
        plain = PlainNetwork(model, r).eval()
        torch.testing.assert_close(found[:, r], plain.gradient_norms(x, y), rtol=1e-9, atol=0)


@needs_compiler
@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 40_000])
def test_batches_of_any_size_and_networks_of_any_width(n):
    for width in (1, 15, 16, 33):
        model = network(torch.float64, width, center=False, order="norm_act")
        x, y = batch(torch.float64, n)
        plain = PlainNetwork(model, 1)
        found = gradient_norms(model, x, y)[:, 1]
        torch.testing.assert_close(found, plain.gradient_norms(x, y), rtol=1e-9, atol=1e-12)


@needs_compiler
def test_numbers_that_are_none_stay_visible():
    x, y = batch()
    x[3] = math.nan
    for name in KINDS:
        model = network(activation=name, norm="none")
        assert sgd_step(model, x, y, 0.1).isnan().all(), name


@needs_compiler
def test_one_network_has_the_bits_it_has_beside_others():
    x, y = batch()
    together = network()
    alone = network(activation=KINDS[2], replicas=1, streams=(2,))
    with torch.no_grad():
        for name, value in together.named_parameters():
            axis = together.replica_axis(name)
            getattr(alone, name).copy_(value.narrow(axis, 2, 1))
    for _ in range(3):
        losses = sgd_step(together, x, y, 0.1)
        assert torch.equal(sgd_step(alone, x, y, 0.1)[0], losses[2])


@needs_compiler
def test_threads_change_no_bit_of_what_is_between_the_products():
    code = """
import torch
from bnmlp import BNMLP
from bnmlp.networks import engine
x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
model = BNMLP(8, 64, 1, 3, activation="tanh", replicas=8)
found = []
for threads in (1, 2):
    torch.set_num_threads(threads)
    stack = engine.Stack(model, x)
    stack.passes.prepare(None, None, None)
    stack.linear[0].copy_(torch.arange(8 * 64 * 64).view(8, 64, 64).sin())
    stack.passes.forward(0, 0)
    grad = stack.linear[0].cos()
    found.append((stack.out[0].clone(), stack.passes.backward(0, 0, grad)))
assert all(map(torch.equal, *found))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache and nothing remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine.compiled.cache_clear()
    yield tmp_path / "bnmlp" / "compiled"
    machine.compiled.cache_clear()


SOURCE = "int answer(void) { return ANSWER; }"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answer.c"
    path.write_text(SOURCE)
    return path


@needs_compiler
def test_a_file_is_compiled_once_and_anew_when_it_changes(cache, source):
    assert machine.compiled(source, "ANSWER=42").answer() == 42
    assert machine.compiled(source, "ANSWER=43").answer() == 43
    before = sorted(cache.iterdir())
    assert len(before) == 2
    machine.compiled.cache_clear()
    assert machine.compiled(source, "ANSWER=42").answer() == 42
    assert sorted(cache.iterdir()) == before
    source.write_text(SOURCE.replace("ANSWER", "ANSWER + 1"))
    machine.compiled.cache_clear()
    assert machine.compiled(source, "ANSWER=42").answer() == 43


@pytest.mark.parametrize("compiler", ["none", "no-such-compiler", "false"])
def test_without_a_compiler_there_is_no_library(cache, source, compiler, monkeypatch):
    monkeypatch.setenv("BNMLP_COMPILER", compiler)
    assert machine.compiled(source, "ANSWER=42") is None
    assert not any(cache.iterdir()) if cache.exists() else True


@needs_compiler
def test_a_cache_that_takes_no_files_is_done_without(cache, source, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert machine.compiled(source, "ANSWER=42").answer() == 42
    assert not cache.exists()
    machine._temporary().cleanup()
    machine._temporary.cache_clear()


@needs_compiler
def test_a_damaged_library_is_no_library(cache, source):
    cache.mkdir(parents=True)
    name = machine._fingerprint(source, machine._compiler(), ("ANSWER=42",))
    (cache / f"answer-{name}.so").write_bytes(b"nothing")
    assert machine.compiled(source, "ANSWER=42") is None
