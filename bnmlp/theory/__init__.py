"""Closed forms and exact recursions."""

from bnmlp.theory.closed_forms import (
    amplification_budget,
    expected_gap_change,
    expected_gradient_energy,
    explosion_rate_bounds,
    gap_decay_factor,
    gaussian_explosion_rate,
    haar_moment,
    spectrum_flow,
    stationary_spread,
)

__all__ = [
    "amplification_budget",
    "expected_gap_change",
    "expected_gradient_energy",
    "explosion_rate_bounds",
    "gap_decay_factor",
    "gaussian_explosion_rate",
    "haar_moment",
    "spectrum_flow",
    "stationary_spread",
]
