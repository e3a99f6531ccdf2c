"""Figures of the three moons. matplotlib is imported only when something is drawn."""

from pathlib import Path

from numpy import ndenumerate

from mosaic_cli.probes.moons import HELD_OUT, TRIPLES, Demonstration, Measurement, Triple

SHOWN_TRIPLES = (7, HELD_OUT)  # a training triple and the held-out one: both wait long for the joint period 6
PERIOD_STYLES = (":", "-.", "--")  # of the single periods, rising; the joint one is drawn through
MAPS = (r"$W_\varphi$ (keys)", r"$W_\psi$ (values)", r"$W_z$ (output)")


def draw(measurements: list[Measurement], demonstrations: list[Demonstration], shown: int, folder: Path) -> None:
    """Write four figures into the folder, each as .png and .svg: orbits, errors, retrieval and matrices.

    The demonstrations and the matrices are those of the seed with the index `shown`.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figures = {
        "orbits": _orbits(demonstrations),
        "errors": _errors(measurements),
        "retrieval": _retrieval(demonstrations),
        "matrices": _matrices(measurements, shown),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150, pil_kwargs={"optimize": True})
        figure.set_layout_engine("none")  # what is laid out stays so: finding places is most of the time
        figure.savefig(folder / f"{name}.svg")
        plt.close(figure)


def _orbits(demonstrations: list[Demonstration]):
    """Sine of each moon's angle against time: a row for each moon, a column for each number of heads."""
    figure, grid = _grid(3, len(demonstrations), (4.5, 1.5), sharex=True, sharey=True)
    for column, one in enumerate(demonstrations):
        times = [position / one.rate for position in range(len(one.truth))]
        for moon, axes in enumerate(grid[:, column]):
            axes.plot(times, one.truth[:, 2 * moon].numpy(), color="0.75", linewidth=4, label="true")
            axes.plot(times[1:], one.predicted[:, 2 * moon].numpy(), "C0:", linewidth=1.2, label="teacher-forced")
            axes.plot(times[one.prefix :], one.free[:, 2 * moon].numpy(), "k-", linewidth=0.9, label="free-running")
            axes.axvline(one.prefix / one.rate, color="k", linewidth=0.8)
            axes.set(ylabel=f"sine, period {TRIPLES[HELD_OUT].periods[moon]:g}", ylim=(-1.4, 1.4))
            axes.label_outer()
        grid[0, column].set_title(f"{_heads(one.num_heads)}; free-running from the vertical line")
        grid[-1, column].set(xlabel="time (units)", xlim=(0, times[-1]))
    _legend_below(figure, grid[0, 0])
    return figure


def _errors(measurements: list[Measurement]):
    """Error against the length of the context, on a training triple and on the held-out one."""
    figure, grid = _grid(1, len(SHOWN_TRIPLES), (4.5, 3.2), sharey=True)
    for axes, index in zip(grid[0], SHOWN_TRIPLES, strict=True):
        triple = TRIPLES[index]
        for one, style in zip(measurements, ("-", "--"), strict=True):
            curves = one.curves[:, index].numpy()  # (S, T)
            times = [position / one.rate for position in range(curves.shape[1])]
            (line,) = axes.plot(times, curves.mean(axis=0), style, linewidth=1.3, label=_heads(one.num_heads))
            axes.fill_between(times, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.2, lw=0)
        _mark_periods(axes, triple)
        kind = "held-out" if index == HELD_OUT else "training"
        axes.set(
            xlabel="length of the context (units of time)",
            title=f"{kind} triple {', '.join(f'{period:g}' for period in triple.periods)}",
            yscale="log",
            xlim=(0, times[-1]),
        )
        axes.legend(fontsize=8)
    grid[0, 0].set_ylabel("mean absolute error (band: all seeds)")
    return figure


def _retrieval(demonstrations: list[Demonstration]):
    """Weight of each stored pair at the last position, against how long ago it was stored: a panel for each head."""
    panels = [(one, head) for one in demonstrations for head in range(one.num_heads)]
    figure, grid = _grid(len(panels), 1, (8, 1.5), sharex=True)
    for axes, (one, head) in zip(grid[:, 0], panels, strict=True):
        weights = one.weights[head].numpy()
        ago = [(len(weights) - position) / one.rate for position in range(len(weights))]
        axes.plot(ago, weights, "k-", linewidth=1)
        axes.set(ylabel="weight", ylim=(0, None))
        axes.set_title(f"{_heads(one.num_heads)}, head {head + 1}", fontsize=9, loc="left")
        _mark_periods(axes, TRIPLES[HELD_OUT])
    grid[-1, 0].set(xlabel="age of the stored pair (units of time)", xlim=(0, ago[0]))
    _legend_below(figure, grid[0, 0])
    return figure


def _matrices(measurements: list[Measurement], shown: int):
    """Moduli of the three complex matrices of one seed: a row for each number of heads."""
    figure, grid = _grid(len(measurements), 3, (2.6, 2.6))
    for row, one in zip(grid, measurements, strict=True):
        for axes, matrix, name in zip(row, one.matrices[shown].abs().numpy(), MAPS, strict=True):
            axes.imshow(matrix, cmap="Greys", vmin=0)
            for (i, j), value in ndenumerate(matrix):
                colour = "white" if value > matrix.max() / 2 else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
            _label_map(axes, name, _heads(one.num_heads))
    return figure


def _label_map(axes, name: str, heads: str) -> None:
    units, moons = "head unit", "moon"
    from_heads = name == MAPS[-1]
    axes.set(
        title=f"{name}, {heads}",
        xlabel=units if from_heads else moons,
        ylabel=moons if from_heads else units,
        xticks=range(3),
        yticks=range(3),
        xticklabels=range(1, 4),
        yticklabels=range(1, 4),
    )
    axes.title.set_fontsize(9)


def _mark_periods(axes, triple: Triple) -> None:
    for period, style in zip(triple.periods, PERIOD_STYLES, strict=True):
        axes.axvline(period, color="0.45", linestyle=style, linewidth=1, zorder=0, label=f"single period {period:g}")
    axes.axvline(triple.joint, color="0.45", linewidth=1.6, zorder=0, label=f"joint period {triple.joint:g}")


def _grid(rows: int, columns: int, panel: tuple[float, float], **shared: bool):
    from matplotlib import pyplot as plt

    size = (columns * panel[0], rows * panel[1] + 0.6)
    return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **shared)


def _legend_below(figure, axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _heads(count: int) -> str:
    return "one head" if count == 1 else "three heads"
