"""Signal propagation in deep batch-normalised networks: the package under the book."""

from bnmlp import theory
from bnmlp.data.batches import degenerate_batch, perturbed_identity
from bnmlp.data.datasets import Dataset, available_datasets, load_dataset
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
from bnmlp.training.configuration import TrainingRun
from bnmlp.training.folder import load_model, read_layers, read_metrics
from bnmlp.training.loop import train
from bnmlp.training.step import sgd_step
from bnmlp.training.sweep import gather, read_runs, train_all

__version__ = "0.1.0"

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
