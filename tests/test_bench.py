import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from bnmlp.bench import jobs, table
from bnmlp.bench.in_jax import jax_step
from bnmlp.cli import app

pytestmark = pytest.mark.slow


def test_the_command_times_every_way_and_stores_it(tmp_path):
    path = tmp_path / "bench.csv"
    done = CliRunner().invoke(
        app, ["bench", "--quick", "--threads", "1", "--rounds", "2", "--csv", str(path)]
    )
    assert done.exit_code == 0, done.output
    assert "KiB for each layer and network" in done.output
    found = pd.read_csv(path, comment="#")
    assert set(found["threads"]) == {1}
    assert (found["low"] <= found["seconds"]).all() and (found["seconds"] <= found["high"]).all()
    timed = {(job.name, way) for job in table.all_jobs(quick=True) for way in job.ways}
    assert set(zip(found["job"], found["way"], strict=True)) == timed
    ratios = table.ratios(found)
    steps = found[found["job"] == "training step"].set_index("way")["seconds"]
    told = ratios.loc[("training step", "plain over ours, ten"), "1 thread"]
    assert told == pytest.approx(steps["plain"] / steps["ours, ten"], abs=0.01)


def test_a_folder_that_is_not_there_is_named_before_anything_is_timed(tmp_path):
    done = CliRunner().invoke(app, ["bench", "--csv", str(tmp_path / "none" / "bench.csv")])
    assert done.exit_code == 1 and "there is no folder" in done.output


def test_products_alone_change_no_weight():
    model = jobs.networks(2, 5)
    before = model.hidden_weight.clone()
    jobs.products(model, jobs.batch()[0])
    assert torch.equal(model.hidden_weight, before)


def test_the_step_in_jax_is_the_engines():
    pytest.importorskip("jax")
    model = jobs.networks(3, 20)
    x, y = jobs.batch()
    step = jax_step(model, x, y, 0.1)
    for _ in range(3):
        theirs = torch.tensor(step().tolist())
        torch.testing.assert_close(theirs, table.jobs.sgd_step(model, x, y, 0.1), rtol=1e-4, atol=0)
