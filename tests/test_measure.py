"""Rates, verdicts and rows of any network, against formulas, autograd and naive loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18, resnet50

import bnmlp
from bnmlp import BNMLP, gradient_norms, measure
from bnmlp.diagnosis.verdicts import MATTERS
from bnmlp.measurements.alignment import mean_cosine
from bnmlp.theory import gaussian_explosion_rate


def chain(depth, width=100, activation=nn.ReLU, norm=nn.BatchNorm1d, init=nn.init.xavier_normal_):
    parts = []
    for _ in range(depth):
        linear = nn.Linear(width, width, bias=False)
        init(linear.weight)
        parts += [linear, *([norm(width)] if norm else []), *([activation()] if activation else [])]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def batch(samples=100, features=100, classes=10):
    return torch.randn(samples, features), torch.randint(classes, (samples,))


def scaled(factor):
    return lambda logits, y: factor * F.cross_entropy(logits, y)


@pytest.fixture
def patient():
    """60 layers of batch norm, ReLU and Gaussian weights."""
    torch.manual_seed(0)
    return chain(60), *batch()


def test_sixty_layers_explode_at_the_rate_of_the_formula(patient):
    report = measure(*patient)
    formula = gaussian_explosion_rate(100, activation="relu")
    assert formula in report.rate, f"{report.rate}, formula {formula:.4f}"
    assert formula in report.rates["outputs"]
    assert report.verdict == "gradient-explosion"
    assert report.prediction.low == formula
    assert report.findings[0].chapter == "practice/measure-your-network"
    assert "bnmlp.shape_" in report.findings[0].advice


def test_the_rate_is_that_of_the_books_own_measurement():
    model = BNMLP(100, 100, 60, 10, activation="relu", init="gaussian", dtype=torch.float64)
    x, y = torch.randn(100, 100, dtype=torch.float64), torch.randint(10, (100,))
    own = bnmlp.explosion_rate(gradient_norms(model, x, y)).item()
    assert own in measure(model, x, y).rate


@pytest.mark.parametrize("factor", [1e-7, 1e7])
def test_the_loss_may_be_multiplied_by_anything(patient, factor):
    plain, other = measure(*patient), measure(*patient, loss_fn=scaled(factor))
    assert other.rate.value == pytest.approx(plain.rate.value, rel=1e-4)
    assert other.rate.low == pytest.approx(plain.rate.low, rel=1e-3)
    assert other.verdict == plain.verdict
    norms = [np.array(r.layers["weight_gradient_norm"].dropna()) for r in (plain, other)]
    np.testing.assert_allclose(norms[1], factor * norms[0], rtol=1e-4)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_data_and_normalised_weights_may_be_multiplied_too(patient, factor):
    model, x, y = patient
    for part in model:
        if isinstance(part, nn.BatchNorm1d):
            part.eps = 1e-12  # a variance of 1e-6 is none that 1e-5 may be added to
    plain = measure(model, x, y)
    other_data = measure(model, factor * x, y)
    twin = nn.Sequential(*(type(m)(100, 100, bias=False) if isinstance(m, nn.Linear) and m.bias is
                           None else m for m in model))  # fmt: skip
    with torch.no_grad():
        for a, b in zip(model, twin, strict=True):
            if a is not b:
                b.weight.copy_(factor * a.weight)
    other_weights = measure(twin, x, y)
    for other in (other_data, other_weights):
        assert other.verdict == plain.verdict
        assert other.rate.value == pytest.approx(plain.rate.value, abs=6e-3)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_healthy_networks_stay_healthy_whatever_their_data_and_loss(factor):
    x, y = factor * torch.randn(8, 3, 64, 64), torch.randint(10, (8,))
    model = resnet18(num_classes=10)
    for scale in (1e-7, 1, 1e7):
        report = measure(model, x, y, loss_fn=scaled(scale))
        assert report.verdict == "none", str(report)


def test_resnet_50_has_no_verdict_though_its_gradient_grows():
    report = measure(resnet50(num_classes=10), torch.randn(8, 3, 64, 64), torch.randint(10, (8,)))
    assert report.verdict == "none"
    assert 1 < report.rate.total < MATTERS
    assert any("No verdict on gradients: they grow" in text for text in report.undecided)


def test_a_thousand_orthogonal_layers_have_no_verdict():
    x, y = torch.randn(60, 60), torch.randint(10, (60,))
    report = measure(BNMLP(60, 50, 1000, 10), x, y)
    assert report.verdict == "none"
    assert abs(report.rate.total) < 2, f"{report.rate}"


def test_a_bnmlp_has_the_gradient_norms_of_the_package():
    model = BNMLP(12, 9, 20, 4, activation="tanh", replicas=3, dtype=torch.float64)
    x, y = torch.randn(15, 12, dtype=torch.float64), torch.randint(4, (15,))
    report, norms = measure(model, x, y), gradient_norms(model, x, y)
    for r, table in enumerate(report.tables):
        found = torch.tensor(table["weight_gradient_norm"][table.layers])
        torch.testing.assert_close(found, norms[:, r], rtol=1e-6, atol=0)
    assert len(report.layers) == 3 * len(report.tables[0])
    assert set(report.layers["replica"]) == {0, 1, 2}


def test_gradients_beyond_the_range_of_float32_keep_their_rate():
    model = BNMLP(60, 50, 900, 10, activation="relu", init="gaussian")
    x, y = torch.randn(60, 60), torch.randint(10, (60,))
    report = measure(model, x, y)
    norms = gradient_norms(model, x, y, log=True)[:, 0]
    assert norms[0] > 120
    assert report.rate.value == pytest.approx(bnmlp.explosion_rate(norms[:, None], log=True).item(),
                                              rel=0.02)  # fmt: skip


def test_a_plain_module_keeps_its_rate_beyond_the_range_too():
    report = measure(chain(700, 40), *batch(40, 40))
    assert report.rate.value == pytest.approx(0.2, rel=0.15)
    assert report.verdict in ("gradient-explosion", "gradient-not-finite")
    assert any(f.kind == "gradient-explosion" for f in report.findings)


def by_hand(model, x, y):
    """Conv outputs and their gradients by hooks of one's own, with autograd."""
    kept, handles = {}, []
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d):

            def keep(module, given, output, name=name):
                kept[name] = output

            handles.append(part.register_forward_hook(keep))
    loss = F.cross_entropy(model(x), y)
    weights = {k: p for k, p in model.named_parameters() if p.ndim == 4}
    found = torch.autograd.grad(loss, [*kept.values(), *weights.values()])
    for handle in handles:
        handle.remove()
    outputs = dict(zip(kept, found[: len(kept)], strict=True))
    return kept, outputs, dict(zip(weights, found[len(kept) :], strict=True))


