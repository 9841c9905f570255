"""The explorer's networks are the package's, weight for weight, and it is driven by keyboard."""

import csv
import gzip
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import bnmlp
from bnmlp.layers.initialization import haar_frames
from bnmlp.theory import (
    explosion_rate_bounds,
    gaussian_explosion_rate,
    spectrum_flow,
    stationary_spread,
)
from bnmlp.theory.meanfield import (
    gradient_growth,
    length_map,
    residual_recursion,
    running_spread,
)

STATIC = Path(__file__).parents[1] / "book" / "_static"
MOST_BYTES = 150_000
START = {
    "width": 16, "depth": 20, "samples": 16, "init": "orthogonal", "norm": "batch",
    "activation": "linear", "gain": 1, "exponent": 0, "shortcut": 0, "statistics": "batch",
    "format": "float32", "seed": 3,
}  # fmt: skip
HEAD, LABELS, OTHERS = 100001, 100002, 100003  # streams of random numbers
CLASSES, BATCHES, STEPS = 10, 4, 40
SMALL = "#depth=10&width=10"

pytestmark = pytest.mark.browser


# The explorer's random numbers, for many streams at a time.
def words(count, seed, network, streams):
    """Of sfc32, uint32. Shape ``(streams, count)``."""
    c = np.array(streams, np.uint32)
    a, b, k = np.full_like(c, seed), np.full_like(c, network), np.ones_like(c)
    out = []
    with np.errstate(over="ignore"):
        for _ in range(15 + count):
            t = a + b + k
            k = k + np.uint32(1)
            a, b = b ^ (b >> np.uint32(9)), c + (c << np.uint32(3))
            c = ((c << np.uint32(21)) | (c >> np.uint32(11))) + t
            out.append(t)
    return np.stack(out[15:], 1)


def normals(count, seed, network, streams):
    """Standard normal numbers. Shape ``(streams, count)``."""
    u = (words(count + count % 2, seed, network, streams) + 0.5) / 2**32
    radius, angle = np.sqrt(-2 * np.log(u[:, ::2])), 2 * np.pi * u[:, 1::2]
    both = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
    return torch.from_numpy(both.reshape(len(streams), -1)[:, :count])


def drawn(s, network=0):
    """Batch (d, n), labels, weights (L, d, d), output matrix and the other batches of a setting."""
    d, n, depth, key = s["width"], s["samples"], s["depth"], (s["seed"], network)
    x = normals(d * n, *key, [0]).view(d, n)
    w = normals(d * d, *key, range(1, depth + 1)).view(depth, d, d)
    head = normals(d * CLASSES, *key, [HEAD]).view(CLASSES, d)
    if s["init"] == "orthogonal":
        w, head = haar_frames(w), haar_frames(head)
    else:
        w, head = w / d**0.5, head * (2 / (d + CLASSES)) ** 0.5
    y = torch.from_numpy(words(n, *key, [LABELS])[0].astype(np.int64)) % CLASSES
    others = normals(d * n * BATCHES, *key, [OTHERS]).view(d, BATCHES, n)
    return x, y, w, head, others.permute(1, 2, 0)


def network_of(s, w, head):
    """The package's network with these weights."""
    choices = {"center": s["norm"] != "batch", "eps": 0.0, "dtype": torch.float64}
    choices["norm"] = "batch" if s["norm"] == "centred" else s["norm"]
    choices["activation"] = s["activation"].replace("linear", "identity")
    choices |= {"gain": s["gain"], "gain_exponent": s["exponent"]}
    model = bnmlp.BNMLP(s["width"], s["width"], s["depth"], CLASSES, **choices)
    with torch.no_grad():
        model.input_weight.copy_(w[:1])
        model.hidden_weight.copy_(w[1:].unsqueeze(1))
        model.output_weight.copy_(head[None])
    return model


