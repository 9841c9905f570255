"""Training up to a loss, and flat changes of networks."""

import torch
from torch import nn

from bnmlp import BNMLP
from bnmlp.networks.losses import scored_losses
from bnmlp.networks.replicas import add_to_parameters, read_replica, subset
from bnmlp.training.until import train_until


def networks():
    return BNMLP(5, 6, 2, 3, activation="tanh", replicas=3, bias=True, norm="none")


def test_every_network_is_left_where_its_loss_was_low_enough():
    model, start = networks(), networks()
    x, y = torch.randn(20, 5), torch.randint(3, (20,))
    losses = scored_losses(model, x, y.expand(3, -1))[0].detach()
    target = losses.sort().values[:2].mean().item()  # one is there at once
    steps = train_until(model, [(x, y)] * 6, 0.01, target, x, y, every=2)
    now = scored_losses(model, x, y.expand(3, -1))[0]
    assert steps[losses.argmin()] == 2
    for r, step in enumerate(steps):
        assert (now[r] < target) == (step > 0)
        alone = subset(start, [r])
        train_until(alone, [(x, y)] * (step if step > 0 else 6), 0.01, 0.0, x, y)
        assert torch.allclose(alone.output_weight, model.output_weight[[r]], atol=1e-6)


def test_flat_changes_go_to_the_parameters_of_their_network():
    model, before = networks(), networks()
    size = nn.utils.parameters_to_vector(subset(model, [0]).parameters()).numel()
    changes = torch.randn(3, size)
    add_to_parameters(model, changes)
    for r in range(3):
        moved, still = (
            nn.utils.parameters_to_vector(subset(m, [r]).parameters()) for m in (model, before)
        )
        assert torch.allclose(moved - still, changes[r], atol=1e-6)
    assert read_replica(model, 0).keys() == dict(model.state_dict()).keys()
