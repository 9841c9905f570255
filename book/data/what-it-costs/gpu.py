"""Training step on a GPU against the plain PyTorch loop on the same card: writes gpu.csv.

python book/data/what-it-costs/gpu.py [OUTPUT FOLDER]
"""

import statistics
import sys
import time
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

from bnmlp import BNMLP, gradient_norms, sgd_step
from bnmlp.networks.plain import PlainNetwork


def seconds(step, repeats: int) -> float:
    """Median time of one call, after a warm-up."""
    times = []
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def main() -> None:
    """Time both at depth 100 and 1000 and write one row for each number of replicas."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
    x = torch.randn(100, 784, device="cuda")
    y = torch.randint(10, (100,), device="cuda")
    rows = []
    for depth in (100, 1000):
        for replicas in (1, 10, 40):
            model = BNMLP(784, 100, depth, 10, activation="tanh", replicas=replicas, device="cuda")
            plain = PlainNetwork(model)
            optimiser = torch.optim.SGD(plain.parameters(), lr=1e-3)

            def loop(plain=plain, optimiser=optimiser) -> None:
                optimiser.zero_grad()
                F.cross_entropy(plain(x), y).backward()
                optimiser.step()

            with torch.no_grad():
                difference = (model.logits(x)[0] - plain(x)).abs().max().item()
            before = seconds(loop, 5)
            ours = seconds(lambda model=model: sgd_step(model, x, y, 1e-3), 10) / replicas
            after = seconds(loop, 5)
            norms = seconds(lambda model=model: gradient_norms(model, x, y), 3) / replicas
            slow = (before + after) / 2
            rows.append(
                (depth, replicas, 1e3 * slow, 1e3 * ours, slow / ours, 1e3 * norms, difference)
            )
            print(rows[-1], flush=True)
    columns = ["depth", "replicas", "plain loop (ms)", "step (ms a network)", "ratio"]
    columns += ["gradient norms (ms a network)", "largest difference of logits"]
    with (folder / "gpu.csv").open("w") as file:
        file.write(
            f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, float32, no TF32\n"
        )
        file.write("# training step with its SGD update, width 100, batch 100, tanh, standard BN\n")
        file.write("# command: python book/data/what-it-costs/gpu.py\n")
        pd.DataFrame(rows, columns=columns).to_csv(file, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
