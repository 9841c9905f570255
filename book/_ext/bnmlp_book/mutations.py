"""Break the package on purpose and see which claims and tests notice: ``make audit MUTATE=1``.

A claim that cannot fail is as bad as one that fails by chance. Each mutation changes one line of a
copy of the package; chapters that reach the line run on that copy, cheapest first, and so do
the unit tests of its module. A chapter that has noticed nothing then meets the others.
``book/data/audit/mutations.csv`` says who noticed.
"""

import ast
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from . import audit
from .dependencies import Package
from .sources import claims, code_cells, pages

TABLE = audit.ROOT / "book" / "data" / "audit" / "mutations.csv"


# Tests of modules that have no file of their own.
TESTS = {
    "attention": ("transformer",),
    "batches": ("datasets", "transformer", "convolutional"),
    "engine": ("gradients", "step", "mlp"),
    "layer": ("gradients", "step", "mlp"),
    "gaussian": ("meanfield", "transformer"),
    "intervals": ("tables",),
    "losses": ("step", "transformer"),
    "noise": ("curvature",),
    "rates": ("weight_dynamics", "transformer"),
    "recipe": ("recipe", "mlp"),
    "sources": ("datasets",),
}


@dataclass(frozen=True)
class Mutation:
    """One wrong line: what is wrong, in which file, the text and what stands in its place.

    ``near`` is the chapter about it, run first.
    """

    name: str
    what: str
    file: str
    old: str
    new: str
    near: str = ""

    @property
    def edit(self) -> tuple[str, str, str]:
        """As :func:`audit.edited_package` wants it."""
        return self.file, self.old, self.new


# A mutation, the chapters that reach it, those that were run, which of their claims noticed, and
# a test that did.
Row = tuple[Mutation, dict[str, Path], dict[str, Path], list[tuple[str, str]], str]


