"""Signal propagation in deep batch-normalised networks: the package under the book."""

from importlib import import_module
from typing import TYPE_CHECKING

from bnmlp import theory
from bnmlp.diagnosis.cures import orthogonal_, shape_
from bnmlp.diagnosis.measure import measure
from bnmlp.diagnosis.report import Report
from bnmlp.diagnosis.watch import watch
from bnmlp.layers.activations import ACTIVATIONS, gain_schedule
from bnmlp.layers.initialization import haar_orthogonal, xavier_normal
from bnmlp.layers.normalization import batch_norm, layer_norm
from bnmlp.machine.settings import at_scale, default_device, scale
from bnmlp.measurements.evaluation import evaluate, recalibrate
from bnmlp.measurements.gradients import deep_gradient_norms, explosion_rate, gradient_norms
from bnmlp.measurements.isometry import (
    harmonic_gap,
    isometry_gap,
    numerical_rank,
    orthogonality_gap,
)
from bnmlp.networks.mlp import BNMLP

if TYPE_CHECKING:  # they need Pandas and Pydantic, and come when they are asked for
    from bnmlp.data.batches import degenerate_batch, perturbed_identity
    from bnmlp.data.datasets import Dataset, available_datasets, load_dataset
    from bnmlp.training.configuration import TrainingRun
    from bnmlp.training.folder import load_model, read_layers, read_metrics
    from bnmlp.training.loop import train
    from bnmlp.training.step import sgd_step
    from bnmlp.training.sweep import gather, read_runs, train_all

__version__ = "0.1.0"
LATE = {
    "data.batches": ("degenerate_batch", "perturbed_identity"),
    "data.datasets": ("Dataset", "available_datasets", "load_dataset"),
    "training.configuration": ("TrainingRun",),
    "training.folder": ("load_model", "read_layers", "read_metrics"),
    "training.loop": ("train",),
    "training.step": ("sgd_step",),
    "training.sweep": ("gather", "read_runs", "train_all"),
}

__all__ = [
    "ACTIVATIONS",
    "BNMLP",
    "Dataset",
    "Report",
    "TrainingRun",
    "at_scale",
    "available_datasets",
    "batch_norm",
    "deep_gradient_norms",
    "default_device",
    "degenerate_batch",
    "evaluate",
    "explosion_rate",
    "gain_schedule",
    "gather",
    "gradient_norms",
    "haar_orthogonal",
    "harmonic_gap",
    "isometry_gap",
    "layer_norm",
    "load_dataset",
    "load_model",
    "measure",
    "numerical_rank",
    "orthogonal_",
    "orthogonality_gap",
    "perturbed_identity",
    "read_layers",
    "read_metrics",
    "read_runs",
    "recalibrate",
    "scale",
    "shape_",
    "sgd_step",
    "theory",
    "train",
    "train_all",
    "watch",
    "xavier_normal",
]


if not TYPE_CHECKING:

    def __getattr__(name):
        """A name that comes late, or a room of the package; kept from then on."""
        for module, names in LATE.items():
            if name in names:
                return globals().setdefault(name, getattr(import_module(f"bnmlp.{module}"), name))
        if name in ("data", "training"):
            return import_module(f"bnmlp.{name}")
        raise AttributeError(f"module 'bnmlp' has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__, "data", "training"})
