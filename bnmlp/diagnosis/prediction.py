"""What theory says of a network's rate, where its assumptions hold, and which one does not."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bnmlp.diagnosis.cures import Shaped
from bnmlp.diagnosis.table import Table
from bnmlp.layers.activations import ACTIVATIONS
from bnmlp.measurements.isometry import numerical_rank
from bnmlp.networks.mlp import BNMLP
from bnmlp.theory import explosion_rate_bounds, gaussian_explosion_rate
from bnmlp.theory.meanfield import chi, gradient_growth, length_map

PROBED = 12  # weight matrices that are looked at, spread evenly over the depth
LEAST = 4  # pairs of layers of a chain that may have another head
LARGEST = 1024  # samples or features beyond which ranks and spectra are not computed
MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.Tanh: "tanh", nn.SELU: "selu", nn.Identity: "identity",
}  # fmt: skip
FUNCTIONS = {"relu": "relu", "relu_": "relu", "tanh": "tanh", "sin": "sin", "selu": "selu"}
SMOOTH = (nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.Sigmoid, nn.LeakyReLU, nn.Mish, nn.Hardtanh)
NORMS = {nn.BatchNorm1d: "batch", nn.SyncBatchNorm: "batch", nn.LayerNorm: "layer"}
PASSIVE = (nn.Flatten, nn.Identity)


@dataclass(frozen=True)
class Assumption:
    """What a formula asks of a network, and whether it is so.

    Attributes:
        name: What is asked.
        holds: Whether it is so.
        found: What is there.
    """

    name: str
    holds: bool
    found: str


@dataclass(frozen=True)
class Prediction:
    """What theory says of the growth of gradients towards the input.

    Attributes:
        low: Rate in nats per layer; None where no formula applies.
        high: The same unless theory gives bounds.
        formula: In words.
        chapter: Of the book, which derives and tests it.
        assumptions: What was looked at, in order; the formula applies if all hold.
        rule: Slug that says which formula it is.
    """

    low: float | None
    high: float | None
    formula: str
    chapter: str | None
    assumptions: tuple[Assumption, ...]
    rule: str = ""

    @property
    def applies(self) -> bool:
        """Whether there is a number."""
        return self.low is not None

    @property
    def failing(self) -> Assumption | None:
        """The first assumption that does not hold."""
        return next((a for a in self.assumptions if not a.holds), None)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            wrong = self.failing
            return (
                f"no formula applies; it asks for {wrong.name}, here {wrong.found}" if wrong else ""
            )
        if self.low == self.high:
            return f"{self.low:+.4f} nats per layer ({self.formula})"
        return f"{self.low:+.4f} to {self.high:+.4f} nats per layer ({self.formula})"

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


@dataclass
class Chain:
    """A network whose layers are a matrix, a normalisation and an activation each, in turn.

    Attributes:
        widths: Outputs of the layers, the last one not counted.
        norm: ``"batch"``, ``"layer"`` or ``"none"``.
        center: Whether the normalisation subtracts a mean.
        before: Whether the normalisation comes before the activation.
        activation: Name, or an elementwise function.
        label: Name of the activation.
        gains: Factor on the activation's input, by layer.
        weights: Some of the square matrices in between.
        variances: Mean square entry times columns, by layer but the first and last.
        lengths: Mean square of what each of these layers puts out.
        samples: In the batch.
        rank: Linearly independent samples, less the one that a mean takes.
        trouble: What is no chain, or None.
    """

    widths: list[int] = field(default_factory=list)
    norm: str = "none"
    center: bool = True
    before: bool = True
    activation: str | Callable[[Tensor], Tensor] = "identity"
    label: str = "identity"
    gains: list[float] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    variances: np.ndarray = field(default_factory=lambda: np.empty(0))
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0))
    samples: int = 0
    rank: int | None = None
    trouble: str | None = None


def chain_of(table: Table, x: object) -> Chain:
    """What a table of modules says about a network's layers.

    Args:
        table: With modules.
        x: The input.

    Returns:
        The chain; its ``trouble`` says why there is none.
    """
    chain = Chain()
    places = table.layers
    chain.trouble = _trouble(table, places)
    if chain.trouble:
        return chain
    linears = [table.modules[i] for i in places]
    between = [_roles(table, a, b) for a, b in zip(places[:-1], places[1:], strict=True)]
    if len(between) > LEAST and _differ(between[1], between[-1]):
        between.pop()  # a head of another kind changes no rate of the layers before it
    if any(isinstance(roles, str) for roles in between):
        chain.trouble = next(roles for roles in between if isinstance(roles, str))
        return chain
    inner = [roles for roles in between[1:] if not isinstance(roles, str)]
    first = inner[0]
    if any(_differ(first, roles) for roles in inner):
        chain.trouble = "layers differ in their normalisation or activation"
        return chain
    chain.norm, chain.before, chain.label, chain.activation = first[:4]
    if not (first.before and first.norm != "none") and any(roles.gain != 1 for roles in inner):
        chain.trouble = "activations have gains without a normalisation before them"
        return chain
    chain.gains = _gains(inner)
    if any(math.isnan(gain) for gain in chain.gains):
        chain.trouble = "scales of a normalisation differ between features, or shifts are not zero"
        return chain
    chain.widths = [int(linear.weight.shape[0]) for linear in linears[:-1]]
    chain.weights = _probed([linear.weight.detach() for linear in linears[1:-1]])
    columns = np.array([linear.weight.shape[1] for linear in linears[1:-1]], float)
    sizes = np.array([linear.weight.numel() for linear in linears[1:-1]], float)
    chain.variances = table["weight_norm"][places[1:-1]] ** 2 / sizes * columns
    chain.lengths = table["mean_square"][places[1:-1]]
    _samples(chain, x)
    return chain


def chain_of_bnmlp(model: BNMLP, table: Table, x: Tensor, replica: int) -> Chain:
    """The same of one network of a BNMLP.

    Args:
        model: R networks.
        table: Of this one.
        x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
        replica: Which.

    Returns:
        The chain.
    """
    name = model.activation if isinstance(model.activation, str) else model.activation[replica]
    gains = [float(g[replica]) if isinstance(g, Tensor) else float(g) for g in model.gains]
    widths, before = [model.width] * model.depth, model.order == "norm_act"
    chain = Chain(widths, model.norm, model.center, before, name, name, gains[1:])
    if model.norm_weight is not None and model.norm_bias is not None:
        scale, shift = model.norm_weight[:, replica].detach(), model.norm_bias[:, replica]
        if bool((scale != 1).any()) or bool((shift != 0).any()):
            chain.trouble = "a normalisation has learned scales or shifts"
            return chain
    chain.weights = _probed(list(model.hidden_weight[:, replica].detach()))
    places = table.layers[1:-1]
    chain.variances = table["weight_norm"][places] ** 2 / model.width
    chain.lengths = table["mean_square"][places]
    _samples(chain, x if x.ndim == 2 else x[replica])
    return chain


def predict(chain: Chain) -> Prediction:
    """The rate that theory gives for a chain, if it gives one.

    Args:
        chain: What is known of the network.

    Returns:
        A rate or bounds, with the assumptions behind it.
    """
    asked = [
        Assumption(
            "a chain of matrix, normalisation and activation", chain.trouble is None,
            chain.trouble or f"{len(chain.widths)} layers",
        )
    ]  # fmt: skip
    if chain.trouble:
        return _none(asked)
    inner = set(chain.widths)
    asked.append(Assumption("layers of one width", len(inner) == 1, _list(sorted(inner), "width")))
    kind, moment = weights_kind(chain.weights)
    asked.append(
        Assumption("independent or orthogonal weights", kind != "neither",
                   f"{kind}, second moment of the spectrum {moment:.2f}")
    )  # fmt: skip
    if any(not a.holds for a in asked):
        return _none(asked)
    rule = {"none": _without_norm, "layer": _layer_norm}.get(chain.norm, _batch_norm)
    return rule(chain, kind, asked)


def weights_kind(weights: Sequence[Tensor]) -> tuple[str, float]:
    r"""Whether matrices look like orthogonal ones, or like independent entries.

    By :math:`r\,\Tr(WW^\top)^2/(\Tr WW^\top)^2` for r rows: 1 if rows are orthogonal and equally
    long, :math:`1+r/c` for c columns of independent entries, whatever their distribution.

    Args:
        weights: Of one shape. Each ``(r, c)``.

    Returns:
        ``"orthogonal"``, ``"independent"`` or ``"neither"``, and the mean moment.
    """
    if not weights:
        return "neither", math.nan
    moments, expected = [], []
    for weight in weights:
        w = weight.double() if weight.device.type != "mps" else weight.cpu().double()
        w = w / w.norm()
        gram = w @ w.mT if w.shape[0] <= w.shape[1] else w.mT @ w
        moments.append(float(w.shape[0] * gram.square().sum()))
        expected.append((max(1.0, w.shape[0] / w.shape[1]), 1 + w.shape[0] / w.shape[1]))
    moment = float(np.mean(moments))
    even, random = np.mean(expected, axis=0)
    tolerance = 0.2 * (random - even)
    if all(abs(m - e) < tolerance for m, (e, _) in zip(moments, expected, strict=True)):
        return "orthogonal", moment
    spread = 0.2 * random + 2 / min(weights[0].shape)
    close = all(abs(m - r) < spread for m, (_, r) in zip(moments, expected, strict=True))
    return ("independent", moment) if close else ("neither", moment)


def _batch_norm(chain: Chain, kind: str, asked: list[Assumption]) -> Prediction:
    n, d, rank = chain.samples, chain.widths[0], chain.rank
    if chain.label == "identity":
        return _linear(chain, kind, asked)
    asked.append(
        Assumption("mean reduction, or an odd activation",
                   chain.center or chain.label in ("tanh", "sin"), "there is none")
    )  # fmt: skip
    enough = rank is not None and rank >= min(n, d) - 1
    asked.append(Assumption("distinct samples", enough, f"rank {rank} of {n} samples"))
    if any(not a.holds for a in asked):
        return _none(asked)
    if chain.label == "relu" and kind == "independent":
        value = gaussian_explosion_rate(n, activation="relu")
        words = f"ReLU, batch normalisation, independent weights, wide layers, {n} samples"
        return Prediction(value, value, words, "initialisation/activations-and-norms", tuple(asked),
                          "relu-batch")  # fmt: skip
    value = _mean_growth(chain, "batch")
    words = f"{chain.label} with batch normalisation, wide layers and large batches"
    chapter = "initialisation/explosion-against-gain"
    if chain.label not in ("tanh", "sin"):
        chapter = "initialisation/activations-and-norms"
    return Prediction(value, value, words, chapter, tuple(asked), "activation-batch")


def _linear(chain: Chain, kind: str, asked: list[Assumption]) -> Prediction:
    d, rank = chain.widths[0], chain.rank
    asked.append(Assumption("a batch of known rank", rank is not None, "batch too large"))
    if rank is None:
        return _none(asked)
    if kind == "independent":
        asked.append(Assumption("at least four samples", rank >= 3, f"rank {rank}"))
        if rank < 3:
            return _none(asked)
        value = gaussian_explosion_rate(rank, center=False)
        words = f"no activation, batch normalisation, independent weights, rank {rank}"
        return Prediction(value, value, words, "initialisation/gradients-depth", tuple(asked),
                          "linear-gaussian")  # fmt: skip
    if rank >= d:
        words = "no activation, orthogonal weights, a batch of full rank: no growth in the end"
        return Prediction(0.0, 0.0, words, "initialisation/gradients-depth", tuple(asked),
                          "linear-orthogonal")  # fmt: skip
    asked.append(Assumption("at least four samples", rank >= 3, f"rank {rank}"))
    if rank < 3:
        return _none(asked)
    low, high = explosion_rate_bounds(d, rank)
    words = f"no activation, orthogonal weights, rank {rank} below the width {d}"
    return Prediction(low, high, words, "initialisation/degenerate-batches", tuple(asked),
                      "linear-deficient")  # fmt: skip


def _layer_norm(chain: Chain, kind: str, asked: list[Assumption]) -> Prediction:
    norm = "layer" if chain.before else "batch"
    value = _mean_growth(chain, norm)
    place = "before" if chain.before else "after"
    words = f"layer normalisation {place} {chain.label}, wide layers"
    return Prediction(value, value, words, "initialisation/activations-and-norms", tuple(asked),
                      "layer-norm")  # fmt: skip


def _without_norm(chain: Chain, kind: str, asked: list[Assumption]) -> Prediction:
    r"""Relative to the signal: :math:`\chi_1` and the lengths that were measured."""
    q = chain.lengths
    usable = len(q) > 2 and bool(np.isfinite(q).all()) and bool((q > 0).all())
    asked.append(Assumption("finite signals other than zero", usable, "there are others"))
    if not usable:
        return _none(asked)
    growth = 0.5 * np.log(
        [chi(chain.activation, float(a), float(v))
         for a, v in zip(q[:-1], chain.variances[1:], strict=True)]
    )  # fmt: skip
    value = float(np.mean(growth - 0.5 * np.diff(np.log(q))))
    words = f"{chain.label} without normalisation, wide layers, lengths as measured"
    return Prediction(value, value, words, "history/edge-of-chaos", tuple(asked), "mean-field")


def predicted_signal(chain: Chain) -> float | None:
    """Growth of signals in nats per layer that mean field gives without normalisation.

    Args:
        chain: What is known of the network.

    Returns:
        The rate; None where the theory does not apply.
    """
    q = chain.lengths
    if chain.trouble or chain.norm != "none" or len(q) < 2 or not (np.isfinite(q) & (q > 0)).all():
        return None
    pairs = zip(q[:-1], chain.variances[1:], strict=True)
    steps = [math.log(max(length_map(chain.activation, float(a), float(v)), 1e-300) / a) / 2
             for a, v in pairs]  # fmt: skip
    return float(np.mean(steps))


def _mean_growth(chain: Chain, norm: str) -> float:
    by_gain: dict[float, float] = {}
    for gain in chain.gains:
        if gain not in by_gain:
            by_gain[gain] = gradient_growth(chain.activation, gain, norm=norm)  # type: ignore[arg-type]
    return float(np.mean([by_gain[gain] for gain in chain.gains]))


def _none(asked: Sequence[Assumption]) -> Prediction:
    return Prediction(None, None, "", None, tuple(asked))


def _trouble(table: Table, places: np.ndarray) -> str | None:
    if len(places) < 4:
        return f"{len(places)} layers; a rate takes at least four"
    if not np.isnan(table["branch_over_stream"]).all():
        return "branches are added to a stream"
    if any(not isinstance(table.modules[i], nn.Linear) for i in places):
        other = next(i for i in places if not isinstance(table.modules[i], nn.Linear))
        return f"{table.name[other]} is a {table.kind[other]}, not a Linear"
    if not (table["shared"][places] == 1).all():
        return "a weight is used more than once"
    unseen = next((i for i in range(places[0] + 1, places[-1] + 1) if not table.direct[i]), None)
    if unseen is not None:
        return f"something that is no module acts before {table.name[unseen]}"
    return None


def _differ(a: "Roles | str", b: "Roles | str") -> bool:
    return isinstance(a, str) or isinstance(b, str) or a[:3] != b[:3]


class Roles(NamedTuple):
    """What stands between two matrices."""

    norm: str
    before: bool  # the activation
    label: str
    activation: str | Callable[[Tensor], Tensor]
    normalisation: nn.Module | None
    gain: float  # of the activation itself


def _roles(table: Table, start: int, stop: int) -> Roles | str:
    """The roles of the calls between two places; or what does not fit."""
    norm, before, label, gain = "none", True, "identity", 1.0
    normalisation: nn.Module | None = None
    activation: str | Callable[[Tensor], Tensor] = "identity"
    for i in range(start + 1, stop):
        module: Any = table.modules[i]
        kind = table.kind[i]
        if isinstance(module, PASSIVE) or (isinstance(module, nn.Dropout) and module.p == 0):
            continue
        found = next((name for cls, name in NORMS.items() if isinstance(module, cls)), None)
        if found:
            if norm != "none":
                return f"{table.name[i]} is a second normalisation"
            norm, before, normalisation = found, label == "identity", module
            continue
        if label != "identity":
            return f"{table.name[i]} is a second activation"
        if isinstance(module, Shaped):
            gain, module = module.gain, module.activation
            kind = type(module).__name__
        if module is not None and type(module) in MODULES:
            label = activation = MODULES[type(module)]
        elif module is None and kind in FUNCTIONS:
            label = activation = FUNCTIONS[kind]
        elif isinstance(module, SMOOTH):
            label, activation = kind, module
        else:
            return f"no formula is known with {table.name[i]}, a {kind}"
    return Roles(norm, before, label, activation, normalisation, gain)


def _gains(layers: Sequence[Roles]) -> list[float]:
    """Factors on inputs of activations; nan where features differ or there is a shift."""
    modules = [roles.normalisation for roles in layers]
    weights = [getattr(module, "weight", None) for module in modules]
    shifts = [getattr(module, "bias", None) for module in modules]
    found = _common(weights, 1.0)
    return [roles.gain * w if b == 0 and w > 0 else math.nan
            for roles, w, b in zip(layers, found, _common(shifts, 0.0), strict=True)]  # fmt: skip


def _common(values: Sequence[Tensor | None], otherwise: float) -> list[float]:
    """The number that all entries of each tensor have; nan where they differ."""
    present = [v.detach() for v in values if v is not None]
    if not present:
        return [otherwise] * len(values)
    if len({(v.shape, v.device, v.dtype) for v in present}) > 1:
        return [otherwise if v is None else _common([v], otherwise)[0] for v in values]
    low, high = torch.stack(present).flatten(1).aminmax(dim=1)
    ends = zip(low.tolist(), high.tolist(), strict=True)
    numbers = iter([a if a == b else math.nan for a, b in ends])
    return [otherwise if v is None else next(numbers) for v in values]


def _samples(chain: Chain, x: object) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        chain.trouble = "the input is no batch of numbers"
        return
    rows = x.detach().flatten(1)
    chain.samples = len(rows)
    if min(rows.shape) <= LARGEST and bool(rows.isfinite().all()):
        rows = rows.double() if rows.device.type != "mps" else rows.cpu().double()
        centred = rows - rows.mean(0) if chain.center and chain.norm == "batch" else rows
        chain.rank = int(numerical_rank(centred))
        if chain.label != "identity" and chain.norm == "batch":
            # The first activation makes distinct samples independent, whatever they were.
            chain.rank = min(len(torch.unique(rows, dim=0)), max(chain.widths)) - chain.center


def _probed(weights: Sequence[Tensor]) -> list[Tensor]:
    chosen = [w for w in weights if max(w.shape) <= LARGEST]
    if not chosen:
        return []
    places = np.unique(np.linspace(0, len(chosen) - 1, PROBED).round().astype(int))
    return [chosen[i] for i in places]


def _list(values: Sequence[int], what: str) -> str:
    shown = ", ".join(map(str, values[:4])) + (", …" if len(values) > 4 else "")
    return f"{what} {shown}"


assert set(FUNCTIONS.values()) <= set(ACTIVATIONS)
