"""Registers the commands and turns errors into exit codes; nothing else. Loads neither torch nor datasets."""

import signal
import sys
from typing import Annotated

import typer

from mosaic_cli import __version__
from mosaic_cli.commands import display, evaluate, generate, prepare, train
from mosaic_cli.errors import MosaicError, UsageError

app = typer.Typer(
    help="Memory Mosaics: prepare text, train, evaluate, generate, and look inside.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command(name="prepare")(prepare.prepare)
app.command(name="train")(train.train)
app.command(name="eval")(evaluate.evaluate)
app.command(name="generate")(generate.generate)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"mosaic {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit with the code that docs/cli.md promises."""
    sys.exit(run())


def run() -> int:
    """Run the command line on sys.argv; returns the exit code."""
    as_json = "--json" in sys.argv
    try:
        return app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader went away, as in `mosaic generate … | head`
        sys.stdout = None
        return 0
    except MosaicError as error:
        return display.print_error(error, as_json, display.debugging())
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own usage errors, whose classes moved between its versions
            usage = UsageError(error.format_message(), hint="See the command's help: add --help")
            return display.print_error(usage, as_json, display.debugging())
        return display.print_error(error, as_json, display.debugging())


if __name__ == "__main__":
    main()
