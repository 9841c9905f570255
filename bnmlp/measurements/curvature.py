r"""The shape of the loss at one point: Hessian, covariance of gradients, how they lie.

Operators come from curvlinops, eigenvalues from SciPy. With batch normalisation the loss of a
sample depends on its batch, so gradients of single samples do not exist: gradients of batches take
their place.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnmlp.layers.seeds import seed_of
from bnmlp.machine.modes import outside_modes
from bnmlp.machine.precision import float64
from bnmlp.measurements.noise import (
    Batches,
    gradient,
    kept_randomness,
    noise_spectrum,
    sound_batches,
    ties_samples,
)
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import Logits, refuse_several

if TYPE_CHECKING:
    from curvlinops import GGNLinearOperator, HessianLinearOperator

QUANTITIES = ("hessian", "covariance", "gradient", "overlap", "weights", "loss")


@functools.cache
def _curvlinops() -> ModuleType:
    """The library of operators, which takes a second to import."""
    with warnings.catch_warnings():
        # Of torch.jit, which it uses, and PyTorch itself for forward-mode derivatives.
        warnings.simplefilter("ignore", FutureWarning)
        import curvlinops
        import torch._decomp.decompositions_for_jvp  # noqa: F401
    return curvlinops


class _LogitsForHessian(Logits):
    """The same numbers by operations whose second derivatives are right."""

    def forward(self, x: Tensor) -> Tensor:
        with _AffineApart():
            return super().forward(x)


class _AffineApart(TorchFunctionMode):
    """Scales and shifts after a normalisation as operations of their own.

    Where they are fused with it, PyTorch's forward-mode derivative of the gradient lacks a term of
    the scale, and products of the Hessian are off by several per cent. Groups of channels are
    normalised as layers are, since for them PyTorch has no such derivative at all.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function not in (F.batch_norm, F.instance_norm, F.layer_norm, F.group_norm):
            return function(*args, **kwargs)
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        weight, bias = given.pop("weight", None), given.pop("bias", None)
        y = _normalized_groups(**given) if function is F.group_norm else function(**given)
        per_channel = (-1,) + (1,) * (y.ndim - 2)
        for parameter, apply in ((weight, torch.mul), (bias, torch.add)):
            if parameter is not None:
                features = function is F.layer_norm
                y = apply(y, parameter if features else parameter.view(per_channel))
        return y


def _normalized_groups(input: Tensor, num_groups: int, eps: float = 1e-5) -> Tensor:
    """``F.group_norm`` without scale and shift."""
    groups = input.reshape(len(input), num_groups, -1)
    return F.layer_norm(groups, groups.shape[-1:], eps=eps).view_as(input)


def hessian(model: nn.Module, batches: Batches) -> "HessianLinearOperator":
    """Hessian of the mean cross entropy in all parameters, as a linear operator.

    Args:
        model: Maps samples to logits, or a :class:`bnmlp.BNMLP` of one replica. Batch normalisation
            takes the statistics of each batch in training mode; running averages do not move.
        batches: Samples and labels, each of the same number; the same at every call.

    Returns:
        Symmetric operator on the flattened parameters, frozen ones included, in the order of
        ``model.parameters()``.

    Raises:
        ValueError: If the model has several replicas or computes something else at each call, as
            dropout does, or if batches differ in size or labels do not fit.
    """
    return _operator("HessianLinearOperator", _LogitsForHessian, model, batches)


def gauss_newton(model: nn.Module, batches: Batches) -> "GGNLinearOperator":
    """Generalised Gauss-Newton matrix of the mean cross entropy, as :func:`hessian`."""
    return _operator("GGNLinearOperator", Logits, model, batches)


@outside_modes
@torch.enable_grad()
def dense_hessian(model: nn.Module, batches: Batches) -> Tensor:
    """All rows of :func:`hessian` at once, by a second pass backwards; for small networks.

    Returns:
        Symmetric matrix. Shape ``(P, P)``.
    """
    batches, module = sound_batches(model, batches), _LogitsForHessian(model)
    parameters = list(module.parameters())
    slope = flat(torch.autograd.grad(_loss(module, batches), parameters, create_graph=True))
    units = torch.eye(len(slope), dtype=slope.dtype, device=slope.device)
    rows = torch.autograd.grad(slope, parameters, units, is_grads_batched=True)
    return torch.cat([row.flatten(1) for row in rows], 1)


def _loss(module: nn.Module, batches: Batches) -> Tensor:
    losses = [F.cross_entropy(module(x), y) for x, y in batches]
    return sum(losses[1:], losses[0]) / len(batches)


