"""Training that survives: runs, their folders, sweeps of many."""

from bnmlp.training.configuration import (
    TrainingRun,
)
from bnmlp.training.folder import (
    load_model,
    read_curvature,
    read_layers,
    read_metrics,
    read_run,
    read_status,
    run_folders,
)
from bnmlp.training.loop import (
    train,
)
from bnmlp.training.step import (
    sgd_step,
)
from bnmlp.training.sweep import (
    SweepError,
    gather,
    read_runs,
    train_all,
)

__all__ = [
    "SweepError",
    "TrainingRun",
    "gather",
    "load_model",
    "read_curvature",
    "read_layers",
    "read_metrics",
    "read_run",
    "read_runs",
    "read_status",
    "run_folders",
    "sgd_step",
    "train",
    "train_all",
]
