"""Figures of evaluations. matplotlib is imported only here, when something is drawn."""

from pathlib import Path

from mosaic_cli.errors import UsageError

LINE_STYLES = ("-", "--", ":", "-.")  # told apart in grey too
SMOOTHING = 8  # positions averaged on each side beyond the first ones, where a single position is noisy


def check_figure(path: Path, by_position: bool) -> None:
    """Raises UsageError when the figure cannot be drawn: no losses by position, or neither .png nor .svg."""
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"{path} is neither .png nor .svg", where="--figure")
    if not by_position:
        raise UsageError("a figure needs the losses by position", where="--figure", hint="Add --by-position.")


def draw_loss_by_position(rows: list[dict], path: Path) -> None:
    """Loss against position in the window, one line a model, from the rows of `eval --by-position`."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for row, style in zip(rows, LINE_STYLES * len(rows), strict=False):
        axes.plot(
            [p + 1 for p in row["positions"]],
            _smooth(row["loss_by_position"]),
            style,
            label=f"{row['ckpt']} ({row['kind']}, {row['parameters'] / 1e6:.2f} M)",
        )
    axes.set(
        xscale="log",
        xlabel="position in the window (tokens)",
        ylabel="loss (nats per token)",
        title=f"Loss by position on {rows[0]['on']}",
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _smooth(losses: list[float]) -> list[float]:
    """A running mean whose width grows with the position, so that the steep beginning stays as it is."""
    spans = [losses[i - min(SMOOTHING, i // 4) : i + min(SMOOTHING, i // 4) + 1] for i in range(len(losses))]
    return [sum(span) / len(span) for span in spans]