MUTATIONS = [
    Mutation(
        "norm-root", "normalisation divides by the mean square", "layers/normalization.py",
        "y = F.rms_norm(x, (n,), eps=eps / n if unit else eps)",
        "y = x / (x.square().mean(-1, keepdim=True) + (eps / n if unit else eps))",
    ),
    Mutation(
        "norm-mean", "mean reduction is left out", "layers/normalization.py",
        "    if center:\n        y = F.layer_norm(x, (n,), eps=eps / n if unit else eps)\n",
        "    if False:\n        y = F.layer_norm(x, (n,), eps=eps / n if unit else eps)\n",
    ),
    Mutation(
        "engine-norm-root", "the engine normalises without the root", "networks/layer.c",
        "1 / F(sqrt)(squares / n + (REAL)s->eps)", "1 / (squares / n + (REAL)s->eps)",
    ),
    Mutation(
        "haar-sign", "Haar matrices without the correction of signs", "layers/initialization.py",
        "return q.mul_(-sign.unsqueeze(-2))", "return q",
    ),
    Mutation(
        "haar-vectors", "Householder vectors of full length: not Haar", "layers/initialization.py",
        "    x.tril_()  # in place: a copy costs forty times as much\n",
        "    x.abs_().tril_()\n",
    ),
    Mutation(
        "gaussian-variance", "Gaussian weights of half the variance", "layers/initialization.py",
        "math.sqrt(2 / (normal.shape[-1]", "math.sqrt(1 / (normal.shape[-1]",
        near="edge-of-chaos",
    ),
    Mutation(
        "gain", "gains off by five per cent", "layers/activations.py",
        "gains = gain * layers**-exponent", "gains = 1.05 * gain * layers**-exponent",
        near="explosion-against-gain",
    ),
    Mutation(
        "gain-exponent", "gains with twice the exponent", "layers/activations.py",
        "gains = gain * layers**-exponent", "gains = gain * layers ** (-2 * exponent)",
        near="gain-exponent",
    ),
    Mutation(
        "bessel", "running variance without Bessel's factor", "networks/engine.py",
        "            var *= self.n / (self.n - 1)\n", "            pass\n",
        near="running-statistics",
    ),
    Mutation(
        "averages", "running averages move ten times as fast", "networks/engine.py",
        "model.running_var[layers].lerp_(var, model.momentum)",
        "model.running_var[layers].lerp_(var, min(1, 10 * model.momentum))",
        near="running-statistics",
    ),
    Mutation(
        "recalibration", "recalibrated variance is the unbiased one", "measurements/evaluation.py",
        "            var = var * ((n - 1) / n)\n", "            var = 1.05 * var\n",
        near="running-statistics",
    ),
    Mutation(
        "rate-sign", "explosion rate with the wrong sign", "measurements/gradients.py",
        "return -(centred @", "return (centred @",
    ),
    Mutation(
        "norm-scale", "gradient norms forget the factor of their segment",
        "measurements/gradients.py",
        ".log() + scales[layer]", ".log() + 0 * scales[layer]",
        near="gradients-depth",
    ),
    Mutation(
        "tanh-slope", "the way back through tanh forgets its slope", "networks/layer.c",
        "grad[j] *= gain * (1 - out[j] * out[j]);", "grad[j] *= gain;",
        near="explosion-against-gain",
    ),
    Mutation(
        "sin-slope", "the way back through sin forgets its slope", "networks/layer.c",
        "gain * F(cos)((z[j] - m) * a + c);", "gain;", near="gain-exponent",
    ),
    Mutation(
        "projection", "the way back through the normalisation lacks its projection",
        "networks/layer.c",
        "s->norm == FIXED ? 0 : a * rstd * along / n;", "0;", near="gradients-depth",
    ),
    Mutation(
        "step-size", "steps of gradient descent ten per cent too long", "training/step.py",
        "        weight.baddbmm_(step, h.mT, alpha=-1)\n",
        "        weight.baddbmm_(step, h.mT, alpha=-1.1)\n", near="orthogonality",
    ),
    Mutation(
        "gap", "isometry gap without the factor 2 of the volume", "measurements/isometry.py",
        "gap = mean.log() - 2 * pivots.log().mean(-1)",
        "gap = mean.log() - 1.9 * pivots.log().mean(-1)", near="gap-decay",
    ),
    Mutation(
        "gap-series", "isometry gap near isometry without its factor one half",
        "measurements/isometry.py",
        "series = second / 2 - third / 3", "series = second - third / 3", near="orthogonality",
    ),
    Mutation(
        "harmonic", "harmonic gap without its denominator", "measurements/isometry.py",
        "((ratio - 1).square() / ratio).mean(-1)", "((ratio - 1).square()).mean(-1)",
    ),
    Mutation(
        "rank", "numerical rank with a tolerance of float32", "measurements/isometry.py",
        "torch.finfo(s.dtype).eps * s[..., :1]", "1e-4 * s[..., :1]", near="rank-of-batches",
    ),
    Mutation(
        "decay-factor", "d / (d + 1) for d / (d + 2)", "theory/closed_forms.py",
        "return width / (width + 2)", "return width / (width + 1)",
    ),
    Mutation(
        "haar-moment", "Weingarten function off by one", "theory/closed_forms.py",
        "return ((width + 1) * same - different)", "return ((width + 2) * same - different)",
    ),
    Mutation(
        "gap-quadrature", "quadrature of the expected gap change cut off", "theory/closed_forms.py",
        "torch.arange(-45.0, 95.0, 0.25", "torch.arange(-45.0, -2.0, 0.25",
    ),
    Mutation(
        "budget", "budget of the whole gap, not of its half", "theory/closed_forms.py",
        "else 0.5 * (first_gap - last_gap)", "else (first_gap - last_gap)",
    ),
    Mutation(
        "rate-bounds", "bounds below full rank without the loss of two dimensions",
        "theory/closed_forms.py",
        "math.log(rank * (width - 2) / (width * (rank - 2)))",
        "math.log(rank * (width - 2) / (width * (rank - 1)))",
    ),
    Mutation(
        "stationary", "stationary spread off by a factor of two", "theory/closed_forms.py",
        "return 2 * (1 - share) / (share * (2 - share))",
        "return (1 - share) / (share * (2 - share))",
    ),
    Mutation(
        "gaussian-rate", "Gaussian rate forgets what mean reduction costs",
        "theory/closed_forms.py",
        "free = batch_size - 1 if center else batch_size", "free = batch_size",
    ),
    Mutation(
        "flow", "spectrum flow on the wrong clock", "theory/closed_forms.py",
        "times = depths / (d + 2)", "times = 0.9 * depths / (d + 2)",
    ),
    Mutation(
        "quadrature", "Gaussian means cut off at one standard deviation", "theory/gaussian.py",
        "s = torch.arange(-4.5, 3.7, 0.02", "s = torch.arange(-4.5, 0.5, 0.02",
    ),
    Mutation(
        "growth-mean", "mean-field growth forgets the mean that batch norm removes",
        "theory/meanfield.py",
        '    if norm == "batch":\n        energy -=', '    if norm == "layer":\n        energy -=',
    ),
    Mutation(
        "running-spread", "predicted loss in evaluation without Bessel's factor",
        "theory/meanfield.py",
        "bessel = batch_size / (batch_size - 1)", "bessel = 1.0",
    ),
    Mutation(
        "rate-map", "effective rates fall with the first power of the step",
        "theory/weight_dynamics.py",
        "return rate / (1 + (learning_rate * rate) ** 2)",
        "return rate / (1 + learning_rate * rate)", near="scale-invariance",
    ),
    Mutation(
        "critical-rate", "critical learning rate without its root", "theory/weight_dynamics.py",
        "return (rates.amax(0) * rates.amin(0)).rsqrt()",
        "return (rates.amax(0) * rates.amin(0)).reciprocal()",
    ),
    Mutation(
        "momentum-map", "velocity decays with momentum, not with its square",
        "theory/weight_dynamics.py",
        "v = momentum**2 * v + g.square()", "v = momentum * v + g.square()",
    ),
    Mutation(
        "quadratic-noise", "the noisy quadratic model without noise", "theory/quadratic.py",
        "transition @ moments @ transition.mT + kicks",
        "transition @ moments @ transition.mT + 0 * kicks",
    ),
    Mutation(
        "covariance", "covariance of gradients that are not centred", "measurements/noise.py",
        "centred = gradients - gradients.mean(0)", "centred = gradients - 0 * gradients.mean(0)",
    ),
    Mutation(
        "relu-kernel", "kernel of ReLU without its angle", "theory/gaussian.py",
        "return (math.pi - correlation(c).arccos()) / (2 * math.pi)",
        "return 0.5 * torch.ones_like(c)",
    ),
    Mutation(
        "scores", "attention scores not divided by the root of the heads' width",
        "networks/transformer.py",
        "scores = q @ k.mT / math.sqrt(q.shape[-1])", "scores = q @ k.mT / q.shape[-1]",
        near="transformers",
    ),
    Mutation(
        "shortcut", "shortcuts of the ResNet carry nothing", "networks/convolutional.py",
        "            out = out + F.pad(", "            out = out + 0 * F.pad(",
        near="short-and-noshort",
    ),
    Mutation(
        "glorot", "uniform weights of half the variance", "networks/skip.py",
        "bound = math.sqrt(6 / (rows + columns))", "bound = math.sqrt(3 / (rows + columns))",
    ),
    Mutation(
        "standardisation", "pixels not standardised", "data/datasets.py",
        "mean, std = STANDARDIZATION.get(name) or _channel_statistics(train)",
        "mean, std = (0.0,) * train.shape[1], (1.0,) * train.shape[1]", near="degenerate-batches",
    ),
]  # fmt: skip


