"""The choices that make a BNMLP, checked when they are made and fixed from then on."""

import functools
import math
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnmlp.checks import check_lengths, check_name, whole_number
from bnmlp.layers.activations import ACTIVATIONS, activation_parts, gain_schedule
from bnmlp.layers.initialization import INITIALIZATIONS, initial_weights

NORMS = ("batch", "layer", "none")

ORDERS = ("norm_act", "act_norm")

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

SIZES = ("in_features", "width", "depth", "out_features")
SWITCHES = ("center", "unit_norm", "affine", "bias")
BY_REPLICA = ("activation", "gain", "gain_exponent")  # one for all, or one for each
SCHEDULE = ("gain", "gain_exponent", "gains")  # the last None, or the others
# Neither shapes nor first values of the weights depend on them.
CHANGEABLE = ("activation", *SCHEDULE, "center", "unit_norm", "eps", "order")


@dataclass(frozen=True)
class Recipe:
    r"""What makes a :class:`bnmlp.BNMLP`, its numbers apart. Equal recipes make equal networks.

    Args:
        in_features: As all that follow, see :class:`bnmlp.BNMLP`.
        width: :math:`d`.
        depth: :math:`L`.
        out_features: Number of logits.
        activation: One name, or one for each replica.
        gain: One number, or one for each replica; None with ``gains``.
        gain_exponent: One number, or one for each replica; None with ``gains``.
        norm: ``"batch"``, ``"layer"`` or ``"none"``.
        center: Whether means are subtracted.
        unit_norm: Whether to scale to norm 1.
        affine: Whether there is a scale and a shift.
        bias: Whether there are biases.
        eps: At least 0.
        order: ``"norm_act"`` or ``"act_norm"``.
        init: ``"orthogonal"`` or ``"gaussian"``.
        init_gain: Above 0.
        replicas: :math:`R`.
        seed: At least 0.
        streams: One number for each replica.
        gains: Instead of a schedule the gain of every layer :math:`\ell = 1..L`, each one number,
            or one for each replica.

    Raises:
        ValueError: If a size is not a positive integer, a name is unknown, a number is out of
            its range, or choices for single replicas or layers are not as many.
    """

    in_features: int
    width: int
    depth: int
    out_features: int
    activation: str | Sequence[str] = "identity"
    gain: float | Sequence[float] | None = 1.0
    gain_exponent: float | Sequence[float] | None = 0.0
    norm: str = "batch"
    center: bool = True
    unit_norm: bool = False
    affine: bool = False
    bias: bool = False
    eps: float = 1e-5
    order: str = "norm_act"
    init: str = "orthogonal"
    init_gain: float = 1.0
    replicas: int = 1
    seed: int = 0
    streams: Sequence[int] | None = None
    gains: Sequence[float | Sequence[float]] | None = None

    def __post_init__(self) -> None:
        for name in (*SIZES, "replicas"):
            self._set(name, whole_number(name, getattr(self, name)))
        self._set("seed", whole_number("seed", self.seed, least=0))
        self._set("streams", tuple(range(self.replicas) if self.streams is None else self.streams))
        for name in SWITCHES:
            self._set(name, _switch(name, getattr(self, name)))
        for name in BY_REPLICA:
            self._set(name, _one_or_each(getattr(self, name)))
        if self.gains is not None:
            self._set("gains", tuple(map(_row, self.gains)))
        self._check()
        for name in BY_REPLICA:
            self._set(name, _one_if_equal(getattr(self, name)))
        if self.gains is not None:
            self._set("gains", tuple(map(_one_if_equal, self.gains)))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # in place of what was given, before anybody reads it

    def _check(self) -> None:
        each = {name: getattr(self, name) for name in (*BY_REPLICA, "streams")}
        check_lengths(self.replicas, **each)
        for _, name in activation_parts(self.activation):
            check_name("activation", name, ACTIVATIONS)
        check_name("norm", self.norm, NORMS)
        check_name("order", self.order, ORDERS)
        check_name("init", self.init, INITIALIZATIONS)
        if not (self.init_gain > 0 and math.isfinite(self.init_gain)):
            raise ValueError(f"init_gain must be a finite number > 0, got {self.init_gain}")
        if not (self.eps >= 0 and math.isfinite(self.eps)):
            raise ValueError(f"eps must be a finite number >= 0, got {self.eps}")
        self._check_gains()

    def _check_gains(self) -> None:
        missing = {self.gain is None, self.gain_exponent is None}
        if missing != {self.gains is not None}:
            raise ValueError("give gain and gain_exponent, or else gains and None for both of them")
        if self.gains is not None and len(self.gains) != self.depth:
            raise ValueError(f"gains has {len(self.gains)} entries for {self.depth} layers")
        for layer, row in enumerate(self.gains or (), 1):
            check_lengths(self.replicas, **{f"the gain of layer {layer}": row})
        _ = self.layer_gains  # which are checked when they are made

    @functools.cached_property
    def layer_gains(self) -> tuple[tuple[float, ...], ...]:
        """For every layer the gain of all replicas alike, or else one for each."""
        rows = self._scheduled() if self.gains is None else self._listed(self.gains)
        return tuple(row[:1] for row in rows) if all(len(set(r)) == 1 for r in rows) else rows

    def _scheduled(self) -> tuple[tuple[float, ...], ...]:
        each = (self._each(self.gain), self._each(self.gain_exponent))
        columns = [gain_schedule(self.depth, *pair).tolist() for pair in zip(*each, strict=True)]
        return tuple(zip(*columns, strict=True))

    def _listed(self, gains: Sequence[float | Sequence[float]]) -> tuple[tuple[float, ...], ...]:
        rows = tuple(map(self._each, gains))
        wrong = [g for row in rows for g in row if not (g > 0 and math.isfinite(g))]
        if wrong:
            raise ValueError(f"gain must be a finite number > 0, got {wrong[0]}")
        return rows

    def _each(self, value: Any) -> tuple[float, ...]:
        return value if isinstance(value, tuple) else (value,) * self.replicas

    def changed(self, **choices: Any) -> "Recipe":
        """The recipe with other choices that leave the weights as they are.

        Args:
            **choices: Some of ``CHANGEABLE``. A ``gain`` or ``gain_exponent`` takes the place of
                ``gains``, and the other way round.

        Returns:
            The other recipe.

        Raises:
            ValueError: If a choice would need other weights, or is none.
        """
        for name in choices:
            if name not in CHANGEABLE:
                raise ValueError(
                    f"{name} cannot change while the weights stay; make a new BNMLP, or change "
                    f"some of {', '.join(CHANGEABLE)}"
                )
        if choices.get("gains") is not None:
            choices = {"gain": None, "gain_exponent": None} | choices
        elif {"gain", "gain_exponent"} & set(choices) and self.gains is not None:
            choices = {"gain": 1.0, "gain_exponent": 0.0, "gains": None} | choices
        return replace(self, **choices)

    def subset(self, replicas: Iterable[int]) -> "Recipe":
        """The recipe of some of the replicas.

        Args:
            replicas: Which, from 0.

        Returns:
            The recipe of as many networks.
        """
        numbers = list(replicas)

        def of(value: Any) -> Any:
            return tuple(value[r] for r in numbers) if isinstance(value, tuple) else value

        parts = {name: of(getattr(self, name)) for name in (*BY_REPLICA, "streams")}
        gains = None if self.gains is None else tuple(map(of, self.gains))
        return replace(self, replicas=len(numbers), gains=gains, **parts)

    def summary(self) -> str:
        """Sizes and choices on one line, without those that others say already."""
        sizes = f"{self.in_features} -> {self.depth} x {self.width} -> {self.out_features}"
        said = {*SIZES, *(name for name in SCHEDULE if getattr(self, name) is None)}
        if self.streams == tuple(range(self.replicas)):
            said.add("streams")
        names = [field.name for field in fields(self) if field.name not in said]
        return ", ".join([sizes, *(f"{n}={reprlib.repr(getattr(self, n))}" for n in names)])


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _one_or_each(value: Any) -> Any:
    """A choice for all replicas, or a tuple of one for each."""
    value = value.tolist() if isinstance(value, np.ndarray | Tensor) else value
    return tuple(value) if isinstance(value, list | tuple) else value


