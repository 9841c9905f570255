import itertools

import pytest
import torch
import torch.nn.functional as F

from bnmlp import BNMLP, evaluate, evaluation, load_dataset, recalibrate, sgd_step
from bnmlp.evaluation import STATISTICS

pytestmark = pytest.mark.usefixtures("float64")


def network(**options):
    options = {"activation": "tanh", "replicas": 2, "gain": 0.8, "dtype": torch.float64, **options}
    model = BNMLP(6, 5, 4, 3, **options)
    for _ in range(3):  # averages that are not those of the start
        sgd_step(model, torch.randn(2, 12, 6) * 2 + 1, torch.randint(3, (2, 12)), 0.1)
    return model


def expected(logits, y):
    """Losses and accuracies of logits (R, N, out)."""
    losses = torch.stack([F.cross_entropy(z, y) for z in logits])
    return losses, (logits.argmax(-1) == y).double().mean(-1)


def choices():
    for norm, order, center, unit, affine in itertools.product(
        ("batch", "layer", "none"), ("norm_act", "act_norm"), *[(True, False)] * 3
    ):
        yield {"norm": norm, "order": order, "center": center, "unit_norm": unit,
               "affine": affine, "bias": affine}  # fmt: skip


@pytest.mark.parametrize("activation", ["identity", "tanh", "sin", "selu"])
def test_running_statistics_are_those_of_the_model_in_evaluation_mode(activation):
    for options in choices():
        model = network(activation=activation, **options)
        x, y = torch.randn(23, 6), torch.randint(3, (23,))
        found = evaluate(model, x, y, "running")
        assert model.training
        torch.testing.assert_close(found, expected(model.eval()(x), y), msg=str(options))


def test_batch_statistics_are_those_of_each_batch_alone(monkeypatch):
    monkeypatch.setattr(evaluation, "CHUNK", 30)
    for options in choices():
        model = network(**options)
        n = 75  # batches of ten and eleven samples, several chunks
        x, y = torch.randn(n, 6), torch.randint(3, (n,))
        found = evaluate(model, x, y, "batch", batch_size=10)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        parts = order.tensor_split(round(n / 10))
        logits = torch.cat([model.logits(x[part]) for part in parts], 1)
        torch.testing.assert_close(found, expected(logits, y[order]), msg=str(options))


def test_recalibration_makes_the_calibration_samples_one_batch():
    for options in choices():
        model = network(eps=0.0, **options)
        calibration = torch.randn(40, 6) * 3 - 1
        x, y = torch.randn(9, 6), torch.randint(3, (9,))
        found = evaluate(model, x, y, "recalibrated", calibration=calibration, batch_size=40)
        before = [b.clone() for b in model.buffers()]
        recalibrate(model, calibration, 40)
        torch.testing.assert_close(found, expected(model.eval()(x), y), msg=str(options))
        if options["norm"] == "batch":
            assert not torch.equal(before[0 if options["center"] else 1], model.running_var)
            # Layer by layer: the calibration samples now pass as they would as one batch.
            one_batch = model.train().logits(calibration)
            torch.testing.assert_close(model.eval()(calibration), one_batch)


def test_evaluation_changes_nothing_and_mode_does_not_matter():
    model = network()
    x, y = torch.randn(30, 6), torch.randint(3, (30,))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for statistics in STATISTICS:
        one = evaluate(model.train(), x, y, statistics, calibration=x, batch_size=10)
        two = evaluate(model.eval(), x, y, statistics, calibration=x, batch_size=10)
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.slow
def test_running_averages_fail_where_recalibrated_ones_do_not():
    data = load_dataset("digits")
    model = BNMLP(64, 40, 150, 10, activation="tanh", gain_exponent=0.4, replicas=3)
    for step in range(40):
        x, y = data.batches(40, 3, seed=3 * step)
        sgd_step(model, x, y, 0.02)
    accuracy = {
        statistics: evaluate(
            model, data.test_x, data.test_y, statistics,
            calibration=data.train_x, batch_size=40,
        ).accuracy.mean()
        for statistics in STATISTICS
    }  # fmt: skip
    assert accuracy["batch"] > 0.6, accuracy
    assert accuracy["recalibrated"] > accuracy["running"] + 0.1, accuracy


def test_bad_calls_name_the_remedy():
    model = network()
    x, y = torch.randn(30, 6), torch.randint(3, (30,))
    with pytest.raises(ValueError, match="use one of batch, running, recalibrated"):
        evaluate(model, x, y, "eval")
    with pytest.raises(ValueError, match="pass calibration="):
        evaluate(model, x, y, "recalibrated")
    with pytest.raises(ValueError, match=r"expected samples of shape \(N, features\)"):
        evaluate(model, x[None], y)
    with pytest.raises(ValueError, match="flatten images first"):
        evaluate(model, x[:, :4], y)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        evaluate(model, x, y, batch_size=0)
