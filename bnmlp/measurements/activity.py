"""What activations do with their inputs: units that are dead, and how much is not linear."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bnmlp.layers.activations import ACTIVATIONS
from bnmlp.layers.normalization import batch_norm
from bnmlp.machine.precision import float64
from bnmlp.measurements.rates import lengths
from bnmlp.networks.losses import matrix_gradients
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import averages_kept
from bnmlp.networks.skip import SkipMLP


def unit_activity(layers: Sequence[Tensor]) -> dict[str, Tensor]:
    """How ReLU units answer one batch.

    Args:
        layers: Outputs of the hidden layers in turn. Each of shape ``(R, width, n)``.

    Returns:
        Each of shape ``(R,)``, float64. Share of units that are zero for every sample, in all
        layers (``dead``) and in the last (``dead_last``); of the last layer the share that is
        positive for every sample (``always_last``), the root mean square (``size_last``) and the
        root of the variance over samples (``spread_last``).
    """
    on = [(h > 0).any(-1).double().mean(-1) for h in layers]
    last = float64(layers[-1])
    return {
        "dead": 1 - torch.stack(on).mean(0),
        "dead_last": 1 - on[-1],
        "always_last": (last > 0).all(-1).double().mean(-1),
        "size_last": last.square().mean((-2, -1)).sqrt(),
        "spread_last": last.var(-1, correction=0).mean(-1).sqrt(),
    }


def nonlinear_share(z: Tensor, h: Tensor) -> Tensor:
    """Share of the squared length of an activation's output that no multiple of its input has.

    Zero exactly where the activation multiplies all inputs by one number; unchanged by rescaling.

    Args:
        z: Inputs. Shape ``(..., d, n)``.
        h: Outputs, of the same shape.

    Returns:
        From 0 to 1, float64. Shape ``(...)``.
    """
    z, h = float64(z), float64(h)
    fit = (z * h).sum((-2, -1)) ** 2
    return 1 - fit / (z.square().sum((-2, -1)) * h.square().sum((-2, -1)))


@torch.no_grad()
def layer_nonlinearity(model: BNMLP, x: Tensor) -> Tensor:
    """:func:`nonlinear_share` of the activation of every layer, on one batch.

    Args:
        model: R networks that normalise before the activation.
        x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.

    Returns:
        Shares, float64. Shape ``(depth, R)``.
    """
    layers = zip(model.gains_like(x), model.stages(x), strict=True)
    return torch.stack([nonlinear_share(gain * z, h) for gain, (_, z, h) in layers])


@torch.no_grad()
def accuracy_linear_after(
    model: BNMLP, x: Tensor, y: Tensor, kept: int, batch_size: int = 100
) -> Tensor:
    """Accuracy by batch, in order, where only the first layers keep their activation.

    Args:
        model: R networks with standard batch normalisation before the activation.
        x: Samples, a whole number of batches. Shape ``(N, in_features)``.
        y: Labels. Shape ``(N,)``.
        kept: Layers that keep their activation; in the others it is the identity.
        batch_size: Samples that are normalised together.

    Returns:
        Share of samples that are right, float64. Shape ``(R,)``.

    Raises:
        ValueError: If networks differ in their activation.
    """
    if not isinstance(model.activation, str):
        raise ValueError("several activations; take the networks of one with replicas.subset")
    h = x.unflatten(0, (-1, 1, batch_size)).mT  # (batches, 1, features, n)
    gains, weights = model.gains_like(x), model.layer_weights()
    for i, (gain, weight) in enumerate(zip(gains, weights, strict=True)):
        h = gain * batch_norm(weight @ h, eps=model.eps)
        h = ACTIVATIONS[model.activation](h) if i < kept else h
    right = model.head(h).argmax(-1) == y.unflatten(0, (-1, 1, batch_size))
    return right.double().mean((0, 2))


def units_and_gradients(network: SkipMLP, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """:func:`unit_activity` and gradient norms on one batch, which moves no averages.

    Args:
        network: R networks.
        x: Samples. Shape ``(n, in_features)``.
        y: Labels. Shape ``(n,)``.

    Returns:
        Each of shape ``(R,)``, float64: those of :func:`unit_activity`, and gradient norms of the
        second matrix (``grad_first``), the middle one and the last but one (``grad_last``).
    """
    with averages_kept(network), torch.no_grad():
        found = unit_activity(list(network.representations(x)))
    norms = lengths(matrix_gradients(network, x, y)[0].values())
    places = {"grad_first": 1, "grad_middle": len(norms) // 2, "grad_last": -2}
    return found | {name: norms[place] for name, place in places.items()}
