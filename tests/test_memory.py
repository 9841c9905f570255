import pytest
import torch

from bnmlp.machine import memory
from bnmlp.machine.memory import fresh


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fresh_memory_is_an_ordinary_aligned_tensor(dtype):
    x = fresh((3, 5, 7), dtype)
    assert x.shape == (3, 5, 7)
    assert x.dtype == dtype
    assert x.is_contiguous()
    assert x.data_ptr() % 64 == 0
    assert (x.fill_(2).sum() == 2 * 105).item()


def test_fresh_memory_may_be_empty():
    assert fresh((0, 3), torch.float32).numel() == 0


def test_other_devices_have_their_own_memory():
    assert fresh((2, 3), torch.float64, "meta").device.type == "meta"


def test_memory_of_a_tensor_that_is_gone_is_used_again(monkeypatch):
    monkeypatch.setattr(memory, "_idle", {})
    x = fresh((2**21,), torch.float32)
    view, address = x[5:], x.data_ptr()
    del x
    other = fresh((2**21,), torch.float32)
    assert other.data_ptr() != address  # the view is alive
    del view
    y = fresh((2**21 - 300,), torch.float32)
    assert y.data_ptr() == address
    assert fresh((2**21,), torch.float32).data_ptr() != address


def test_idle_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(memory, "_idle", {})
    monkeypatch.setattr(memory, "KEPT", 3 * 2**22 + 500)
    tensors = [fresh((2**22,), torch.uint8) for _ in range(5)]
    del tensors
    assert len(memory._idle) == 3
