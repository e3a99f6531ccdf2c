"""`mosaic probe`: the group of the probes. It only registers them, one line a probe, and loads neither torch nor
matplotlib."""

import typer

from mosaic_cli.commands.probes import ablate, edit, memories, moons, patterns, trace, verify

probe = typer.Typer(epilog='Example: mosaic probe trace --ckpt quickstart "Once upon a time"')
probe.command(name="toy-3moons", epilog=moons.EPILOG)(moons.toy_3moons)
probe.command(name="trace", epilog=trace.EPILOG)(trace.trace)
probe.command(name="edit", epilog=edit.EPILOG)(edit.edit)
probe.command(name="ablate", epilog=ablate.EPILOG)(ablate.ablate)
probe.command(name="patterns", epilog=patterns.EPILOG)(patterns.patterns)
probe.command(name="memories", epilog=memories.EPILOG)(memories.memories)
probe.command(name="verify", epilog=verify.EPILOG)(verify.verify)


@probe.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    """Look inside: what memories store, which of them a prediction comes from, and the three moons."""
    if context.invoked_subcommand is None:
        print(context.get_help())
