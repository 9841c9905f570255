"""How well networks do on one batch, and with all kinds of statistics."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnmlp import BNMLP, evaluate
from bnmlp.measurements.evaluation import STATISTICS, averages_without_start
from bnmlp.measurements.scores import batch_scores, evaluations

X, Y = torch.randn(40, 7), torch.randint(3, (40,))


def trained(**options):
    model = BNMLP(7, 6, 3, 3, replicas=2, **options)
    for _ in range(4):
        model(torch.randn(2, 20, 7) + 1)  # moves the averages, if there are
    return model


def test_scores_of_a_batch_are_those_of_a_step_and_move_no_averages():
    model = trained()
    before = model.running_mean.clone()
    loss, accuracy = batch_scores(model, X, Y)
    assert torch.equal(model.running_mean, before)
    for r, logits in enumerate(model(X)):
        torch.testing.assert_close(loss[r], F.cross_entropy(logits, Y))
        assert accuracy[r] == (logits.argmax(-1) == Y).double().mean()
    own = X.unflatten(0, (2, 20)), Y.view(2, 20)
    assert not torch.equal(batch_scores(model, *own).loss, loss)
    evaluating = batch_scores(model.eval(), X, Y)
    torch.testing.assert_close(evaluating.loss.double(), evaluate(model, X, Y, "running").loss)


def test_any_module_has_scores():
    module = nn.Linear(7, 3)
    loss, accuracy = batch_scores(module, X, Y)
    torch.testing.assert_close(loss[0], F.cross_entropy(module(X), Y).detach())
    assert accuracy.shape == (1,)
    with pytest.raises(ValueError, match="3 labels"):
        batch_scores(module, X, Y[:3])


def test_evaluations_are_those_of_each_kind():
    model, calibration = trained(), torch.randn(50, 7)
    found = evaluations(model, X, Y, calibration=calibration, batch_size=20, steps=4)
    assert list(found) == [*STATISTICS, "corrected"]
    for kind in STATISTICS:
        alone = evaluate(model, X, Y, kind, calibration=calibration, batch_size=20)
        assert torch.equal(found[kind].loss, alone.loss)
    with averages_without_start(model, 4, 20):
        assert torch.equal(found["corrected"].loss, evaluate(model, X, Y, "running").loss)
    losses = torch.stack([v.loss for v in found.values()])
    assert len(losses.unique(dim=0)) == 4, "four different networks"
    assert "corrected" not in evaluations(model, X, Y, calibration=calibration, batch_size=20)


def test_kinds_do_not_differ_where_nothing_keeps_averages():
    model = trained(norm="layer")
    found = evaluations(model, X, Y, calibration=X, batch_size=20, steps=4)
    assert all(v is found["batch"] for v in found.values())
    assert torch.equal(found["batch"].loss, evaluate(model, X, Y, batch_size=20).loss)
