"""Networks as people build, wrap and train them."""

import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import VisionTransformer, resnet18

from bnmlp import BNMLP, measure
from bnmlp.diagnosis.table import COLUMNS
from bnmlp.networks.protocol import Stacked
from bnmlp.networks.skip import SkipMLP
from bnmlp.networks.transformer import Transformer


def images(n=4, side=32, classes=10):
    return torch.randn(n, 3, side, side), torch.randint(classes, (n,))


def same_rows(a, b, **tolerance):
    """Tables of two reports agree in every column."""
    (a,), (b,) = a.tables, b.tables
    assert a.name == b.name
    for column in COLUMNS:
        np.testing.assert_allclose(b[column], a[column], err_msg=column, **tolerance)


def vision_transformer():
    model = VisionTransformer(32, 8, 4, 4, 48, 96, num_classes=10)
    nn.init.normal_(model.heads.head.weight, std=0.1)  # zeros in torchvision
    return model


def test_a_vision_transformer_has_sums_and_attention():
    report = measure(vision_transformer(), *images())
    rows = report.layers.set_index("name")
    assert rows["branch_over_stream"].notna().sum() == 8  # the position is no branch
    assert rows.loc["encoder.layers.encoder_layer_0.self_attention", "kind"] == "MultiheadAttention"
    assert rows.loc["encoder.layers.encoder_layer_0.self_attention", "weight_gradient_norm"] > 0
    assert report.verdict == "none"


def test_torchvisions_own_head_of_zeros_is_named():
    report = measure(VisionTransformer(32, 8, 4, 4, 48, 96, num_classes=10), *images())
    (found,) = [f for f in report.findings if f.kind == "zero-gradients"]
    assert found.evidence["zero_weights"] == ["heads.head"] and found.severity == "note"


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 16, num_layers=2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.head(out[:, -1])


def test_a_recurrent_network_has_a_row_for_its_matrices():
    model, x, y = Recurrent(), torch.randn(6, 9, 5), torch.randint(3, (6,))
    rows = measure(model, x, y).layers.set_index("name")
    loss = F.cross_entropy(model(x), y)
    matrices = [p for p in model.lstm.parameters() if p.ndim > 1]
    found = torch.autograd.grad(loss, matrices)
    expected = math.sqrt(sum(g.square().sum().item() for g in found))
    assert rows.loc["lstm", "weight_gradient_norm"] == pytest.approx(expected, rel=1e-5)
    assert tuple(rows.loc["lstm", "shape"]) == (6, 9, 16)


