r"""What residual networks do at the start, as a function of one number, their total dose.

The *dose* :math:`\delta_\ell` of a block is the length of what it adds over the length of what it
is added to. In wide networks of the schemes of :mod:`bnmlp.networks.residual` with a norm of mean
square one, :math:`S_\ell=\sum_{k\le\ell}\log(1+\delta_k^2)` decides: squared lengths grow by
:math:`e^S`, squared gradients by :math:`e^{\chi S}` in small steps, and
:math:`\mathrm dc/\mathrm dS=\kappa(c)-c` for the cosine of two samples. Where the stream itself is
normalised, :math:`e^S` is taken out of lengths and gradients.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bnmlp.checks import check_name, whole_number
from bnmlp.theory.gaussian import (
    Activation,
    derivative,
    elementwise,
    gaussian_mean,
    gaussian_product,
)

ADDING = ("pre", "scaled", "peri")
NORMALISED = ("post", "keel")
HOMOGENEOUS = ("identity", "relu", "leaky_relu")
PROJECTED = {"layer": 2, "rms": 1}  # directions that the norm of a sample does not pass on


class Forecast(NamedTuple):
    """A residual network before training, by layer; natural logarithms, float64.

    Attributes:
        stream: Mean log root mean square before each block, and behind the last. ``(L+1,)``.
        stream_spread: Its standard deviation between networks. ``(L+1,)``.
        gradient: Mean log ratio of the gradient norm there to that at the end. ``(L+1,)``.
        gradient_spread: Its standard deviation between networks. ``(L+1,)``.
        dose: Length of the change in each block over the length before it. ``(L,)``.
        cosine: Of two samples, before each block and behind the last. ``(L+1,)``.
    """

    stream: Tensor
    stream_spread: Tensor
    gradient: Tensor
    gradient_spread: Tensor
    dose: Tensor
    cosine: Tensor


def squared_doses(scheme: str, depth: int, exponent: float = 0.0) -> Tensor:
    r"""Squared doses :math:`\delta_\ell^2` of wide networks at the start.

    Of blocks of mean square :math:`b^2=L^{-2\alpha}` it is :math:`b^2/(1+(\ell-1)b^2)` for
    ``"pre"`` and ``"peri"``, with :math:`b^2/\ell` in the place of :math:`b^2` for ``"scaled"`` and
    homogeneous activations, :math:`b^2` for ``"post"`` and :math:`b^2/L^2` for ``"keel"``.

    Args:
        scheme: A name of a scheme.
        depth: :math:`L`.
        exponent: :math:`\alpha`.

    Returns:
        Of blocks 1 to L, float64. Shape ``(L,)``.

    Raises:
        ValueError: If the scheme is unknown, or the depth no positive integer.

    Examples:
        The total dose of a thousand blocks, and of a thousand divided by the root of a thousand:

        >>> [round(squared_doses("pre", 1000, a).log1p().exp().prod().item()) for a in (0, 0.5)]
        [1001, 2]
    """
    check_name("scheme", scheme, ADDING + NORMALISED)
    blocks = torch.arange(1, whole_number("depth", depth) + 1, dtype=torch.float64)
    squares = torch.full_like(blocks, depth ** (-2 * exponent))
    if scheme in NORMALISED:
        return squares if scheme == "post" else squares / depth**2
    if scheme == "scaled":
        squares = squares / blocks
    return squares / (1 + squares.cumsum(0) - squares)


def block_shares(scheme: str, depth: int, exponent: float = 0.0) -> Tensor:
    r"""What each block writes of the squared stream that leaves it, at the start.

    :math:`s_\ell=\delta_\ell^2/(1+\delta_\ell^2)`. Behind a norm before the logits, the squared
    gradient of a logit in a matrix of a wide network's block is in proportion to it, with one
    factor for all blocks and schemes, if :math:`\chi=1`. So a step of gradient descent moves logits
    by the sum of shares, and one whose entries all have one length, as with Adam, by the sum of
    their roots.

    Args:
        scheme: As in :func:`squared_doses`.
        depth: :math:`L`.
        exponent: :math:`\alpha`.

    Returns:
        Of blocks 1 to L, float64. Shape ``(L,)``.

    Examples:
        Whatever the depth, blocks divided by the root of their number write half of the squares:

        >>> shares = [block_shares("pre", depth, 0.5) for depth in (10, 1000)]
        >>> [round((1 - (1 - s).prod()).item(), 6) for s in shares]
        [0.5, 0.5]
    """
    return _share(squared_doses(scheme, depth, exponent))


def branch_slope(activation: Activation) -> float:
    r"""Growth of squared gradients in a block of unit mean square, :math:`\E\sigma'^2/\E\sigma^2`.

    Of blocks with one matrix and with two. One for the identity, ReLU and leaky ReLU, more for
    activations that saturate.

    Args:
        activation: :math:`\sigma`, a name in ``bnmlp.ACTIVATIONS`` or an elementwise function.

    Returns:
        :math:`\chi`.
    """
    sigma = elementwise(activation)
    slope = derivative(sigma)
    energy = gaussian_mean(lambda z: sigma(z).square())
    return gaussian_mean(lambda z: slope(z).square()) / energy


def branch_kernel(activation: Activation, cosine: float) -> float:
    r"""Cosine of two samples behind a block, :math:`\kappa(c)=\E\sigma(z)\sigma(z')/\E\sigma^2`.

    Args:
        activation: As in :func:`branch_slope`.
        cosine: :math:`c`, correlation of :math:`z` and :math:`z'`.

    Returns:
        :math:`\kappa(c)`.
    """
    c = min(max(cosine, -1.0), 1.0)
    if activation == "identity":
        return c
    if activation == "relu":
        return (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi
    sigma = elementwise(activation)
    return gaussian_product(sigma, 1.0, c) / gaussian_mean(lambda z: sigma(z).square())


def forecast(
    scheme: str,
    depth: int,
    *,
    activation: Activation = "relu",
    exponent: float = 0.0,
    cosine: float = 0.0,
    width: int | None = None,
    norm: str = "layer",
) -> Forecast:
    r"""Stream, gradient, dose and cosine by layer, and how far networks of one width spread.

    Exact for infinite width. With a width :math:`d`, means and spreads of logarithms are right to
    first order in :math:`1/d`, for Gaussian weights, two matrices in a block and a loss behind a
    norm. The stream is nearly a Brownian motion in :math:`d` dimensions, whose squared length has
    the relative variance :math:`\frac2d(1-e^{-2S})`, and each block turns a gradient :math:`g` into
    :math:`g+F'^\top g`, the second part nearly Gaussian. For ``"post"`` the mean is then that of
    homogeneous activations.

    Args:
        scheme: ``"pre"``, ``"scaled"``, ``"peri"``, ``"post"`` or ``"keel"``.
        depth: :math:`L`.
        activation: As in :func:`branch_slope`.
        exponent: :math:`\alpha`; blocks are divided by :math:`L^\alpha`.
        cosine: Of two samples in the beginning.
        width: :math:`d`; infinite if not given, without spread.
        norm: ``"layer"`` or ``"rms"``.

    Returns:
        By layer, as :class:`Forecast` says.

    Raises:
        ValueError: If a name is unknown, depth or width no positive integer, or the activation not
            homogeneous with ``"scaled"``.

    Examples:
        Gradients of a thousand blocks of width 64 grow 30-fold, give or take a factor of 1.5:

        >>> found = forecast("pre", 1000, width=64)
        >>> [round(v[0].exp().item(), 1) for v in (found.gradient, found.gradient_spread)]
        [29.6, 1.5]
    """
    check_name("norm", norm, PROJECTED)
    if scheme == "scaled" and activation not in HOMOGENEOUS:
        raise ValueError(f"forecast: 'scaled' needs one of {', '.join(HOMOGENEOUS)}")
    doses = squared_doses(scheme, depth, exponent)
    epsilon, adding = branch_slope(activation) * doses, scheme in ADDING
    total = torch.cat([torch.zeros(1), doses.log1p().cumsum(0)])  # S, (L+1,)
    growth = epsilon.log1p() - (0.0 if adding else 1.0) * doses.log1p()
    found = Forecast(
        stream=0.5 * total if adding else torch.zeros_like(total),
        stream_spread=torch.zeros_like(total),
        gradient=0.5 * _from_end(growth),
        gradient_spread=torch.zeros_like(total),
        dose=doses.sqrt() if adding else (2 - 2 / (1 + doses).sqrt()).sqrt(),
        cosine=_cosines(doses, activation, cosine),
    )
    if width is None:
        return found
    whole_number("width", width)
    moments = _branch_moments(activation)
    if adding:
        return _adding_of_width(found, doses, epsilon, moments, PROJECTED[norm], scheme, width)
    return _normalised_of_width(found, doses, epsilon, moments, scheme == "post", width)


def _cosines(doses: Tensor, activation: Activation, cosine: float) -> Tensor:
    found = [cosine]
    for squared in doses.tolist():
        found.append((found[-1] + squared * branch_kernel(activation, found[-1])) / (1 + squared))
    return torch.tensor(found, dtype=torch.float64)


def _branch_moments(activation: Activation) -> tuple[float, float, float]:
    """Relative variances, times d, of a block's squared output and gradient; their covariance."""
    sigma = elementwise(activation)
    slope = derivative(sigma)

    def mean(i: int, j: int) -> float:
        return gaussian_mean(lambda z: sigma(z) ** i * slope(z) ** j)

    forward = mean(4, 0) / mean(2, 0) ** 2 + 1
    backward = 3 * mean(0, 4) / mean(0, 2) ** 2 + 1
    return forward, backward, mean(2, 2) / (mean(2, 0) * mean(0, 2)) - 1


