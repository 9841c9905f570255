r"""Residual networks whose blocks are small perceptrons, in the schemes of the last years.

A scheme is one line that says how the stream :math:`x` takes up what block :math:`\ell` computes.
The block is :math:`F_\ell(h)=L^{-\alpha}\,W\sigma(h)` with one matrix or
:math:`L^{-\alpha}\,V\sigma(Wh)` with two, of unit mean square in wide networks if :math:`h` has
that and :math:`\alpha=0`; :math:`\mathrm n` is the norm. In ``"late"`` and ``"centred"`` it is
:math:`\sigma(\mathrm n(W_m\dots\sigma(\mathrm n(W_1h))))`, with any number of matrices. All start
from samples of one length, and the norm is applied once more before the logits.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnmlp.checks import check_name
from bnmlp.layers.activations import ACTIVATIONS
from bnmlp.layers.initialization import INITIALIZATIONS, initial_weights
from bnmlp.layers.seeds import random_source
from bnmlp.networks.protocol import layered_axis, layered_matrices

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {**ACTIVATIONS, "silu": F.silu}
NORMS = ("layer", "rms", "none", "dyt", "derf")
SCALE_FREE = ("layer", "rms")  # norms that the length of a sample does not pass
HOMOGENEOUS = ("identity", "relu", "leaky_relu")
LATE = ("late", "centred")  # schemes whose blocks end with the activation
FLOOR = 1e-4  # of entries before the first Sinkhorn iteration, whose logarithms are kept
SINKHORN = 20  # iterations, as in arXiv 2512.24880


class ResidualMLP(nn.Module):
    r"""R independent residual networks for ``torch.optim``, without biases.

    Matrices are orthogonal or Gaussian, the one behind the activation scaled so that
    :math:`\E\sigma(z)^2` is made up for. ``"dyt"`` is :math:`\tanh(ax)` and ``"derf"``
    :math:`\mathrm{erf}(ax+s)`, with a trainable :math:`a`, at first one half, and :math:`s`, at
    first zero, of each norm :cite:p:`zhu2025dyt,chen2025derf`.

    Args:
        depth: L, number of blocks.
        scheme: A name in ``SCHEMES``.
        matrices: In a block, one or two; with ``"late"`` and ``"centred"`` any number.
        norm: ``"layer"``, ``"rms"``, ``"none"``, ``"dyt"`` or ``"derf"``; ``"peri"``, ``"post"``
            ``"keel"``, ``"late"`` and ``"centred"`` need one of the first two.
        activation: :math:`\sigma`, a name in ``bnmlp.ACTIVATIONS``, or ``"silu"``, the swish.
        exponent: :math:`\alpha`; blocks are divided by :math:`L^\alpha`.
        in_features: Length of a sample.
        width: d, features of the stream and inside a block.
        out_features: Number of logits.
        streams: S, of ``"hyper"`` and ``"mixed"``.
        mixing: t, how far these mix their streams at first, see :func:`mixing_matrices`.
        init: ``"orthogonal"`` or ``"gaussian"``.
        replicas: R.
        eps: Added to mean squares by ``"layer"`` and ``"rms"``.
        seed: The weights of a network depend on this and its number alone.
        dtype: Type of the parameters.

    Raises:
        ValueError: If a name is unknown, a size is below one, there are more matrices than the
            scheme has, mixing is negative, or the scheme needs another norm.
    """

    def __init__(
        self,
        depth: int,
        scheme: str = "pre",
        *,
        matrices: int = 2,
        norm: str = "layer",
        activation: str = "relu",
        exponent: float = 0.0,
        in_features: int = 784,
        width: int = 64,
        out_features: int = 10,
        streams: int = 4,
        mixing: float = 0.0,
        init: str = "gaussian",
        replicas: int = 1,
        eps: float = 1e-5,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _check(scheme, norm, activation, init)
        if min(depth, matrices, in_features, width, out_features, streams, replicas) < 1:
            raise ValueError("ResidualMLP: all sizes must be at least 1")
        if matrices > 2 and scheme not in LATE:
            raise ValueError(f"ResidualMLP: a block has 1 or 2 matrices, got {matrices}")
        if not (0 <= mixing < math.inf and math.isfinite(exponent)):
            raise ValueError("ResidualMLP: mixing must be finite and >= 0, exponent finite")
        self.depth, self.scheme, self.matrices, self.norm = depth, scheme, matrices, norm
        self.activation, self.factor, self.eps = activation, depth**-exponent, eps
        self.replicas = replicas
        shapes = [(width, in_features), *[(width, width)] * (depth * matrices),
                  (out_features, width)]  # fmt: skip
        first, hidden, last = _drawn(init, shapes, seed, replicas, dtype)
        if scheme not in LATE:  # there a norm follows every matrix
            hidden[matrices - 1 :: matrices] *= unit_gain(activation)
        self.input_weight = nn.Parameter(first)  # (R, d, in)
        self.hidden_weight = nn.Parameter(hidden)  # (L * matrices, R, d, d)
        self.output_weight = nn.Parameter(last)  # (R, out, d)
        if norm in ("dyt", "derf"):
            self.norm_slope = nn.Parameter(torch.full((depth + 1, replicas), 0.5, dtype=dtype))
        if norm == "derf":
            self.norm_shift = nn.Parameter(torch.zeros(depth + 1, replicas, dtype=dtype))
        if self.several:
            drawn = (mixing_matrices(scheme, depth, streams, mixing, seed, r)
                     for r in range(replicas))  # fmt: skip
            turns = F.one_hot(torch.arange(depth) % streams, streams).to(dtype)
            self.stream_mix = nn.Parameter(torch.stack([*drawn], 1).to(dtype))  # (L, R, S, S)
            self.stream_read = nn.Parameter(turns.unsqueeze(1).repeat(1, replicas, 1))  # (L, R, S)
            self.stream_write = nn.Parameter(torch.ones_like(self.stream_read))

    @property
    def several(self) -> bool:
        """Whether there are several streams."""
        return self.scheme in ("hyper", "mixed")

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(R, n, out)`` of samples ``(n, in)`` or ``(R, n, in)``."""
        for stream in self.streams(x):
            pass  # only the last is needed
        return self.normalize(self.depth, stream) @ self.output_weight.mT

    def weight_matrices(self, of: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See :class:`bnmlp.networks.protocol.Network`: ``"layer 1"`` to the last, ``"output"``."""
        return layered_matrices(dict(self.named_parameters()) if of is None else of)

    def normalized(self) -> list[str]:
        """See :class:`bnmlp.networks.protocol.Network`.

        Returns:
            The first matrix always; of a block whose output is normalised the last matrix, and with
            a homogeneous activation all; all where a norm follows each.
        """
        names = [f"layer {i + 2}" for i in range(self.depth * self.matrices)]
        followed = self.scheme == "peri" or (self.scheme == "plain" and self.norm in SCALE_FREE)
        if self.scheme in LATE:
            return ["layer 1", *names]
        if not followed:
            names = []
        elif self.activation not in HOMOGENEOUS:
            names = names[self.matrices - 1 :: self.matrices]
        return ["layer 1", *names]

    def replica_axis(self, name: str) -> int:
        """See :class:`bnmlp.networks.protocol.Network`."""
        return layered_axis(name)

    def streams(self, x: Tensor) -> Iterator[Tensor]:
        """The stream before each block, and behind the last.

        Yields:
            Each of shape ``(R, n, d)``. Of several streams it is the mean, which the logits are
            made of.

        Raises:
            ValueError: If samples do not fit, at the first one.
        """
        for carried in self._carried(x):
            yield carried.mean(1) if self.several else carried

    def parallel_streams(self, x: Tensor) -> Iterator[Tensor]:
        """All streams before each block, and behind the last; one in schemes without several.

        Yields:
            Each of shape ``(R, S, n, d)``.

        Raises:
            ValueError: If samples do not fit, at the first one.
        """
        for carried in self._carried(x):
            yield carried if self.several else carried.unsqueeze(1)

    def _carried(self, x: Tensor) -> Iterator[Tensor]:
        """What blocks hand on. Shape ``(R, n, d)``, or ``(R, S, n, d)`` if there are several."""
        features = self.input_weight.shape[-1]
        fits = x.ndim == 2 or (x.ndim == 3 and len(x) in (1, self.replicas))
        if not fits or x.shape[-1] != features:
            raise ValueError(
                f"expected samples of shape (n, {features}) or ({self.replicas}, n, {features}), "
                f"got {tuple(x.shape)}; flatten images first"
            )
        entrance = "layer" if self.norm == "layer" else "rms"
        x = sample_norm(entrance, x @ self.input_weight.mT, self.eps)
        if self.several:
            x = x.unsqueeze(1).expand(-1, self.stream_read.shape[-1], -1, -1)  # (R, S, n, d)
        yield x
        for i in range(self.depth):
            x = SCHEMES[self.scheme](self, i, x)
            yield x

    def branch(self, i: int, h: Tensor) -> Tensor:
        r""":math:`F_\ell` of block ``i``, from zero. Shapes ``(R, n, d)``."""
        sigma = FUNCTIONS[self.activation]
        *inner, last = self.hidden_weight[i * self.matrices : (i + 1) * self.matrices].unbind()
        if self.scheme in LATE:
            for weight in (*inner, last):
                h = sigma(sample_norm(self.norm, h @ weight.mT, self.eps))
            return self.factor * h
        for weight in inner:
            h = h @ weight.mT
        return self.factor * (sigma(h) @ last.mT)

    def normalize(self, i: int, x: Tensor) -> Tensor:
        """The norm before block ``i``, or the last one, of samples along the last axis but one."""
        if self.norm in SCALE_FREE:
            return sample_norm(self.norm, x, self.eps)
        if self.norm == "none":
            return x
        slope = self.norm_slope[i].view(-1, 1, 1)
        if self.norm == "dyt":
            return torch.tanh(slope * x)
        return torch.erf(slope * x + self.norm_shift[i].view(-1, 1, 1))


def sample_norm(norm: str, x: Tensor, eps: float) -> Tensor:
    """Samples along the last axis to mean square one, for ``"layer"`` after centring."""
    normalise = F.layer_norm if norm == "layer" else F.rms_norm
    return normalise(x, x.shape[-1:], eps=eps)


def pre_norm(net: ResidualMLP, i: int, x: Tensor) -> Tensor:
    r""":math:`x + F_\ell(\mathrm n(x))`; with exponent 1 as :cite:t:`dey2025completep`."""
    return x + net.branch(i, net.normalize(i, x))


def layer_norm_scaling(net: ResidualMLP, i: int, x: Tensor) -> Tensor:
    r""":math:`x + F_\ell(\mathrm n(x)/\sqrt\ell)`, from block 1 on :cite:p:`sun2025curse`."""
    return x + net.branch(i, net.normalize(i, x) / math.sqrt(i + 1))


def peri_norm(net: ResidualMLP, i: int, x: Tensor) -> Tensor:
    r""":math:`x + L^{-\alpha}\,\mathrm n(F_\ell(\mathrm n(x)))` :cite:p:`kim2025peri`."""
    increment = net.branch(i, net.normalize(i, x)) / net.factor
    return x + net.factor * net.normalize(i, increment)


def post_norm(net: ResidualMLP, i: int, x: Tensor) -> Tensor:
    r""":math:`\mathrm n(x + F_\ell(x))`."""
    return net.normalize(i, x + net.branch(i, x))


def keel(net: ResidualMLP, i: int, x: Tensor) -> Tensor:
    r""":math:`\mathrm n(Lx + F_\ell(\mathrm n(x)))` :cite:p:`chen2026keel`."""
    return net.normalize(i, net.depth * x + net.branch(i, net.normalize(i, x)))


def plain(net: ResidualMLP, i: int, x: Tensor) -> Tensor:
    r""":math:`F_\ell(\mathrm n(x))`, without shortcut: the control."""
    return net.branch(i, net.normalize(i, x))


def late(net: ResidualMLP, i: int, x: Tensor) -> Tensor:
    r""":math:`x + F_\ell(x)`, whose last step is an activation :cite:p:`wang2025thousand`."""
    return x + net.branch(i, x)


def centred(net: ResidualMLP, i: int, x: Tensor) -> Tensor:
    """The same, from whose blocks the mean over features is taken."""
    increment = net.branch(i, x)
    return x + increment - increment.mean(-1, keepdim=True)


def hyper_connections(net: ResidualMLP, i: int, x: Tensor) -> Tensor:
    r""":math:`A_\ell X + b_\ell F_\ell(\mathrm n(m_\ell^\top X))` :cite:p:`zhu2024hyper`.

    :math:`X` holds S streams of each sample. At first :math:`b_\ell` is one for all of them and
    :math:`m_\ell` reads them in turn; with :math:`A_\ell=I` all streams are that of ``"pre"``.
    ``"mixed"`` makes :math:`A_\ell` doubly stochastic :cite:p:`xie2025mhc`.

    Returns:
        All streams behind block ``i``. Shape ``(R, S, n, d)``.
    """
    a = net.stream_mix[i] if net.scheme == "hyper" else sinkhorn(net.stream_mix[i])
    read = torch.einsum("rs,rsnd->rnd", net.stream_read[i], x)
    increment = net.branch(i, net.normalize(i, read))
    carried = torch.einsum("rst,rtnd->rsnd", a, x)
    return carried + net.stream_write[i, :, :, None, None] * increment.unsqueeze(1)


SCHEMES: dict[str, Callable[[ResidualMLP, int, Tensor], Tensor]] = {
    "pre": pre_norm,
    "scaled": layer_norm_scaling,
    "peri": peri_norm,
    "post": post_norm,
    "keel": keel,
    "plain": plain,
    "late": late,
    "centred": centred,
    "hyper": hyper_connections,
    "mixed": hyper_connections,
}


def _check(scheme: str, norm: str, activation: str, init: str) -> None:
    check_name("scheme", scheme, SCHEMES)
    check_name("norm", norm, NORMS)
    check_name("activation", activation, FUNCTIONS)
    check_name("init", init, INITIALIZATIONS)
    if scheme in ("peri", "post", "keel", *LATE) and norm not in SCALE_FREE:
        raise ValueError(
            f"ResidualMLP: {scheme!r} normalises the stream or inside its blocks, which "
            f"{norm!r} cannot; use norm='layer' or 'rms'"
        )


def _drawn(
    init: str, shapes: list[tuple[int, int]], seed: int, replicas: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of the first shape, of all in between, stacked, and of the last."""
    ends = range(1), range(1, len(shapes) - 1), range(len(shapes) - 1, len(shapes))
    first, hidden, last = (
        initial_weights(
            init, layers, range(replicas), *shapes[layers[0]], seed=seed, gain=1.0, dtype=dtype
        )
        for layers in ends
    )
    return first[0], hidden, last[0]


def sinkhorn(logarithms: Tensor, iterations: int = SINKHORN) -> Tensor:
    """Scale rows and columns of positive matrices in turn until both sum to one.

    Args:
        logarithms: Of the entries. Shape ``(..., S, S)``.
        iterations: Each scales columns, then rows, so that rows sum to one exactly; columns miss
            it by up to half a per cent after twenty, if the matrix is nearly diagonal.

    Returns:
        Shape ``(..., S, S)``.

    Examples:
        >>> a = sinkhorn(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
        >>> torch.allclose(a.sum(0), torch.ones(2)) and torch.allclose(a.sum(1), torch.ones(2))
        True
    """
    for _ in range(iterations):
        logarithms = logarithms.log_softmax(-2).log_softmax(-1)
    return logarithms.exp()


def mixing_matrices(
    scheme: str, depth: int, streams: int, mixing: float, seed: int, replica: int
) -> Tensor:
    r"""The first matrices that mix streams, :math:`I+tG`, with random :math:`G`.

    For ``"hyper"`` its entries are normal of variance :math:`1/S`, so that squares grow by
    :math:`1+t^2` on average. For ``"mixed"`` they are uniform of mean :math:`1/S`; what Sinkhorn's
    iteration makes of the sum divides differences of streams by about :math:`1+t`.

    Returns:
        Of ``"mixed"`` their logarithms. Float64. Shape ``(depth, S, S)``.
    """
    generator = random_source(seed, replica, depth, streams)
    shape = (depth, streams, streams)
    unit = torch.eye(streams, dtype=torch.float64)
    if scheme == "hyper":
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        return unit + mixing * normal / math.sqrt(streams)
    uniform = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) / streams
    return (unit + mixing * uniform).clamp_min(FLOOR).log()


def unit_gain(activation: str) -> float:
    r"""What brings an activation of a standard normal :math:`z` to mean square one.

    Args:
        activation: A name in ``FUNCTIONS``.

    Returns:
        :math:`(\E\sigma(z)^2)^{-1/2}`.

    Examples:
        >>> round(unit_gain("relu") ** 2, 9)  # He's two
        2.0
    """
    z = torch.arange(-12, 12.005, 0.01, dtype=torch.float64)
    density = 0.01 * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return float(density @ FUNCTIONS[activation](z).square()) ** -0.5
