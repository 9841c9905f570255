"""How well networks do: on one batch, and with all kinds of statistics."""

import torch
from torch import Tensor, nn

from bnmlp.machine.modes import outside_modes
from bnmlp.measurements.evaluation import (
    STATISTICS,
    Evaluation,
    averages_without_start,
    evaluate,
)
from bnmlp.networks.losses import scored_losses
from bnmlp.networks.protocol import as_network, averages_kept, averaging, batch_of


@outside_modes
@torch.no_grad()
def batch_scores(network: nn.Module, x: Tensor, y: Tensor) -> Evaluation:
    """Loss and accuracy of each network on one batch, in the mode that it is in.

    :func:`bnmlp.evaluate` splits samples into batches and chooses statistics; this is what a step
    of training on all of these samples would see.

    Args:
        network: R networks, or any module that maps samples to logits; running averages stay.
        x: Samples. Shape ``(n, ...)`` or ``(R, n, ...)``.
        y: Labels. Shape ``(n,)`` or ``(R, n)``.

    Returns:
        Losses in the network's type, accuracies in float64. Both of shape ``(R,)``.

    Raises:
        ValueError: If samples and labels do not fit.
    """
    taken = as_network(network)
    x, y = batch_of(taken, x, y)
    with averages_kept(network):
        losses, correct = scored_losses(taken, x, y)
    return Evaluation(losses, correct.double() / y.shape[1])


def evaluations(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    calibration: Tensor,
    batch_size: int,
    steps: int | None = None,
) -> dict[str, Evaluation]:
    """:func:`bnmlp.evaluate` with each kind of statistics.

    Args:
        network: R networks, or any module that maps samples to logits.
        x: Samples. Shape ``(N, ...)``.
        y: Labels. Shape ``(N,)``.
        calibration: Training samples, as for :func:`bnmlp.evaluate`.
        batch_size: Samples in a batch, of training too.
        steps: Batches that the running averages have seen; with it there is also ``"corrected"``,
            running averages by :func:`bnmlp.measurements.evaluation.averages_without_start`.

    Returns:
        By the name of the statistics; all the same where nothing keeps averages.
    """
    found = {"batch": evaluate(network, x, y, "batch", batch_size=batch_size)}
    if not averaging(network):
        kinds = STATISTICS if steps is None else (*STATISTICS, "corrected")
        return dict.fromkeys(kinds, found["batch"])
    for kind in STATISTICS[1:]:
        found[kind] = evaluate(network, x, y, kind, calibration=calibration, batch_size=batch_size)
    if steps is not None:
        with averages_without_start(network, steps, batch_size):
            found["corrected"] = evaluate(network, x, y, "running", batch_size=batch_size)
    return found