def test_a_resnet_has_the_rows_of_hooks_written_by_hand():
    model = resnet50(num_classes=10)
    x, y = torch.randn(8, 3, 64, 64), torch.randint(10, (8,))
    rows = measure(model, x, y).layers.set_index("name")
    values, gradients, weights = by_hand(model, x, y)
    for name, value in values.items():
        row, v = rows.loc[name], value.detach().double()
        assert row["gradient_norm"] == pytest.approx(
            gradients[name].double().norm().item(), rel=1e-5
        )
        found = weights[f"{name}.weight"].double().norm().item()
        assert row["weight_gradient_norm"] == pytest.approx(found, rel=1e-5)
        assert row["mean_square"] == pytest.approx(v.square().mean().item(), rel=1e-5)
        feature = v.transpose(0, 1).flatten(1)
        assert row["variance"] == pytest.approx(
            feature.var(1, correction=0).mean().item(), rel=1e-4
        )
        assert row["largest"] == v.abs().max().item()
    assert len(rows[rows["layer"].notna()]) == len(values) + 1


def test_statistics_of_a_layer_are_those_of_naive_loops():
    model = nn.Sequential(nn.Linear(7, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))
    model.double()
    x, y = torch.randn(9, 7, dtype=torch.float64), torch.randint(3, (9,))
    report = measure(model, x, y, spectra=True)
    rows = report.layers
    h = x
    for i, part in enumerate(model):
        h = part(h)
        row, v = rows.loc[i], h.detach()
        pairs = [(v[a] @ v[b]).item() for a in range(9) for b in range(9) if a != b]
        mean = v.square().sum(1).mean().item()
        assert row["cosine"] == pytest.approx(np.mean(pairs) / mean)
        assert row["variance"] == pytest.approx(v.var(0, correction=0).mean().item())
        if isinstance(part, nn.Linear):
            room = math.log(torch.finfo(v.dtype).max) - v.abs().max().log().item()
            assert row["headroom"] == pytest.approx(room)
        s = torch.linalg.svdvals(v).square()
        assert row["participation_ratio"] == pytest.approx((s.sum() ** 2 / s.square().sum()).item())
        assert row["isometry_gap"] == pytest.approx(bnmlp.isometry_gap(v.mT).item())
    assert rows.loc[1, "cosine"] == pytest.approx(
        mean_cosine(model[:2](x).detach().mT).item(), abs=1e-4
    )  # equal lengths
    dead = (model[:3](x) <= 0).all(0).double().mean().item()
    assert rows.loc[2, "dead"] == pytest.approx(dead)