def run(jobs: int, budget: float, chosen: list[str]) -> None:
    """Run every mutation on the chapters that reach it, then write who noticed.

    Args:
        jobs: Chapters at a time.
        budget: Seconds of chapters at a time, at least one chapter, until a claim notices.
        chosen: Names of mutations; all if empty.
    """
    chapters = {page.stem: page for page in pages(audit.ROOT) if code_cells(page) and claims(page)}
    unnoticing = set(chapters)
    rows: list[Row] = []
    for mutation in MUTATIONS:
        if chosen and mutation.name not in chosen:
            continue
        reached = reaching(mutation, chapters)
        picked, noticed = until_noticed(mutation, reached, unnoticing, jobs, budget)
        unnoticing -= {page for page, _ in noticed}
        tests = failing_tests(mutation)
        rows.append((mutation, reached, picked, noticed, tests))
        names = ", ".join(claim for _, claim in noticed[:6]) or "NO CLAIM"
        print(f"{mutation.name}: {names}; tests: {tests or 'NO TEST'}", flush=True)
    write(rows)
    if not chosen:
        unnoticing = {slug for slug in unnoticing if not notices_one(slug, rows)}
        write(rows)
    print(f"chapters of which no claim noticed anything: {', '.join(sorted(unnoticing)) or 'none'}")


def until_noticed(
    mutation: Mutation, reached: dict[str, Path], wanted: set[str], jobs: int, budget: float
) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """Run chapters, some at a time, until a claim notices or none is left."""
    build = f"mutation-{mutation.name}"
    picked: dict[str, Path] = {}
    noticed: list[tuple[str, str]] = []
    while not noticed and len(picked) < len(reached):
        rest = {slug: page for slug, page in reached.items() if slug not in picked}
        batch = pick(mutation, rest, wanted, budget)
        audit.run_build(build, batch, jobs, {}, mutation.edit)
        noticed = noticing(build, batch)
        picked |= batch
    return picked, noticed


