r"""What keeps streams and samples of residual networks apart at the start, in wide networks.

Whatever is common to all grows, whatever differs may not: streams that are mixed, samples to which
blocks add a common mean, and norms that work on single numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bnmlp.checks import whole_number
from bnmlp.theory.gaussian import Activation, elementwise, gaussian_mean, gaussian_product
from bnmlp.theory.meanfield import chi, length_map, residual_recursion


def mixing_exponents(streams: int, mixing: float) -> Tensor:
    r"""Growth per block of the singular values of a long product of matrices :math:`I+tG`.

    Entries of :math:`G` are independent, normal and of variance :math:`1/S`. The exponents are
    :math:`\frac{t^2}{2S}(S-2i)`, to second order in :math:`t`: the largest is positive from three
    streams on, and neighbours lie :math:`t^2/S` apart.

    Args:
        streams: :math:`S`.
        mixing: :math:`t`.

    Returns:
        In nats, largest first, float64. Shape ``(S,)``.

    Examples:
        >>> [round(e, 12) for e in mixing_exponents(4, 0.2).tolist()]
        [0.01, 0.0, -0.01, -0.02]
    """
    i = torch.arange(1, whole_number("streams", streams) + 1, dtype=torch.float64)
    return mixing**2 * (streams - 2 * i) / (2 * streams)


def stream_shares(mix: Tensor, write: Tensor) -> Tensor:
    r"""Share of squares that is a difference of streams from their mean.

    Blocks add vectors of mean square one that have nothing to do with each other or with the
    streams, so products of streams, from all ones on, follow :math:`K\leftarrow AKA^\top+bb^\top`.

    Args:
        mix: :math:`A` of each block. Shape ``(L, ..., S, S)``.
        write: :math:`b` of each block. Shape ``(L, ..., S)``.

    Returns:
        Before each block and behind the last, float64. Shape ``(L+1, ...)``.
    """
    k = torch.ones_like(mix[0], dtype=torch.float64)
    shares = [_apart(k)]
    for a, b in zip(mix.double(), write.double(), strict=True):
        k = a @ k @ a.mT + b.unsqueeze(-1) * b.unsqueeze(-2)
        shares.append(_apart(k))
    return torch.stack(shares)


def _apart(k: Tensor) -> Tensor:
    total = k.diagonal(dim1=-2, dim2=-1).sum(-1)
    return 1 - k.mean((-2, -1)) * k.shape[-1] / total


class Late(NamedTuple):
    """A network whose blocks end with an activation, before each block and behind the last.

    Attributes:
        square: Mean square of the stream. ``(L+1,)``.
        cosine: Of two samples. ``(L+1,)``.
    """

    square: Tensor
    cosine: Tensor


def late_forecast(
    depth: int,
    cosine: float,
    *,
    activation: Activation = F.silu,
    matrices: int = 4,
    centred: bool = False,
) -> Late:
    r"""Stream and cosine of the schemes ``"late"`` and ``"centred"``.

    Every block adds :math:`\sigma(z)` with standard normal :math:`z`, whose mean
    :math:`\mu=\E\sigma(z)` is common to all samples and blocks. With :math:`m` the mean of the
    stream's entries, its mean square grows by :math:`2m\mu+\E\sigma^2` and the product of two
    samples by :math:`2m\mu+\E\sigma\sigma'`, the cosine of whose arguments is that of the stream
    after all but the last activation of the block.

    Args:
        depth: Number of blocks.
        cosine: Of two samples at first, of mean square one and mean zero.
        activation: :math:`\sigma`, a name in ``bnmlp.ACTIVATIONS`` or a function.
        matrices: In a block, each followed by norm and activation.
        centred: Whether the mean is taken from what blocks add.

    Returns:
        Float64.

    Raises:
        ValueError: If depth or matrices are no positive integers.
    """
    whole_number("depth", depth), whole_number("matrices", matrices)
    sigma = elementwise(activation)
    mean, energy = gaussian_mean(sigma), gaussian_mean(lambda z: sigma(z).square())
    entry, taken = (0.0, mean**2) if centred else (mean, 0.0)
    squares, products = [1.0], [cosine]
    for block in range(depth):
        common = 2 * block * entry**2 - taken
        c = products[-1] / squares[-1]
        for _ in range(matrices):
            c = gaussian_product(sigma, 1.0, min(c, 1.0)) / energy
        squares.append(squares[-1] + common + energy)
        products.append(products[-1] + common + energy * c)
    p, q = (torch.tensor(v, dtype=torch.float64) for v in (squares, products))
    return Late(p, q / p)


def elementwise_shares(function: Callable[[Tensor], Tensor], depth: int) -> Tensor:
    r"""What squared gradients of a logit in the matrices of blocks :math:`x+F(\varphi(x))` are.

    The counterpart of :func:`bnmlp.theory.residual.block_shares` for a function of single numbers
    in place of every norm, the last included, on the same scale; blocks are homogeneous.

    Args:
        function: :math:`\varphi`.
        depth: :math:`L`.

    Returns:
        Of blocks 1 to L, float64. Shape ``(L,)``.
    """
    p, growth = residual_recursion(function, [1.0] * whole_number("depth", depth))
    inside = torch.tensor([length_map(function, q, 1.0) for q in p[:-1].tolist()])
    return chi(function, p[-1].item(), 1.0) * (2 * growth[1:]).exp() * inside.double()
