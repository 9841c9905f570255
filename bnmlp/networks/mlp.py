"""The network of the book: R independent deep MLPs with batch normalisation, run as one batch."""

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from bnmlp.layers.activations import ACTIVATIONS, activation_parts
from bnmlp.layers.normalization import batch_norm, layer_norm, refuse_single_sample
from bnmlp.machine.memory import fresh
from bnmlp.machine.modes import outside_modes
from bnmlp.networks.protocol import layered_axis, layered_matrices
from bnmlp.networks.recipe import (
    CHANGEABLE,
    DTYPES,
    Recipe,
    draw,
    first_averages,
    first_numbers,
)

if TYPE_CHECKING:
    from bnmlp.data.datasets import Dataset


PARAMETERS = (
    "input_weight", "hidden_weight", "output_weight", "layer_bias", "output_bias", "norm_weight",
    "norm_bias",
)  # fmt: skip
AVERAGES = ("running_mean", "running_var")
Gains = tuple[float | Tensor, ...]  # numbers, or all tensors (R, 1, 1)


def _refuse(name: str) -> NoReturn:
    """What assigning a choice from outside ends in."""
    remedy = "make a new one"
    if name in CHANGEABLE:
        remedy = f"model.with_choices({name}=...) gives networks of the same weights with another"
    raise AttributeError(f"{name} of a BNMLP is fixed when it is made; {remedy}")


def _choice(name: str) -> Any:
    """A field of a network's recipe, to read."""
    return property(attrgetter(f"_recipe.{name}"), lambda model, value: _refuse(name))