def notices_one(slug: str, rows: list[Row]) -> bool:
    """Run a chapter on mutations that it has not met until one of its claims notices."""
    for mutation, reached, picked, noticed, _ in rows:
        if slug in reached and slug not in picked:
            chapter = {slug: reached[slug]}
            audit.run_build(f"mutation-{mutation.name}", chapter, 1, {}, mutation.edit)
            picked |= chapter
            noticed += (found := noticing(f"mutation-{mutation.name}", chapter))
            if found:
                return True
    return False


def mutated_name(mutation: Mutation) -> str:
    """The function or class at the top of a module that holds the line; in C, the file."""
    if not mutation.file.endswith(".py"):
        return Path(mutation.file).stem
    text = (audit.ROOT / "bnmlp" / mutation.file).read_text(encoding="utf8")
    line = text[: text.index(mutation.old)].count("\n") + 1
    for part in ast.parse(text).body:
        if isinstance(part, ast.FunctionDef | ast.ClassDef) and part.lineno <= line:
            name = part.name
    return name


def reaching(mutation: Mutation, chapters: dict[str, Path]) -> dict[str, Path]:
    """The chapters whose results depend on the line."""
    before = Package(audit.ROOT / "bnmlp")
    with audit.edited_package(mutation.edit) as (folder,):
        after = Package(Path(folder) / "bnmlp")
        return {
            slug: page
            for slug, page in chapters.items()
            if (code := audit.measured_code(page)) and before.digest(code) != after.digest(code)
        }


def pick(
    mutation: Mutation, reached: dict[str, Path], wanted: set[str], budget: float
) -> dict[str, Path]:
    """Chapters within the budget: near ones, such as name what is wrong, unnoticing ones, cheap."""
    named = re.compile(rf"\b{mutated_name(mutation)}\b")
    picked, spent = {}, 0.0
    order = sorted(reached, key=lambda slug: audit.expected_seconds(reached[slug]))
    order.sort(key=lambda slug: slug not in wanted)
    order.sort(key=lambda slug: not named.search(audit.measured_code(reached[slug])))
    order.sort(key=lambda slug: slug != mutation.near)
    for slug in order:
        seconds = audit.expected_seconds(reached[slug])
        if not picked or spent + seconds <= budget:
            picked[slug] = reached[slug]
            spent += seconds
    return picked


def noticing(build: str, chapters: dict[str, Path]) -> list[tuple[str, str]]:
    """Page and claim, for every claim that holds on the package and not on its mutation."""
    from bnmlp.book.claims import within

    found = []
    for slug, page in chapters.items():
        said = {claim.id: claim.fields for claim in claims(page)}
        before, after = (
            {record["name"]: record for record in stored(name, page)["claims"]}
            for name in ("seed-0", build)
        )
        for name, record in after.items():
            bounds = {**record, **said.get(name, {})}
            values = [float(r[name]["value"]) for r in (before, after) if name in r]
            held = [within(value, bounds["low"], bounds["high"]) for value in values]
            if held == [True, False]:
                found.append((slug, name))
    return found


def stored(build: str, page: Path) -> dict:
    """The result of a page in a build; no claims if there is none."""
    path = audit.result_path(build, page)
    return json.loads(path.read_text()) if path.exists() else {"claims": []}


def failing_tests(mutation: Mutation) -> str:
    """The first unit test of the mutated module that fails."""
    stem = Path(mutation.file).stem
    tests = [audit.ROOT / "tests" / f"test_{name}.py" for name in TESTS.get(stem, (stem,))]
    with audit.edited_package(mutation.edit) as (folder,):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pytest", "-q", "-x", "--no-header",
             "-p", "no:cacheprovider", "-m", "not slow", *map(str, tests)],
            cwd=audit.ROOT, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    found = re.search(r"^FAILED \S+::(\w+)", done.stdout, re.M)
    return found[1] if found else ""


def write(rows: list[Row]) -> None:
    """Store who noticed what."""
    import pandas as pd

    table = pd.DataFrame(
        {
            "mutation": m.name, "what": m.what, "file": m.file, "chapters": len(picked),
            "of": len(reached), "claims": len(noticed),
            "noticed": " ".join(claim for _, claim in noticed), "test": test,
        }
        for m, reached, picked, noticed, test in rows
    )  # fmt: skip
    about = (
        "# The package with one wrong line: claims that hold without it and not with it, how many\n"
        "# of the chapters that reach it were run, and a unit test that fails\n"
        f"# command: make audit MUTATE=1; {platform.machine()}, torch {version('torch')}\n"
    )
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(about + table.to_csv(index=False), encoding="utf8")
