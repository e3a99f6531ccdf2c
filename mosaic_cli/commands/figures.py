"""Figures of evaluations and probes. matplotlib is imported only here, when something is drawn."""

import math
from pathlib import Path

from mosaic_cli.errors import UsageError

EVEN_STYLE = {"color": "0.6", "linewidth": 3, "alpha": 0.6, "zorder": 0, "label": "all alike"}
LINE_STYLES = ("-", "--", ":", "-.")  # told apart in grey too
DRAWN = 7 / 8  # share of the distances that is drawn: the farthest have so few positions that they show noise
SIDESTEP = 1.04  # between lines on a logarithmic axis, so that equal points do not hide each other
FLOOR = 1e-3  # of an even weight: below this a weight is as good as none, and would only flatten the rest


def check_figure(path: Path, has_curves: bool) -> None:
    """Raises UsageError when the figure cannot be drawn: no losses by position, or neither .png nor .svg."""
    if path.suffix not in ("", ".png", ".svg"):
        raise UsageError(f"{path} is neither .png nor .svg", where="--figure")
    if not has_curves:
        raise UsageError("a figure needs the losses by position", where="--figure", hint="Add --by-position.")


def draw_loss_by_position(rows: list[dict], path: Path, crossing: dict | None = None) -> list[Path]:
    """Loss against position in the window, one line a model, from the rows of `eval --by-position`, and the crossing.

    Returns the files: `path`, or without a suffix a .png and an .svg of that name.
    """
    import numpy as np

    from mosaic_cli.evaluation.crossing import smooth

    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for row, style in zip(rows, LINE_STYLES * len(rows), strict=False):
        axes.plot(
            [p + 1 for p in row["positions"]],
            smooth(np.array(row["loss_by_position"])),
            style,
            label=plain(f"{row['ckpt']} ({row['kind']}, {row['parameters'] / 1e6:.2f} M)"),
        )
    axes.set(
        xscale="log",
        xlabel="position in the window + 1 (tokens; 1 is the first)",
        ylabel="loss (nats per token)",
        title=f"Loss by position on {rows[0]['on']}",
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    if crossing is not None and crossing["position"] is not None:
        _draw_crossing(axes, crossing, len(rows[0]["positions"]))
    axes.legend(frameon=crossing is not None, edgecolor="none")
    return _save_as_asked(plt, figure, path)


def draw_loss_by_length(rows: list[dict], path: Path) -> list[Path]:
    """Loss by position over that of the same tokens inside the training length, from the rows of `eval --on length`.

    A line a model, a point a band of positions, with its 95 % interval. Returns the files, as above.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    longest = max(band["to"] + 1 for row in rows for band in row["by_band"])
    for number, (row, style) in enumerate(zip(rows, LINE_STYLES * len(rows), strict=False)):
        bands = row["by_band"]
        aside = SIDESTEP ** (number - (len(rows) - 1) / 2)
        middle = [aside * math.sqrt(band["from"] * (band["to"] + 1)) for band in bands]
        percent = [[100 * (band[key] - 1) for band in bands] for key in ("ratio", "low", "high")]
        errors = [[abs(end - mean) for end, mean in zip(ends, percent[0], strict=True)] for ends in percent[1:]]
        label = plain(f"{row['ckpt']} ({row['kind']}, reference {row['loss']:.3f})")
        axes.errorbar(middle, percent[0], yerr=errors, fmt=f"o{style}", markersize=4, capsize=3, label=label)
    for context in sorted({row["context"] for row in rows}):
        axes.axvline(context, color="0.3", linewidth=1)
    axes.axhline(0, **EVEN_STYLE | {"label": "as inside the training length"})
    edges = sorted({band["from"] for row in rows for band in row["by_band"]} | {longest})
    axes.set(
        xscale="log",
        xlabel="position in the window (tokens); the line is the training length",
        ylabel="loss against the reference (percent)",
        title="Loss beyond the training length, against the same tokens inside it",
    )
    axes.set_xticks(edges, [f"{edge:,}" for edge in edges])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _save_as_asked(plt, figure, path)


def _save_as_asked(plt, figure, path: Path) -> list[Path]:
    """Write a figure under its name, or without a suffix as a .png and an .svg of that name; returns the files."""
    paths = [path] if path.suffix else [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    return [save(plt, figure, one, close=one == paths[-1]) for one in paths]


def _draw_crossing(axes, crossing: dict, length: int) -> None:
    """A line at the crossing in a band from one end of its interval to the other."""
    low, high = crossing["interval"]
    axes.axvspan(low + 1, (length - 1 if high is None else high) + 1, color="0.85", zorder=0, label="95 % interval")
    words = f"from position {crossing['position']} on {crossing['of']} is below"
    axes.axvline(crossing["position"] + 1, color="0.3", linewidth=1, label=plain(words))


def draw_patterns(values: dict, path: Path) -> None:
    """Mean retrieval weight against distance from the object of `probe patterns`: a column a model, a row a layer."""
    plt = pyplot()
    rows = values["results"]
    panels = _panels(plt, max(row["heads"][-1]["layer"] for row in rows) + 1, len(rows))
    num_lines = max(_lines(row) for row in rows)
    for column, row in zip(panels.T, rows, strict=True):
        _draw_pattern(column, row, num_lines)
    lowest = min(x for axes in panels.flat for line in axes.lines for x in line.get_ydata() if x > 0)
    panels[0, 0].set_ylim(bottom=max(lowest / 2, FLOOR * min(min(row["even"]) for row in rows)))
    _finish(plt, panels, path)


def _lines(row: dict) -> int:
    """Heads of a layer, those of all its contextual memories."""
    return sum(head["layer"] == 0 for head in row["heads"])


def _draw_pattern(column, row: dict, num_lines: int) -> None:
    """One model into a column of panels, a layer each."""
    nearest, drawn = row["distances"][0], math.ceil(DRAWN * len(row["distances"]))
    shown = [d + 1 - nearest for d in row["distances"][:drawn]]  # attention's distance 0 has no place on a log axis
    for number, head in enumerate(row["heads"]):
        style = _head_style(number % _lines(row), num_lines)
        style["label"] = f"head {head['head']}" + ("" if head["memory"] == "ctx" else f", {head['memory']}")
        column[head["layer"]].plot(shown, head["mean_weight"][:drawn], **style)
    deepest = row["heads"][-1]["layer"]
    for layer in range(deepest + 1):
        column[layer].plot(shown, row["even"][:drawn], **EVEN_STYLE)
        column[layer].set_ylabel(f"layer {layer}: mean weight")
    column[0].set_title(plain(f"{row['ckpt']} ({row['kind']})"))
    column[deepest].tick_params(labelbottom=True)  # the neighbour may be deeper
    past = "distance (tokens; 1 is the pair stored just before)"
    column[deepest].set_xlabel(past if nearest else "distance + 1 (tokens; 1 is the token itself)")


def draw_slot_shares(values: dict, path: Path) -> None:
    """Share of a head's weight by rank of the slot, from the object of `probe memories`: a panel a layer."""
    plt = pyplot()
    layers = list(dict.fromkeys(head["layer"] for head in values["heads"]))
    panels = _panels(plt, len(layers), 1)
    for axes, layer in zip(panels[:, 0], layers, strict=True):
        for head in (head for head in values["heads"] if head["layer"] == layer):
            shares = sorted(head["mean_weight"], reverse=True)
            ranks = range(1, len(shares) + 1)
            axes.plot(ranks, shares, **_head_style(head["head"], values["heads"][-1]["head"] + 1))
        axes.axhline(1 / len(shares), **EVEN_STYLE)
        axes.set_ylabel(f"layer {layer}: share of weight")
        axes.set_ylim(bottom=FLOOR / len(shares))
    panels[0, 0].set_title(plain(f"Slots of {values['ckpt']} on {values['on']}, {values['positions']:,} positions"))
    panels[-1, 0].set_xlabel("rank of the slot in its head")
    _finish(plt, panels, path)


def pyplot():
    """matplotlib's pyplot, drawing into files only."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _panels(plt, rows: int, columns: int):
    """Axes (rows, columns) with logarithmic, shared scales."""
    size = (max(7, 4.5 * columns), 0.8 + 2.6 * rows)
    shared = {"sharex": "col", "sharey": True, "squeeze": False}
    _, panels = plt.subplots(rows, columns, figsize=size, layout="constrained", **shared)
    for axes in panels.flat:
        axes.set(xscale="log", yscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
    return panels


def _head_style(head: int, num_heads: int) -> dict:
    """Line of a head: its lightness and its dashes both tell it apart, so that grey is enough."""
    import matplotlib

    color = matplotlib.colormaps["viridis"](0.85 * head / max(num_heads - 1, 1))
    return {
        "color": color,
        "linestyle": LINE_STYLES[head % len(LINE_STYLES)],
        "linewidth": 1.3,
        "label": f"head {head}",
    }


def plain(text: str) -> str:
    """Text of the user's as matplotlib shows it unchanged: a dollar would begin mathematics."""
    return text.replace("$", r"\$")


def save(plt, figure, path: Path, close: bool = True) -> Path:
    """Write a figure, the same bytes for the same figure; a .png has 150 dpi."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with plt.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    if close:
        plt.close(figure)
    return path


def _finish(plt, panels, path: Path) -> None:
    """One legend for all panels, hide those without lines, and save."""
    legend: dict[str, object] = {}
    for axes in panels.flat:
        handles, labels = axes.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
        axes.set_visible(bool(handles))
    figure = panels[0, 0].figure
    legend[EVEN_STYLE["label"]] = legend.pop(EVEN_STYLE["label"])  # last
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=min(len(legend), 7), frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