def test_dead_features_are_counted_and_reported():
    model = chain(6, 20, norm=None, init=nn.init.kaiming_normal_)
    with torch.no_grad():
        model[3].register_parameter("bias", None)
        model[2] = nn.Linear(20, 20)
        model[2].bias[:15] = -1e3
    report = measure(model, *batch(30, 20))
    row = report.layers.set_index("name").loc["3"]
    assert row["dead"] >= 0.75
    assert "dead-units" in {f.kind for f in report.findings}
    healthy = measure(chain(6, 20), *batch(30, 20))
    assert "dead-units" not in {f.kind for f in healthy.findings}


def test_a_weight_before_a_normalisation_is_scale_invariant_and_the_others_are_not():
    class Odd(nn.Module):
        """Modules registered in another order than they run."""

        def __init__(self):
            super().__init__()
            self.last, self.norm = nn.Linear(20, 5), nn.LayerNorm(20)
            self.first, self.side = nn.Linear(20, 20, bias=False), nn.Linear(20, 20)

        def forward(self, x):
            return self.last(self.norm(self.first(self.side(x).tanh())))

    x, y = torch.randn(40, 20, dtype=torch.float64), torch.randint(5, (40,))
    rows = measure(Odd().double(), x, y).layers.set_index("name")
    assert rows.loc["first", "scale_invariant"]
    assert not rows.loc["side", "scale_invariant"]
    assert not rows.loc["last", "scale_invariant"]
    assert abs(rows.loc["first", "invariance"]) < 1e-3 < abs(rows.loc["side", "invariance"])


def test_calls_of_one_module_sums_and_functions_have_rows_of_their_own():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(inplace=True)

        def forward(self, x):
            h = self.b(self.relu(self.a(x)))
            h += x
            return self.relu(h.mul(0.5))

    model = nn.Sequential(nn.Linear(8, 8), Block(), nn.Linear(8, 3))
    x, y = batch(10, 8, 3)
    names = list(measure(model, x, y, level="modules").layers["name"])
    assert names == ["0", "1.a", "1.relu", "1.b", "1.relu#2", "2"]
    assert names == list(measure(model, x, y, level="modules").layers["name"])
    rows = measure(model, x, y).layers.set_index("name")
    assert list(rows.index) == ["0", "1.a", "1.relu", "1.b", "1.add", "1.relu#2", "2"]
    with torch.no_grad():
        stream = model[0](x)
        branch = model[1].b(model[1].a(stream).relu())
    assert rows.loc["1.add", "branch_over_stream"] == pytest.approx(
        (branch.norm() / stream.norm()).item(), rel=1e-5
    )
    assert "1.mul" in set(measure(model, x, y, level="functions").layers["name"])
    assert list(measure(model, x, y, level="layers").layers["name"]) == ["0", "1.a", "1.b", "2"]
    with pytest.raises(ValueError, match="unknown level"):
        measure(model, x, y, level="all")


