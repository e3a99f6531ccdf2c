"""`mosaic probe toy-3moons`: three heads that learn a moon each, beside one head that cannot."""

from mosaic_cli.commands import display
from mosaic_cli.commands.options import Debug, Json

EPILOG = "Example: mosaic probe toy-3moons --seeds 3"


def toy_3moons(json: Json = False, debug: Debug = False) -> None:
    """Train one head and three heads on three moons, and measure when each can predict."""
    display.note("not measured yet")
