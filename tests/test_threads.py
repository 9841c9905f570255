import pytest
import torch

from bnmlp.threads import map_in_threads


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_threads_are_given_back(threads):
    items = [torch.full((3, 3), float(i)) for i in range(20)]
    results = map_in_threads(lambda m: (m @ m).sum().item(), items)
    assert results == [27.0 * i * i for i in range(20)]
    assert torch.get_num_threads() == threads
    assert map_in_threads(str, []) == []


def test_errors_reach_the_caller_and_threads_are_given_back(threads):
    with pytest.raises(ZeroDivisionError):
        map_in_threads(lambda i: 1 / i, [1, 0, 2])
    assert torch.get_num_threads() == threads