class BNMLP(nn.Module):
    r"""A stack of ``replicas`` independent MLPs of equal shape.

    Layer :math:`\ell = 1..L` maps a representation :math:`X` with one row per feature and one
    column per sample to :math:`\sigma(\alpha_\ell\,\mathrm{BN}(W_\ell X))`, see :eq:`layer`; a
    linear map to the logits follows. Weights of replica r depend on ``(seed, r)`` only, not on
    how many replicas, layers or which device there are.

    Like PyTorch's batch normalisation, the model normalises with the statistics of the batch and
    updates running averages when called in training mode, and uses the averages after
    ``.eval()``. Measurements (:meth:`representations`, :func:`bnmlp.gradient_norms`) follow the
    mode but never update the averages.

    Args:
        in_features: Size of a sample.
        width: :math:`d`, features of each layer.
        depth: :math:`L`, number of normalised layers, the one that reads the input included.
        out_features: Number of logits.
        activation: One of ``bnmlp.ACTIVATIONS``, or one for each replica.
        gain: Factor :math:`\alpha` on the activation's input, or one for each replica.
        gain_exponent: :math:`e` in :math:`\alpha_\ell = \alpha\,\ell^{-e}`, or one for each
            replica.
        norm: ``"batch"``, ``"layer"`` or ``"none"``.
        center: Subtract the mean before scaling.
        unit_norm: Scale to norm 1 (the paper's equation 4) instead of unit mean square.
        affine: Learn a scale and a shift after the normalisation.
        bias: Learn a bias in each linear map.
        eps: See :func:`bnmlp.batch_norm`.
        order: ``"norm_act"`` or ``"act_norm"``.
        init: ``"orthogonal"`` (Haar) or ``"gaussian"`` (Xavier normal).
        init_gain: Factor on the initial weights, whatever ``init`` is.
        replicas: :math:`R`, number of networks.
        seed: Seed of the weights.
        streams: Which random weights of the seed each replica has, :math:`0..R-1` if omitted; two
            replicas with one number start alike.
        dtype: Floating point type of the parameters.
        device: Where the parameters live, PyTorch's default device if omitted.

    Choices are fixed when the model is made; :meth:`with_gains` and :meth:`with_choices` give
    models of the same weights with others.

    Attributes:
        recipe: All choices, a :class:`bnmlp.networks.recipe.Recipe`; each is an attribute too.
        gains: Gain of every layer: numbers, or tensors ``(R, 1, 1)`` where replicas differ.
        input_weight: Shape ``(R, width, in_features)``.
        hidden_weight: Shape ``(depth - 1, R, width, width)``.
        output_weight: Shape ``(R, out_features, width)``.
        layer_bias: Shape ``(depth, R, width)``, initially zero; None without ``bias``.
        output_bias: Shape ``(R, out_features)``, initially zero; None without ``bias``.
        norm_weight: Shape ``(depth, R, width)``, initially one; None without ``affine``.
        norm_bias: Shape ``(depth, R, width)``, initially zero; None without ``affine``.
        running_mean: Running mean of what is normalised, zero without ``center``.
            Shape ``(depth, R, width)``; None unless ``norm`` is ``"batch"``.
        running_var: Running variance (unbiased if centred), or squared norm of a row with
            ``unit_norm``. Shape ``(depth, R, width)``; None unless ``norm`` is ``"batch"``.
        momentum: Weight of the newest batch in the running averages, 0.1 as in PyTorch.

    Raises:
        ValueError: If a size is not a positive integer or a name is unknown.
    """

    in_features: int = _choice("in_features")
    width: int = _choice("width")
    depth: int = _choice("depth")
    out_features: int = _choice("out_features")
    activation: str | tuple[str, ...] = _choice("activation")
    gain: float | tuple[float, ...] | None = _choice("gain")
    gain_exponent: float | tuple[float, ...] | None = _choice("gain_exponent")
    norm: str = _choice("norm")
    center: bool = _choice("center")
    unit_norm: bool = _choice("unit_norm")
    affine: bool = _choice("affine")
    bias: bool = _choice("bias")
    eps: float = _choice("eps")
    order: str = _choice("order")
    init: str = _choice("init")
    init_gain: float = _choice("init_gain")
    replicas: int = _choice("replicas")
    seed: int = _choice("seed")
    streams: tuple[int, ...] = _choice("streams")

    input_weight: nn.Parameter
    hidden_weight: nn.Parameter
    output_weight: nn.Parameter
    layer_bias: nn.Parameter  # this and what follows only where the recipe has it, None elsewhere
    output_bias: nn.Parameter
    norm_weight: nn.Parameter
    norm_bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor

    @outside_modes
    def __init__(
        self,
        in_features: int,
        width: int,
        depth: int,
        out_features: int,
        *,
        activation: str | Sequence[str] = "identity",
        gain: float | Sequence[float] = 1.0,
        gain_exponent: float | Sequence[float] = 0.0,
        norm: str = "batch",
        center: bool = True,
        unit_norm: bool = False,
        affine: bool = False,
        bias: bool = False,
        eps: float = 1e-5,
        order: str = "norm_act",
        init: str = "orthogonal",
        init_gain: float = 1.0,
        replicas: int = 1,
        seed: int = 0,
        streams: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        recipe = Recipe(
            in_features, width, depth, out_features, activation=activation, gain=gain,
            gain_exponent=gain_exponent, norm=norm, center=center, unit_norm=unit_norm,
            affine=affine, bias=bias, eps=eps, order=order, init=init, init_gain=init_gain,
            replicas=replicas, seed=seed, streams=streams,
        )  # fmt: skip
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be floating point of 16 to 64 bits, got {dtype}")
        device = torch.get_default_device() if device is None else torch.device(device)
        self._hold(recipe, first_numbers(recipe, dtype, device))

    def _hold(self, recipe: Recipe, numbers: Mapping[str, Tensor]) -> None:
        """Become the network of a recipe with these numbers."""
        self._recipe, self.momentum = recipe, 0.1
        self._gains: dict[tuple[torch.dtype, torch.device], Gains] = {}
        for name in PARAMETERS:
            setattr(self, name, nn.Parameter(numbers[name]) if name in numbers else None)
        for name in AVERAGES:
            self.register_buffer(name, numbers.get(name))

    @property
    def recipe(self) -> Recipe:
        """All choices of the networks."""
        return self._recipe

    @recipe.setter
    def recipe(self, value: object) -> None:
        _refuse("recipe")

    def with_gains(
        self,
        activation: str | Sequence[str],
        gains: Sequence[float | Sequence[float] | Tensor] | None = None,
    ) -> "BNMLP":
        """Networks of the same weights with another activation and other gains.

        Args:
            activation: One of ``bnmlp.ACTIVATIONS``, or one for each replica.
            gains: Gain of every layer, each one number, or one for each replica; as they are if
                omitted.

        Returns:
            As :meth:`with_choices`.

        Raises:
            ValueError: If the name is unknown, a gain is not positive or there are not as many as
                layers.
        """
        choices = {} if gains is None else {"gains": gains}
        return self.with_choices(activation=activation, **choices)

    @outside_modes
    def with_choices(self, **choices: Any) -> "BNMLP":
        """Networks of the same weights that compute something else with them.

        Weights, biases and affine parts are in the same memory: what trains the one trains the
        other, until one of them moves to another type or device. Running averages are copied; they
        begin anew where ``center`` or ``unit_norm`` changes what they are averages of.

        Args:
            **choices: Some of ``activation``, ``gain``, ``gain_exponent``, ``center``,
                ``unit_norm``, ``eps`` and ``order``, or ``gains``, see :meth:`with_gains`.

        Returns:
            The networks, in the same mode.

        Raises:
            ValueError: If a choice would need other weights, or is not one of its kind.
        """
        recipe = self._recipe.changed(**choices)
        numbers = {name: p.detach() for name, p in self.named_parameters()}
        numbers |= {name: b.clone() for name, b in self.named_buffers()}
        if (recipe.center, recipe.unit_norm) != (self.center, self.unit_norm):
            numbers |= first_averages(recipe, self.input_weight.dtype, self.input_weight.device)
        other = self.of_recipe(recipe, numbers)
        for name, p in other.named_parameters():
            p.requires_grad_(getattr(self, name).requires_grad)
        return other

    def of_recipe(self, recipe: Recipe, numbers: Mapping[str, Tensor]) -> "BNMLP":
        """Networks of a recipe with given numbers, in this network's mode and with its momentum.

        Args:
            recipe: Of the networks.
            numbers: Parameters and averages by name, which are not copied.

        Returns:
            The networks.
        """
        other = BNMLP.__new__(BNMLP)
        nn.Module.__init__(other)
        other._hold(recipe, numbers)
        other.momentum = self.momentum
        return other.train(self.training)

    def draw_weights(self, layers: range) -> tuple[Tensor, ...]:
        """The initial weights of consecutive layers, drawn anew from the seed.

        Args:
            layers: Indices, from 0 for the layer that reads the input to ``depth`` for the output
                matrix. The two rectangular matrices may be asked for with others.

        Returns:
            One matrix per layer and replica on the CPU. Each of shape ``(R, rows, columns)``.
        """
        recipe, dtype, width = self._recipe, self.input_weight.dtype, self.width
        drawn: list[Tensor] = []
        if layers.start == 0:
            drawn += draw(recipe, range(1), width, self.in_features, dtype).unbind()
        hidden = range(max(1, layers.start), min(layers.stop, self.depth))
        if len(hidden):
            numbers = range(hidden.start + 1, hidden.stop + 1)
            drawn += draw(recipe, numbers, width, width, dtype).unbind()
        if layers.stop == self.depth + 1:
            drawn += draw(recipe, range(1, 2), self.out_features, width, dtype).unbind()
        return tuple(drawn)

    @property
    def stage_names(self) -> tuple[str, str, str]:
        """Names of the three stages of a layer, in the order they are computed."""
        if self.order == "norm_act":
            return "linear", "norm", "activation"
        return "linear", "activation", "norm"

    def extra_repr(self) -> str:
        """Sizes and choices shown by ``print(model)``."""
        return self._recipe.summary()

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every replica; in training mode the running averages are updated.

        Args:
            x: Samples, shared by the replicas or one batch each. Shape ``(n, in_features)`` or
                ``(R, n, in_features)``.

        Returns:
            Logits. Shape ``(R, n, out_features)``.

        Raises:
            ValueError: If ``x`` has another shape or type, or is a single sample that batch
                normalisation would centre.
        """
        return self.logits(x, update_averages=self.training)

    def logits(self, x: Tensor, *, update_averages: bool = False) -> Tensor:
        """Logits as :meth:`forward`, leaving the running averages alone unless asked.

        Args:
            x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
            update_averages: Update the running averages with this batch.

        Returns:
            Logits. Shape ``(R, n, out_features)``.
        """
        for *_, h in self.stages(x, update_averages=update_averages):
            pass
        return self.head(h)

    def head(self, h: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits from the last representation.

        Args:
            h: Shape ``(R, width, n)``.
            weight: Weights to use instead of ``output_weight``. Shape ``(R, out, width)``.

        Returns:
            Logits. Shape ``(R, n, out_features)``.
        """
        z = h.mT @ (self.output_weight if weight is None else weight).mT  # (R, n, out)
        return z if self.output_bias is None else z + self.output_bias.unsqueeze(1)

    def weight_matrices(self, of: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See :class:`bnmlp.networks.protocol.Network`: ``"layer 1"`` to the last, ``"output"``."""
        return layered_matrices(dict(self.named_parameters()) if of is None else of)

    def normalized(self) -> list[str]:
        """See :class:`bnmlp.networks.protocol.Network`; none where the activation comes first."""
        if self.norm == "none" or self.order == "act_norm":
            return []
        return [f"layer {i}" for i in range(1, self.depth + 1)]

    def replica_axis(self, name: str) -> int:
        """See :class:`bnmlp.networks.protocol.Network`."""
        return layered_axis(name)

    def layer_weights(self) -> tuple[Tensor, ...]:
        """The weights of every normalised layer, input layer first. Each ``(R, width, m)``."""
        return (self.input_weight, *self.hidden_weight.unbind())

    @torch.no_grad()
    def representations(self, x: Tensor, layers: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Representations of ``x`` in every layer, or in some.

        Args:
            x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
            layers: Indices of the layers to keep, from 0 and ascending; all if omitted.

        Returns:
            ``"linear"``, after the weights; ``"norm"``, after the normalisation;
            ``"activation"``, after the activation. Each of shape ``(len(layers), R, width, n)``.

        Raises:
            ValueError: If ``x`` does not fit, or ``layers`` does not ascend within the network.
        """
        kept = list(range(self.depth)) if layers is None else [int(i) for i in layers]
        if kept != sorted(set(kept)) or (kept and not 0 <= kept[0] <= kept[-1] < self.depth):
            raise ValueError(f"layers must ascend within 0..{self.depth - 1}, got {kept}")
        names, weight = self.stage_names, self.input_weight
        shape = (len(kept), self.replicas, self.width, x.shape[-2] if x.ndim > 1 else 0)
        out = {name: fresh(shape, weight.dtype, weight.device) for name in names}
        position = {layer: i for i, layer in enumerate(kept)}
        for layer, stages in enumerate(self.stages(x)):
            if layer in position:
                for name, stage in zip(names, stages, strict=True):
                    out[name][position[layer]] = stage
            if kept and layer == kept[-1]:
                break
        return out

    def stages(
        self, x: Tensor, *, update_averages: bool = False
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The three stages of one layer after the other, in the order they are computed.

        Args:
            x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
            update_averages: Update the running averages with this batch.

        Yields:
            After the weights, after the normalisation or activation, whichever is first, and
            after the other. Each of shape ``(R, width, n)``.
        """
        self.check_input(x)
        self.check_batch_size(x)
        biases = self.layer_bias.unsqueeze(-1).unbind() if self.bias else None
        norm_first, parts = self.order == "norm_act", activation_parts(self.activation)
        h = x.mT  # (in, n) or (R, in, n)
        for i, weight in enumerate(self.layer_weights()):
            z = weight @ h  # (R, width, n)
            if biases is not None:
                z = z + biases[i]
            if norm_first:
                middle = self._normalize(i, z, update_averages)
                h = _activate(parts, self.gains_like(middle)[i], middle)
            else:
                middle = _activate(parts, self.gains_like(z)[i], z)
                h = self._normalize(i, middle, update_averages)
            yield z, middle, h

    @property
    def gains(self) -> Gains:
        """Gain of every layer: numbers, or, where replicas differ, tensors ``(R, 1, 1)``."""
        return self._gains_of(torch.float64, torch.device("cpu"))  # a copy, for anybody may write

    @gains.setter
    def gains(self, value: object) -> None:
        _refuse("gains")

    def gains_like(self, x: Tensor) -> Gains:
        """The gains of :attr:`gains` for a tensor that they are to multiply.

        Args:
            x: The tensor, for its type and device.

        Returns:
            As many as layers; tensors are the same at each call.
        """
        kind = x.dtype, x.device
        if kind not in self._gains:
            self._gains[kind] = self._gains_of(*kind)
        return self._gains[kind]

    @outside_modes
    def _gains_of(self, dtype: torch.dtype, device: torch.device) -> Gains:
        rows = self._recipe.layer_gains
        if len(rows[0]) == 1:
            return tuple(gain for (gain,) in rows)
        exact = torch.tensor(rows, dtype=torch.float64, device="cpu")
        return exact.to(device, dtype)[..., None, None].unbind()

    def _normalize(self, i: int, z: Tensor, update: bool) -> Tensor:
        recipe = self._recipe
        if recipe.norm == "none":
            return z
        if recipe.norm == "layer" or self.training:
            normalized = self.normalize(z)
            if update and recipe.norm == "batch":
                self._update_averages(i, z)
            z = normalized
        else:
            scale = torch.rsqrt(self.running_var[i] + recipe.eps).unsqueeze(-1)
            z = (z - self.running_mean[i].unsqueeze(-1)) * scale
        if recipe.affine:
            z = z * self.norm_weight[i].unsqueeze(-1) + self.norm_bias[i].unsqueeze(-1)
        return z

    def normalize(self, z: Tensor) -> Tensor:
        """Batch or layer normalisation of ``z`` with its own statistics, without affine part.

        Args:
            z: Shape ``(..., width, n)``.

        Returns:
            Of the same shape; where the networks have no normalisation, ``z``.
        """
        recipe = self._recipe
        if recipe.norm == "none":
            return z
        norm = batch_norm if recipe.norm == "batch" else layer_norm
        return norm(z, center=recipe.center, unit=recipe.unit_norm, eps=recipe.eps)

    @torch.no_grad()
    def _update_averages(self, i: int, z: Tensor) -> None:
        mean, var = self.batch_statistics(z.to(self.running_var.dtype))  # autocasting lowers it
        if mean is not None:
            self.running_mean[i].lerp_(mean, self.momentum)
        self.running_var[i].lerp_(var, self.momentum)

    def batch_statistics(self, z: Tensor) -> tuple[Tensor | None, Tensor]:
        """What one batch adds to the running averages.

        Args:
            z: What a layer normalises. Shape ``(R, width, n)``.

        Returns:
            Mean, None without ``center``, and variance or squared norm of each row, as described
            for ``running_mean`` and ``running_var``. Each of shape ``(R, width)``.
        """
        n, mean = z.shape[-1], None
        if self.center:
            var, mean = torch.var_mean(z, -1, correction=0 if self.unit_norm else 1)
        else:
            var = z.square().mean(-1)
        return mean, var * n if self.unit_norm else var

    def check_batch_size(self, x: Tensor) -> None:
        """Raise ValueError if the model would centre a single sample."""
        if self.norm == "batch" and self.center and self.training:
            refuse_single_sample("BNMLP", x.shape[-2])

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` holds samples for this model, naming the remedy."""
        self.check_shape(x)
        weight = self.input_weight
        if x.dtype != weight.dtype:
            raise ValueError(
                f"BNMLP: samples are {x.dtype}, weights {weight.dtype}; call x.to({weight.dtype}) "
                "or build the model with dtype=x.dtype"
            )
        if x.device != weight.device:
            raise ValueError(
                f"BNMLP: samples are on {x.device}, weights on {weight.device}; move one of them"
            )

    def check_shape(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` has the shape of samples for this model."""
        *replicas, n, features = x.shape if x.ndim > 1 else (0, 0)
        fits = features == self.in_features and replicas in ([], [self.replicas])
        if not fits or n == 0:
            expected = f"(n, {self.in_features}) or ({self.replicas}, n, {self.in_features})"
            raise ValueError(
                f"BNMLP: expected samples of shape {expected}, got {tuple(x.shape)}; "
                "samples are rows here, flatten images first"
            )


def _activate(parts: list[tuple[slice, str]], gain: float | Tensor, z: Tensor) -> Tensor:
    z = z * gain if isinstance(gain, Tensor) or gain != 1 else z
    if len(parts) == 1:
        return ACTIVATIONS[parts[0][1]](z)
    return torch.cat([ACTIVATIONS[name](z[part]) for part, name in parts])


def paper_network(
    in_features: int, width: int, depth: int, out_features: int = 10, **options: Any
) -> BNMLP:
    """The network of the paper's theorems: rows of norm one, without mean reduction.

    Args:
        in_features: Size of a sample.
        width: Features of each layer.
        depth: Number of normalised layers.
        out_features: Number of logits.
        **options: Of :class:`BNMLP`, those of the normalisation too where one is to differ.

    Returns:
        The network.
    """
    paper: dict[str, Any] = {"center": False, "unit_norm": True, "eps": 0.0}
    return BNMLP(in_features, width, depth, out_features, **paper | options)


def network_for(data: "Dataset", width: int, depth: int, **options: Any) -> BNMLP:
    """A network with the features and the classes of a dataset.

    Args:
        data: What it is to read.
        width: Features of each layer.
        depth: Number of normalised layers.
        **options: Of :class:`BNMLP`.

    Returns:
        The network.
    """
    classes = int(data.train_y.max()) + 1
    return BNMLP(data.train_x.shape[1], width, depth, classes, **options)


def shaped(model: BNMLP, activation: str, exponent: float = 0.0) -> BNMLP:
    r"""The same weights with another activation and the gains :math:`\ell^{-e}`.

    Args:
        model: R networks.
        activation: One of ``bnmlp.ACTIVATIONS``.
        exponent: :math:`e`.

    Returns:
        Networks in the same memory, see :meth:`bnmlp.BNMLP.with_choices`.
    """
    return model.with_choices(activation=activation, gain=1.0, gain_exponent=exponent)
