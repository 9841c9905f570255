"""Training on given batches, and looks on the way."""

import copy

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from bnmlp import BNMLP, isometry_gap
from bnmlp.networks.skip import SkipMLP
from bnmlp.training.batchwise import looks, means_between, noisy_sgd, optimise, run_through, sgd
from bnmlp.training.measured import along, turning_table

R = 2


def networks(**options):
    return BNMLP(7, 6, 3, 3, replicas=R, dtype=torch.float64, **options)


def drawn(steps, n=10):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(R, n, 7, dtype=torch.float64, generator=generator)
        yield x, torch.randint(3, (R, n), generator=generator)


def naive(model, batches, optimizer):
    """Losses and hits, one network after the other."""
    found = []
    for x, y in batches:
        optimizer.zero_grad()
        logits = model(x)
        losses = torch.stack([F.cross_entropy(a, b) for a, b in zip(logits, y, strict=True)])
        losses.sum().backward()
        optimizer.step()
        found.append(torch.stack([losses.detach(), (logits.argmax(-1) == y).double().mean(-1)]))
    return torch.stack(found) if found else None


def same(model, other):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs)


def test_plain_descent_is_torchs():
    model, twin = networks(), networks()
    losses = run_through(sgd(model, drawn(5), 0.1))
    expected = naive(twin, drawn(5), torch.optim.SGD(twin.parameters(), 0.1))
    torch.testing.assert_close(losses, expected[:, 0])
    assert same(model, twin)


@pytest.mark.parametrize("kind", [torch.optim.RMSprop, torch.optim.AdamW])
def test_steps_of_an_optimiser_are_its_own(kind):
    sizes = {"in_features": 7, "width": 6, "out_features": 3, "dtype": torch.float64}
    model, twin = (SkipMLP(4, "batch", replicas=R, **sizes) for _ in range(2))
    found = run_through(optimise(model, drawn(4), kind(model.parameters(), 1e-3)))
    expected = naive(twin, drawn(4), kind(twin.parameters(), 1e-3))
    torch.testing.assert_close(found, expected)
    assert same(model, twin)


def test_noise_of_the_gradient_has_its_covariance():
    start = networks(norm="none")
    size = sum(p.numel() for p in start.parameters()) // R
    factor = torch.randn(3, size, dtype=torch.float64)
    batch, moved = next(drawn(1)), []
    quiet = copy.deepcopy(start)
    run_through(sgd(quiet, [batch], 0.1))
    generator = torch.Generator().manual_seed(2)
    for _ in range(400):
        model = copy.deepcopy(start)
        losses = run_through(noisy_sgd(model, [batch], 0.1, factor, generator))
        moved.append((model.output_weight - quiet.output_weight).detach().flatten(1))
    noise = torch.stack(moved).flatten(0, 1) / 0.1  # (800, outputs), the last parameters
    covariance = noise.mT @ noise / len(noise)
    part = factor[:, -noise.shape[1] :]
    expected = part.mT @ part
    assert (covariance - expected).norm() / expected.norm() < 0.15
    assert (noise.mean(0).norm() / expected.trace().sqrt()) < 0.1
    torch.testing.assert_close(losses, run_through(sgd(copy.deepcopy(start), [batch], 0.1)))


def test_a_training_stops_at_each_look_and_goes_no_further():
    model, batches = networks(), list(drawn(9))
    left = iter(batches)
    seen = {step: copy.deepcopy(model) for step in looks(sgd(model, left, 0.1), (6, 0, 2))}
    assert list(seen) == [0, 2, 6]
    for step, state in seen.items():
        twin = networks()
        naive(twin, batches[:step], torch.optim.SGD(twin.parameters(), 0.1))
        assert same(state, twin), step
    assert len(list(left)) == 3


def test_means_are_over_the_steps_since_the_look_before():
    training = (torch.tensor([t, t**2.0]) for t in range(7))
    found = dict(means_between(training, (0, 3, 7)))
    assert found[0] is None
    assert found[3].tolist() == pytest.approx([1, 5 / 3])
    assert found[7].tolist() == pytest.approx([4.5, (9 + 16 + 25 + 36) / 4])


def test_tables_along_a_training_tell_their_step():
    model, start = networks(), networks()

    def look():
        return pd.DataFrame({"w": [model.output_weight.norm().item()]})

    table = along(sgd(model, drawn(4), 0.1), (0, 4), look)
    assert table.index.get_level_values("step").tolist() == [0, 4]
    assert table["w"].iloc[0] == pytest.approx(start.output_weight.norm().item())
    assert table["w"].iloc[1] == pytest.approx(model.output_weight.norm().item())


def test_turning_is_that_of_the_weights():
    model, twin = networks(), networks()
    table = turning_table(model, drawn(4), 0.5, [2, 3], (2, 4))
    before = [twin.hidden_weight.detach().clone()]
    for batch in drawn(4):
        run_through(sgd(twin, [batch], 0.5))
        before.append(twin.hidden_weight.detach().clone())
    assert table.index.names == ["step", "layer", "replica"]
    for step, layer, r in table.index:
        w = [v[layer - 2, r] for v in before[: step + 1]]
        row = table.loc[(step, layer, r)]

        def symmetric(change, weight):
            m = change @ weight.T
            return ((m + m.T) / 2).square().sum().item()

        assert row["gap"] == pytest.approx(isometry_gap(w[-1]).item())
        assert row["moved"] == pytest.approx((w[-1] - w[0]).square().sum().item())
        assert row["moved_symmetric"] == pytest.approx(symmetric(w[-1] - w[0], w[0]))
        steps = list(zip(w[1:], w, strict=False))
        assert row["path"] == pytest.approx(sum((b - a).square().sum().item() for b, a in steps))
        assert row["path_symmetric"] == pytest.approx(sum(symmetric(b - a, a) for b, a in steps))
