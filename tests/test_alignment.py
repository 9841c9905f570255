import itertools

import pytest
import torch
import torch.nn.functional as F

from bnmlp.measurements.alignment import mean_cosine

pytestmark = pytest.mark.usefixtures("float64")


def test_the_mean_cosine_is_that_of_all_pairs():
    x = torch.randn(2, 5, 7)
    pairs = list(itertools.combinations(range(7), 2))
    naive = torch.stack([F.cosine_similarity(x[..., i], x[..., j]) for i, j in pairs]).mean(0)
    torch.testing.assert_close(mean_cosine(x), naive)
    torch.testing.assert_close(mean_cosine(x * torch.rand(7)), naive)  # lengths do not count


def test_one_direction_has_cosine_one_and_random_ones_zero():
    v = torch.randn(50, 1)
    assert mean_cosine(v.expand(-1, 9)).item() == pytest.approx(1)
    assert mean_cosine(torch.randn(50, 1000)).abs() < 1e-3


def test_many_nearly_parallel_samples_keep_their_digits():
    x = 1 + 1e-6 * torch.randn(20, 1000)
    away = 1 - mean_cosine(x.float())
    assert away.item() == pytest.approx((1 - mean_cosine(x)).item(), rel=0.01)
