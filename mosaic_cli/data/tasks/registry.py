"""The built-in tasks by name."""

from mosaic_cli.data.tasks import manyshot, regbench
from mosaic_cli.data.tasks.associations import AssociationTask
from mosaic_cli.data.tasks.induction import INDUCTION
from mosaic_cli.data.tasks.mqar import MQAR
from mosaic_cli.data.tasks.task import Task
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.errors import UsageError

ASSOCIATIONS: dict[str, AssociationTask] = {"mqar": MQAR, "induction": INDUCTION}
TASKS: dict[str, Task] = {
    "regbench": regbench.TASK,
    "manyshot": manyshot.TASK,
    **{name: one.task for name, one in ASSOCIATIONS.items()},
}


def task_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a task: a token a character, or a token a word."""
    tokens = TASKS[name].alphabet
    return Tokenizer.of_characters(tokens) if isinstance(tokens, str) else Tokenizer.of_words(tokens)


def check_trained_on(name: str, tokenizer: Tokenizer, trained: str) -> None:
    """Raises UsageError when a tokenizer is not the task's: the model `trained` has learned something else."""
    if tokenizer.fingerprint != task_tokenizer(name).fingerprint:
        raise UsageError(
            f"{trained} was not trained on {name}: its tokens are others",
            where=f"--on {name}",
            hint=f"Train a model on it: mosaic train RECIPE with data.builtin: {name}",
        )