def by_package(s, network=0):
    """Log gradient norms of layers and representations behind each, batch first."""
    x, y, w, head, others = drawn(s, network)
    model = network_of(s, w, head)
    if s["statistics"] == "running":
        for step in range(STEPS):
            model(others[step % BATCHES])
        model.eval()
    elif s["statistics"] == "recalibrated":
        bnmlp.recalibrate(model, others.flatten(0, 1))
        model.eval()
    logs = bnmlp.gradient_norms(model, x.mT, y, log=True)[:-1, 0]
    return logs, [x, *model.representations(x.mT)["activation"][:, 0]]


def by_hand(s, network=0):
    """The same with a shortcut, which the package's network lacks, by automatic differentiation."""
    x, y, w, head, _ = drawn(s, network)
    w.requires_grad_()
    norm = {
        "batch": lambda z: bnmlp.batch_norm(z, center=False, eps=0.0),
        "centred": lambda z: bnmlp.batch_norm(z, eps=0.0),
        "layer": lambda z: bnmlp.layer_norm(z, eps=0.0),
        "none": lambda z: z,
    }[s["norm"]]
    act = bnmlp.ACTIVATIONS[s["activation"].replace("linear", "identity")]
    found = [x]
    for layer, matrix in enumerate(w, 1):
        branch = act(s["gain"] * layer ** -s["exponent"] * norm(matrix @ found[-1]))
        found.append(s["shortcut"] * found[-1] + branch)
    loss = F.cross_entropy((head @ found[-1]).mT, y)
    logs = torch.autograd.grad(loss, w)[0].norm(dim=(1, 2)).log()
    return logs, [one.detach() for one in found]


def gap_of(x, directions):
    """Isometry gap of the largest singular values."""
    squares = torch.linalg.svdvals(x)[:directions].square()
    return (squares.mean().log() - squares.log().mean()).item()


