"""Random weight matrices: Haar-distributed orthogonal, and Gaussian with Xavier's variance."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bnmlp.checks import whole_number
from bnmlp.layers.seeds import seed_of
from bnmlp.machine.memory import fresh
from bnmlp.machine.modes import outside_modes
from bnmlp.machine.threads import map_in_threads


def haar_orthogonal(
    *batch: int,
    d: int | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*batch d d"]:
    """Independent orthogonal matrices, uniform on the orthogonal group (Haar measure).

    The Householder vectors of the QR factorisation of a Gaussian matrix are independent
    Gaussians of decreasing length, so they are drawn directly and multiplied out; the sign of
    each column is the one that makes the distribution exactly Haar (Stewart 1980).

    Args:
        *batch: Leading shape. If ``d`` is not named, the last entry is ``d``.
        d: Size of each matrix.
        generator: Source of randomness.
        dtype: Floating point type, PyTorch's default if omitted.
        device: Where the result lives; where ``generator`` draws, or else PyTorch's default, if
            omitted.

    Returns:
        Orthogonal matrices. Shape ``(*batch, d, d)``.

    Raises:
        ValueError: If ``d`` or an entry of ``batch`` is missing or not a positive integer.

    Examples:
        >>> from bnmlp.layers.seeds import random_source
        >>> w = haar_orthogonal(3, d=5, generator=random_source(0), dtype=torch.float64)
        >>> torch.allclose(w @ w.mT, torch.eye(5, dtype=torch.float64).expand(3, 5, 5))
        True
    """
    if d is None:
        if not batch:
            raise ValueError("haar_orthogonal: give the size, as in haar_orthogonal(d=100)")
        batch, d = batch[:-1], batch[-1]
    shape = [whole_number("haar_orthogonal: a size", size) for size in (*batch, d, d)]
    dtype = dtype or torch.get_default_dtype()
    if not dtype.is_floating_point:
        raise ValueError(f"haar_orthogonal: dtype must be floating point, got {dtype}")
    if device is None and generator is not None:
        device = generator.device
    return haar_frames(torch.randn(shape, generator=generator, dtype=dtype, device=device))


def haar_frames(
    normal: Float[Tensor, "*batch rows columns"],
) -> Float[Tensor, "*batch rows columns"]:
    """Turn standard normal matrices into uniformly distributed orthonormal frames.

    A tall matrix gets orthonormal columns, a wide one orthonormal rows, a square one both.
    Column :math:`k` of the input supplies the :math:`k`-th Householder vector, entries below
    the diagonal and the diagonal itself; the rest is not used.

    Args:
        normal: Independent standard normal entries. Shape ``(..., rows, columns)``.

    Returns:
        Semi-orthogonal matrices. Shape ``(..., rows, columns)``.
    """
    return _haar_frames_(normal.clone())


def _haar_frames_(x: Tensor) -> Tensor:
    """:func:`haar_frames` that overwrites its argument."""
    if x.shape[-2] < x.shape[-1]:
        return _haar_frames_(x.mT.contiguous()).mT.contiguous()
    if x.dtype.itemsize < 4:  # PyTorch has no Householder products in half precision
        return _haar_frames_(x.float()).to(x.dtype)
    x.tril_()  # in place: a copy costs forty times as much
    alpha = x.diagonal(dim1=-2, dim2=-1)  # (..., columns), first entry of each vector
    norm = x.square().sum(-2).sqrt()  # (..., columns); ten times faster than vector_norm
    # The last vector of a square matrix is one number, and one in 16 million is drawn as zero.
    alpha = torch.where(norm > 0, alpha, 1.0)
    norm = torch.where(norm > 0, norm, 1.0)
    sign = torch.where(alpha < 0, -1.0, 1.0).to(x.dtype)
    # The reflection sends the vector to -sign * norm * e_1; v = x / (alpha + sign * norm).
    tau = 1 + alpha.abs() / norm
    v = x.div_((alpha + sign * norm).unsqueeze(-2))
    q = torch.linalg.householder_product(v, tau)
    return q.mul_(-sign.unsqueeze(-2))


def xavier_normal(
    normal: Float[Tensor, "*batch rows columns"], gain: float = 1.0
) -> Float[Tensor, "*batch rows columns"]:
    """Scale standard normal matrices to Xavier's variance, 2 / (fan-in + fan-out).

    Args:
        normal: Independent standard normal entries. Shape ``(..., rows, columns)``.
        gain: Factor on the standard deviation.

    Returns:
        Gaussian matrices. Shape ``(..., rows, columns)``.

    Examples:
        >>> xavier_normal(torch.ones(3, 5)).unique().item() == 0.5  # the root of 2 / (3 + 5)
        True
    """
    return normal * (gain * math.sqrt(2 / (normal.shape[-1] + normal.shape[-2])))


# Called with normal numbers, which may be overwritten, and a factor on the weights.
INITIALIZATIONS = {
    "orthogonal": lambda normal, gain: _haar_frames_(normal).mul_(gain),
    "gaussian": xavier_normal,
}


@outside_modes  # threads do not know of inference mode
def initial_weights(
    init: str,
    layers: range,
    replicas: Sequence[int],
    rows: int,
    columns: int,
    *,
    seed: int,
    gain: float,
    dtype: torch.dtype,
) -> Tensor:
    """Weights of some layers of some replicas, each a function of (seed, replica, layer) alone.

    PyTorch's CPU generator uses only the low 32 bits of its seed. The seeds of the layers of
    one replica are therefore consecutive, so that no two of them coincide.

    Args:
        init: ``"orthogonal"`` or ``"gaussian"``.
        layers: Layer numbers, from 0.
        replicas: Replica numbers, from 0.
        rows: Fan-out.
        columns: Fan-in.
        seed: Seed of the whole model.
        gain: Factor on the weights.
        dtype: Type of the result; the normal numbers are always drawn in float32, so float32
            and float64 models of one seed have the same weights up to rounding.

    Returns:
        Weights on the CPU. Shape ``(len(layers), len(replicas), rows, columns)``.
    """
    offsets = [seed_of(seed, r) for r in replicas]
    out = fresh((len(layers), len(replicas), rows, columns), dtype, "cpu")

    def fill(i: int) -> None:
        generator = torch.Generator("cpu")
        shape = len(replicas), rows, columns
        normal = torch.empty(shape, dtype=torch.float32, device="cpu")
        for matrix, offset in zip(normal, offsets, strict=True):
            generator.manual_seed((offset + layers[i]) % 2**32)
            matrix.normal_(generator=generator)
        out[i] = INITIALIZATIONS[init](normal.to(dtype), gain)

    map_in_threads(fill, range(len(layers)))
    return out
