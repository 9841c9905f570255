from collections import OrderedDict, UserDict, defaultdict, namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from bnmlp import measure, recalibrate
from bnmlp.diagnosis.statistics import compare
from bnmlp.machine.structures import (
    applied,
    first_tensor,
    joined,
    mapped,
    moved,
    samples_of,
    sliced,
    tensors_of,
)

Pair = namedtuple("Pair", ["first", "second"])
SEQUENCES = [torch.arange(3 * length).view(length, 3) / 7 for length in (2, 5, 1, 4)]
PACKED = pack_sequence(SEQUENCES, enforce_sorted=False)


class Output(OrderedDict):
    """A mapping whose entries are attributes too, as of many libraries."""

    @property
    def logits(self):
        return self["logits"]


def nested():
    x = torch.arange(12.0).view(4, 3)
    return Pair(x, {"more": [x.long(), (Output(logits=2 * x), "words", None)]}), x


def test_a_function_of_tensors_keeps_every_kind_of_structure():
    structure, x = nested()
    found = mapped(structure, lambda t: t + 1)
    assert isinstance(found, Pair) and isinstance(found.second["more"], list)
    assert torch.equal(found.first, x + 1)
    output, words, nothing = found.second["more"][1]
    assert torch.equal(output.logits, 2 * x + 1) and isinstance(output, Output)
    assert (words, nothing) == ("words", None)
    assert torch.equal(structure.first, x), "the structure that was given stays"
    assert [t.shape for t in tensors_of(structure)] == [(4, 3)] * 3
    assert first_tensor({"a": x.long(), "b": (x,)}) is x and first_tensor("words") is None
    counted = mapped(defaultdict(list, a=x), lambda t: -t)
    assert torch.equal(counted["a"], -x)
    assert torch.equal(mapped(UserDict(a=x), lambda t: -t)["a"], -x)
    largest = mapped(x.max(0), lambda t: t * 2)
    assert torch.equal(largest.values, 2 * x[3])


def test_a_packed_sequence_is_one_thing_with_numbers():
    doubled = mapped(PACKED, lambda t: 2 * t)
    assert isinstance(doubled, PackedSequence)
    for before, after in zip(SEQUENCES, unpack_sequence(doubled), strict=True):
        assert torch.equal(after, 2 * before)
    assert torch.equal(first_tensor((PACKED, None)), PACKED.data)
    assert samples_of(PACKED) == 4 and samples_of((PACKED,)) == 4
    there = moved({"x": PACKED}, torch.device("meta"))["x"]
    assert there.data.is_meta and isinstance(there, PackedSequence)


def test_samples_are_chosen_and_put_together_again():
    structure, x = nested()
    halves = torch.tensor([2, 0]), torch.tensor([3, 1])
    parts = [(index, sliced(structure, index, 4)) for index in halves]
    for index, part in parts:
        assert torch.equal(part.first, x[index])
        assert torch.equal(part.second["more"][1][0].logits, 2 * x[index])
    whole = joined(parts, 4)
    for found, expected in zip(tensors_of(whole), tensors_of(structure), strict=True):
        assert torch.equal(found, expected)
    assert isinstance(whole, Pair) and isinstance(whole.second["more"][1][0], Output)
    few = sliced({"x": x, "weights": torch.ones(5), "n": torch.tensor(4)}, halves[0], 4)
    assert len(few["weights"]) == 5, "the control: what counts something else stays"
    chosen = unpack_sequence(sliced(PACKED, halves[1], 4))
    assert torch.equal(chosen[0], SEQUENCES[3]) and torch.equal(chosen[1], SEQUENCES[1])
    assert joined([(halves[0], x[:2]), (halves[1], x[:2, :1])], 4).shape == (2, 3)


def test_samples_are_counted_at_the_first_axis_that_there_is():
    assert samples_of((torch.tensor(3.0), torch.ones(5, 2))) == 5
    assert samples_of(Pair("words", {"x": torch.ones(6)})) == 6
    assert samples_of([torch.tensor(1), 2]) is None


def test_plain_tuples_are_arguments_and_tuples_with_names_are_one():
    def call(*args, **named):
        return args, named

    assert applied(call, (1, 2)) == applied(call, [1, 2]) == ((1, 2), {})
    assert applied(call, {"a": 1}) == ((), {"a": 1})
    for one in (Pair(1, 2), PACKED, "text"):
        (found,), _ = applied(call, one)
        assert found is one


class Recurrent(nn.Module):
    """Takes packed sequences, and normalises what it says of each."""

    def __init__(self):
        super().__init__()
        self.lstm, self.norm = nn.LSTM(3, 5), nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        _, (h, _) = self.lstm(x)
        return self.last(self.norm(h[-1]))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, pair):
        return self.last(self.norm(pair.first) + pair.second)


@pytest.mark.parametrize("kind", ["packed", "named"])
def test_networks_of_packed_sequences_and_tuples_with_names_are_measured(kind):
    torch.manual_seed(0)
    sequences = [torch.randn(length, 3) for length in (2, 5, 1, 4, 3, 3, 2, 6)]

    def given(some):
        if kind == "packed":
            return pack_sequence(some, enforce_sorted=False)
        rows = torch.stack([sequence[0] for sequence in some])
        return Pair(rows, 2 * rows)

    model, x = Recurrent() if kind == "packed" else Named(), given(sequences)
    y = torch.arange(8) % 2
    report = measure(model, x, y)
    assert report.facts.samples == 8
    assert report.statistics.summary["unscored"] is None
    assert report.statistics.summary == compare(model, x, y).summary
    logits = torch.empty(8, 2)
    with torch.no_grad():
        for half in (0, 1):
            recalibrate(model, [(given(sequences[1 - half :: 2]),)])
            logits[half::2] = model.eval()(given(sequences[half::2]))
    expected = nn.functional.cross_entropy(logits, y).item()
    found = report.statistics.summary["loss_recalibrated"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_packed_sequences_recalibrate_as_batches_and_alone():
    torch.manual_seed(0)
    model = Recurrent()
    with torch.no_grad():
        expected = model.lstm(PACKED)[1][0][-1].mean(0)
    for data in (PACKED, [PACKED], [(PACKED, torch.zeros(4))]):
        model.norm.reset_running_stats()
        recalibrate(model, data)
        torch.testing.assert_close(model.norm.running_mean, expected)
