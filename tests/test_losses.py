import math

import pytest
import torch
import torch.nn.functional as F

from bnmlp.networks.losses import class_rows, default_loss, right_labels


def by_hand(rows, labels):
    """Mean cross entropy by a loop."""
    losses = [
        math.log(sum(math.exp(v) for v in row)) - row[label]
        for row, label in zip(rows.tolist(), labels.tolist(), strict=True)
        if label != -100
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("axis", ["last", "second", "replica", "single"])
def test_labels_are_scored_by_cross_entropy_wherever_classes_are(axis):
    source = torch.Generator().manual_seed(0)
    rows = torch.randn(24, 5, generator=source, dtype=torch.float64)
    labels = torch.randint(5, (24,), generator=source)
    labels[3] = -100
    output, y = {
        "last": (rows.view(4, 6, 5), labels.view(4, 6)),
        "second": (rows.view(4, 6, 5).movedim(-1, 1), labels.view(4, 6)),
        "replica": (rows[None], labels),
        "single": (rows[0], labels[0]),
    }[axis]
    if axis == "single":
        rows, labels = rows[:1], labels[:1]
    loss, words = default_loss(output, y)
    assert words == "mean cross entropy"
    assert loss.item() == pytest.approx(by_hand(rows, labels))
    flat, found = class_rows(output, y)
    assert torch.equal(flat, rows) and torch.equal(found, labels)
    known = labels >= 0
    assert torch.equal(right_labels(output, y), (rows.argmax(1) == labels)[known])


def test_numbers_are_scored_by_their_mean_square():
    output = torch.arange(6.0).view(3, 2, 1)
    loss, words = default_loss(output, torch.zeros(3, 2, dtype=torch.float64))
    assert words == "mean squared error" and loss.item() == pytest.approx(55 / 6)
    assert loss.dtype == torch.float32
    assert right_labels(output, torch.zeros(3, 2)) is None


def test_half_precision_is_scored_in_single():
    output, y = torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([0, 1])
    found = default_loss(output.bfloat16(), y)[0]
    assert found.dtype == torch.float32 and torch.equal(found, F.cross_entropy(output, y))


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (torch.zeros(7).long(), r"shape \(3, 2\) and targets of shape \(7,\) do not fit"),
        (torch.zeros(7), "integer labels for cross entropy"),
        (torch.zeros(4, dtype=torch.bool), "no loss is known for targets of torch.bool"),
        (torch.zeros(3, dtype=torch.complex64), "targets of torch.complex64"),
        ([0, 1, 0], "targets of type list"),
    ],
)
def test_targets_without_a_loss_are_refused_with_a_remedy(y, words):
    with pytest.raises(ValueError, match=words) as error:
        default_loss(torch.zeros(3, 2), y)
    assert "loss_fn=" in str(error.value)
    assert right_labels(torch.zeros(3, 2), y) is None
