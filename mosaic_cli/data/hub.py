"""Data sets from the hub. This is the only file that touches `datasets`."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from mosaic_cli.data.documents import BATCH_RECORDS, Source
from mosaic_cli.errors import DataError, UsageError, first_line
from mosaic_cli.recipe import DataSection

HUB_SECONDS = 5.0  # patience of one request; the libraries' own retries take 23 s to say that there is no network
_NETWORK_LIBRARIES = {"httpx", "httpx2", "requests", "urllib3", "aiohttp"}


class HubUnreachable(DataError):
    """No answer from the hub, and nothing in the local cache."""


def open_hub(data: DataSection) -> Source:
    """The data set that a recipe names, downloaded or found in the cache, with its validation split if it names one.

    Raises:
        HubUnreachable: no answer, and it is not in the cache.
        UsageError: a split or configuration that does not exist.
        DataError: no such data set, or one that cannot be read.
    """
    unreachable = None
    if not os.path.isdir(data.hub):
        try:
            ask_hub(data.hub)
        except HubUnreachable as error:
            unreachable = error.message
    source = HubSource(data, data.hub_split, unreachable)
    if data.hub_val_split:
        source.validation = HubSource(data, data.hub_val_split, unreachable)
    return source


class HubSource(Source):
    """One split of a data set that `datasets` has downloaded or found in its cache (or of a local folder)."""

    def __init__(self, data: DataSection, split: str, offline_reason: str | None = None):
        super().__init__(data, hub_name(data, split))
        self.dataset = _load_split(data, split, offline_reason)
        self.total = min(len(self.dataset), data.num_documents or len(self.dataset))
        if offline_reason:
            self.used += " (from the local cache)"
        self._check_column(self.dataset.column_names, self.requested)

    def _texts(self) -> Iterator[tuple[str, bool]]:
        field = self.data.text_field
        for batch in self.dataset.select_columns([field]).iter(batch_size=BATCH_RECORDS):
            for value in batch[field]:
                self.done += 1
                text = self._field({field: value}, f"{self.requested}: record {self.done}")
                if text is not None:
                    yield text, True


def ask_hub(name: str, kind: str = "dataset") -> None:
    """One quick request: does the hub answer, and does it know `name`?

    Raises:
        HubUnreachable: no answer within seconds, or offline mode.
        DataError: the hub answered that there is no such thing, or that it is not for everybody.
    """
    problem = _patiently(lambda: _hub_problem(name, kind))
    if isinstance(problem, Exception):
        raise problem
    if problem:
        raise HubUnreachable(f"the hub cannot be reached: {problem}", where=f"hub: {name}")


def _hub_problem(name: str, kind: str) -> str | Exception | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=HUB_SECONDS)
    except RepositoryNotFoundError as error:  # gated ones too: 401 or 403 instead of 404
        what = "data set" if kind == "dataset" else kind
        return DataError(
            f"the hub answers, but there is no {what} {name!r}, or it is not open to you: {first_line(error)}",
            where=f"hub: {name}",
            hint="Check the name on https://huggingface.co; for a private one log in: hf auth login",
        )
    except HFValidationError as error:
        return UsageError(f"{name!r} is no name on the hub: {first_line(error)}", hint="Names look like owner/name.")
    except OfflineModeIsEnabled:
        return "offline mode is on (HF_HUB_OFFLINE)"
    except Exception as error:  # the network has too many ways to fail to list: every other one is "no answer"
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _patiently(ask: Callable[[], Any]) -> Any:
    """`ask()`, or a note after twice its time: looking a name up can hang longer than a request's own limit."""
    answer: list = []
    thread = threading.Thread(target=lambda: answer.append(ask()), daemon=True)
    thread.start()
    thread.join(2 * HUB_SECONDS)
    return answer[0] if answer else f"no answer within {2 * HUB_SECONDS:.0f} s"


def hub_name(data: DataSection, split: str) -> str:
    """A split of the recipe's data set, in words."""
    config = f", {data.hub_config}" if data.hub_config else ""
    return f"hub: {data.hub}{config} (split {split})"


def _load_split(data: DataSection, split: str, offline_reason: str | None):
    """The data set's split; only from the cache where there is a reason for that."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it would log is raised too
    try:
        with _offline() if offline_reason else nullcontext():
            return datasets.load_dataset(data.hub, data.hub_config, split=split)
    except Exception as error:
        raise _load_error(error, hub_name(data, split), offline_reason) from error


def _load_error(error: Exception, where: str, offline_reason: str | None) -> DataError | UsageError:
    import datasets.exceptions

    detail = first_line(_root(error))
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return DataError(detail, where=where, hint="Check the name on https://huggingface.co")
    if offline_reason and not detail.startswith("Unknown split"):
        missing = "" if isinstance(error, ConnectionError) else f" ({detail})"
        return _unreachable(f"{offline_reason}; and it is not in the local cache{missing}", where)
    if _is_network_failure(error):
        return _unreachable(f"the download failed: {first_line(error)}", where)
    if isinstance(error, ValueError):  # how the library refuses a split or configuration, naming the valid ones
        return UsageError(detail, where=where, hint="Choose with --set data.hub_split=... and data.hub_config=...")
    return DataError(f"the data set cannot be read: {detail}", where=where)


def _unreachable(reason: str, where: str) -> HubUnreachable:
    return HubUnreachable(
        reason,
        where=where,
        hint="Train on local files (--set data.source=files --set data.files=[FILE]) or on the built-in stories "
        "(--set data.if_unreachable=builtin).",
    )


@contextmanager
def _offline() -> Iterator[None]:
    """Only the cache: the libraries read HF_HUB_OFFLINE once, at import, and without it they retry for 23 s."""
    import datasets.config
    import huggingface_hub.constants

    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


def _is_network_failure(error: BaseException | None) -> bool:
    """Whether a network library stands anywhere in the chain of causes; which one differs between hub versions."""
    while error is not None:
        roots = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
        if isinstance(error, ConnectionError | TimeoutError) or roots & _NETWORK_LIBRARIES:
            return True
        error = error.__cause__ or error.__context__
    return False


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