def _one_if_equal(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _row(value: Any) -> float | tuple[float, ...]:
    """The gain of a layer: a number, or one for each replica, in whatever shape."""
    numbers = torch.as_tensor(value, dtype=torch.float64, device="cpu").flatten().tolist()
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def draw(recipe: Recipe, layers: range, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Initial weights by the numbers that layers have in the seeds: 0 input, 1 output, 2.. hidden.

    So a deeper network of the same seed starts with the same layers.

    Args:
        recipe: Of the networks.
        layers: Numbers.
        rows: Fan-out.
        columns: Fan-in.
        dtype: Of the weights.

    Returns:
        Weights on the CPU. Shape ``(len(layers), R, rows, columns)``.
    """
    return initial_weights(
        recipe.init, layers, recipe.streams or (), rows, columns,
        seed=recipe.seed, gain=recipe.init_gain, dtype=dtype,
    )  # fmt: skip


def first_numbers(recipe: Recipe, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Parameters and averages of new networks, by name; without numbers on the device "meta"."""

    def weights(layers: range, rows: int, columns: int) -> Tensor:
        if device.type == "meta":
            shape = (len(layers), recipe.replicas, rows, columns)
            return torch.empty(shape, dtype=dtype, device=device)
        return draw(recipe, layers, rows, columns, dtype).to(device)

    width, per_feature = recipe.width, (recipe.depth, recipe.replicas, recipe.width)
    numbers = {
        "input_weight": weights(range(1), width, recipe.in_features)[0],
        "hidden_weight": weights(range(2, recipe.depth + 1), width, width),
        "output_weight": weights(range(1, 2), recipe.out_features, width)[0],
    }
    if recipe.bias:
        numbers["layer_bias"] = torch.zeros(per_feature, dtype=dtype, device=device)
        logits = (recipe.replicas, recipe.out_features)
        numbers["output_bias"] = torch.zeros(logits, dtype=dtype, device=device)
    if recipe.affine:
        numbers["norm_weight"] = torch.ones(per_feature, dtype=dtype, device=device)
        numbers["norm_bias"] = torch.zeros(per_feature, dtype=dtype, device=device)
    return numbers | first_averages(recipe, dtype, device)


def first_averages(recipe: Recipe, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Running averages before the first batch, none without batch normalisation."""
    if recipe.norm != "batch":
        return {}
    shape = (recipe.depth, recipe.replicas, recipe.width)
    return {
        "running_mean": torch.zeros(shape, dtype=dtype, device=device),
        "running_var": torch.ones(shape, dtype=dtype, device=device),
    }
