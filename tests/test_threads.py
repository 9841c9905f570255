import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bnmlp import TrainingRun, read_metrics, train
from bnmlp.machine.threads import keep_threads, map_in_threads
from bnmlp.training import read_status


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


def in_new_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_a_thread_that_begins_to_compute_meanwhile_has_all_threads(threads):
    many = torch.randn(10**6)
    expected = many.sum()
    found = []

    def work(i):
        if i == 0:
            found.append(in_new_thread(lambda: (torch.get_num_threads(), many.sum())))
        return torch.get_num_threads()

    assert set(map_in_threads(work, range(10))) == {1}
    ((number, total),) = found
    assert number == threads
    assert torch.equal(total, expected), f"other bits: {total - expected}"


def test_workers_leave_the_number_for_new_threads_alone(threads):
    in_new_thread(lambda: torch.set_num_threads(threads + 1))  # by somebody else, meanwhile
    map_in_threads(str, range(10))
    assert in_new_thread(torch.get_num_threads) == threads + 1
    assert torch.get_num_threads() == threads


def test_a_number_once_kept_is_not_changed_from_another_thread(threads):
    kept, changed = threading.Event(), threading.Event()

    def late():
        before = keep_threads()
        kept.set()
        assert changed.wait(60)
        return before, torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        numbers = pool.submit(late)
        assert kept.wait(60)
        torch.set_num_threads(threads + 1)
        changed.set()
        assert numbers.result() == (threads, threads)


def test_training_has_its_bits_while_others_change_the_number_of_threads(tmp_path):
    run = TrainingRun(
        dataset="digits", depth=4, width=200, batch_size=400, epochs=3, learning_rate=0.1,
        calibration_samples=400,
    )  # fmt: skip
    torch.set_num_threads(2)
    train(run, tmp_path / "alone")

    def meddle(line):
        in_new_thread(lambda: torch.set_num_threads(1 + len(line) % 3))

    in_new_thread(lambda: train(run, tmp_path / "meddled", progress=meddle))
    alone, meddled = (read_metrics(tmp_path / name) for name in ("alone", "meddled"))
    assert alone.equals(meddled), (alone - meddled).abs().max()
    assert read_status(tmp_path / "meddled")["threads"] == 2
