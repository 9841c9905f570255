import torch

from bnmlp.measurements.stored import stored_for_backward


def test_a_square_stores_its_input_a_hyperbolic_tangent_its_output():
    x = torch.randn(5, requires_grad=True)
    assert all(torch.equal(t, x) for t in stored_for_backward(lambda: x.square()))
    (kept,) = stored_for_backward(lambda: x.tanh())
    assert torch.equal(kept, x.tanh())


def test_a_sum_and_what_needs_no_gradient_store_nothing():
    x = torch.randn(5, requires_grad=True)
    assert stored_for_backward(lambda: x + 1) == []
    assert stored_for_backward(lambda: x.detach().square()) == []
