"""Training that ends, for each network, where its loss is low enough."""

from collections.abc import Iterable

from torch import Tensor

from bnmlp.networks.losses import scored_losses
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.replicas import read_replica, write_replica
from bnmlp.training.step import sgd_step


def train_until(
    model: BNMLP,
    batches: Iterable[tuple[Tensor, Tensor]],
    learning_rate: float,
    target: float,
    x: Tensor,
    y: Tensor,
    every: int = 10,
) -> list[int]:
    """Train every network until its loss is below a target, and leave it as it was then.

    Args:
        model: R networks; their parameters change in place.
        batches: A step for each; no more are taken once all networks are there.
        learning_rate: Step size.
        target: Mean cross entropy to reach.
        x: Samples to look at. Shape ``(N, in_features)``.
        y: Their labels. Shape ``(N,)``.
        every: Look after so many steps.

    Returns:
        Steps of each network; -1 for those that did not reach the target.
    """
    reached, kept = [-1] * model.replicas, {}
    for t, batch in enumerate(batches, 1):
        sgd_step(model, *batch, learning_rate)
        if t % every:
            continue
        losses, _ = scored_losses(model, x, y.expand(model.replicas, -1))
        for r in (losses < target).nonzero().flatten().tolist():
            if r not in kept:
                reached[r], kept[r] = t, read_replica(model, r)
        if len(kept) == model.replicas:
            break
    for r, state in kept.items():
        write_replica(model, r, state)
    return reached
