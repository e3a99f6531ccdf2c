"""The only place that draws: results on stdout, everything else on stderr."""

import json
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.tree import Tree

from mosaic_cli.errors import MosaicError

PLAIN_INTERVAL = 10.0  # seconds between progress lines when stderr is not a terminal
WHOLE = 20  # characters: a narrower column of a table is not folded, if there is room
NARROWEST = 8  # that others become for its sake
PLAIN_WIDTH = 1000  # a table in a file or pipe is as wide as it needs to be

Branch = tuple[str, "list[Branch]"]  # a label of a tree, and what hangs below it

out = Console(soft_wrap=True, highlight=False, emoji=False)
wide_out = Console(soft_wrap=True, highlight=False, emoji=False, width=PLAIN_WIDTH)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def note(text: str) -> None:
    """One line of news on stderr."""
    err.print(f"[dim]{escape(text)}[/dim]")


def warn(text: str) -> None:
    """A warning on stderr that cannot be missed."""
    err.print(f"[bold yellow]WARNING[/bold yellow] {escape(text)}")


def result(text: str) -> None:
    """A plain line on stdout."""
    print(text, flush=True)


def stream(text: str) -> None:
    """Text on stdout at once and as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()


def print_json(schema: str, values: dict[str, Any]) -> None:
    """The one JSON object of a command that was given `--json`."""
    print(json.dumps({"schema": schema, **values}, ensure_ascii=False, allow_nan=False), flush=True)


def print_table(
    title: str, columns: Iterable[str], rows: Iterable[Iterable[object]], caption: str | None = None, texts: int = 1
) -> None:
    """A table on stdout; the first `texts` columns hold text, the others numbers. Where it is too wide, columns of long
    cells are folded, so that names and numbers stay whole; all are, if that is not enough."""
    console = out if out.is_terminal else wide_out
    below = textwrap.fill(caption or "", console.width)  # the console's soft wrap would break words
    table = Table(title=escape(title), title_justify="left", caption=escape(below), caption_justify="left")
    columns, rows = list(columns), [[str(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    whole = [width <= WHOLE for width in widths]
    room = console.width - sum(width if keep else NARROWEST for width, keep in zip(widths, whole, strict=True))
    for index, (column, keep) in enumerate(zip(columns, whole, strict=True)):
        fits = keep and room >= 3 * len(columns) + 1  # what is drawn between columns and around them
        table.add_column(escape(column), justify="left" if index < texts else "right", overflow="fold", no_wrap=fits)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def print_tree(title: str, branches: Iterable[Branch]) -> None:
    """A tree on stdout, from nested (label, branches)."""
    tree = Tree(escape(title))
    _grow(tree, branches)
    (out if out.is_terminal else wide_out).print(tree, soft_wrap=False)  # else its last line would not end


def _grow(tree: Tree, branches: Iterable[Branch]) -> None:
    for label, below in branches:
        _grow(tree.add(escape(label)), below)


def print_error(error: BaseException, as_json: bool, debug: bool) -> int:
    """Tell of an error and return the exit code."""
    known = isinstance(error, MosaicError)
    message = error.message if known else f"{type(error).__name__}: {error}"
    hint = error.hint if known else "This is unexpected. Run it again with --debug to see where it happened."
    where = error.where if known else None
    if debug:
        traceback.print_exception(error)
    if as_json:
        print_json("mosaic.error/1", {"error": {"message": message, "hint": hint, "where": where}})
    else:
        err.print(f"[bold red]error:[/bold red] {escape(message)}")
        if where:
            err.print(f"  [dim]at[/dim] {escape(where)}")
        if hint:
            err.print(f"  [dim]next:[/dim] {escape(hint)}")
    return error.exit_code if known else 1


def debugging() -> bool:
    """Whether the user asked for tracebacks."""
    return "--debug" in sys.argv or os.environ.get("MOSAIC_DEBUG") == "1"


class Bar:
    """A progress bar on a terminal; elsewhere a plain line now and then. Use as a context manager."""

    def __init__(self):
        self._progress = (
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[extra]}"),
                console=err,
                transient=True,
            )
            if err.is_terminal
            else None
        )
        self._tasks: dict[str, Any] = {}
        self._last = time.monotonic()

    def __enter__(self) -> "Bar":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def update(self, name: str, done: float, total: float | None, extra: str = "") -> None:
        """Show that `done` of `total` is reached in the phase `name`."""
        if self._progress:
            if name not in self._tasks:
                for earlier in self._tasks.values():  # phases follow each other
                    self._progress.update(earlier, total=1, completed=1)
                self._tasks[name] = self._progress.add_task(name, total=total, extra="")
            self._progress.update(self._tasks[name], completed=done, total=total, extra=extra)
        elif time.monotonic() - self._last > PLAIN_INTERVAL:
            self._last = time.monotonic()
            share = f" {100 * done / total:.0f}%" if total else ""
            err.print(escape(f"{name}{share} {extra}"))


class TrainingDisplay:
    """A live line while training on a terminal; elsewhere a plain line now and then and at each validation."""

    def __init__(self, max_steps: int):
        self._max_steps = max_steps
        self._live = Live(console=err, refresh_per_second=4, transient=True) if err.is_terminal else None
        self._last = time.monotonic()
        self._first: Any = None  # report of the first step, after which the clock runs: it may compile and warm up
        self._started = 0.0

    def __enter__(self) -> "TrainingDisplay":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, report: Any) -> None:
        """Draw one StepReport."""
        if self._first is None:
            self._first, self._started = report, time.monotonic()
        if self._live:
            self._live.update(self._line(report))
        elif time.monotonic() - self._last > PLAIN_INTERVAL and report.validation is None:
            self._print(self._line(report))
        if report.validation is not None:
            best = ", the best so far" if report.is_best else ""
            self._print(f"step {report.step}: validation loss {report.validation.loss:.4f}{best}")
            if report.sample:
                self._print(f"  sample: {report.sample}")

    def _print(self, text: str) -> None:
        self._last = time.monotonic()
        err.print(escape(text))

    def _line(self, report: Any) -> str:
        steps = report.step - self._first.step
        line = f"step {report.step}/{self._max_steps}  loss {report.loss:.4f}"
        if not steps:
            return line
        elapsed = time.monotonic() - self._started
        left = elapsed / steps * (self._max_steps - report.step)
        clock = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
        speed = (report.tokens - self._first.tokens) / elapsed
        return f"{line}  {speed:,.0f} tokens/s  {format_seconds(left)} left, done at {clock}"


def format_seconds(seconds: float) -> str:
    """A duration for people: 42 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def format_bytes(count: float) -> str:
    """A size for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
