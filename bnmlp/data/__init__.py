"""Datasets, where they come from, and batches of them."""

from bnmlp.data.batches import (
    degenerate_batch,
    epoch_orders,
    images,
    patches,
    perturbed_identity,
)
from bnmlp.data.datasets import (
    Dataset,
    available_datasets,
    load_dataset,
)
from bnmlp.data.sources import (
    LOADERS,
    SHAPES,
    fetch_command,
)

__all__ = [
    "Dataset",
    "LOADERS",
    "SHAPES",
    "available_datasets",
    "degenerate_batch",
    "epoch_orders",
    "fetch_command",
    "images",
    "load_dataset",
    "patches",
    "perturbed_identity",
]
