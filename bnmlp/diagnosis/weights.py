"""Sizes of weights and of their gradients, and whether a weight's length matters."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

# Norms that float32 computes without losing digits to under- or overflow of squares.
SAFE = (1e-15, 1e18)
LONG = 2**16  # entries; one running sum in float32 loses digits beyond
SHORT = 2**10  # entries; sums of fewer take longer to start than to run
SMALL = 4096  # entries; smaller parameters are measured together


@dataclass(frozen=True)
class Weights:
    r"""What is known of each parameter, in their order.

    Attributes:
        index: Places by ``id`` of the parameters.
        names: Of the parameters.
        sizes: Numbers of entries.
        norms: Euclidean norms :math:`\\lVert W\\rVert`.
        gradients: Euclidean norms of gradients, nan where the loss does not depend on one.
        products: :math:`\\langle W, g\\rangle`, the loss's derivative in the logarithm of a
            weight's length: zero exactly where that length changes nothing.
        faults: Numbers of nan or infinite entries of parameters and of gradients, ``(2, P)``.
    """

    index: dict[int, int]
    names: list[str]
    sizes: np.ndarray
    norms: np.ndarray
    gradients: np.ndarray
    products: np.ndarray
    faults: np.ndarray


@torch.no_grad()
def weights_of(
    parameters: Mapping[str, nn.Parameter],
    gradients: Mapping[str, Tensor | None],
    wanted: Collection[int],
    *,
    careful: bool = False,
) -> Weights:
    """Measure parameters.

    Args:
        parameters: By name.
        gradients: By the names of parameters; None where the loss does not depend on one.
        wanted: The ``id`` of those to measure; numbers of others are nan.
        careful: Compute in float64 and count what is not finite.

    Returns:
        What was measured.
    """
    names = list(parameters)
    values = [parameters[name].detach() for name in names]
    found = [None if g is None else dense(g) for g in map(gradients.get, names)]
    sizes = np.full((3, len(names)), np.nan)
    faults = np.zeros((2, len(names)), dtype=np.int64)
    again = [i for i, name in enumerate(names) if id(parameters[name]) in wanted]
    if not careful:
        small = [i for i in again if values[i].numel() <= SMALL]
        large = [i for i in again if values[i].numel() > SMALL]
        _together(values, found, small, sizes)
        _one_by_one(values, found, large, sizes, careful)
        safe = (sizes[:2] > SAFE[0]) & (sizes[:2] < SAFE[1]) | np.isnan(sizes[:2])
        again = [i for i in large if not safe[:, i].all()]
        again += [i for i in small if not np.isfinite(sizes[0, i]) or np.isinf(sizes[1, i])]
    _one_by_one(values, found, again, sizes, careful=True)
    for i in again:
        faults[:, i] = _fault(values[i]), _fault(found[i])
    return Weights(
        {id(parameters[name]): i for i, name in enumerate(names)},
        names,
        np.array([value.numel() for value in values]),
        sizes[0],
        sizes[1],
        sizes[2],
        faults,
    )


def dense(gradient: Tensor) -> Tensor:
    """A gradient as it is, or as an ordinary tensor where an embedding has ``sparse=True``."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def _together(
    values: Sequence[Tensor], gradients: Sequence[Tensor | None], which: list[int], out: np.ndarray
) -> None:
    """Many small parameters, in few operations."""
    kept = [i for i in which if gradients[i] is not None and values[i].numel()]
    if not kept:
        _one_by_one(values, gradients, which, out, False)
        return
    w = _flat([values[i] for i in kept])
    g = _flat([gradients[i] for i in kept])
    starts = np.cumsum([0, *(values[i].numel() for i in kept)])[:-1]
    for row, product in enumerate((w * w, g * g, w * g)):
        sums = np.add.reduceat(product, starts)
        out[row, kept] = sums if row == 2 else np.sqrt(sums)
    _one_by_one(values, gradients, [i for i in which if gradients[i] is None], out, False)


def _flat(tensors: Sequence[Tensor | None]) -> np.ndarray:
    parts = [t.reshape(-1) for t in tensors if t is not None]
    if len({(t.device, t.dtype) for t in parts}) > 1:
        parts = [t.to("cpu", torch.float64) for t in parts]
    return np.asarray(torch.cat(parts).cpu().to(torch.float64).numpy())


def _one_by_one(
    values: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    which: Sequence[int],
    out: np.ndarray,
    careful: bool,
) -> None:
    measured: list[Tensor] = []
    places: list[tuple[int, int]] = []
    for i in which:
        w, g = _wide(values[i], careful), gradients[i]
        measured.append(euclidean(w))
        places.append((0, i))
        if g is not None:
            g = _wide(g, careful)
            measured += [euclidean(g), torch.dot(w.view(-1), g.view(-1))]
            places += [(1, i), (2, i)]
    if places:
        rows, columns = zip(*places, strict=True)
        out[rows, columns] = numbers(measured).numpy()


def euclidean(x: Tensor) -> Tensor:
    """Euclidean norm of all entries; of many, the norm of norms, whose sums are short."""
    piece = math.gcd(x.numel(), LONG)
    if x.numel() > LONG and piece >= SHORT and x.is_contiguous():
        x = vector_norm(x.view(-1, piece), dim=1)
    elif x.numel() > LONG and x.ndim > 1:
        fitting = (k for k in range(1, x.ndim) if x.shape[k:].numel() <= LONG)
        inner = next(fitting, x.ndim - 1)
        x = vector_norm(x, dim=tuple(range(inner, x.ndim)))
    return vector_norm(x)


def _wide(x: Tensor, careful: bool) -> Tensor:
    x = x.contiguous()
    if careful and x.device.type != "mps":
        return x.double()
    return x.float() if x.dtype.itemsize < 4 else x


def _fault(x: Tensor | None) -> int:
    return 0 if x is None else int((~x.isfinite()).sum())


def numbers(sizes: Sequence[Tensor]) -> Tensor:
    """Numbers from tensors of one entry, on the CPU in float64, in one transfer if they can be.

    Args:
        sizes: Tensors of one entry.

    Returns:
        The numbers. Shape ``(len(sizes),)``.
    """
    if not sizes:
        return torch.empty(0, dtype=torch.float64)
    if len({(size.device, size.dtype) for size in sizes}) > 1:
        return torch.stack([size.cpu().double() for size in sizes])
    return torch.stack(list(sizes)).cpu().double()