class Language(nn.Module):
    """A block of the kind of GPT, with the embedding as its last matrix."""

    def __init__(self, words=20, width=16):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(words, width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.up, self.down = nn.Linear(width, 32), nn.Linear(32, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens, labels=None):
        x = self.embedding(tokens)
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        logits = self.head(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def test_tied_weights_are_counted_twice_and_left_out_of_the_rate():
    model, tokens = Language(), torch.randint(20, (4, 7))
    labels = torch.randint(20, (4, 7))
    report = measure(model, tokens, labels)
    rows = report.layers.set_index("name")
    assert rows.loc[["embedding", "head"], "shared"].tolist() == [2, 2]
    assert list(rows.index) == ["embedding", "norm", "attention", "model.add", "norm#2", "up",
                                "model.gelu", "down", "model.add#2", "head"]  # fmt: skip
    by_name = measure(model, {"tokens": tokens, "labels": labels})
    assert by_name.facts.loss == pytest.approx(report.facts.loss)
    assert by_name.facts.loss_is == "the model's own loss"
    same_rows(measure(model, (tokens,), labels), report)
    same_rows(measure(model, [(tokens, labels)]), report)
    assert report.facts.accuracy is not None and "mean cross entropy" in report.facts.loss_is


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class Cubic(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(Cube.apply(self.first(x)))


def test_a_custom_function_is_passed_through():
    model, x, y = Cubic(), torch.randn(9, 6), torch.randint(3, (9,))
    rows = measure(model, x, y).layers.set_index("name")
    loss = F.cross_entropy(model.last(model.first(x) ** 3), y)
    expected = torch.autograd.grad(loss, model.first.weight)[0].norm().item()
    assert rows.loc["first", "weight_gradient_norm"] == pytest.approx(expected, rel=1e-5)


def chain():
    return nn.Sequential(*(m for _ in range(8) for m in (
        nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Tanh())), nn.Linear(12, 3))  # fmt: skip


def test_wrappers_are_taken_off_and_named():
    model, x, y = chain(), torch.randn(20, 12), torch.randint(3, (20,))
    plain = measure(model, x, y)
    compiled = measure(torch.compile(model, backend="eager"), x, y)
    same_rows(plain, compiled)
    assert "compiled" in compiled.facts.notes[0] and not plain.facts.notes
    parallel = measure(nn.DataParallel(model), x, y)
    same_rows(plain, parallel)
    assert "DataParallel" in parallel.facts.notes[0]
    model.compile(backend="eager")
    in_place = measure(model, x, y)
    same_rows(plain, in_place)
    assert "compiled in place" in in_place.facts.notes[0]
    assert model._compiled_call_impl is not None


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_no_row(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            first, second = self.inner[:9], self.inner[9:]
            return second(checkpoint(first, x, use_reentrant=reentrant))

    class Plain(Checkpointed):
        def forward(self, x):
            return self.inner(x)

    inner = chain()
    x, y = torch.randn(20, 12, requires_grad=True), torch.randint(3, (20,))
    counted = inner[1].num_batches_tracked.clone()
    same_rows(
        measure(Plain(inner), x, y, level="modules", statistics=False),
        measure(Checkpointed(inner), x, y, level="modules", statistics=False),
        rtol=1e-6,
    )
    assert torch.equal(inner[1].num_batches_tracked, counted)
    assert all(p.grad is None for p in inner.parameters())


def test_autocast_is_measured_as_it_computes_and_a_scaler_is_taken_off():
    model, x, y = chain(), torch.randn(20, 12), torch.randint(3, (20,))
    plain = measure(model, x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = measure(model, x, y)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**13)
        scaled = measure(model, x, y, scaler=scaler)
    assert (
        rounded.layers.loc[0, "dtype"] == "bfloat16" and plain.layers.loc[0, "dtype"] == "float32"
    )
    assert rounded.layers.loc[0, "headroom"] == pytest.approx(
        plain.layers.loc[0, "headroom"], abs=0.1
    )
    a, b, c = (
        r.tables[0]["weight_gradient_norm"][r.tables[0].layers] for r in (plain, rounded, scaled)
    )
    np.testing.assert_allclose(b, a, rtol=0.1)
    np.testing.assert_allclose(c, b, rtol=0.05)
    assert "8192" in scaled.facts.notes[0]
    assert rounded.layers["scale_invariant"][0] is not True  # three digits do not tell


def test_half_precision_close_to_its_largest_number_is_found():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)).half()
    with torch.no_grad():
        model[0].weight.mul_(3e4)
    x, y = torch.randn(5, 8).half(), torch.randint(3, (5,))
    report = measure(model, x, y)
    kinds = {f.kind for f in report.findings}
    assert kinds & {"near-overflow", "output-not-finite"}, kinds
    beyond = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))).half()
    for layer in beyond[:2]:
        nn.init.constant_(layer.weight, 100.0)
    found = measure(beyond, torch.ones(5, 8).half(), y).findings
    assert "output-not-finite" in {f.kind for f in found}
    assert not any("inf nats" in f.sentence for f in found), "what is infinite has no headroom"
    healthy = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)).half()
    assert "near-overflow" not in {f.kind for f in measure(healthy, x, y).findings}


def test_other_losses_are_named_and_wrong_ones_refused():
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(9, 6)
    squared = measure(model, x, torch.randn(9, 3))
    assert squared.facts.loss_is == "mean squared error"
    free = measure(model, x)
    assert "random direction" in free.facts.loss_is
    own = measure(model, x, torch.randn(9, 3), loss_fn=nn.L1Loss())
    assert own.facts.loss_is == "L1Loss"
    with pytest.raises(ValueError, match="pass loss_fn"):
        measure(model, x, torch.zeros(9, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="depends on no parameter"):
        measure(model, x, torch.randn(9, 3), loss_fn=lambda o, t: o.detach().mean())
    with pytest.raises(TypeError, match="expected a module"):
        measure(lambda x: x, x)


def test_frozen_and_unused_parameters_are_told():
    model = chain()
    model.spare = nn.Linear(2, 2)
    forward = nn.Sequential(*list(model)[:-1])
    forward.spare = model.spare
    del forward[-1]
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 3))

    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = model, nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    report = measure(Spare(), torch.randn(5, 12), torch.randint(3, (5,)))
    (found,) = [f for f in report.findings if f.kind == "unused-parameters"]
    assert found.evidence["parameters"] == ["spare.bias", "spare.weight"]


