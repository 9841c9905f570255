"""What the public functions say of their arguments and results is true, shapes included."""

import inspect

import beartype
import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError, jaxtyped

import bnmlp
from bnmlp import theory

X = torch.linspace(-1, 1, 24).sin().view(2, 3, 4)

CALLS = {
    "batch_norm": [((X,), {}), ((X[0].double(),), {"center": False, "unit": True})],
    "degenerate_batch": [((X, torch.zeros(2, 3), 2), {})],
    "gain_schedule": [((5,), {"exponent": 0.5})],
    "haar_orthogonal": [((4,), {}), ((2, 3), {"d": 4}), ((1,), {"dtype": torch.float16})],
    "harmonic_gap": [((X,), {})],
    "isometry_gap": [((X,), {}), ((X.mT,), {}), ((X[0],), {}), ((torch.eye(3).long(),), {})],
    "layer_norm": [((X,), {})],
    "load_dataset": [(("digits",), {}), (("mnist5k", None), {})],
    "available_datasets": [(("digits",), {})],
    "numerical_rank": [((X,), {}), ((X[0],), {})],
    "orthogonality_gap": [((X,), {})],
    "perturbed_identity": [((3,), {}), ((4,), {"noise": "full"})],
    "xavier_normal": [((X,), {"gain": 2.0})],
    "theory.amplification_budget": [((3.0, 1.0), {})],
    "theory.expected_gap_change": [
        ((X.abs(),), {}),
        ((np.ones((2, 3)),), {}),
        (([1.0, 2.0],), {}),
    ],
    "theory.expected_gradient_energy": [((1.0, 2.0, 10, np.arange(4)), {}), ((1.0, 2.0, 9, 3), {})],
    "theory.explosion_rate_bounds": [((10, 5), {})],
    "theory.gap_decay_factor": [((10,), {})],
    "theory.gaussian_explosion_rate": [((10,), {"activation": "relu"})],
    "theory.haar_moment": [(([(0, 0), (0, 0)], 5), {})],
    "theory.spectrum_flow": [
        ((np.array([0.5, 1.5]), np.arange(3.0)), {}),
        (([0.5, 1.5], [0.0, 1.0]), {}),
    ],
    "theory.stationary_spread": [((10, 5), {})],
}
# Networks, measurements of networks, training and settings, whose annotations have no shapes yet.
WITHOUT_SHAPES = {
    *("at_scale", "default_device", "scale"),
    *("deep_gradient_norms", "evaluate", "explosion_rate", "gradient_norms", "recalibrate"),
    *("orthogonal_", "shape_"),
    *("gather", "load_model", "measure", "read_layers", "read_metrics", "read_runs"),
    *("sgd_step", "train", "train_all", "watch"),
}


def public(name: str):
    found = bnmlp
    for part in name.split("."):
        found = getattr(found, part)
    return found


def checked(name: str):
    """The function behind a check of each call against its annotations."""
    return jaxtyped(public(name), typechecker=beartype.beartype)


def test_every_public_function_is_called_here_or_known_to_have_no_shapes():
    names = {n for n in bnmlp.__all__ if inspect.isfunction(getattr(bnmlp, n))}
    names |= {f"theory.{n}" for n in theory.__all__}
    assert names == set(CALLS) | WITHOUT_SHAPES
    assert not set(CALLS) & WITHOUT_SHAPES


@pytest.mark.parametrize("name", CALLS)
def test_arguments_and_results_are_what_the_annotations_say(name):
    for arguments, options in CALLS[name]:
        checked(name)(*arguments, **options)


@pytest.mark.parametrize("name", CALLS)
def test_a_public_function_annotates_everything(name):
    signature = inspect.signature(public(name))
    bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
    assert not bare, f"{name}: no type for {bare}"
    assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("batch_norm", (torch.zeros(3),)),
        ("batch_norm", (torch.zeros(3, 4).long(),)),
        ("isometry_gap", (np.eye(3),)),
        ("isometry_gap", (torch.zeros(3, 3, dtype=torch.complex64),)),
        ("degenerate_batch", (torch.zeros(3, 4), torch.zeros(4), 2)),
        ("gain_schedule", ("5",)),
    ],
    ids=["one axis", "integers", "an array", "complex numbers", "other samples", "text"],
)
def test_the_control_other_shapes_and_types_are_refused(name, arguments):
    with pytest.raises(TypeCheckError):
        checked(name)(*arguments)


def test_the_control_a_result_of_another_shape_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "arange", lambda *_, **__: torch.ones(7, dtype=torch.float64))
    with pytest.raises(TypeCheckError):
        checked("gain_schedule")(5)
