"""The source that a recipe names: files, a data set of the hub, or the built-in story writer."""

from collections.abc import Iterator
from pathlib import Path

from mosaic_cli.data.documents import Source
from mosaic_cli.data.file_source import FileSource
from mosaic_cli.data.hub import HubUnreachable, hub_name, open_hub
from mosaic_cli.recipe import DataSection

BUILTIN_DOCUMENTS = 20_000  # what the built-in writer writes when the recipe names no number


def open_source(data: DataSection, spool: Path) -> Source:
    """The source a recipe names, ready to be read; a hub data set is downloaded here.

    Args:
        spool: a folder for a copy of standard input, which cannot be read twice.

    Raises:
        UsageError: a file, split or configuration that does not exist.
        DataError: an empty folder, or a hub that cannot be reached while `if_unreachable` is `error`.
    """
    if data.source == "files":
        return FileSource(data, spool)
    if data.source == "builtin":
        return BuiltinSource(data)
    try:
        return open_hub(data)
    except HubUnreachable as error:
        if data.if_unreachable == "error":
            raise
        return BuiltinSource(data, hub_name(data, data.hub_split), error.message)


class BuiltinSource(Source):
    """Stories from the seeded writer."""

    def __init__(self, data: DataSection, requested: str | None = None, reason: str | None = None):
        count = data.num_documents or BUILTIN_DOCUMENTS
        used = f"builtin: {data.builtin} ({count:,} documents, seed {data.seed})"
        super().__init__(data, requested or used)
        self.total, self.used, self.fallback_reason = count, used, reason

    def _texts(self) -> Iterator[tuple[str, bool]]:
        from mosaic_cli.data.stories import stories

        for story in stories(self.total, seed=self.data.seed):
            self.done += 1
            yield story.text, True
