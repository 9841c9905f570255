"""Training step on a GPU against the plain PyTorch loop on the same card: writes gpu.csv.

python book/data/what-it-costs/gpu.py
"""

import torch
import torch.nn.functional as F

from bnmlp import BNMLP, default_device, gradient_norms, sgd_step
from bnmlp.book.making import Maker, median_seconds, rows_table
from bnmlp.networks.plain import PlainNetwork

DEPTHS, REPLICAS, DEVICE = (100, 1000), (1, 10, 40), default_device()
COLUMNS = ["plain loop (ms)", "step (ms a network)", "ratio", "gradient norms (ms a network)",
           "largest difference of logits"]  # fmt: skip


def row(depth: int, replicas: int) -> list[float]:
    """Values of ``COLUMNS``."""
    x, y = torch.randn(100, 784).to(DEVICE), torch.randint(10, (100,)).to(DEVICE)
    model = BNMLP(784, 100, depth, 10, activation="tanh", replicas=replicas, device=DEVICE)
    plain = PlainNetwork(model)
    optimiser = torch.optim.SGD(plain.parameters(), lr=1e-3)

    def loop() -> None:
        optimiser.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimiser.step()

    with torch.no_grad():
        difference = (model.logits(x)[0] - plain(x)).abs().max().item()
    before = 1e3 * median_seconds(loop, 5)
    ours = 1e3 * median_seconds(lambda: sgd_step(model, x, y, 1e-3), 10) / replicas
    slow = (before + 1e3 * median_seconds(loop, 5)) / 2
    norms = 1e3 * median_seconds(lambda: gradient_norms(model, x, y), 3) / replicas
    return [slow, ours, slow / ours, norms, difference]


def main() -> None:
    """One row for each depth and number of replicas."""
    rows = {(depth, replicas): row(depth, replicas) for depth in DEPTHS for replicas in REPLICAS}
    card = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "no GPU"
    Maker(globals()).store("gpu", rows_table(rows, ["depth", "replicas"], COLUMNS), card)


if __name__ == "__main__":
    main()
