"""The results of a study on disk: the object that is drawn and put into the pages. Its keys: docs/formats.md."""

from pathlib import Path
from typing import Any

from mosaic_cli.errors import DataError
from mosaic_cli.files import dump_json, load_json, write_atomically

FORMAT, FORMAT_VERSION = "mosaic.study", 1
RESULTS = Path("studies") / "results"


def write_results(results: dict[str, Any], folder: Path) -> Path:
    """Write `folder/NAME.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{results['name']}.json"
    write_atomically(path, dump_json(results))
    return path


def load_results(path: Path) -> dict[str, Any]:
    """Read what `write_results` wrote.

    Raises:
        DataError: not the results of a study, or of a newer version of the toolkit.
    """
    again = "Write it again: mosaic compare STUDY"
    results = load_json(path, FORMAT_VERSION, DataError, hint=again)
    if results.get("format") != FORMAT:
        raise DataError("these are not the results of a study", where=path, hint=again)
    return results
