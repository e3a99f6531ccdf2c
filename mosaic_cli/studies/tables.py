"""A study's results as tables of text, for a terminal and for the pages alike."""

from typing import Any, NamedTuple


class Table(NamedTuple):
    """The first `texts` columns hold text, the others numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    caption: str
    texts: int


def study_tables(results: dict[str, Any]) -> list[Table]:
    """The cells; mosaic minus transformer, where both kinds are there; and the sweep, where something is tuned."""
    tables = [_cells(results)]
    if results["differences"]:
        tables.append(_differences(results))
    if results["sweep"]:
        tables.append(_sweep(results))
    return tables


def provenance(results: dict[str, Any]) -> list[str]:
    """Where the numbers come from: command, seeds, machine, data, published source; a sentence each."""
    study = results["study"]
    lines = [
        f"Command: `{' '.join(results['command'])}`.",
        f"Seeds: {', '.join(map(str, study['seeds']))}.",
        f"Machine: {' / '.join(results['machines'])}; torch {', '.join(results['torch'])}"
        + (f"; commit {', '.join(commit[:10] for commit in results['commits'])}." if results["commits"] else "."),
        f"Data: {', '.join(results['data'])}.",
        *(f"NOT the data that the recipe names: {reason}." for reason in results["fallbacks"]),
    ]
    if study["published"]:
        lines.append(f"Published: {study['published']['source']}.")
        lines += [study["published"]["note"]] if study["published"]["note"] else []
    return lines


def short(key: str) -> str:
    """A dotted recipe key as people say it: its last part."""
    return key.rpartition(".")[2]


def tuned_words(tuned: dict[str, Any] | None) -> str:
    """Chosen values of tuned keys: `0.002`, or with several keys `learning_rate 0.002, dropout 0.1`."""
    if tuned is None:
        return "all diverged"
    if len(tuned) == 1:
        return _number(*tuned.values())
    return ", ".join(f"{short(key)} {_number(value)}" for key, value in tuned.items())


def _cells(results: dict[str, Any]) -> Table:
    figures, tuned = results["figures"], list(results["study"]["tune"])
    published = [figure for figure in figures if any(figure["key"] in cell["published"] for cell in results["cells"])]
    axes, reach = list(results["cells"][0]["values"]), results["study"].get("reach")
    several = len(results["study"]["seeds"]) > 1
    rows = []
    for cell in results["cells"]:
        edge = " (edge)" if cell["at_edge"] else ""
        row = [_number(value) for value in cell["values"].values()]
        row += [f"{cell['parameters']:,}"] + ([tuned_words(cell["tuned"]) + edge] if tuned else [])
        for found in (cell["figures"][figure["key"]] for figure in figures):
            row += [_with_interval(found), *([_plain(found["sd"])] if several else [])]
        row += [f"{cell['seeds']}" + (f", {cell['diverged']} diverged" if cell["diverged"] else "")]
        if reach is not None:
            row += [_steps(cell["steps_to_reach"], cell["seeds"])]
        row += ["" if cell["seconds"] is None else f"{cell['seconds']:,.0f}"]
        row += [_plain(cell["published"].get(figure["key"])) for figure in published]
        rows.append(row)
    spread = ["sd"] if several else []
    heads = [name for figure in figures for name in (f"{figure['words']} ({figure['unit']})", *spread)]
    columns = [*map(short, axes), "parameters", *([", ".join(map(short, tuned))] if tuned else [])]
    reached = [] if reach is None else [f"steps to a validation loss of {_number(reach)}"]
    columns += [*heads, "seeds", *reached, "seconds a run", *(f"published {figure['name']}" for figure in published)]
    how = "each cell with the values that suit it best" if tuned else "every cell"
    caption = "± is half of Student's 95 % interval over seeds, sd the standard deviation between them."
    if not several:
        caption = "One seed, so there is no interval."
    if any(cell["at_edge"] for cell in results["cells"]):
        caption += " (edge): the best value is at the end of those tried; a better one may lie beyond."
    return Table(f"{results['name']}: {how}", columns, rows, caption, len(axes))


def _differences(results: dict[str, Any]) -> Table:
    figures = results["figures"]
    axes = list(results["differences"][0]["values"])
    tuned = bool(results["study"]["tune"])
    rows = []
    for one in results["differences"]:
        row = [_number(value) for value in one["values"].values()]
        row += [_signed(one["tuned_for_each"][figure["key"]]) for figure in figures]
        if tuned:
            carried = one["carried_over"]
            row += [tuned_words(carried["tuned"])]
            for key in (figure["key"] for figure in figures):
                row += [_with_interval(carried["figures"][key]), _signed(carried["differences"][key])]
        row += [_signed(one["val_loss_at_equal_time"]), _plain(one["seconds_ratio"]["mean"], 2)]
        rows.append(row)
    columns = [*map(short, axes), *(f"{figure['name']}{', tuned for each' if tuned else ''}" for figure in figures)]
    caption = "Paired by seed, ± as above." if len(results["study"]["seeds"]) > 1 else "Of one seed."
    if tuned:
        columns.append("carried over")
        for name in (figure["name"] for figure in figures):
            columns += [f"{name} of the mosaic with it", f"{name}, difference with it"]
        caption += " Carried over: the mosaic with the value that suits the transformer best, as in the paper."
    columns += ["validation loss at equal time", "ratio of wall times"]
    caption += (
        " At equal time: when the faster one has ended, while the slower one's learning rate is still on its way down."
    )
    return Table(f"{results['name']}: mosaic minus transformer", columns, rows, caption, len(axes))


def _sweep(results: dict[str, Any]) -> Table:
    columns = list(dict.fromkeys(tuned_words(one["tuned"]) for one in results["sweep"]))
    rows = []
    for cell in results["cells"]:
        found = {tuned_words(one["tuned"]): one for one in results["sweep"] if one["label"] == cell["label"]}
        rows.append([cell["label"] or "all", *(_swept(found[column]) for column in columns)])
    keys = ", ".join(map(short, results["study"]["tune"]))
    caption = f"Lowest validation loss of seed {results['study']['seeds'][0]}; * marks the one that was chosen."
    return Table(f"{results['name']}: the sweep over {keys}", ["", *columns], rows, caption, 1)


def _steps(found: dict[str, Any], runs: int) -> str:
    if not found["n"]:
        return "not reached"
    return f"{found['mean']:,.0f}" + (f" ({found['n']} of {runs} runs)" if found["n"] < runs else "")


def _swept(one: dict[str, Any]) -> str:
    return "diverged" if one["val_loss"] is None else f"{one['val_loss']:.4f}{' *' if one['chosen'] else ''}"


def _with_interval(found: dict[str, Any], sign: str = "") -> str:
    if found["mean"] is None:
        return "none"
    mean = f"{found['mean']:{sign}.4f}"
    return mean if found["low"] is None else f"{mean} ± {(found['high'] - found['low']) / 2:.4f}"


def _signed(found: dict[str, Any]) -> str:
    return _with_interval(found, "+")


def _plain(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
