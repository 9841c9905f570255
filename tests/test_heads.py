"""What chapters ask of a BNMLP besides its call: its last loss, its choices."""

import torch

from bnmlp import BNMLP, load_dataset
from bnmlp.networks.losses import head_gradient, head_losses, scored_losses
from bnmlp.networks.mlp import network_for, paper_network, shaped

R, CLASSES = 3, 4


def test_the_loss_behind_the_last_representation_is_that_of_the_network():
    model = BNMLP(16, 8, 3, CLASSES, replicas=R, dtype=torch.float64)
    x, y = torch.randn(R, 9, 16).double(), torch.randint(CLASSES, (R, 9))
    h = model.representations(x)["activation"][-1]
    expected = scored_losses(model, x, y)[0]
    torch.testing.assert_close(head_losses(model, h, y), expected)
    along = head_gradient(model, h, y)
    step = 1e-3 * along / along.square().sum((1, 2), keepdim=True)
    moved = head_losses(model, h + step, y) - head_losses(model, h - step, y)
    torch.testing.assert_close(moved, torch.full_like(moved, 2e-3), rtol=1e-3, atol=1e-6)


def test_the_networks_of_the_paper_have_rows_of_norm_one_and_choices_can_differ():
    model = paper_network(16, 8, 3, dtype=torch.float64)
    rows = model.representations(torch.randn(5, 16).double())["norm"].norm(dim=-1)
    torch.testing.assert_close(rows, torch.ones_like(rows), rtol=0, atol=1e-12)
    assert model.out_features == 10 and not model.center
    assert paper_network(16, 8, 3, center=True).center


def test_a_shaped_network_is_one_made_that_way():
    x = torch.randn(9, 16)
    made = BNMLP(16, 8, 3, CLASSES, activation="tanh", gain_exponent=0.4)
    torch.testing.assert_close(shaped(BNMLP(16, 8, 3, CLASSES), "tanh", 0.4)(x), made(x))


def test_a_network_for_a_dataset_fits_its_samples_and_labels():
    data = load_dataset("digits")
    model = network_for(data, 5, 3, replicas=2)
    assert model(data.train_x[:7]).shape == (2, 7, 10)
    assert (model.width, model.depth, model.replicas) == (5, 3, 2)
