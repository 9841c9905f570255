"""Training with orthogonal updates, and with weights that are put back on the orthogonal group."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.linalg import matrix_norm

from bnmlp.layers.polar import newton_schulz, polar_factor
from bnmlp.machine.precision import float64
from bnmlp.measurements.gradients import gradient_norms
from bnmlp.measurements.isometry import isometry_gap
from bnmlp.networks.mlp import BNMLP
from bnmlp.training.batchwise import Batches, optimise

T = TypeVar("T")


class StackedMuon(torch.optim.Optimizer):
    """:class:`torch.optim.Muon` for stacks of matrices, in the type of the weights.

    PyTorch's takes parameters of two axes only, one after the other, and rounds updates to
    bfloat16. This one takes ``(..., rows, columns)`` at once.

    Args:
        params: Parameters or groups. A group with ``orthogonal=False`` takes plain steps down its
            gradient, without momentum and decay: for first and last layers.
        lr: Learning rate, times the root of rows over columns where that is above one.
        weight_decay: Weights shrink by this times the learning rate in each step.
        momentum: Share of the old average of gradients in the new one, which is looked ahead of
            as by Nesterov.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ) -> None:
        given = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "orthogonal": True}
        super().__init__(params, given)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: None is taken.

        Raises:
            ValueError: If there is a closure.
        """
        if closure is not None:
            raise ValueError("StackedMuon takes no closure; call backward() before step()")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and group["orthogonal"]:
                    self._orthogonal_step(p, p.grad, group)
                elif p.grad is not None:
                    p.sub_(group["lr"] * p.grad)

    def _orthogonal_step(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        beta, rate = group["momentum"], group["lr"]
        if p not in self.state:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        average = self.state[p]["momentum_buffer"].lerp_(gradient, 1 - beta)
        way = newton_schulz(torch.lerp(gradient, average, beta))
        p.mul_(1 - rate * group["weight_decay"])
        p.sub_(rate * math.sqrt(max(1, p.shape[-2] / p.shape[-1])) * way)


def held_orthogonal(training: Iterable[T], weights: Tensor, every: int = 1) -> Iterator[T]:
    """A training whose weights are replaced by their orthogonal factors on the way.

    Args:
        training: Takes one step for each item, as :func:`bnmlp.training.batchwise.sgd` does.
        weights: Square matrices, which change in place. Shape ``(..., d, d)``.
        every: Steps between two replacements.

    Yields:
        The items.
    """
    for t, item in enumerate(training, 1):
        if t % every == 0:
            with torch.no_grad():
                weights.copy_(polar_factor(weights))
        yield item


def hidden_descent(
    model: BNMLP,
    batches: Batches,
    rate: float,
    *,
    muon: bool = False,
    every: int | None = None,
    first: float = 0.05,
    weight_decay: float = 0.0,
) -> Iterator[Tensor]:
    r"""A training whose ways differ in the hidden matrices only; the ends take plain steps.

    The learning rate of the last matrix is that of the first over :math:`\alpha_L^2`, so that
    small last gains leave the logits as fast as large ones.

    Args:
        model: R networks; their parameters change in place.
        batches: Samples, and labels of shape ``(R, n)``.
        rate: Learning rate of the hidden matrices.
        muon: They take the steps of :class:`StackedMuon`, otherwise plain ones.
        every: Steps after which they are put on the orthogonal group again; never if omitted.
        first: Learning rate of the first matrix.
        weight_decay: Of :class:`StackedMuon`.

    Returns:
        Losses before each step, and shares of samples that were right. Each ``(2, R)``.
    """
    gain = torch.as_tensor(model.gains[-1]).max().item()
    ends = ((model.input_weight, first), (model.output_weight, first / gain**2))
    groups: list[dict[str, Any]] = [{"params": [p], "lr": lr} for p, lr in ends]
    hidden = {"params": [model.hidden_weight], "lr": rate}
    if muon:
        plain = [{**group, "orthogonal": False} for group in groups]
        training = optimise(model, batches, StackedMuon([hidden, *plain], 0, weight_decay))
    else:
        training = optimise(model, batches, torch.optim.SGD([hidden, *groups]))
    return held_orthogonal(training, model.hidden_weight, every) if every else training


def hidden_state(model: BNMLP, start: Tensor, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Where a training has brought hidden matrices, and what that does to a batch.

    Args:
        model: R networks.
        start: Their hidden matrices at the start.
        x: Samples. Shape ``(n, in_features)`` or ``(R, n, in_features)``.
        y: Labels. Shape ``(n,)`` or ``(R, n)``.

    Returns:
        One value for every network, shape ``(R,)``, under each of ``condition`` and ``worst``, the
        median and largest condition number of its matrices; ``least``, the median of their least
        singular values over the root mean square; ``moved``, the median length of the change over
        that of the start; ``range``, the log-ratio of the largest to the smallest gradient, as if
        all matrices were of one length; ``gap``, the isometry gap of the last representation.
    """
    weights = float64(model.hidden_weight.detach())
    values = torch.linalg.svdvals(weights)
    rms = values.square().mean(-1).sqrt()
    condition = values[..., 0] / values[..., -1]
    moved = matrix_norm(weights - start) / matrix_norm(float64(start))
    logs = gradient_norms(model, x, y, log=True)[1:-1].to(rms) + rms.log()
    last = model.representations(x, [model.depth - 1])["activation"][0]
    return {
        "condition": condition.median(0).values,
        "worst": condition.max(0).values,
        "least": (values[..., -1] / rms).median(0).values,
        "moved": moved.median(0).values,
        "range": logs.max(0).values - logs.min(0).values,
        "gap": isometry_gap(last),
    }
