"""The training curves of the README, from stored runs: ``python -m bnmlp_book.pictures``."""

from pathlib import Path

STATIC = Path(__file__).parents[2] / "_static"
LOOKS = {"identity": ("--", "linear"), "tanh": ("-", "shaped tanh"), "sin": ("-.", "shaped sine")}


def draw(path: Path = STATIC / "training.svg") -> None:
    """Test accuracy of a thousand layers against epochs.

    Args:
        path: Of the picture.
    """
    import matplotlib

    matplotlib.use("agg")
    from bnmlp.book.plotting import COLOURS, new_figure, use_book_style
    from bnmlp.book.tables import stored_table

    use_book_style()
    matplotlib.rcParams["svg.hashsalt"] = "bnmlp"  # the same file from the same table
    stored = stored_table("depth-and-training/mnist.csv").reset_index()
    runs = stored.query("name == 'depth-1000'").set_index(["activation", "epoch"])
    faster = stored.query("name == 'rate-01-depth-1000'").set_index("epoch")
    fig, ax = new_figure(figsize=(5, 3))
    fig.patch.set_facecolor("white")  # readable on dark pages too
    for name, (style, label) in LOOKS.items():
        run = runs.loc[name]["test_accuracy_recalibrated"]
        ax.plot(run.index, run, style, color=COLOURS[name], label=label)
    faster = faster["test_accuracy_recalibrated"]
    ax.plot(faster.index, faster, color="#b867a0", ls="-.", label="shaped tanh, rate 0.01")
    averages = runs.loc["identity"]["test_accuracy_running"]
    style = {"color": COLOURS["identity"], "label": "linear, running averages"}
    ax.plot(averages.index, averages, ":", **style)
    ax.set(xlabel="epoch", ylabel="test accuracy", ylim=(0, 1))
    ax.legend()
    fig.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw()