def test_what_is_not_finite_is_counted_in_each_replica():
    model, x = BNMLP(6, 5, 4, 3, activation="tanh", replicas=2), torch.randn(9, 6)
    model.hidden_weight.data[1, 1, 2, :3] = math.nan
    report = measure(model, x, torch.randint(3, (9,)))
    stages = [value for layer in model.stages(x) for value in layer]
    for r, table in enumerate(report.tables):
        expected = [int((~value[r].isfinite()).sum()) for value in stages]
        assert table["output_faults"].tolist()[:-1] == expected
        assert table["weight_faults"][table.layers].tolist() == [0, 0, 3 * r, 0, 0]
    assert report.tables[0]["output_faults"].sum() == 0
    assert report.tables[1]["output_faults"].tolist()[6:9] == [9, 9, 9]
    fine, broken = (table["gradient_faults"][table.layers] for table in report.tables)
    assert (fine == 0).all() and (broken > 0).all()


def test_logits_of_replicas_have_the_gradient_of_softmax():
    model, x, y = BNMLP(6, 5, 4, 3, replicas=2), torch.randn(9, 6), torch.randint(3, (9,))
    gradients = (model(x).softmax(-1) - F.one_hot(y, 3)) / 9
    for table, gradient in zip(measure(model, x, y).tables, gradients, strict=True):
        assert table["gradient_norm"][-1] == pytest.approx(gradient.norm().item(), rel=1e-4)


def test_networks_of_replicas_have_rows_by_their_protocol():
    x, y = torch.randn(12, 30), torch.randint(10, (12,))
    report = measure(SkipMLP(9, "batch", in_features=30, width=20, replicas=2), x, y)
    assert len(report.tables) == 2 and len(report.tables[0]) == 9
    transformer = Transformer(5, 16, 3, 4, tokens=6)
    report = measure(transformer, torch.randn(7, 6, 5), torch.randint(4, (7,)))
    assert "block 1 query" in report.tables[0].name
    twins = [nn.Sequential(nn.Linear(30, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)) for _ in range(2)]
    stacked = measure(Stacked(twins), x, y)
    assert stacked.statistics is None and "not compared" in " ".join(stacked.facts.notes)
    for r, twin in enumerate(twins):
        alone = measure(twin, x, y).tables[0]
        expected = alone["weight_gradient_norm"][alone.layers]
        np.testing.assert_allclose(stacked.tables[r]["weight_gradient_norm"], expected, rtol=1e-4)


def test_what_cannot_be_measured_is_refused_in_words():
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match="lazy"):
        measure(nn.LazyLinear(3), x)
    with pytest.raises(ValueError, match="meta"):
        measure(nn.Linear(4, 3, device="meta"), x)


DISTRIBUTED = """
import os, sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from bnmlp import BNMLP, measure, watch

def refuses_shards(network, x, y):
    mesh = init_device_mesh("cpu", (2,))
    once, again = network(), fully_shard(network(), mesh=mesh)
    inside = nn.Sequential(fully_shard(network(), mesh=mesh), nn.Linear(3, 3))
    once = FullyShardedDataParallel(once, device_id=torch.device("cpu"), device_mesh=mesh)
    for sharded in (once, again, inside):
        before = sharded(x)
        for take in (lambda: measure(sharded, x, y), lambda: watch(sharded, file="unused.csv")):
            try:
                take()
            except ValueError as error:
                assert "parameters are sharded" in str(error) and "before it is" in str(error)
            else:
                raise AssertionError("was not refused")
        assert torch.equal(sharded(x), before)

def work(rank, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model = network()
    x, y = torch.randn(10, 6), torch.randint(3, (10,))
    whole = measure(model, x, y).tables[0]
    half = slice(5 * rank, 5 * rank + 5)
    parallel = DistributedDataParallel(model)
    report = measure(parallel, x[half], y[half])
    table = report.tables[0]
    for place in table.layers:
        a, b = (t["weight_gradient_norm"][place] for t in (whole, table))
        assert abs(a / b - 1) < 1e-5, (rank, place, a, b)
    assert "averaged over 2 processes" in report.facts.notes[0]
    alone = measure(model, x[half], y[half]).tables[0]
    assert abs(alone["weight_gradient_norm"][0] / whole["weight_gradient_norm"][0] - 1) > 1e-3
    refuses_shards(network, x, y)
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
    print("agreed")
"""


def test_two_processes_measure_the_gradient_of_both_halves_and_refuse_shards(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = tmp_path / "two_processes.py"
    program.write_text(textwrap.dedent(DISTRIBUTED))
    command = [sys.executable, str(program), port]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.stdout.strip() == "agreed", found.stderr


def test_a_resnet_without_modules_for_its_sums_has_them_as_rows():
    rows = measure(resnet18(num_classes=10), *images(side=64)).layers
    sums = rows[rows["kind"] == "add"]
    assert len(sums) == 8
    assert sums["name"].iloc[0] == "layer1.0.add"
    assert sums["branch_over_stream"].between(0.2, 2).all()
