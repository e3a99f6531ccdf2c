"""The built-in tasks by name."""

from mosaic_cli.data.tasks import regbench
from mosaic_cli.data.tasks.task import Task

TASKS: dict[str, Task] = {"regbench": regbench.TASK}
