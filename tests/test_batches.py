"""Batches for training: epoch after epoch, drawn with replacement, shuffled anew."""

import torch

from bnmlp.data.batches import drawn_batches, epoch_batches, epoch_orders, shuffled_batches

X = torch.arange(20.0).view(10, 2)
Y = torch.arange(10)  # a label tells its sample


def rows(batches):
    """Labels of all batches, checked against their samples. Shape (steps, ..., n)."""
    found = list(batches)
    assert all(torch.equal(x, X[y]) for x, y in found)
    return torch.stack([y for _, y in found])


def test_batches_follow_the_orders_of_epochs_and_skip_what_is_left_over():
    labels = rows(epoch_batches(X, Y, 4, 2, 5, seed=5))
    for t in range(5):
        epoch, place = divmod(t, 2)
        order = epoch_orders(5, 2, epoch, 10)
        assert torch.equal(labels[t], order[:, 4 * place : 4 * place + 4])


def test_drawn_batches_repeat_samples_and_are_all_of_them_if_so_large():
    generator = torch.Generator().manual_seed(0)
    labels = rows(drawn_batches(X, Y, 9, 3, 200, generator))
    assert labels.shape == (200, 3, 9)
    distinct = torch.tensor([len(row.unique()) for row in labels.flatten(0, 1)]).double()
    assert abs(distinct.mean() - 10 * (1 - 0.9**9)) < 0.1  # of ten, those that were ever drawn
    counts = torch.bincount(labels.flatten(), minlength=10) / labels.numel()
    assert (counts - 0.1).abs().max() < 0.02
    state = generator.get_state()
    whole = rows(drawn_batches(X, Y, 10, 3, 2, generator))
    assert torch.equal(whole, Y.expand(2, -1))
    assert torch.equal(generator.get_state(), state), "nothing is drawn"


def test_shuffled_batches_are_distinct_samples_from_each_generator():
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    labels = rows(shuffled_batches(X, Y, 6, 4, generators))
    assert labels.shape == (4, 3, 6)
    assert all(len(row.unique()) == 6 for row in labels.flatten(0, 1))
    assert torch.equal(labels[:, 0], labels[:, 1]), "of one seed"
    assert not torch.equal(labels[:, 0], labels[:, 2])
    again = torch.Generator().manual_seed(2)
    expected = torch.stack([torch.randperm(10, generator=again)[:6] for _ in range(4)])
    assert torch.equal(labels[:, 2], expected)
