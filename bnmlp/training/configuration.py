"""What decides the numbers of a training run, checked when it is written down."""

import re
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from torch import Tensor

from bnmlp.data.sources import LOADERS, SHAPES
from bnmlp.layers.activations import ACTIVATIONS
from bnmlp.layers.initialization import INITIALIZATIONS
from bnmlp.layers.seeds import stored_streams
from bnmlp.measurements.curvature import QUANTITIES
from bnmlp.measurements.evaluation import STATISTICS
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import Network
from bnmlp.networks.recipe import NORMS, ORDERS
from bnmlp.training.networks import NETWORKS, Options, Own, Shape, as_module

METRICS = (
    "train_loss",
    "train_accuracy",
    *(f"test_{kind}_{s}" for kind in ("loss", "accuracy") for s in STATISTICS),
)


OF_BNMLP = (
    "width", "depth", "activation", "gain", "gain_exponent", "norm", "center", "unit_norm",
    "affine", "bias", "eps", "order", "init", "init_gain",
)  # fmt: skip
RATED = ("critical", "equalised", "tilted")  # schedules that look at effective rates
if TYPE_CHECKING:  # the choices are known when the module runs
    Activation = str
    Data = str
    Init = str
    Metric = str
    Norm = str
    Order = str
    Quantity = str
    Schedule = str
else:
    Activation = Literal[tuple(ACTIVATIONS)]
    Data = Literal[tuple(LOADERS)]
    Init = Literal[tuple(INITIALIZATIONS)]
    Metric = Literal[METRICS]
    Norm = Literal[NORMS]
    Order = Literal[ORDERS]
    Quantity = Literal[QUANTITIES]
    Schedule = Literal["constant", "cosine", *RATED]
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows


