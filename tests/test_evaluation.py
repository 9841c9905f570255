import itertools

import pytest
import torch
import torch.nn.functional as F

from bnmlp import BNMLP, evaluate, load_dataset, recalibrate, sgd_step
from bnmlp.measurements import evaluation
from bnmlp.measurements.evaluation import STATISTICS
from bnmlp.networks.replicas import subset

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


@pytest.mark.parametrize("options", [{}, {"center": False}, {"norm": "layer"}, {"norm": "none"}])
@pytest.mark.parametrize("n", [2, 3, 5, 355])
def test_no_batch_of_one_remains_at_the_end_of_a_test_set(n, options):
    model = network(**options)
    x, y = torch.randn(n, 6), torch.randint(3, (n,))
    found = evaluate(model, x, y, "batch", batch_size=2)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    centred = model.norm == "batch" and model.center
    parts = order.tensor_split(n // 2 if centred else round(n / 2))
    logits = torch.cat([model.logits(x[part]) for part in parts], 1)
    torch.testing.assert_close(found, expected(logits, y[order]))
    assert found.loss.isfinite().all()


def test_a_single_sample_that_would_be_centred_is_refused():
    model = network()
    before = [b.clone() for b in model.buffers()]
    x, y = torch.randn(30, 6), torch.randint(3, (30,))
    calls = {
        "evaluate": lambda: evaluate(model, x, y, batch_size=1),
        "evaluate: ": lambda: evaluate(model, x[:1], y[:1]),
        "recalibration": lambda: recalibrate(model, x[:1]),
        "recalibration: ": lambda: evaluate(model, x, y, "recalibrated", calibration=x[:1]),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name}.*a batch of 1 sample.*at least 2"):
            call()
    assert all(torch.equal(b, a) for a, b in zip(before, model.buffers(), strict=True))
    found = evaluate(model, x[:1], y[:1], "running")
    torch.testing.assert_close(found, expected(model.eval()(x[:1]), y[:1]))


@pytest.mark.parametrize("options", [{}, {"center": False}, {"unit_norm": True}])
def test_calibration_samples_of_each_network_are_its_own(options):
    model = network(**options)
    calibration = torch.randn(2, 40, 6) * 3 - 1
    x, y = torch.randn(9, 6), torch.randint(3, (9,))
    found = evaluate(model, x, y, "recalibrated", calibration=calibration, batch_size=20)
    for r in range(2):
        alone = evaluate(subset(model, [r]), x, y, "recalibrated", calibration=calibration[r],
                         batch_size=20)  # fmt: skip
        torch.testing.assert_close([found.loss[r], found.accuracy[r]],
                                   [alone.loss[0], alone.accuracy[0]])  # fmt: skip
    shared = evaluate(model, x, y, "recalibrated", calibration=calibration[0], batch_size=20)
    assert shared.loss[1] != found.loss[1]
    recalibrate(model, calibration, 20)
    torch.testing.assert_close(found, expected(model.eval()(x), y))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_labels_may_be_integers_of_any_size(dtype):
    model, x, y = network(), torch.randn(30, 6), torch.randint(3, (30,))
    torch.testing.assert_close(evaluate(model, x, y.to(dtype)), evaluate(model, x, y))
