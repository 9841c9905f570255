"""Streams of random numbers: recorded as they are, and all of them others under another seed."""

import threading

import pytest
import torch

from bnmlp import BNMLP, TrainingRun, load_dataset
from bnmlp.data import perturbed_identity
from bnmlp.data.batches import epoch_orders
from bnmlp.layers.seeds import random_source, seed_of, stored_streams
from bnmlp.networks.skip import SkipMLP
from bnmlp.networks.transformer import Transformer


def first_numbers() -> dict[str, list]:
    """The first of every stream that results depend on."""
    run = TrainingRun(width=5, depth=3, replicas=2)
    tokens = Transformer(4, 8, 1, 3, tokens=2, heads=2)
    return {
        "source": torch.randn(2, generator=random_source(5)).tolist(),
        "weights": BNMLP(6, 5, 3, 2, replicas=2, seed=4).hidden_weight[1, 1, 0, :2].tolist(),
        "gaussian": BNMLP(6, 5, 3, 2, init="gaussian").input_weight[0, 0, :2].tolist(),
        "skip": SkipMLP(3, "plain", in_features=6, width=5).input_weight[0, 0, :2].tolist(),
        "transformer": tokens.embedding[0, 0, :2].tolist(),
        "batch": load_dataset("digits").batch(3, seed=2)[1].tolist(),
        "identity": perturbed_identity(3, seed=1)[0, :2].tolist(),
        "order": epoch_orders(1, 2, 3, 6)[1].tolist(),
        "run": run.build().hidden_weight[0, 0, 0, :2].tolist(),
    }


RECORDED = {
    "source": [-0.486781, -0.603822],
    "weights": [0.111952, -0.598596],
    "gaussian": [0.189547, -0.475093],
    "skip": [-0.570998, 0.600033],
    "transformer": [0.160469, 0.045584],
    "batch": [6, 2, 6],
    "identity": [0.995054, 0.00017],
    "order": [5, 1, 0, 3, 2, 4],
    "run": [0.025528, 0.262887],
}


def test_streams_are_the_recorded_ones():
    found = first_numbers()
    assert set(found) == set(RECORDED)
    for name, numbers in RECORDED.items():
        assert found[name] == pytest.approx(numbers, abs=2e-6), name


def test_another_base_seed_moves_every_stream_but_those_of_runs(monkeypatch):
    before = first_numbers()
    monkeypatch.setenv("BNMLP_SEED", "3")
    after = first_numbers()
    same = [name for name in before if before[name] == pytest.approx(after[name])]
    assert same == ["run"], "a run is a function of its fields alone"


def test_stored_streams_are_those_of_the_default(monkeypatch):
    before = first_numbers()
    monkeypatch.setenv("BNMLP_SEED", "3")
    with pytest.raises(RuntimeError), stored_streams():
        assert first_numbers() == before
        raise RuntimeError
    assert seed_of(1) != 1


def test_stored_streams_are_a_matter_of_one_thread(monkeypatch):
    monkeypatch.setenv("BNMLP_SEED", "3")
    seen = []
    with stored_streams():
        thread = threading.Thread(target=lambda: seen.append(seed_of(1)))
        thread.start()
        thread.join()
    assert seen == [seed_of(1)] != [1]


def test_one_integer_is_its_own_seed_and_names_do_not_collide(monkeypatch):
    assert seed_of(7) == 7
    monkeypatch.setenv("BNMLP_SEED", "1")
    names = [(a, *rest) for a in range(20) for rest in ((), (0,), (1,), (1, 2), (1, 2, 1))]
    assert len({seed_of(*name) for name in names}) == len(names)


@pytest.mark.parametrize("value", ["-1", "1.5", "x", str(2**32), "١"])
def test_a_base_seed_that_is_none_is_refused(monkeypatch, value):
    monkeypatch.setenv("BNMLP_SEED", value)
    with pytest.raises(ValueError, match="BNMLP_SEED is"):
        random_source(0)
