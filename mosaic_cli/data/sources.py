"""The source that a recipe names: files, a data set of the hub, or something built in."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from mosaic_cli.data.documents import Source
from mosaic_cli.data.file_source import FileSource
from mosaic_cli.data.hub import HubUnreachable, hub_name, open_hub
from mosaic_cli.data.tasks.registry import TASKS
from mosaic_cli.data.tasks.task import NUM_VALIDATION
from mosaic_cli.recipe import DataSection

IN_TURNS = "stories-in-turns"
BUILTIN_DOCUMENTS = 20_000  # what is built in writes this many when the recipe names no number


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
        return _task_source(data) if data.builtin in TASKS else StorySource(data)
    try:
        return open_hub(data)
    except HubUnreachable as error:
        if data.if_unreachable == "error":
            raise
        return StorySource(data, hub_name(data, data.hub_split), error.message)


class StorySource(Source):
    """Stories from the seeded writer, each a document, or some of them told in turns."""

    def __init__(self, data: DataSection, requested: str | None = None, reason: str | None = None):
        count = data.num_documents or BUILTIN_DOCUMENTS
        self.in_turns = data.builtin == IN_TURNS
        used = f"builtin: {IN_TURNS if self.in_turns else 'stories'} ({count:,} documents, seed {data.seed})"
        super().__init__(data, requested or used)
        self.total, self.used, self.fallback_reason = count, used, reason

    def _texts(self) -> Iterator[tuple[str, bool]]:
        from mosaic_cli.data.long_stories import told_in_turns
        from mosaic_cli.data.stories import stories

        if self.in_turns:
            texts = (told_in_turns(self.data.seed, index) for index in range(self.total))
        else:
            texts = (story.text for story in stories(self.total, seed=self.data.seed))
        for text in texts:
            self.done += 1
            yield text, True


class ProblemSource(Source):
    """Problems of a built-in task."""

    def __init__(self, data: DataSection, requested: str, problems: Callable[[], Iterable[str]], total: int):
        super().__init__(data, requested)
        self._problems, self.total = problems, total

    def _texts(self) -> Iterator[tuple[str, bool]]:
        for text in self._problems():
            self.done += 1
            yield text, True


def _task_source(data: DataSection) -> Source:
    """The training problems of a task, and beside them the fixed ones that it validates on."""
    count, task = data.num_documents or BUILTIN_DOCUMENTS, TASKS[data.builtin]
    name = f"builtin: {data.builtin}"
    training = partial(task.training, count, data.seed)
    source = ProblemSource(data, f"{name} ({count:,} problems, seed {data.seed})", training, count)
    fixed = data.model_copy(update={"num_documents": None})  # that number is for the training problems
    source.validation = ProblemSource(fixed, f"{name}, validation", task.validation, NUM_VALIDATION)
    return source
