"""Rules that turn matrices by given angles or warm up, and what steps were."""

import torch

from bnmlp import BNMLP
from bnmlp.training.descent import descent, history, turning, warmed


def test_every_matrix_turns_by_its_angle_and_the_history_holds_all_steps():
    model = BNMLP(6, 5, 3, 4, replicas=2, dtype=torch.float64)
    angles = torch.tensor([0.01, 0.02, 0.03], dtype=torch.float64)[:, None]
    batches = [(torch.randn(8, 6, dtype=torch.float64), torch.randint(4, (8,))) for _ in range(5)]
    run = history(descent(model, batches, turning(angles)))
    assert run.rates.shape == (5, 3, 2)
    assert torch.allclose(run.rates * run.learning_rates, angles.expand(5, 3, 2))
    grown = run.norms[1] / run.norms[0]  # a step orthogonal to the weights
    assert torch.allclose(grown, (1 + angles**2).sqrt().expand(3, 2))


def test_a_warm_up_is_linear_and_ends_at_its_target():
    rule, rates = warmed(2.0, 4), torch.ones(3, 1)
    assert [rule(rates, t) for t in (0, 1, 3, 9)] == [0.5, 1.0, 2.0, 2.0]
