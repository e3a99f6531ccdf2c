"""Registers the commands and turns errors into exit codes; nothing else. Loads neither torch nor datasets."""

import errno
import signal
import sys
from typing import Annotated

import typer

from mosaic_cli import __version__
from mosaic_cli.commands import compare, display, evaluate, generate, prepare, train
from mosaic_cli.commands.probes import probe
from mosaic_cli.errors import Interrupted, MosaicError, UsageError

INTERRUPTED = 128 + signal.SIGINT

app = typer.Typer(
    help="Memory Mosaics: prepare text, train, evaluate, generate, and look inside.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing the help with rich takes longer than everything else that --help does
)
app.command(name="prepare", epilog=prepare.EPILOG)(prepare.prepare)
app.command(name="train", epilog=train.EPILOG)(train.train)
app.command(name="eval", epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command(name="compare", epilog=compare.EPILOG)(compare.compare)
app.command(name="generate", epilog=generate.EPILOG)(generate.generate)
app.add_typer(probe, name="probe")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"mosaic {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line and exit with the code that docs/cli.md promises."""
    sys.exit(run())


def run() -> int:
    """Run the command line on sys.argv; returns the exit code."""
    try:
        code = app(standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer's answer to Ctrl-C, about which it says nothing
            raise KeyboardInterrupt
        return code
    except SystemExit:  # how typer and rich leave when a reader went away, as in `mosaic generate … | head`
        return int(display.err.quiet)  # rich's mark: it was the reader of stderr, so the work is not done
    except (KeyboardInterrupt, Exception) as error:
        return display.print_error(_known(error), "--json" in sys.argv, display.debugging())


def _known(error: BaseException) -> BaseException:
    """The MosaicError that another library's error amounts to, where there is one."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        known = Interrupted("interrupted", signal.SIGINT)
    elif hasattr(error, "format_message"):  # typer's own usage errors, whose classes moved between its versions
        known = UsageError(error.format_message(), hint="See the command's help: add --help")
    elif isinstance(error, OSError) and error.strerror:
        hint = "Free some disk space." if error.errno == errno.ENOSPC else None
        known = MosaicError(error.strerror, where=error.filename, hint=hint)
    else:
        return error
    known.__cause__ = error
    return known


if __name__ == "__main__":
    main()