def setting(**changes):
    return START | changes


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A page with nothing but the explorer, opened as a file."""
    folder = tmp_path_factory.mktemp("explorer")
    for name in ("explorer.js", "explorer.css"):
        shutil.copy(STATIC / name, folder)
    page = folder / "page.html"
    page.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Explorer</title>'
        '<meta name="viewport" content="width=device-width">'
        '<link rel="stylesheet" href="explorer.css"><h1>Explorer</h1><h2>Charts</h2>'
        '<div id="explorer-still">A figure</div><div id="explorer" hidden></div>'
        '<p id="explorer-laws"><a href="theory.html#equation-gradient-growth">(6.1)</a></p>'
        '<script src="explorer.js"></script>'
    )
    return page.as_uri()


@pytest.fixture
def opened(browser, site):
    """Open the explorer at a setting; what goes wrong in the page fails the test."""
    problems, contexts = [], []

    def open_at(address="", width=1280, mode="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=mode, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        own = ("file:", "blob:", "data:")
        page.on(
            "request", lambda r: None if r.url.startswith(own) else problems.append(f"asks {r.url}")
        )
        page.goto(site + address)
        told(page)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert not problems, problems


def told(page):
    """Wait until all networks of the newest setting are there; the sentence about them."""
    page.wait_for_function(
        "document.querySelector('#explorer .charts')?.getAttribute('aria-busy') === 'false'"
        " && document.querySelector('#explorer .hint').textContent === ''"
    )
    return page.inner_text("#explorer .say")


CASES = {
    "orthogonal": setting(),
    "Gaussian": setting(init="gaussian"),
    "few samples": setting(samples=5),
    "many samples": setting(samples=30),
    "mean reduction": setting(norm="centred"),
    "mean reduction, few samples": setting(norm="centred", samples=7),
    "tanh": setting(activation="tanh"),
    "shaped tanh": setting(activation="tanh", exponent=0.4, gain=0.8),
    "sin": setting(activation="sin", init="gaussian"),
    "relu": setting(activation="relu", norm="centred"),
    "layer norm": setting(activation="relu", norm="layer"),
    "no norm": setting(activation="tanh", norm="none", gain=1.4),
    "no norm, relu": setting(activation="relu", norm="none", depth=10),
    "no norm, Gaussian": setting(norm="none", init="gaussian", depth=10, gain=2),
    "running": setting(statistics="running", activation="tanh", exponent=0.3),
    "running, mean reduction": setting(statistics="running", norm="centred"),
    "recalibrated": setting(statistics="recalibrated"),
    "recalibrated, relu": setting(statistics="recalibrated", norm="centred", activation="relu"),
    "shortcut": setting(shortcut=1, activation="tanh"),
    "shortcut, mean reduction": setting(shortcut=0.5, norm="centred", activation="relu"),
    "shortcut, no norm": setting(shortcut=1, norm="none", activation="tanh"),
    "shortcut, layer norm": setting(shortcut=0.7, norm="layer", activation="sin"),
}


def test_its_networks_are_those_of_the_package(opened):
    page = opened(SMALL)
    for name, s in CASES.items():
        logs, found = by_hand(s) if s["shortcut"] else by_package(s)
        measured = page.evaluate("s => bnmlpExplorer.kernel.measure(s, 0)", s)
        layers = page.evaluate("s => bnmlpExplorer.kernel.looked(s.depth)", s)
        directions = min(page.evaluate("s => bnmlpExplorer.kernel.rank(s)", s), s["width"])
        signal = [x.square().mean().sqrt().log().item() for x in found]
        if directions == s["samples"] - 1:  # what mean reduction leaves of the batch
            found[0] = found[0] - found[0].mean(1, keepdim=True)
        gaps = [gap_of(found[layer], directions) for layer in layers]
        assert measured["gradient"] == pytest.approx(logs.tolist(), abs=1e-6), name
        assert measured["signal"] == pytest.approx(signal, abs=1e-6), name
        for there, here in zip(measured["gap"], gaps, strict=True):
            if there is not None and not math.isnan(there) and here < 20:
                assert there == pytest.approx(here, rel=1e-4, abs=1e-9), name


def test_largest_entries_tell_what_a_type_can_hold(opened):
    s = setting(norm="none", activation="relu", gain=2, depth=30)
    x, y, w, head, _ = drawn(s)
    model = network_of(s, w, head)
    measured = opened(SMALL).evaluate("s => bnmlpExplorer.kernel.measure(s, 0)", s)
    stages = model.representations(x.mT)
    largest = [max(stages[k][i].abs().max() for k in ("linear", "activation")) for i in range(30)]
    assert measured["forward"] == pytest.approx([math.log(v) for v in largest], abs=1e-9)
    loss = F.cross_entropy(model(x.mT)[0], y)
    grads = torch.autograd.grad(loss, [model.input_weight, model.hidden_weight])
    entries = [g.abs().max().log().item() for g in (grads[0][0], *grads[1][:, 0])]
    assert all(b >= e - 1e-9 for b, e in zip(measured["backward"], entries, strict=True))


def test_its_predictions_are_those_of_the_package(opened):
    page = opened(SMALL)

    def theory(call, *arguments):
        return page.evaluate(f"a => bnmlpExplorer.kernel.{call}(...a)", list(arguments))

    near = {"rel": 1e-6, "abs": 1e-9}
    assert theory("gaussianRate", 12) == pytest.approx(gaussian_explosion_rate(12, center=False))
    relu = gaussian_explosion_rate(9, activation="relu")
    assert theory("reluRate", 9) == pytest.approx(relu)
    assert theory("rateBounds", 32, 8) == pytest.approx(explosion_rate_bounds(32, 8))
    sums = {}
    for act, norm in (("tanh", "batch"), ("sin", "layer"), ("relu", "centred"), ("relu", "layer")):
        s = setting(activation=act, norm=norm, exponent=0.3, depth=20)
        kind = "layer" if norm == "layer" else "batch"
        steps = [gradient_growth(act, layer**-0.3, norm=kind) for layer in range(1, 20)]
        sums[act, norm] = theory("meanField", s)["gradient"][0]
        assert sums[act, norm] == pytest.approx(sum(steps), **near)
    assert sums["relu", "centred"] > 2 > abs(sums["relu", "layer"])  # the mean makes them differ
    field = theory("meanField", setting(norm="none", activation="tanh", gain=1.5))
    q = [1.0]
    for _ in range(20):
        q.append(length_map("tanh", 1.5**2 * q[-1], 1.0))
    assert field["signal"] == pytest.approx([0.5 * math.log(v) for v in q], **near)
    field = theory("meanField", setting(norm="none", activation="tanh", shortcut=1))
    lengths, _ = residual_recursion("tanh", [1.0] * 20)
    assert field["signal"] == pytest.approx((lengths.log() / 2).tolist(), **near)
    s = setting(statistics="running", norm="centred", activation="tanh", exponent=0.3)
    predicted = running_spread(20, "tanh", gain_exponent=0.3, steps=STEPS, batch_size=16)
    seen = [0.5 * math.log(length_map("tanh", layer**-0.6, 1.0)) for layer in range(1, 21)]
    expected = (predicted + torch.tensor(seen)).tolist()
    assert theory("runningSignal", s)[1:] == pytest.approx(expected, rel=1e-5)


def test_its_flow_is_that_of_the_package(opened):
    page = opened(SMALL)
    x = torch.randn(12, 20, dtype=torch.float64)
    values = torch.linalg.eigvalsh(torch.cov(x)).tolist()
    layers = [0, 3, 10, 40, 100]
    flow = "([values, d, layers]) => bnmlpExplorer.kernel.flow(values, d, layers)"
    expected = -np.log(spectrum_flow(values, layers)).mean(1)
    assert page.evaluate(flow, [values, 12, layers]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    # Below full rank it comes to rest at the spread of the proposition, with zeros counted in.
    few = np.linspace(0.5, 1.5, 20).tolist()
    gap = page.evaluate(flow, [few, 40, [2000]])[0]
    spread, grid = stationary_spread(40, 20), np.cos(np.linspace(0, np.pi, 4001))
    at = 1 + spread + math.sqrt(2 * spread) * grid
    density = np.sqrt(1 - grid**2) ** 2 / at  # semicircle over the value, in the angle
    mean_log = (np.log(at) * density).sum() / density.sum()
    assert gap == pytest.approx(math.log(2) - mean_log, rel=0.1)


def test_it_is_driven_by_keyboard_and_its_numbers_are_the_packages(opened):
    page = opened("#width=24&depth=30&samples=24&seed=5")
    start = page.evaluate("document.activeElement.tagName")
    assert start == "BODY"
    page.focus("#explorer-depth")
    page.keyboard.press("ArrowLeft")  # 30 to 20
    page.keyboard.press("Tab")
    page.keyboard.press("Home")  # width, which takes the samples along
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")  # samples: one less than the width
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")  # gain 0.9
    page.keyboard.press("Tab")
    for _ in range(5):
        page.keyboard.press("ArrowRight")  # exponent, to one quarter
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")  # past the shortcut, to the weights
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")  # activation
    words = told(page)
    address = page.evaluate("location.hash")
    wanted = {"width": 12, "depth": 20, "samples": 11, "gain": 0.9, "exponent": 0.25, "seed": 5,
              "init": "orthogonal", "activation": "tanh"}  # fmt: skip
    assert dict(part.split("=") for part in address[1:].split("&")) == {
        name: str(value) for name, value in wanted.items()
    }
    s = setting(**wanted)
    nets = [by_package(s, network) for network in range(3)]
    gradient = torch.stack([logs for logs, _ in nets]).median(0).values
    signal = torch.stack([torch.stack([x.square().mean() for x in f]) for _, f in nets])
    signal = signal.sqrt().log().median(0).values
    for cells in table(page):
        layer = int(cells[0])
        if layer:
            assert cells[1] == pytest.approx(gradient[layer - 1].item(), abs=1e-3)
        assert cells[5] == pytest.approx(signal[layer].item(), abs=1e-3)
        gaps = [gap_of(found[layer], 11) for _, found in nets]
        assert cells[3] == pytest.approx(float(np.median(gaps)), rel=1e-3)
    rise = (gradient[0] - gradient[-1]).item()
    said = float(re.search(r"\(([-−\d.]+) nats", words)[1].replace("−", "-"))
    assert said == pytest.approx(rise, abs=0.051)
    assert page.get_attribute("#explorer-exponent", "aria-valuetext") == "0.25 = ¼"


def table(page):
    """Numbers of the table, empty cells as nan."""
    rows = page.evaluate(
        "[...document.querySelectorAll('#explorer tbody tr')].map(r => "
        "[...r.children].map(c => c.textContent))"
    )
    return [[float(c) if c else math.nan for c in row] for row in rows]


def test_an_address_is_a_setting_and_nonsense_is_refused(opened):
    page = opened("#width=1e9&depth=77&samples=-4&norm=constructor&gain=x&exponent=0.31&seed=-7")
    assert page.input_value("#explorer-width") == "64"
    assert page.input_value("#explorer-samples") == "3"
    assert page.is_checked("input[name=norm][value=batch]")
    assert page.input_value("#explorer-gain") == "1"
    assert page.input_value("#explorer-exponent") == "0.3"
    first = told(page)
    page.click("text=Rotations save it")
    assert told(page) != first
    again = opened(page.evaluate("location.hash"))
    assert told(again) == told(page)


def test_the_values_are_a_csv(opened):
    page = opened("#depth=10&width=10&samples=10")
    with page.expect_download() as download:
        page.click("text=Values as CSV")
    rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert [row["layer"] for row in rows] == [str(layer) for layer in range(11)]
    s = setting(width=10, samples=10, depth=10, init="gaussian", seed=0)
    logs = torch.stack([by_package(s, network)[0] for network in range(3)]).median(0).values
    found = [float(row["log_gradient_norm"]) for row in rows[1:]]
    assert found == pytest.approx(logs.tolist(), abs=1e-3)


@pytest.mark.parametrize(
    "changes", ["", "norm=none&activation=relu", "norm=centred&statistics=running&activation=tanh",
                "statistics=recalibrated&samples=9", "shortcut=0.5&norm=layer&activation=sin",
                "shortcut=1&init=orthogonal&exponent=0.4&activation=tanh"],
)  # fmt: skip
def test_the_python_that_is_shown_runs(opened, changes):
    page = opened("#depth=10&width=10&samples=10&" + changes)
    code = page.evaluate("document.querySelector('#explorer pre').textContent")
    names = {"print": lambda *a: None}
    try:
        exec(compile(code, "shown", "exec"), names)
    finally:
        torch.set_default_dtype(torch.float32)
    assert names["log_norms"].isfinite().all() and len(names["log_norms"]) == 10


def test_a_report_of_measure_is_drawn_in_the_same_axes(opened, tmp_path):
    layers = [torch.nn.Linear(12, 12), torch.nn.BatchNorm1d(12), torch.nn.Tanh()] * 6
    report = bnmlp.measure(
        torch.nn.Sequential(*layers), torch.randn(20, 12), torch.randint(10, (20,)), spectra=True
    )
    path = tmp_path / "report.json"
    report.to_json(path)
    page = opened("#depth=10")
    page.set_input_files("#explorer-file", path)
    page.wait_for_function("document.querySelector('.drop p').textContent.includes('layers')")
    said = page.inner_text("#explorer .drop p")
    assert "report.json" in said and report.verdict in said
    assert page.locator("#explorer svg path.own").count() >= 2
    path.write_text(json.dumps({"schema": "<img src=x onerror=alert(1)>"}))
    page.set_input_files("#explorer-file", [])
    page.set_input_files("#explorer-file", path)
    page.wait_for_function("document.querySelector('.drop p').textContent.includes('not read')")
    assert page.locator("#explorer img").count() == 0
    assert page.locator("#explorer svg path.own").count() == 0


@pytest.mark.slow
def test_the_questions_are_answered_by_dragging(opened):
    page = opened()
    begin = page.locator("#explorer ol button")
    begin.nth(0).click()
    told(page)
    first, second, _ = page.locator("#explorer ol p").all()
    assert first.inner_text().startswith("Not yet")
    page.check("input[name=norm][value=none]")
    told(page)
    assert "normalisation in question" in first.inner_text()
    page.check("input[name=norm][value=batch]")
    page.check("input[name=init][value=orthogonal]")
    told(page)
    assert first.inner_text().startswith("Yes")
    begin.nth(1).click()
    told(page)
    assert second.inner_text().startswith("Not yet")
    page.focus("#explorer-samples")
    page.keyboard.press("End")
    told(page)
    assert second.inner_text().startswith("Yes")


def corners(count=40):
    """Settings drawn from all that the controls can say, small enough for seconds."""
    rng = np.random.default_rng(1)
    pick = {
        "init": ["orthogonal", "gaussian"], "norm": ["batch", "centred", "layer", "none"],
        "activation": ["linear", "tanh", "sin", "relu"], "gain": [0.1, 1, 3],
        "exponent": [0, 0.4, 1], "shortcut": [0, 0.5, 1], "depth": [10, 100], "width": [10, 16],
        "samples": [3, 4, 10, 16, 20], "statistics": ["batch", "running", "recalibrated"],
        "format": ["float16", "float32"],
    }  # fmt: skip
    return [
        {"seed": i} | {name: rng.choice(values).item() for name, values in pick.items()}
        for i in range(count)
    ]


@pytest.mark.slow
def test_what_is_said_holds_in_every_corner(opened):
    page = opened(SMALL)
    for s in corners():
        page.evaluate("h => { location.hash = h; }", "&".join(f"{k}={v}" for k, v in s.items()))
        page.wait_for_function(f"document.querySelector('#explorer').dataset.seed == '{s['seed']}'")
        words = told(page)
        assert not re.search("NaN|undefined|Infinity|null", words), (s, words)
        rows = table(page)
        rise = rows[1][1] - rows[-1][1]
        if "nothing of it" in words or math.isnan(rise):
            continue
        line = [row[1] for row in rows[1:]]
        if "about one size" in words:
            assert max(line) - min(line) < 1.01, (s, words)
        elif "about as large" in words:
            assert abs(rise) < 0.31, (s, words)
        else:
            assert ("grows" in words.split(";")[0]) == (rise > 0), (s, words)
        assert ("no prediction" in words) == math.isnan(rows[1][2]), (s, words)
        if "directions for" in words:
            assert page.evaluate("s => bnmlpExplorer.kernel.rank(s)", s) < s["width"]


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen(opened, width, mode):
    page = opened("#depth=10", width, mode)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.is_hidden("#explorer-still")
    sizes = page.evaluate(
        "[...document.querySelectorAll('#explorer :is(button, .slider input, fieldset label)')]"
        ".map(e => e.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 43.5
    text = page.evaluate(
        "[...document.querySelectorAll('#explorer svg')].map(s => "
        "12 * s.getBoundingClientRect().width / s.viewBox.baseVal.width)"
    )
    assert min(text) >= 11


def test_without_a_script_the_still_figure_stays(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site)
    assert page.is_visible("#explorer-still") and not page.is_visible("#explorer")
    context.close()


def test_it_is_light():
    sizes = {name: (STATIC / name).stat().st_size for name in ("explorer.js", "explorer.css")}
    assert sum(sizes.values()) < MOST_BYTES / 2, sizes
    assert len(gzip.compress((STATIC / "explorer.js").read_bytes())) < 25_000, "as it is sent"
    assert not re.search(r"https?://(?!www\.w3\.org)", (STATIC / "explorer.js").read_text())