def test_overwriting_in_place_changes_no_row():
    torch.manual_seed(3)
    kept = chain(8, 30).double()
    inplace = nn.Sequential(*(nn.ReLU(inplace=True) if isinstance(m, nn.ReLU) else m for m in kept))
    x, y = torch.randn(20, 30, dtype=torch.float64), torch.randint(10, (20,))
    a, b = measure(kept, x, y).tables[0], measure(inplace, x, y).tables[0]
    for column, values in a.columns.items():
        np.testing.assert_allclose(b[column], values, rtol=1e-12, err_msg=column)


def test_what_is_not_finite_is_counted_and_located():
    class Root(nn.Module):
        def forward(self, x):
            return (x - 100).sqrt()

    model = nn.Sequential(nn.Linear(6, 6), Root(), nn.Linear(6, 6), nn.Linear(6, 3))
    report = measure(model, *batch(10, 6, 3))
    (found,) = [f for f in report.findings if f.kind == "output-not-finite"]
    assert found.evidence["call"] == "1" and found.evidence["entries"] == 60
    assert report.layers.loc[0, "output_faults"] == 0
    assert report.layers.loc[1, "output_faults"] == 60
    assert report.verdict == "output-not-finite" or report.findings[0].severity == "broken"

    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[2, 3] = math.nan
    kinds = {f.kind for f in measure(model, *batch(10, 6, 3)).findings}
    assert "weight-not-finite" in kinds
    x, y = batch(10, 6, 3)
    x[0, 0] = math.inf
    assert "input-not-finite" in {f.kind for f in measure(nn.Linear(6, 3), x, y).findings}


def test_a_gradient_that_breaks_on_the_way_back_is_located():
    class Kink(nn.Module):
        def forward(self, x):
            return x.relu().sqrt()  # infinite slope at zero

    model = nn.Sequential(nn.Linear(6, 6), Kink(), nn.Linear(6, 3))
    report = measure(model, *batch(10, 6, 3))
    (found,) = [f for f in report.findings if f.kind == "gradient-not-finite"]
    assert found.evidence["call"] in ("0", "model.relu")
    assert report.layers["output_faults"].sum() == 0


def test_weights_of_zeros_that_stop_all_gradients_are_named():
    model = chain(8, 20)
    nn.init.zeros_(model[-1].weight)
    report = measure(model, *batch(30, 20))
    (found,) = [f for f in report.findings if f.kind == "zero-gradients"]
    assert found.evidence["zero_weights"] == [str(len(model) - 1)]
    assert report.rate is None


def test_signals_that_vanish_or_explode_are_found_where_the_weights_gradients_are_level():
    small = chain(40, 50, nn.Tanh, None, lambda w: nn.init.normal_(w, std=0.5 / 50**0.5))
    report = measure(small, *batch(30, 50))
    assert report.verdict == "signal-vanishing"
    assert report.rates["signals"].value == pytest.approx(math.log(0.5), rel=0.1)
    large = chain(40, 50, nn.ReLU, None, lambda w: nn.init.normal_(w, std=2.0 / 50**0.5))
    report = measure(large, *batch(30, 50))
    assert report.verdict == "signal-explosion"
    assert report.rates["signals"].value == pytest.approx(0.5 * math.log(2), rel=0.2)


class Added(nn.Module):
    """Branches of two Gaussian matrices that are added to a stream."""

    def __init__(self, branches=30, norm=False, factor=1.0):
        super().__init__()
        self.norm = nn.LayerNorm(40) if norm else nn.Identity()
        self.first, self.last = (
            nn.ModuleList(nn.Linear(40, 40) for _ in range(branches)) for _ in range(2)
        )
        self.head = nn.Linear(40, 10)
        for layer in (*self.first, *self.last):
            nn.init.normal_(layer.weight, std=40**-0.5)
        with torch.no_grad():
            for layer in self.last:
                layer.weight *= factor

    def forward(self, x):
        for first, last in zip(self.first, self.last, strict=True):
            x = x + last(first(self.norm(x)))
        return self.head(x)


