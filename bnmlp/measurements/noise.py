"""Gradients of batches and of single samples, and their covariance."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnmlp.machine.modes import ordinary, outside_modes
from bnmlp.machine.precision import float64
from bnmlp.networks.protocol import Logits, averaging, class_labels

Batches = Sequence[tuple[Tensor, Tensor]]


@torch.no_grad()
def sound_batches(model: nn.Module, batches: Batches) -> Batches:
    """The batches with labels of int64, if they and the network fit a measurement."""
    _check_sizes(batches)
    module, x = Logits(model), batches[0][0]
    with kept_randomness(x.device):
        logits, again = module(x), module(x)
    if (logits - again).abs().max() > 1e-3 * logits.abs().max():
        raise ValueError(
            "the network computes something else at each call, so it has no one Hessian; "
            "if it has dropout, call .eval() on those layers first"
        )
    return [(x, class_labels(y, 1, len(x), logits.shape[1], x.device)[0]) for x, y in batches]


def kept_randomness(device: torch.device) -> AbstractContextManager[None]:
    """Leave PyTorch's global random numbers where they are."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _check_sizes(batches: Batches) -> None:
    sizes = {len(x) for x, _ in batches}
    if len(sizes) != 1:
        raise ValueError(f"batches must have one size, got {sorted(sizes)}")


@outside_modes
@torch.enable_grad()
def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of the mean cross entropy of one batch in all parameters, frozen ones included.

    Args:
        model: One network; modes and averages stay as they are.
        x: Samples. Shape ``(n, ...)``.
        y: Labels. Shape ``(n,)``.

    Returns:
        The flattened gradient, in the order of ``model.parameters()``. Shape ``(P,)``.

    Raises:
        ValueError: If the model has several replicas.
    """
    module = Logits(model)
    values = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    logits = torch.func.functional_call(module, values, (ordinary(x),))
    n, classes = logits.shape
    labels = class_labels(ordinary(y), 1, n, classes, x.device)[0]
    loss = F.cross_entropy(logits, labels)
    parts = torch.autograd.grad(loss, list(values.values()), materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


@outside_modes
def sample_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradient of the cross entropy of every sample.

    Args:
        model: Maps samples to logits, each on its own.
        x: Shape ``(n, ...)``.
        y: Labels. Shape ``(n,)``.

    Returns:
        Flattened gradients, in the order of ``model.parameters()``. Shape ``(n, P)``.

    Raises:
        ValueError: If samples share the statistics of a batch, or as
            :func:`bnmlp.measurements.curvature.hessian`.
    """
    if ties_samples(model):
        raise ValueError(
            "sample_gradients: batch normalisation makes the loss of a sample depend on its batch; "
            "use gradient() of several batches, or the running statistics after .eval()"
        )
    ((x, y),), module = sound_batches(model, [(x, y)]), Logits(model)
    names, values = zip(*module.named_parameters(), strict=True)

    def loss(values: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        logits = torch.func.functional_call(module, parameters, (x.unsqueeze(0),))
        return F.cross_entropy(logits, y.unsqueeze(0))

    values = tuple(v.detach() for v in values)
    parts = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(values, x, y)
    return torch.cat([part.flatten(1) for part in parts], 1)


def ties_samples(model: nn.Module) -> bool:
    """Whether samples share the statistics of their batch."""
    return any(module.training for module in averaging(model))


def covariance_eigenvalues(gradients: Tensor, *, correction: int = 0) -> Tensor:
    r"""Eigenvalues of the covariance of some gradients that can differ from zero.

    The covariance :math:`\frac1{N}\sum_i (g_i-\bar g)(g_i-\bar g)^\top` has :math:`P^2` entries,
    the Gram matrix of the centred gradients :math:`N^2`, and both have the same eigenvalues besides
    zeros: the squared singular values of the centred gradients.

    Args:
        gradients: One in each row. Shape ``(N, P)``.
        correction: Divide by :math:`N` minus this; 1 gives an unbiased trace.

    Returns:
        Eigenvalues, descending, float64. Shape ``(min(N - 1, P),)``.
    """
    gradients = float64(gradients)
    centred = gradients - gradients.mean(0)
    size = min(len(centred) - 1, centred.shape[1])
    squared = torch.linalg.svdvals(centred).square()[:size]
    return squared / (len(centred) - correction)


def noise_spectrum(model: nn.Module, batches: Batches, gradients: Tensor) -> Tensor:
    """Eigenvalues of the covariance of single gradients, estimated from batches if need be."""
    if not ties_samples(model):
        each = torch.cat([sample_gradients(model, x, y) for x, y in batches])
        return covariance_eigenvalues(each)
    if len(gradients) < 2:
        raise ValueError("the covariance of batch gradients needs at least two batches")
    return covariance_eigenvalues(gradients, correction=1) * len(batches[0][0])
