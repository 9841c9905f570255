"""What measuring costs: time beside a plain pass, and memory."""

import gc
import statistics
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnmlp import BNMLP, measure
from bnmlp.diagnosis.recorder import _over_samples
from bnmlp.diagnosis.weights import euclidean


def chain(depth, width):
    parts = [(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Tanh()) for _ in range(depth)]
    return nn.Sequential(*(part for layer in parts for part in layer), nn.Linear(width, 10))


def processor_seconds(call):
    start = time.process_time()
    call()
    return time.process_time() - start


def cost(model, logits, x, y, **options):
    """Time of a measurement in passes forward and back: the median of five pairs."""

    def plain():
        F.cross_entropy(logits(), y).backward()
        model.zero_grad()

    def measured():
        measure(model, x, y, statistics=False, **options)

    plain(), measured()
    pairs = ((processor_seconds(measured), processor_seconds(plain)) for _ in range(5))
    return statistics.median(ours / theirs for ours, theirs in pairs)


def test_measuring_layers_takes_less_than_two_passes_forward_and_back():
    model, x, y = chain(16, 256), torch.randn(256, 256), torch.randint(10, (256,))
    assert cost(model, lambda: model(x), x, y, level="layers") < 2


def test_measuring_networks_of_the_package_takes_less_than_two_passes_forward_and_back():
    model, x, y = BNMLP(100, 100, 100, 10), torch.randn(100, 100), torch.randint(10, (100,))
    assert cost(model, lambda: model(x)[0], x, y) < 2


def test_comparing_statistics_takes_a_measurement_and_four_passes_forward():
    model, x, y = chain(3, 5), torch.randn(24, 5), torch.randint(10, (24,))
    samples = []
    model.register_forward_pre_hook(lambda _, given: samples.append(len(given[0])))
    measure(model, x, y, statistics=False)
    assert samples == [24]
    measure(model, x, y)
    few = samples.pop(3)  # whether samples have a part in each other's output
    assert few == 2
    assert samples[1:] == [24, 24, 24, 12, 12, 12, 12]


DEPTH = 40
SHAPE = (11, 7)  # of every activation in a chain of width 7


def held():
    """How many activations Python objects hold; those that autograd has saved are among them."""
    return sum(type(thing) is Tensor and thing.shape == SHAPE for thing in gc.get_objects())


def counting(counts):
    """A loss that counts when the way in is over."""

    def loss(output, y):
        counts.append(held())
        return F.cross_entropy(output, y)

    return loss


def test_measuring_keeps_no_activation_that_autograd_does_not_keep():
    model, x, y, counts = chain(DEPTH, 7), torch.randn(SHAPE), torch.randint(10, (11,)), []
    counting(counts)(model(x), y)
    plain = counts.pop()
    report = measure(model, x, y, loss_fn=counting(counts), statistics=False)
    assert len(report.tables[0]) == 3 * DEPTH + 1
    assert counts[0] <= plain + 1
    assert held() == 1, "afterwards only the batch is there"


def test_the_control_hooks_that_keep_outputs_are_seen():
    model, x, y, counts, kept = chain(DEPTH, 7), torch.randn(SHAPE), torch.zeros(11).long(), [], []
    counting(counts)(model(x), y)
    for part in model:
        part.register_forward_hook(lambda *given: kept.append(given[-1]))
    counting(counts)(model(x), y)
    assert counts[1] >= counts[0] + DEPTH


@pytest.mark.parametrize("shape", [(32, 64, 56, 56), (8, 96, 7, 7), (3, 5), (2000, 40), (4, 30011)])
@pytest.mark.parametrize("autocasting", [False, True])
def test_sums_and_norms_keep_the_digits_of_float32(shape, autocasting):
    torch.manual_seed(0)
    x = 1 + torch.randn(shape)
    for given in (x, x.transpose(0, 1)):
        wide = given.double()
        with torch.autocast("cpu", enabled=autocasting):
            summed, norm = _over_samples(given), euclidean(given)
        assert (summed - wide.sum(0)).norm() < 1e-6 * wide.sum(0).norm()
        assert abs(norm - wide.norm()) < 1e-6 * wide.norm()


PROGRAM = """
import sys, torch, bnmlp
layers = torch.nn.Linear(5, 5), torch.nn.BatchNorm1d(5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
bnmlp.measure(torch.nn.Sequential(*layers), torch.randn(20, 5), torch.randint(3, (20,)))
print("torch._dynamo" in sys.modules)
"""


def test_nothing_imports_the_compiler_which_takes_seconds():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
