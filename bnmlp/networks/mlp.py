"""The network of the book: R independent deep MLPs with batch normalisation, run as one batch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnmlp.checks import check_lengths, check_name, whole_number
from bnmlp.layers.activations import ACTIVATIONS, activation_parts, gain_schedule
from bnmlp.layers.initialization import INITIALIZATIONS, initial_weights
from bnmlp.layers.normalization import batch_norm, layer_norm, refuse_single_sample
from bnmlp.machine.memory import fresh
from bnmlp.machine.modes import outside_modes
from bnmlp.networks.protocol import layered_axis, layered_matrices
from bnmlp.networks.recipe import DTYPES, NORMS, ORDERS, _plain, layer_gains

if TYPE_CHECKING:
    from bnmlp.data.datasets import Dataset


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

    Attributes:
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
        in_features = whole_number("in_features", in_features)
        width = whole_number("width", width)
        depth = whole_number("depth", depth)
        out_features = whole_number("out_features", out_features)
        replicas = whole_number("replicas", replicas)
        seed = whole_number("seed", seed, least=0)
        activation, gain, gain_exponent = (
            tuple(value) if isinstance(value, list | tuple) else value
            for value in (activation, _plain(gain), _plain(gain_exponent))
        )
        streams = tuple(range(replicas)) if streams is None else tuple(streams)
        check_lengths(
            replicas, activation=activation, gain=gain, gain_exponent=gain_exponent, streams=streams
        )
        for _, name in activation_parts(activation):
            check_name("activation", name, ACTIVATIONS)
        check_name("norm", norm, NORMS)
        check_name("order", order, ORDERS)
        check_name("init", init, INITIALIZATIONS)
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be floating point of 16 to 64 bits, got {dtype}")
        if not (init_gain > 0 and math.isfinite(init_gain)):
            raise ValueError(f"init_gain must be a finite number > 0, got {init_gain}")
        if not (eps >= 0 and math.isfinite(eps)):
            raise ValueError(f"eps must be a finite number >= 0, got {eps}")

        self.in_features, self.width, self.depth = in_features, width, depth
        self.out_features, self.replicas, self.seed = out_features, replicas, seed
        self.activation, self.gain, self.gain_exponent = activation, gain, gain_exponent
        self.norm, self.center, self.unit_norm, self.eps = norm, center, unit_norm, eps
        self.affine, self.order, self.init, self.init_gain = affine, order, init, init_gain
        self.momentum = 0.1
        self.streams = streams
        self.gains = layer_gains(depth, gain, gain_exponent, replicas)
        self._exact_gains = tuple(self.gains)  # where replicas differ, ``gains`` is rounded
        later = ("norm", "activation") if order == "norm_act" else ("activation", "norm")
        self.stage_names = ("linear", *later)

        device = torch.get_default_device() if device is None else torch.device(device)

        def weights(layers: range, rows: int, columns: int) -> nn.Parameter:
            if device.type == "meta":  # a description without numbers
                shape = (len(layers), replicas, rows, columns)
                return nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
            return nn.Parameter(self._draw(layers, rows, columns, dtype).to(device))

        # Layer numbers of the seeds: 0 input, 1 output, 2.. hidden, so a deeper network of the
        # same seed starts with the same layers.
        self.input_weight = nn.Parameter(weights(range(1), width, in_features)[0].detach())
        self.hidden_weight = weights(range(2, depth + 1), width, width)
        self.output_weight = nn.Parameter(weights(range(1, 2), out_features, width)[0].detach())

        like = {"dtype": dtype, "device": device}
        per_feature = (depth, replicas, width)
        self.layer_bias = nn.Parameter(torch.zeros(per_feature, **like)) if bias else None
        self.output_bias = (
            nn.Parameter(torch.zeros(replicas, out_features, **like)) if bias else None
        )
        self.norm_weight = nn.Parameter(torch.ones(per_feature, **like)) if affine else None
        self.norm_bias = nn.Parameter(torch.zeros(per_feature, **like)) if affine else None
        has_averages = norm == "batch"
        self.register_buffer(
            "running_mean", torch.zeros(per_feature, **like) if has_averages else None
        )
        self.register_buffer(
            "running_var", torch.ones(per_feature, **like) if has_averages else None
        )

    def _draw(self, layers: range, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        return initial_weights(
            self.init, layers, self.streams, rows, columns,
            seed=self.seed, gain=self.init_gain, dtype=dtype,
        )  # fmt: skip

    def draw_weights(self, layers: range) -> tuple[Tensor, ...]:
        """The initial weights of consecutive layers, drawn anew from the seed.

        Args:
            layers: Indices, from 0 for the layer that reads the input to ``depth`` for the output
                matrix. The two rectangular matrices may be asked for with others.

        Returns:
            One matrix per layer and replica on the CPU. Each of shape ``(R, rows, columns)``.
        """
        dtype, width = self.input_weight.dtype, self.width
        drawn = []
        if layers.start == 0:
            drawn += self._draw(range(1), width, self.in_features, dtype).unbind()
        hidden = range(max(1, layers.start), min(layers.stop, self.depth))
        if len(hidden):
            drawn += self._draw(
                range(hidden.start + 1, hidden.stop + 1), width, width, dtype
            ).unbind()
        if layers.stop == self.depth + 1:
            drawn += self._draw(range(1, 2), self.out_features, width, dtype).unbind()
        return tuple(drawn)

    def extra_repr(self) -> str:
        """Sizes and choices shown by ``print(model)``."""
        return (
            f"{self.in_features} -> {self.depth} x {self.width} -> {self.out_features}, "
            f"replicas={self.replicas}, activation={self.activation}, norm={self.norm}, "
            f"center={self.center}, unit_norm={self.unit_norm}, order={self.order}, "
            f"init={self.init}, gain={self.gain}, gain_exponent={self.gain_exponent}, "
            f"seed={self.seed}"
        )

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
        names = self.stage_names
        n = x.shape[-2] if x.ndim > 1 else 0
        like = {"dtype": self.input_weight.dtype, "device": self.input_weight.device}
        out = {k: fresh((len(kept), self.replicas, self.width, n), **like) for k in names}
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
        h = x.mT  # (in, n) or (R, in, n)
        for i, weight in enumerate(self.layer_weights()):
            z = weight @ h  # (R, width, n)
            if self.layer_bias is not None:
                z = z + self.layer_bias[i].unsqueeze(-1)
            if self.order == "norm_act":
                middle = self._normalize(i, z, update_averages)
                h = self._activate(i, middle)
            else:
                middle = self._activate(i, z)
                h = self._normalize(i, middle, update_averages)
            yield z, middle, h

    def gain_of(self, layer: int, like: Tensor) -> float | Tensor:
        """The gain of a layer: a number, or, where replicas differ, a tensor ``(R, 1, 1)``."""
        gain = self.gains[layer]
        if isinstance(gain, Tensor) and (gain.device, gain.dtype) != (like.device, like.dtype):
            self.gains = [self._rounded_gain(i, like) for i in range(self.depth)]
            gain = self.gains[layer]
        return gain

    @outside_modes
    def _rounded_gain(self, layer: int, like: Tensor) -> float | Tensor:
        gain, exact = self.gains[layer], self._exact_gains[layer]
        if not isinstance(gain, Tensor):
            return gain
        unchanged = isinstance(exact, Tensor) and torch.equal(exact.to(gain), gain)
        return (exact if unchanged else gain).to(like.device, like.dtype)

    def _activate(self, i: int, z: Tensor) -> Tensor:
        gain = self.gain_of(i, z)
        z = z * gain if isinstance(gain, Tensor) or gain != 1 else z
        parts = activation_parts(self.activation)
        if len(parts) == 1:
            return ACTIVATIONS[parts[0][1]](z)
        return torch.cat([ACTIVATIONS[name](z[part]) for part, name in parts])

    def _normalize(self, i: int, z: Tensor, update: bool) -> Tensor:
        options = {"center": self.center, "unit": self.unit_norm, "eps": self.eps}
        if self.norm == "none":
            return z
        if self.norm == "layer":
            z = layer_norm(z, **options)
        elif self.training:
            normalized = batch_norm(z, **options)
            if update:
                self._update_averages(i, z)
            z = normalized
        else:
            scale = torch.rsqrt(self.running_var[i] + self.eps).unsqueeze(-1)
            z = (z - self.running_mean[i].unsqueeze(-1)) * scale
        if self.norm_weight is not None:
            z = z * self.norm_weight[i].unsqueeze(-1) + self.norm_bias[i].unsqueeze(-1)
        return z

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
        n = z.shape[-1]
        if self.center:
            var, mean = torch.var_mean(z, -1, correction=0 if self.unit_norm else 1)
        else:
            mean, var = None, z.square().mean(-1)
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
        expected = f"(n, {self.in_features}) or ({self.replicas}, n, {self.in_features})"
        fits = (
            x.ndim in (2, 3)
            and x.shape[-1] == self.in_features
            and x.shape[-2] > 0
            and (x.ndim == 2 or x.shape[0] == self.replicas)
        )
        if not fits:
            raise ValueError(
                f"BNMLP: expected samples of shape {expected}, got {tuple(x.shape)}; "
                "samples are rows here, flatten images first"
            )


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
        model: R networks, which change in place.
        activation: One of ``bnmlp.ACTIVATIONS``.
        exponent: :math:`e`.

    Returns:
        The model.
    """
    model.activation = activation
    model.gains = gain_schedule(model.depth, exponent=exponent).tolist()
    return model
