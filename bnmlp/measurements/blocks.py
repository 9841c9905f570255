"""What single blocks of a trained :class:`bnmlp.networks.residual.ResidualMLP` do."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bnmlp.machine.modes import outside_modes
from bnmlp.measurements.scores import batch_scores
from bnmlp.networks.residual import FUNCTIONS, LATE, ResidualMLP

Branch = Callable[[int, Tensor], Tensor]


@outside_modes
@torch.no_grad()
def block_doses(net: ResidualMLP, x: Tensor) -> Tensor:
    """Length of the change in each block over the length before it, mean over samples.

    Args:
        net: R networks.
        x: Samples. Shape ``(n, in)`` or ``(R, n, in)``.

    Returns:
        Float64. Shape ``(L, R)``.
    """
    return torch.stack([*_doses(net.streams(x))])


def _doses(streams: Iterator[Tensor]) -> Iterator[Tensor]:
    before = next(streams)
    for after in streams:
        yield ((after - before).norm(dim=-1) / before.norm(dim=-1)).double().mean(-1)
        before = after


@outside_modes
@torch.no_grad()
def stream_differences(net: ResidualMLP, x: Tensor) -> Tensor:
    """Share of the squares in all streams that is a difference from their mean.

    Zero if streams are alike, and where there is one only.

    Args:
        net: R networks.
        x: Samples. Shape ``(n, in)`` or ``(R, n, in)``.

    Returns:
        Before each block and behind the last, float64. Shape ``(L+1, R)``.
    """
    return torch.stack([_difference(h.double()) for h in net.parallel_streams(x)])


def _difference(h: Tensor) -> Tensor:
    away = h - h.mean(1, keepdim=True)
    return away.square().sum((1, 2, 3)) / h.square().sum((1, 2, 3))


@torch.no_grad()
def block_costs(net: ResidualMLP, x: Tensor, y: Tensor) -> Tensor:
    """How much the loss rises when one block computes zero.

    Args:
        net: R networks.
        x: Samples. Shape ``(n, in)`` or ``(R, n, in)``.
        y: Labels. Shape ``(n,)`` or ``(R, n)``.

    Returns:
        Mean cross entropy without the block less that with it. Shape ``(L, R)``.
    """
    whole = batch_scores(net, x, y).loss
    return torch.stack(
        [batch_scores(_without(net, i), x, y).loss - whole for i in range(net.depth)]
    )


def _without(net: ResidualMLP, left_out: int) -> ResidualMLP:
    def branch(i: int, h: Tensor) -> Tensor:
        return torch.zeros_like(h) if i == left_out else net.branch(i, h)

    return _with_branch(net, branch)


@outside_modes
@torch.no_grad()
def nonlinear_share(net: ResidualMLP, start: Tensor, x: Tensor) -> Tensor:
    r"""Share of what training did to logits that blocks linear in their weights do not do.

    Each block is replaced by its Taylor polynomial of first degree in its own weights around those
    of the start, at whatever it is given. The share is zero for blocks with one matrix.

    Args:
        net: R networks, of which blocks alone have been trained.
        start: ``hidden_weight`` before training. Shape ``(L * matrices, R, d, d)``.
        x: Samples. Shape ``(n, in)`` or ``(R, n, in)``.

    Returns:
        Norm of the difference between the two networks' logits over the norm of their change.
        Shape ``(R,)``.

    Raises:
        ValueError: If blocks end with an activation.
    """
    if net.scheme in LATE:
        raise ValueError(f"nonlinear_share: blocks of {net.scheme!r} end with an activation")
    now = net.hidden_weight.detach()

    def linear(i: int, h: Tensor) -> Tensor:
        return _tangent(net, i, h, start, now)

    def first(i: int, h: Tensor) -> Tensor:
        return _tangent(net, i, h, start, start)

    logits: Tensor = net(x)
    away, change = (logits - _with_branch(net, b)(x) for b in (linear, first))
    return away.flatten(1).norm(dim=1) / change.flatten(1).norm(dim=1)


def _tangent(net: ResidualMLP, i: int, h: Tensor, start: Tensor, now: Tensor) -> Tensor:
    """A block at the first weights, and its derivative along the way to the others."""
    part = slice(i * net.matrices, (i + 1) * net.matrices)
    *inner, last = start[part].unbind()
    *moved, turned = now[part].unbind()
    sigma = FUNCTIONS[net.activation]
    if not inner:
        return net.factor * (sigma(h) @ turned.mT)
    before = h @ inner[0].mT
    along = _slope(sigma, before) * (h @ (moved[0] - inner[0]).mT)
    return net.factor * (sigma(before) @ turned.mT + along @ last.mT)


@torch.enable_grad()
def _slope(sigma: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    return torch.autograd.grad(sigma(z).sum(), z)[0]


def _with_branch(net: ResidualMLP, branch: Branch) -> ResidualMLP:
    """The same networks and parameters with other blocks."""
    other = copy.copy(net)
    other.branch = branch  # type: ignore[method-assign,assignment]
    return other
