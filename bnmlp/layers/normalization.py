"""Batch normalisation as the paper writes it and as PyTorch does, and layer normalisation.

Representations are ``(..., d, n)``: one row per feature, one column per sample. Normalising a
feature over the batch is then PyTorch's fused layer normalisation along the last axis.
"""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def batch_norm(
    x: Float[Tensor, "*batch d n"], *, center: bool = True, unit: bool = False, eps: float = 1e-5
) -> Float[Tensor, "*batch d n"]:
    r"""Scale every row of ``x`` to the same length, after centring it if asked.

    With ``center=True, unit=False`` this is ``torch.nn.BatchNorm1d`` without its affine part;
    with ``center=False, unit=True, eps=0`` it is the paper's
    :math:`\mathrm{diag}(XX^\top)^{-1/2}X`, :eq:`batch-norm` of the book (equation 4 of
    arXiv 2310.02012).

    Args:
        x: Representations, one row per feature. Shape ``(..., d, n)``.
        center: Subtract the mean over the batch first ("mean reduction").
        unit: Rows of norm 1; otherwise rows of norm :math:`\sqrt n`, that is unit mean square.
        eps: Added to what is scaled to one: to the squared norm of a row if ``unit``, to its
            mean square otherwise. A row of zeros stays zero if ``eps > 0``.

    Returns:
        Normalised representations. Shape ``(..., d, n)``.

    Raises:
        ValueError: If ``x`` has fewer than two axes, is not floating point, ``eps`` is negative,
            or ``center`` is asked of a batch of one sample.

    Examples:
        The paper's layer takes every row to norm one, whatever its scale:

        >>> import torch
        >>> x = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
        >>> batch_norm(x, center=False, unit=True, eps=0).round(decimals=4).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, -1.0]]

        PyTorch's module, which takes samples as rows, has rows of mean square one:

        >>> module = torch.nn.BatchNorm1d(7, affine=False)
        >>> x = torch.arange(210.0).view(7, 30).sin()
        >>> torch.allclose(batch_norm(x), module(x.mT).mT, atol=1e-6)
        True
    """
    _check(x, "batch_norm", eps)
    if center:
        refuse_single_sample("batch_norm", x.shape[-1])
    return _normalize_rows(x, center, unit, eps)


def layer_norm(
    x: Float[Tensor, "*batch d n"], *, center: bool = True, unit: bool = False, eps: float = 1e-5
) -> Float[Tensor, "*batch d n"]:
    r"""Scale every column of ``x``, one sample's features, to the same length.

    The arguments mean what they mean for :func:`batch_norm`, with features and samples swapped.

    Args:
        x: Representations, one row per feature. Shape ``(..., d, n)``.
        center: Subtract each sample's mean over its features first.
        unit: Columns of norm 1; otherwise of norm :math:`\sqrt d`.
        eps: Added to the squared norm of a column if ``unit``, to its mean square otherwise.

    Returns:
        Normalised representations. Shape ``(..., d, n)``.

    Raises:
        ValueError: As :func:`batch_norm`, and if ``center`` is asked of a single feature.

    Examples:
        >>> import torch
        >>> x = torch.tensor([[3.0, 0.0], [4.0, -2.0]])
        >>> torch.equal(layer_norm(x, center=False), batch_norm(x.mT, center=False).mT)
        True
    """
    _check(x, "layer_norm", eps)
    if center and x.shape[-2] < 2:
        raise ValueError(
            "layer_norm: centring a single feature leaves only zeros; "
            "use a width of at least 2 or pass center=False"
        )
    return _normalize_rows(x.mT, center, unit, eps).mT


def unit_rows(x: Tensor) -> Tensor:
    r"""The paper's normalisation :math:`\mathrm{diag}(XX^\top)^{-1/2}X`, see :eq:`batch-norm`.

    Args:
        x: Representations, one row per feature. Shape ``(..., d, n)``.

    Returns:
        Rows of norm one, without mean reduction. Shape ``(..., d, n)``.
    """
    return batch_norm(x, center=False, unit=True, eps=0.0)


def refuse_single_sample(name: str, n: int) -> None:
    """Raise ValueError where one sample is all whose mean would be subtracted from it."""
    if n < 2:
        raise ValueError(
            f"{name}: centring a batch of {n} sample(s) leaves only zeros; "
            "give at least 2 columns (samples) or pass center=False"
        )


def _normalize_rows(x: Tensor, center: bool, unit: bool, eps: float) -> Tensor:
    n = x.shape[-1]
    if center:
        y = F.layer_norm(x, (n,), eps=eps / n if unit else eps)
    else:
        y = F.rms_norm(x, (n,), eps=eps / n if unit else eps)
    return y / math.sqrt(n) if unit else y


def _check(x: Tensor, name: str, eps: float) -> None:
    if x.ndim < 2:
        raise ValueError(
            f"{name}: expected representations of shape (..., d, n), got {tuple(x.shape)}; "
            "put features on the rows and samples on the columns"
        )
    if x.shape[-1] == 0 or x.shape[-2] == 0:
        raise ValueError(f"{name}: the batch is empty, shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected floating point, got {x.dtype}; call x.float() first")
    if not (eps >= 0 and math.isfinite(eps)):
        raise ValueError(f"{name}: eps must be a finite number >= 0, got {eps}")


def rms_norm(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Vectors along the last axis, scaled to mean square one."""
    return F.rms_norm(x, x.shape[-1:])
