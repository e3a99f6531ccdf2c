"""Figures of a study: loss by step, and the figures it reports by the first numeric key that it varies."""

from pathlib import Path
from typing import Any

from mosaic_cli.commands.figures import LINE_STYLES, plain, pyplot, save
from mosaic_cli.studies.study import KIND
from mosaic_cli.studies.tables import short

MARKERS = ("o", "s", "^", "D", "v", "P")  # with the dashes and the lightness they tell lines apart in grey too
PANELS_A_ROW = 4
CARRIED = "mosaic at the transformer's {}"
SIDESTEP = 0.015  # of the drawn width between lines, so that equal points do not hide each other


def draw_study(results: dict[str, Any], folder: Path) -> list[Path]:
    """Draw NAME-curves and NAME-figures into a folder, each as .png and .svg; returns the files."""
    plt = pyplot()
    draw = {"curves": _draw_curves, "figures": _draw_figures}
    files = []
    for what in drawings(results):
        figure = draw[what](plt, results)
        for suffix in (".png", ".svg"):
            files.append(save(plt, figure, folder / f"{results['name']}-{what}{suffix}", close=suffix == ".svg"))
    return files


def drawings(results: dict[str, Any]) -> dict[str, str]:
    """What is drawn of a study, in a word and in words. A single cell has no other to be compared with."""
    words = {"curves": "loss by step", "figures": "figures with intervals"}
    return words if len(results["cells"]) > 1 else {"curves": words["curves"]}