def _share(squares: Tensor) -> Tensor:
    return squares / (1 + squares)


def _noise(squares: Tensor, branch: float) -> Tensor:
    """Variance, times d, of the log squared length of a sum with an independent second part."""
    return (4 * squares + branch * squares.square()) / (1 + squares).square()


def _from_end(values: Tensor) -> Tensor:
    """Sums of all values from each on, and zero. Shape ``(L,)`` to ``(L+1,)``."""
    return torch.cat([values.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=values.dtype)])


def _adding_of_width(
    found: Forecast,
    doses: Tensor,
    epsilon: Tensor,
    moments: tuple[float, float, float],
    lost: int,
    scheme: str,
    width: int,
) -> Forecast:
    """Deviations of the squared stream, which later blocks dilute, and of gradients in each block.

    The relative one of the squared stream has the variance ``r / d``. Each block divides it by one
    plus the squared dose and adds a new one, of variance ``fresh / d``.

    Returns:
        The forecast with first order and spread.
    """
    forward, backward, both = moments
    peri = scheme == "peri"
    kept = (2 * found.stream).exp()  # e^S, (L+1,)
    fresh = _noise(doses, 0.0 if peri else forward)
    r = torch.cat([torch.zeros(1), (fresh * kept[1:].square()).cumsum(0)]) / kept.square()
    change = r[:-1] - lost  # of epsilon, relative, times d
    centred = lost - 1  # a norm that centres divides by less than the mean square
    noise = _noise(epsilon, backward)
    if peri:  # a branch is divided by its own length, whose direction no gradient passes
        change = change + forward - 2 - 2 * both + centred
        noise = noise + (forward - 2 * both) * _share(epsilon).square()
    else:
        change = change + centred * (1 - 1 / kept[:-1])
    shift = _share(epsilon) * change - (noise + _share(epsilon).square() * r[:-1]) / 2
    felt = _from_end(_share(epsilon) / kept[:-1]) * kept  # later gradients, by a deviation
    own = noise + felt[1:].square() * fresh
    if not peri:
        own = own - 2 * both * felt[1:] * _share(epsilon) * _share(doses)
    return found._replace(
        stream=found.stream - r / (4 * width),
        stream_spread=0.5 * (r / width).sqrt(),
        gradient=found.gradient + 0.5 * _from_end(shift) / width,
        gradient_spread=0.5 * ((_from_end(own) + felt.square() * r) / width).sqrt(),
    )


def _normalised_of_width(
    found: Forecast,
    doses: Tensor,
    epsilon: Tensor,
    moments: tuple[float, float, float],
    post: bool,
    width: int,
) -> Forecast:
    """What a norm divides by, and what a gradient gains, fluctuate alike.

    Returns:
        The forecast with first order and spread.
    """
    forward, backward, both = moments
    noise = _noise(epsilon, backward) + _noise(doses, forward)
    noise = noise - 2 * both * _share(epsilon) * _share(doses)
    shift = (_noise(doses, forward) - _noise(epsilon, backward)) / 2
    if post:  # what leaves a norm has no part along the sum, so a gradient avoids stream and branch
        shift = shift - (2 * doses + 3 * doses.square()) / (1 + doses).square()
    return found._replace(
        gradient=found.gradient + 0.5 * _from_end(shift) / width,
        gradient_spread=0.5 * (_from_end(noise) / width).sqrt(),
    )
