"""Signal propagation in deep batch-normalised networks: the package under the book."""

from bnmlp import theory
from bnmlp.activations import ACTIVATIONS, gain_schedule
from bnmlp.configuration import TrainingRun
from bnmlp.data import (
    Dataset,
    available_datasets,
    degenerate_batch,
    load_dataset,
    perturbed_identity,
)
from bnmlp.evaluation import evaluate, recalibrate
from bnmlp.gradients import deep_gradient_norms, explosion_rate, gradient_norms
from bnmlp.initialization import haar_orthogonal, xavier_normal
from bnmlp.isometry import harmonic_gap, isometry_gap, numerical_rank, orthogonality_gap
from bnmlp.model import BNMLP
from bnmlp.normalization import batch_norm, layer_norm
from bnmlp.settings import at_scale, default_device, scale
from bnmlp.sgd import sgd_step
from bnmlp.sweep import gather, read_runs, train_all
from bnmlp.training import load_model, read_layers, read_metrics, train

__version__ = "0.1.0"

__all__ = [
    "ACTIVATIONS",
    "BNMLP",
    "Dataset",
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
    "numerical_rank",
    "orthogonality_gap",
    "perturbed_identity",
    "read_layers",
    "read_metrics",
    "read_runs",
    "recalibrate",
    "scale",
    "sgd_step",
    "theory",
    "train",
    "train_all",
    "xavier_normal",
]