def flat(parts: Iterable[Tensor]) -> Tensor:
    """Tensors one after the other as one vector, such as the gradients of all parameters."""
    return torch.cat([part.flatten() for part in parts])


@outside_modes
def _operator(
    kind: str, logits: type, model: nn.Module, batches: Batches
) -> "HessianLinearOperator":
    batches, module = sound_batches(model, batches), logits(model)
    # The library's own check of determinism costs several products and takes rounding in float32
    # for noise; ours is a test.
    return getattr(_curvlinops(), kind)(
        module, nn.CrossEntropyLoss(), list(module.parameters()), batches,
        check_deterministic=False, num_data=sum(len(x) for x, _ in batches),
    )  # fmt: skip


@outside_modes
def spectrum_ends(
    operator: "HessianLinearOperator", largest: int = 5, smallest: int = 2, tolerance: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Extreme eigenvalues of a symmetric operator and their eigenvectors, by Lanczos.

    Args:
        operator: Of size P.
        largest: Number of the largest eigenvalues.
        smallest: Number of the most negative ones.
        tolerance: Relative accuracy of the eigenvalues.

    Returns:
        Eigenvalues, descending, float64, shape ``(largest + smallest,)``; eigenvectors, shape
        ``(P, largest + smallest)``. Both on the CPU.
    """
    return _ends(operator.to_scipy(), largest, smallest, tolerance)


def _ends(
    matrix: LinearOperator, largest: int, smallest: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    start = np.random.default_rng(seed_of(0)).standard_normal(matrix.shape[0]).astype(matrix.dtype)
    ends = [
        eigsh(matrix, count, which=which, tol=tolerance, v0=start)
        for count, which in ((largest, "LA"), (smallest, "SA"))
        if count
    ]
    values = np.concatenate([v for v, _ in ends])
    vectors = np.concatenate([v for _, v in ends], axis=1)
    order = np.argsort(-values)
    descending = torch.tensor(values[order], dtype=torch.float64, device="cpu")
    return descending, torch.tensor(vectors[:, order], device="cpu")


def row_lengths(model: nn.Module) -> Tensor:
    r"""For every parameter of a normalised layer the length of its row of weights.

    A row of weights that is normalised afterwards may be multiplied by any number. With
    :math:`D` the diagonal of these lengths, :math:`DHD` is the Hessian in coordinates that measure
    a change of a row in units of its length, and does not see such factors, see :eq:`eight-units`.

    Args:
        model: One network with batch normalisation.

    Returns:
        Lengths, zero for parameters that are not scale-invariant. Shape ``(P,)``.

    Raises:
        ValueError: If the model has several replicas.
    """
    refuse_several(model)
    parts = []
    for name, p in model.named_parameters():
        length = p.detach().norm(dim=-1, keepdim=True).expand_as(p)
        parts.append(length if name in ("input_weight", "hidden_weight") else 0 * length)
    return flat(parts)


@outside_modes
@torch.enable_grad()
def scaled_largest(
    model: nn.Module, batches: Batches, tolerance: float = 1e-4, *, units: Tensor | None = None
) -> Tensor:
    r"""Largest eigenvalue of :math:`DHD` with a diagonal :math:`D` and the Hessian :math:`H`.

    Products by a second pass backwards through one graph, several times faster than those of
    :func:`hessian` for many small layers.

    Args:
        model: One network.
        batches: As for :func:`hessian`.
        tolerance: Relative accuracy.
        units: The diagonal, zero leaves a parameter out; :func:`row_lengths` if omitted. Shape
            ``(P,)``.

    Returns:
        The eigenvalue, float64. Shape ``(1,)``.
    """
    batches, module = sound_batches(model, batches), _LogitsForHessian(model)
    parameters = list(module.parameters())
    slope = flat(torch.autograd.grad(_loss(module, batches), parameters, create_graph=True))
    d = (row_lengths(model) if units is None else units).detach().cpu().numpy()

    def product(v: np.ndarray) -> np.ndarray:
        along = torch.from_numpy((d * v.ravel()).astype(d.dtype)).to(slope)
        rows = torch.autograd.grad(slope, parameters, along, retain_graph=True)
        return d * flat(rows).cpu().numpy()

    matrix = LinearOperator((len(d), len(d)), product, dtype=d.dtype)
    return _ends(matrix, 1, 0, tolerance)[0]


@outside_modes
def spectral_density(
    operator: "HessianLinearOperator", *, vectors: int = 50, repeats: int = 3, points: int = 512
) -> tuple[Tensor, Tensor]:
    """Density of the eigenvalues of a symmetric operator, by stochastic Lanczos quadrature.

    Args:
        operator: Of size P.
        vectors: Lanczos vectors of one quadrature.
        repeats: Quadratures to average over.
        points: Size of the grid.

    Returns:
        Grid and density, which integrates to about one. Shapes ``(points,)``.
    """
    high, low = spectrum_ends(operator, 1, 1, tolerance=1e-2)[0].tolist()
    with kept_randomness(operator.device):
        torch.manual_seed(seed_of(0))
        return _curvlinops().lanczos_approximate_spectrum(
            operator, vectors, num_points=points, num_repeats=repeats, boundaries=(low, high)
        )


def overlaps(gradient: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    r"""How much of a gradient lies along orthonormal vectors.

    Args:
        gradient: Shape ``(P,)``.
        vectors: One in each column. Shape ``(P, k)``.

    Returns:
        Absolute cosines with each vector, and the length of the projection on the first
        :math:`1..k` of them over that of the gradient. Both float64, shape ``(k,)``.
    """
    gradient, vectors = float64(gradient), float64(vectors)
    cosines = (vectors.mT @ gradient).abs() / gradient.norm()
    return cosines, cosines.square().cumsum(0).sqrt()


@outside_modes
def curvature_table(
    model: nn.Module,
    start: Tensor,
    batches: Batches,
    quantities: Sequence[str] = QUANTITIES,
    *,
    largest: int = 5,
    smallest: int = 2,
    tolerance: float = 1e-4,
) -> pd.DataFrame:
    """The quantities of a thesis on the noisy quadratic model, at one moment of training.

    Args:
        model: One network, see :func:`hessian`.
        start: Its flattened initial parameters. Shape ``(P,)``.
        batches: The fixed data to measure on.
        quantities: Some of ``QUANTITIES``. ``hessian``: extreme eigenvalues, and, with batch
            normalisation in a BNMLP, :func:`scaled_largest`, which rescaling leaves alone;
            ``covariance``:
            leading eigenvalues and trace of the covariance of sample gradients, or, with batch
            normalisation, of batch gradients times the batch size; ``gradient``: norm of the
            gradient on all batches; ``overlap``: cosine of that gradient with leading
            eigenvectors, and cumulative; ``weights``: norm, cosine with and distance from the
            start; ``loss``: mean cross entropy.
        largest: Number of largest eigenvalues.
        smallest: Number of most negative eigenvalues.
        tolerance: Relative accuracy of the eigenvalues. Of 1e-2 and more, one may be skipped.

    Returns:
        Columns ``quantity``, ``index`` (from 1) and ``value``.

    Raises:
        ValueError: If a quantity is unknown, the covariance is asked of one batch with batch
            normalisation, or as :func:`hessian`.
    """
    unknown = set(quantities) - set(QUANTITIES)
    if unknown:
        raise ValueError(f"unknown quantities {sorted(unknown)}; use some of {QUANTITIES}")
    batches = sound_batches(model, batches)
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    gradients = torch.stack([gradient(model, x, y) for x, y in batches])
    mean = gradients.mean(0)
    found: dict[str, Tensor] = {}
    if {"hessian", "overlap"} & set(quantities):
        operator = hessian(model, batches)
        values, vectors = spectrum_ends(operator, largest, smallest, tolerance)
        if "hessian" in quantities:
            found["hessian_largest"] = values[:largest]
            found["hessian_smallest"] = values[largest:]
            if ties_samples(model) and isinstance(model, BNMLP):
                found["hessian_scaled"] = scaled_largest(model, batches, tolerance)
        if "overlap" in quantities:
            along = overlaps(mean.cpu(), vectors[:, :largest])
            found["overlap"], found["overlap_cumulative"] = along
    if "covariance" in quantities:
        spectrum = noise_spectrum(model, batches, gradients)
        found["covariance_largest"] = spectrum[:largest]
        found["covariance_trace"] = spectrum.sum()[None]
    if "gradient" in quantities:
        found["gradient_norm"] = float64(mean).norm()[None]
    if "weights" in quantities:
        cosine = F.cosine_similarity(float64(weights), float64(start), dim=0)
        found["weight_norm"] = float64(weights).norm()[None]
        found["cosine_to_start"] = cosine[None]
        found["distance_from_start"] = float64(weights - start).norm()[None]
    if "loss" in quantities:
        with torch.no_grad():
            losses = [F.cross_entropy(Logits(model)(x), y) for x, y in batches]
        found["loss"] = float64(torch.stack(losses)).mean()[None]
    rows = [(k, i, v.item()) for k, values in found.items() for i, v in enumerate(values, 1)]
    return pd.DataFrame(rows, columns=["quantity", "index", "value"])
