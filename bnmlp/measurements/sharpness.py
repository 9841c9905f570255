"""Curvature of each of several networks, one after the other."""

from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor, nn

from bnmlp.measurements.curvature import hessian, row_lengths, scaled_largest, spectrum_ends
from bnmlp.measurements.noise import Batches
from bnmlp.measurements.overlaps import trace_estimate
from bnmlp.networks.mlp import BNMLP
from bnmlp.networks.protocol import Network
from bnmlp.networks.replicas import subset


def sharpness(network: Network, batches: Batches, tolerance: float = 1e-3) -> Tensor:
    """Largest eigenvalue of the Hessian of the mean cross entropy of every network.

    Args:
        network: R networks.
        batches: As for :func:`bnmlp.measurements.curvature.hessian`, the same for all.
        tolerance: Relative accuracy.

    Returns:
        Eigenvalues, float64. Shape ``(R,)``.
    """
    found = [spectrum_ends(hessian(one, batches), 1, 0, tolerance)[0] for one in _each(network)]
    return torch.cat(found)


def hessian_traces(
    network: Network, batches: Batches, vectors: int, generator: torch.Generator
) -> Tensor:
    """Trace of the Hessian of every network, estimated with random signs.

    Args:
        network: R networks.
        batches: As for :func:`bnmlp.measurements.curvature.hessian`, the same for all.
        vectors: Of signs; the variance of an estimate is inverse to their number.
        generator: Draws the signs.

    Returns:
        Traces, float64. Shape ``(R,)``.
    """
    found = [trace_estimate(hessian(one, batches), vectors, generator) for one in _each(network)]
    return torch.tensor(found, dtype=torch.float64)


def row_quantities(network: BNMLP, batches: Batches, tolerance: float = 1e-3) -> pd.DataFrame:
    """Curvature of every network in units of its rows and without, and the lengths of rows.

    Args:
        network: R networks with batch normalisation.
        batches: As for :func:`bnmlp.measurements.curvature.hessian`, the same for all.
        tolerance: Relative accuracy.

    Returns:
        Columns ``replica``, ``quantity``, ``index`` and ``value``. ``hessian_block``: largest
        eigenvalue of the Hessian in the weights that are normalised; ``hessian_rows``: the same
        with each row in units of its length; ``row_squared``: mean squared length of a row of the
        first weights (1) and of the hidden ones (2).
    """
    rows = []
    for r, one in enumerate(_each(network)):
        assert isinstance(one, BNMLP)
        units = row_lengths(one)
        for name, d in (("hessian_block", (units > 0).float()), ("hessian_rows", units)):
            largest = scaled_largest(one, batches, tolerance, units=d).item()
            rows.append((r, name, 1, largest))
        for i, w in enumerate((one.input_weight, one.hidden_weight), 1):
            rows.append((r, "row_squared", i, w.detach().square().sum(-1).mean().item()))
    return pd.DataFrame(rows, columns=["replica", "quantity", "index", "value"])


def _each(network: Network) -> Iterator[nn.Module]:
    """Copies of the networks, each as one."""
    for r in range(network.replicas):
        one = subset(network, [r])
        assert isinstance(one, nn.Module)
        yield one
