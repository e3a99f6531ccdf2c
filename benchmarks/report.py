"""What was measured, as tables (on stdout and in docs/performance.md) and as one figure."""

from collections.abc import Iterable
from pathlib import Path

from mosaic_cli.commands.markdown import write_between

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "performance.md"
FIGURE = DOCS / "figures" / "performance"
COMMAND = "python -m benchmarks.run --page"
GPU_COMMAND = "python -m benchmarks.gpu --page"
COLOURS = {
    "mosaic": "#c1440e",
    "mosaic v2": "#e0983a",
    "transformer": "#2b5d8a",
    "transformers GPT-2": "#6b9e3f",
    "x-transformers": "#8a6fae",
}
SHORT = {"transformers GPT-2": "GPT-2"}
Row = dict[str, object]


def write_table(results: dict, into_page: bool) -> None:
    """Print the tables; with `into_page` also put them between the page's marks."""
    text = "\n\n".join(_tables(results))
    print(text)
    if into_page:
        write_between(PAGE, COMMAND, text)


def _tables(results: dict) -> Iterable[str]:
    machine, rows = results["machine"], results["rows"]
    limits = ", ".join(
        f"{name.replace('_flops', ' products').replace('_bytes', ' (read and written)')} {rate / 1e9:,.1f} G/s"
        for name, rate in machine["limits"].items()
    )
    yield (
        f"{machine['device']}, {machine['threads']} threads, {machine['dtype']}, prompts and decoding in "
        f"{machine['decoding_dtype']}, torch {machine['torch']}. Limits in the last run: {limits}."
    )
    for name in results["missing"]:
        yield f"**{name} was not installed and not measured.**"
    timed = [row for row in rows if "seconds" in row]
    for part, title in (
        ("train", "Training, prefill and decoding at the sizes' own shapes"),
        ("length", "Time with the window's length"),
        ("stored", "Decoding with what is stored"),
        ("batch", "With the batch"),
    ):
        shown = [
            row for row in timed if row["part"] in (("train", "prefill", "decode") if part == "train" else (part,))
        ]
        if shown:
            yield f"{title}:"
            yield _speed_table(shown)
    if has_growth(results):
        yield f"![Growth of time and memory](figures/{FIGURE.name}.png)"
    held = [row for row in rows if "peak_memory_bytes" in row]
    if held:
        yield "Peak memory, each in a process of its own:"
        yield _memory_table(held)


def _speed_table(rows: list[Row]) -> str:
    others = [name for name in COLOURS if "mosaic" not in name and any(row["system"] == name for row in rows)]
    head = ["workload", "size", "T", "batch", "system", "parameters", "tokens/s", "of the limit"]
    head += [f"x {SHORT.get(name, name)}" for name in others]
    lines = (
        [
            *_who(row),
            f"{row['parameters']:,}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['share_of_limit']:.0%}",
            *(_ratio(row["ratio_to"], name) for name in others),
        ]
        for row in rows
    )
    return _markdown(head, 2, lines)


def _memory_table(rows: list[Row]) -> str:
    head = ["workload", "size", "T", "batch", "system", "MB", "x transformer"]
    lines = ([*_who(row), f"{row['peak_memory_bytes'] / 1e6:,.0f}", _ratio(row["memory_ratio_to"], "transformer")]
        for row in rows)  # fmt: skip
    return _markdown(head, 2, lines)


def _who(row: Row) -> list[str]:
    return [row["workload"], row["model"], f"{row['T']:,}", str(row["batch"]), row["system"]]


def _ratio(ratios: dict[str, float], name: str) -> str:
    return f"{ratios[name]:.2f}" if name in ratios else ""


def _markdown(head: list[str], texts: int, lines: Iterable[list[str]]) -> str:
    rule = ["---" if column < texts or name == "system" else "---:" for column, name in enumerate(head)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def write_gpu_tables(report: dict) -> None:
    """Put what `benchmarks.gpu` measured between the page's marks."""
    rows = {what: [row for row in report["rows"] if row["what"].startswith(what)] for what in ("train", "decode")}
    kernels = [row for row in report["rows"] if "forward_share_of_copy" in row]
    (matrix, *_), (copy, *_) = (
        [row[name] for row in report["rows"] if name in row] for name in ("operations_per_second", "bytes_per_second")
    )
    train = (
        [
            row["system"],
            f"{row['T']:,} x {row['batch']}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['share_of_matrix_rate']:.0%}",
            f"{row['ratio_to_transformer']:.2f}",
        ]
        for row in rows["train"]
    )
    decode = (
        [
            row["system"],
            str(row["batch"]),
            f"{row['from']:,} to {row['to']:,}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['ratio_to_transformer']:.2f}",
        ]
        for row in rows["decode"]
    )
    moved = (
        [
            row["what"].removeprefix("kernel of "),
            f"{row['T']:,} x {row['batch']}",
            *(
                f"{row[f'{way}_seconds'] * 1e6:.0f} us, {row[f'{way}_share_of_copy']:.0%}"
                for way in ("forward", "backward")
            ),
        ]
        for row in kernels
    )
    text = [
        f"{report['device']}, torch {report['torch']}, bfloat16. Product of two matrices of side 8,192: "
        f"{matrix / 1e12:.0f} TFLOP/s; copy of 1 GB, read and written: {copy / 1e12:.2f} TB/s.",
        "Training at 124 M:",
        _markdown(["system", "T x windows", "tokens/s", "of the matrix rate", "x transformer"], 2, train),
        "Decoding at 124 M:",
        _markdown(["system", "texts", "behind", "tokens/s", "x transformer"], 3, decode),
        "Kernels, and the bytes that must move as a share of what copying reaches:",
        _markdown(["of", "T x windows", "forward", "backward"], 2, moved),
    ]
    write_between(PAGE, GPU_COMMAND, "\n\n".join(text))


def has_growth(results: dict) -> bool:
    """Whether there are rows for every panel of the figure."""
    return {"length", "stored"} <= {row["part"] for row in results["rows"]}


def write_figure(results: dict) -> None:
    """Growth in four panels: training and prefill with T, decoding with what is stored, memory of training with T."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    rows = results["rows"]
    figure, panels = plt.subplots(1, 4, figsize=(15, 4), layout="constrained")
    for panel, title, part, workload, key, unit in (
        (panels[0], "training, one window", "length", "train", "seconds", "ms a token"),
        (panels[1], "reading a prompt", "length", "prefill", "seconds", "ms a token"),
        (panels[2], "decoding, one text", "stored", "decode", "seconds", "ms a token"),
        (panels[3], "peak memory of training", "length", "train", "peak_memory_bytes", "MB"),
    ):
        for name, colour in COLOURS.items():
            own = [r for r in rows if (r["part"], r["workload"], r["system"]) == (part, workload, name) and key in r]
            values = [1e3 / r["tokens_per_second"] if key == "seconds" else r[key] / 1e6 for r in own]
            panel.plot([r["T"] for r in own], values, marker="o", ms=4, color=colour, label=name)
        panel.set(title=title, yscale="log", ylabel=unit)
        panel.set_xscale("log", base=2)
        for axis in (panel.xaxis, panel.yaxis):  # 4096, not 2 to the 12th
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("{x:g}")
        panel.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))  # all would overlap
        panel.tick_params(which="both", labelsize=8)
        panel.set_xlabel("tokens stored" if part == "stored" else "T")
        panel.grid(alpha=0.3, which="both")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(COLOURS), fontsize=9)
    for ending in ("png", "svg"):
        figure.savefig(f"{FIGURE}.{ending}", dpi=110)
    plt.close(figure)