def test_branches_that_swell_a_bare_stream_are_advised_what_the_chapter_tested():
    x, y = batch(50, 40)
    swollen = {f.kind: f for f in measure(Added(), x, y).findings}["signal-explosion"]
    assert swollen.chapter == "practice/measure-your-network" and "root of L" in swollen.advice
    calm = measure(Added(factor=30**-0.5), x, y)
    assert calm.verdict == "none" and calm.rates["signals"].total < 1, calm.rates["signals"]
    assert measure(Added(norm=True), x, y).verdict == "none"
    plain = chain(40, 50, nn.ReLU, None, lambda w: nn.init.normal_(w, std=2.0 / 50**0.5))
    other = {f.kind: f for f in measure(plain, *batch(30, 50)).findings}["signal-explosion"]
    assert other.advice != swollen.advice


def test_samples_that_align_are_found_and_those_that_batch_norm_keeps_apart_are_not():
    report = measure(chain(60, 100, nn.ReLU, nn.LayerNorm), *batch())
    (found,) = [f for f in report.findings if f.kind == "samples-align"]
    assert found.severity == "note" and found.evidence["last"] > 0.99
    ordered = chain(60, 100, nn.Tanh, None, lambda w: nn.init.normal_(w, std=0.05))
    for part in ordered:
        if isinstance(part, nn.Linear):
            part.bias = nn.Parameter(torch.randn(len(part.weight)))
    assert measure(ordered, *batch()).verdict in ("samples-align", "gradient-vanishing")
    assert "samples-align" in {f.kind for f in measure(ordered, *batch()).findings}
    assert "samples-align" not in {f.kind for f in measure(chain(60), *batch()).findings}


def test_batches_are_averaged_and_their_spread_is_known():
    model = chain(10, 30)
    several = [batch(20, 30) for _ in range(3)]
    report = measure(model, several)
    each = [measure(model, x, y) for x, y in several]
    mean = np.mean([r.tables[0]["gradient_norm"] for r in each], axis=0)
    np.testing.assert_allclose(report.tables[0]["gradient_norm"], mean, rtol=1e-6)
    spread = np.std([r.tables[0]["sensitivity"] for r in each], axis=0, ddof=1)
    np.testing.assert_allclose(report.spreads["sensitivity"], spread, rtol=1e-5)
    assert report.facts.batches == 3 and report.facts.loss == pytest.approx(
        np.mean([r.facts.loss for r in each])
    )
    assert measure(model, iter(several), batches=2).facts.batches == 2
    with pytest.raises(ValueError, match="empty"):
        measure(model, [])


def test_the_next_step_of_an_optimiser_is_that_it_would_take():
    model = chain(4, 12)
    x, y = batch(20, 12)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    rows = measure(model, x, y, optimizer=optimizer).layers.set_index("name")
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    for name in ("0", "3", "12"):
        change = (model.get_parameter(f"{name}.weight") - before[f"{name}.weight"]).norm()
        expected = (change / before[f"{name}.weight"].norm()).item()
        assert rows.loc[name, "update"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="none of the model's parameters"):
        measure(model, x, y, optimizer=torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1))


def test_effective_rates_are_those_of_the_package_and_so_is_their_spread():
    from bnmlp.measurements.rates import effective_rates, spread

    model = BNMLP(12, 9, 20, 4, activation="tanh", dtype=torch.float64)
    x, y = torch.randn(15, 12, dtype=torch.float64), torch.randint(4, (15,))
    table = measure(model, x, y).tables[0]
    expected = effective_rates(model, x, y)[:, 0]
    found = torch.tensor(table["effective_rate"][table.layers])[:-1]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)
    report = measure(chain(20), *batch())
    rates = torch.tensor(report.tables[0]["effective_rate"][report.tables[0].layers])
    assert report.rate_spread == pytest.approx(spread(rates).item())