def _draw_curves(plt, results: dict[str, Any]):
    """Validation loss by step: a line a cell, its mean over seeds in a band from the lowest to the highest seed."""
    panels: dict[str, list[dict]] = {}
    for cell in results["cells"]:
        others = {key: value for key, value in cell["values"].items() if key != KIND}
        together = KIND not in cell["values"]  # nothing to set side by side: all in one panel
        panels.setdefault("" if together else _words(others), []).append(cell)
    rows, columns = -(-len(panels) // PANELS_A_ROW), min(len(panels), PANELS_A_ROW)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(6, 3.2 * columns), 3.4 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, title in zip(axes.flat, panels, strict=False):
        for number, cell in enumerate(panels[title]):
            _draw_curve(panel, results, cell, _style(number, len(panels[title])))
        panel.set(title=plain(title), xlabel="step")
        panel.grid(alpha=0.3)
    for panel in list(axes.flat)[len(panels) :]:
        panel.set_visible(False)
    for row in axes:
        row[0].set_ylabel("validation loss (nats per token)")
    _title(figure, results, "band from the lowest to the highest seed")
    _legend(figure, axes)
    return figure


def _draw_curve(panel, results: dict[str, Any], cell: dict, style: dict) -> None:
    chosen = [run for run in results["runs"] if run["cell"] == cell["label"] and run["tuned"] == cell["tuned"]]
    curves = [run["curve"] for run in chosen if not run["diverged"]]
    if not curves:
        return
    steps = curves[0]["steps"]
    losses = list(zip(*(curve["val_loss"] for curve in curves), strict=True))
    panel.fill_between(steps, list(map(min, losses)), list(map(max, losses)), color=style["color"], alpha=0.25, lw=0)
    label = str(cell["values"].get(KIND, cell["label"] or "all"))
    panel.plot(steps, [sum(some) / len(some) for some in losses], label=plain(label), **style)


def _draw_figures(plt, results: dict[str, Any]):
    """Each reported figure with its interval: against the first numeric axis, else a row a cell."""
    figures = results["figures"]
    numeric = _numeric_axis(results)
    rows, columns = -(-len(figures) // PANELS_A_ROW), min(len(figures), PANELS_A_ROW)
    size = (max(7, 5 * columns), rows * (4.2 if numeric else 1.6 + 0.35 * len(results["cells"])))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for panel, one in zip(axes.flat, figures, strict=False):
        (_draw_by if numeric else _draw_rows)(panel, results, one, numeric)
        panel.grid(alpha=0.3)
    for panel in list(axes.flat)[len(figures) :]:
        panel.set_visible(False)
    _title(figure, results, f"mean of {len(results['study']['seeds'])} seeds, 95 % interval")
    _legend(figure, axes)
    return figure


def _draw_by(panel, results: dict[str, Any], figure: dict, axis: str) -> None:
    lines: dict[str, list[tuple]] = {}
    published: dict[str, list[tuple]] = {}
    for cell in results["cells"]:
        name = _words({key: value for key, value in cell["values"].items() if key != axis}) or "all"
        lines.setdefault(name, []).append((cell["values"][axis], cell["figures"][figure["key"]]))
        if figure["key"] in cell["published"]:
            published.setdefault(name, []).append((cell["values"][axis], cell["published"][figure["key"]]))
    for one in results["differences"] if results["study"]["tune"] else []:
        others = _words({key: value for key, value in one["values"].items() if key != axis})
        tuned = " and ".join(short(key).replace("_", " ") for key in results["study"]["tune"])
        words = " ".join(filter(None, [CARRIED.format(tuned), others]))
        found = one["carried_over"]["figures"][figure["key"]]
        lines.setdefault(words, []).append((one["values"][axis], found))
    values = sorted({cell["values"][axis] for cell in results["cells"]})
    for number, (name, points) in enumerate(lines.items()):
        style = _style(number, len(lines))
        aside = SIDESTEP * (number - (len(lines) - 1) / 2)
        known = [(_aside(x, values, aside), found) for x, found in points if found["mean"] is not None]
        means = [found["mean"] for _, found in known]
        panel.errorbar([x for x, _ in known], means, yerr=_errors(known), label=plain(name), capsize=3, **style)
        if name in published:
            hollow = style | {"linestyle": "none", "markerfacecolor": "white", "markersize": 8}
            panel.plot(*zip(*published[name], strict=True), label=plain(f"{name}, published"), **hollow)
    if values[0] > 0:
        panel.set_xscale("log")
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.minorticks_off()
    panel.set(xlabel=short(axis).replace("_", " "), ylabel=f"{figure['words']} ({figure['unit']})")


def _aside(x: float, values: list[float], share: float) -> float:
    """x, moved by a share of the axis that these values span, which is logarithmic where all are positive."""
    low, high = values[0], values[-1]
    return x * (high / low) ** share if low > 0 else x + share * (high - low)


def _draw_rows(panel, results: dict[str, Any], figure: dict, _: None) -> None:
    cells = results["cells"]
    for place, cell in enumerate(cells):
        found = cell["figures"][figure["key"]]
        if found["mean"] is not None:
            panel.errorbar([found["mean"]], [place], xerr=_errors([(0, found)]), capsize=3, **_style(0, 1))
        if figure["key"] in cell["published"]:
            hollow = {"markerfacecolor": "white", "color": "0.3", "linestyle": "none", "label": "published"}
            panel.plot([cell["published"][figure["key"]]], [place], "o", **hollow)
    panel.set_yticks(range(len(cells)), [plain(cell["label"] or "all") for cell in cells])
    panel.set_ylim(len(cells) - 0.5, -0.5)  # the first on top, room for all, with a value or without
    if figure["unit"] == "share":  # an interval of few seeds may go where no share does
        low, high = panel.get_xlim()
        panel.set_xlim(max(low, -0.05), min(high, 1.05))
    panel.locator_params(axis="x", nbins=5)
    panel.set_xlabel(f"{figure['words']} ({figure['unit']})")


def _errors(points: list[tuple[Any, dict]]) -> list[list[float]]:
    """Lengths below and above the means; none with a single seed."""
    known = [found for _, found in points]
    return [
        [0 if one["low"] is None else one["mean"] - one["low"] for one in known],
        [0 if one["high"] is None else one["high"] - one["mean"] for one in known],
    ]


def _numeric_axis(results: dict[str, Any]) -> str | None:
    for key in results["cells"][0]["values"]:
        values = [cell["values"][key] for cell in results["cells"]]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return key
    return None


def _words(values: dict[str, Any]) -> str:
    """`num_layers 2`; a word alone says what it is: `mosaic`."""
    return ", ".join(value if isinstance(value, str) else f"{short(key)} {value}" for key, value in values.items())


def _title(figure, results: dict[str, Any], seeds: str) -> None:
    """The study's name, and in words what is drawn of its seeds where there are several."""
    words = seeds if len(results["study"]["seeds"]) > 1 else "one seed"
    figure.suptitle(plain(f"{results['name']}: {words}"), fontsize="medium")


def _style(number: int, count: int) -> dict[str, Any]:
    import matplotlib

    return {
        "color": matplotlib.colormaps["viridis"](0.8 * number / max(count - 1, 1)),
        "linestyle": LINE_STYLES[number % len(LINE_STYLES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4,
    }


def _legend(figure, axes) -> None:
    """One legend for all panels."""
    legend: dict[str, object] = {}
    for panel in axes.flat:
        handles, labels = panel.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    if legend:
        figure.legend(legend.values(), legend, loc="outside lower center", ncols=min(len(legend), 3), frameon=False)