class TrainingRun(BaseModel):
    """Everything that decides the numbers of a run; equal runs on one machine are bit-equal.

    ``network`` names what is trained: a :class:`BNMLP`, whose fields are those of the run, or
    another kind, whose fields may be given like these and are kept in ``options``: see
    ``bnmlp.training.networks``. ``"module:function"`` or ``"file.py:function"`` is a network of
    your own; the function is called with ``options`` and returns a module that maps samples to
    logits.

    The fields of the network mean what they mean for :class:`BNMLP`. Several activations or gain
    exponents make variants, which share weights at the start, batches and the matrix products:
    faster than one after the other where replicas are few. Network ``v * replicas + r`` is
    replica r of variant v. A field that is unknown or
    out of range raises pydantic's ``ValidationError``, a ``ValueError``. ``run.model_dump_json()``
    and ``TrainingRun.model_validate_json(text)`` are the way to JSON and back.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field("run", description="name, also of the folder", pattern=r"^[\w.+-]+$")
    dataset: Data = Field("mnist5k", description="training and test data")
    samples: int | None = Field(None, ge=1, description="use the first training samples only")

    network: str = Field(
        "bnmlp", description=f"kind: bnmlp, {', '.join(NETWORKS)}, or file.py:function of your own"
    )
    options: dict[str, Any] = Field({}, description="fields of another kind of network")
    input: Literal["rows", "images"] = Field("rows", description="what a network of your own takes")
    width: int = Field(100, ge=1, description="features of each layer")
    depth: int = Field(100, ge=1, description="normalised layers, the first included")
    activation: Activation | tuple[Activation, ...] = Field(
        "tanh", description="activation, or one for each variant"
    )
    gain: float = Field(1.0, gt=0, description="factor on the activation's input")
    gain_exponent: float | tuple[float, ...] = Field(
        0.4, description="exponent e, or one for each variant: layer l has the gain times l^-e"
    )
    norm: Norm = Field("batch", description="normalisation")
    center: bool = Field(True, description="subtract the mean before scaling")
    unit_norm: bool = Field(False, description="rows of norm one, as the paper writes it")
    affine: bool = Field(False, description="learn scale and shift after the normalisation")
    bias: bool = Field(False, description="learn a bias in each linear map")
    eps: float = Field(1e-5, ge=0, description="added to the variance")
    order: Order = Field("norm_act", description="normalise before or after")
    init: Init = Field("orthogonal", description="initial weights")
    init_gain: float = Field(1.0, gt=0, description="factor on the initial weights")
    replicas: int = Field(1, ge=1, description="independent networks of each variant")
    seed: int = Field(0, ge=0, description="seed of weights and data order")
    dtype: Literal["float32", "float64"] = Field("float32", description="type of all numbers")

    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = Field("sgd", description="optimiser")
    learning_rate: float = Field(0.001, ge=0, description="step size")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of sgd")
    weight_decay: float = Field(0.0, ge=0, description="weight decay")
    schedule: Schedule = Field(
        "constant", description="learning rate; critical, equalised, tilted: by effective rates"
    )
    tilt: float = Field(
        0.16, description="tilted: nats by which a matrix turns faster than the next one"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    batch_size: int = Field(100, ge=2, description="samples in a batch")
    epochs: int = Field(10, ge=1, description="passes over the training data")

    evaluate_every: int | None = Field(
        None, ge=1, description="evaluate every so many steps; the end of an epoch if omitted"
    )
    calibration_samples: int = Field(
        2000, ge=1, description="training samples for recalibrated statistics"
    )
    measure_every: int | None = Field(
        None, ge=1, description="measure layers every so many epochs; first and last if omitted"
    )
    rates_every: int | None = Field(
        None, ge=1, description="record effective rates and their spread every so many steps"
    )
    quantities: tuple[Quantity, ...] = Field(
        (), description="of the loss's shape, measured with the layers: " + ", ".join(QUANTITIES)
    )
    curvature_samples: int = Field(
        1000, ge=2, description="training samples, always the same, for these quantities"
    )
    metric: Metric = Field(
        "test_accuracy_batch", description="what target, patience and best follow"
    )
    target: float | None = Field(None, description="stop a network that reaches this metric")
    max_loss: float | None = Field(None, gt=0, description="stop above this training loss")
    patience: int | None = Field(
        None, ge=1, description="stop after so many epochs without improvement"
    )
    save_best: bool = Field(False, description="keep each network's weights at its best")

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if set(name) == {"."} or RESERVED.fullmatch(name):
            raise ValueError(f"{name} cannot name a folder on every system; choose another name")
        return name

    @model_validator(mode="before")
    @classmethod
    def _fields_of_another_network(cls, given: Any) -> Any:
        kind = given.get("network", "bnmlp") if isinstance(given, dict) else "bnmlp"
        if kind == "bnmlp" or not isinstance(kind, str):
            return given
        if ":" not in kind and kind not in NETWORKS:
            known = ", ".join(["bnmlp", *NETWORKS])
            raise ValueError(f"unknown network {kind!r}; use one of {known}, or file.py:function")
        names = NETWORKS[kind].model_fields if kind in NETWORKS else {}
        others = dict.fromkeys([*OF_BNMLP, *(n for k in NETWORKS.values() for n in k.model_fields)])
        foreign = [name for name in others if name in given and name not in names]
        if foreign:
            has = f"it has {', '.join(names)}" if names else "give its arguments as options"
            raise ValueError(f"{kind} has no {', '.join(foreign)}; {has}")
        options = (given.get("options") or {}) | {k: given[k] for k in names if k in given}
        if kind in NETWORKS:
            options = _checked(kind, options)
        return {k: v for k, v in given.items() if k not in names} | {"options": options}

    @model_validator(mode="after")
    def _fits(self) -> "TrainingRun":
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("momentum belongs to the optimiser sgd; others have their own")
        if self.schedule in RATED and self.optimizer != "sgd":
            raise ValueError(f"schedule {self.schedule} is one of sgd, got {self.optimizer}")
        if self.options and self.network == "bnmlp":
            raise ValueError("options are for other networks; give the fields of bnmlp themselves")
        choices = (self.activation, self.gain_exponent)
        lengths = {len(value) for value in choices if isinstance(value, tuple)}
        if len(lengths) > 1 or 0 in lengths:
            raise ValueError(
                "activation and gain_exponent must be single or list one entry for each variant, "
                f"got lists of {sorted(lengths)}"
            )
        if self.quantities and self.curvature_samples < 2 * self.batch_size:
            raise ValueError(
                f"curvature_samples must be at least two batches, {2 * self.batch_size}, got "
                f"{self.curvature_samples}"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_fields_of_others(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        if self.network == "bnmlp":
            return fields
        return {k: v for k, v in fields.items() if k not in OF_BNMLP}

    @property
    def kind(self) -> Options | Own:
        """The fields of a network that is no BNMLP."""
        if self.network in NETWORKS:
            return NETWORKS[self.network](**self.options)
        return Own(factory=self.network, arguments=self.options, input=self.input)

    def view(self, x: Tensor) -> Tensor:
        """Rows of the dataset as the samples that the network takes.

        Args:
            x: Shape ``(n, features)``.

        Returns:
            Rows, images ``(n, channels, side, side)`` or tokens ``(n, T, features)``.
        """
        return x if self.network == "bnmlp" else self.kind.view(x, self._shape)

    @property
    def _shape(self) -> Shape:
        features, classes = SHAPES[self.dataset]
        return Shape(features=features, classes=classes)

    @property
    def variants(self) -> list[tuple[str, float]]:
        """Activation and gain exponent of every variant."""
        choices = [
            value if isinstance(value, tuple) else (value,)
            for value in (self.activation, self.gain_exponent)
        ]
        count = max(map(len, choices))
        return list(zip(*(c * (count if len(c) == 1 else 1) for c in choices), strict=True))

    @property
    def networks(self) -> int:
        """Number of networks of all variants."""
        return len(self.variants) * self.replicas

    def build(self, device: torch.device | str | None = None) -> Network:
        """The networks as they are before the first step.

        Args:
            device: Where they live; ``"meta"`` gives a BNMLP's shapes without numbers.

        Returns:
            As many as :attr:`networks`.

        Raises:
            ValueError: If the function that makes a network of your own fails.
        """
        if self.network != "bnmlp":
            dtype = getattr(torch, self.dtype)
            with stored_streams():
                network = self.kind.networks(self._shape, self.replicas, self.seed, dtype)
            if device != "meta":
                as_module(network).to(device or "cpu")
            return network
        features, classes = SHAPES[self.dataset]
        names = (
            "gain", "norm", "center", "unit_norm", "affine", "bias", "eps", "order", "init",
            "init_gain", "seed",
        )  # fmt: skip
        pairs = [pair for pair in self.variants for _ in range(self.replicas)]
        each = len(self.variants) > 1  # network of its own activation and exponent
        activation, exponent = zip(*pairs, strict=True) if each else self.variants[0]
        with stored_streams():  # a run is a function of its fields, whatever BNMLP_SEED
            return BNMLP(
                features, self.width, self.depth, classes,
                activation=activation, gain_exponent=exponent, replicas=self.networks,
                streams=tuple(range(self.replicas)) * len(self.variants),
                dtype=getattr(torch, self.dtype), device=device,
                **{name: getattr(self, name) for name in names},
            )  # fmt: skip


def _checked(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """All fields of a kind of network, those that are not given at their defaults."""
    try:
        return NETWORKS[kind](**options).model_dump()
    except ValidationError as error:
        raise ValueError("; ".join(complaints(error))) from error


def complaints(error: ValidationError) -> list[str]:
    """What is wrong with a run, one line for each field."""
    lines = []
    for part in error.errors():
        field = ".".join(map(str, part["loc"]))
        what = part["msg"].removeprefix("Value error, ")
        lines.append(f"{field}: {what}, got {part['input']!r:.200}" if field else what)
    return lines


def _argument(name: str) -> str:
    field = TrainingRun.model_fields[name]
    text = field.description or ""
    default = "" if field.default in (None, ()) else f" Default {field.default}."
    return f"        {name}: {text[0].upper()}{text[1:]}.{default}"


# One source for the fields' meaning: here, on the command line, and on the page of the package.
if TrainingRun.__doc__:  # python -OO has none
    TrainingRun.__doc__ += "\n    Args:\n" + "\n".join(map(_argument, TrainingRun.model_fields))
    TrainingRun.__doc__ += "\n"
