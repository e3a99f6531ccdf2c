"""Edits as a small YAML file that can be kept and shared, and as entries of it from the command line."""

import difflib
import math
from pathlib import Path
from typing import Any

import yaml

from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.errors import DataError, UsageError
from mosaic_cli.probes.edits import Edit, Memories
from mosaic_cli.recipe import parse_yaml

ACTIONS = {"delete": (), "scale": ("factor",), "replace": ("token",), "add": ("after", "token")}
"""What an entry may do, and the keys it then has beside the action's own, which names the memories."""
EXAMPLE = "Like this:  edits: [{delete: L1.H0.ctx.17}]"


def load_edits(path: str | Path, tokenizer: Tokenizer) -> list[Edit]:
    """Read a file of edits: a map with the one key `edits`, a list of entries as `read_edit` takes them.

    Raises:
        UsageError: no such file, not UTF-8, not YAML, or an entry that is not an edit; `where` names file and entry.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the edit file cannot be read: {error.strerror}", where=path, hint=EXAMPLE) from error
    except UnicodeDecodeError as error:
        raise UsageError("the edit file is not UTF-8 text", where=path, hint=EXAMPLE) from error
    values = parse_yaml(text, path)
    if values is None:
        raise UsageError("the edit file is empty", where=path, hint=EXAMPLE)
    if not isinstance(values, dict):
        raise UsageError("an edit file is a map with the key 'edits'", where=path, hint=EXAMPLE)
    _known(values, ("edits",), path)
    entries = values.get("edits")
    if not isinstance(entries, list) or not entries:
        raise UsageError("'edits' is not a list of edits", where=path, hint=EXAMPLE)
    return [read_edit(entry, tokenizer, f"{path}: edits[{index}]") for index, entry in enumerate(entries)]


def read_edit(entry: Any, tokenizer: Tokenizer, where: object) -> Edit:
    """One entry: `{delete: NAME}`, `{scale: NAME, factor: X}`, `{replace: NAME, token: TOKEN}` or
    `{add: NAME, after: POSITION, token: TOKEN}`. A token is its text, or its id as a number.

    Raises:
        UsageError: anything else; with the nearest valid word where one is unknown.
    """
    if not isinstance(entry, dict):
        raise UsageError(f"{entry!r} is not an edit", where=where, hint=EXAMPLE)
    actions = [key for key in entry if key in ACTIONS]
    if len(actions) > 1:
        raise UsageError(f"one entry does both {actions[0]} and {actions[1]}", where=where, hint="Make it two entries.")
    action = actions[0] if actions else None
    _known(entry, (action, *ACTIONS[action]) if action else tuple(ACTIONS), where)
    if action is None:
        raise UsageError("an entry without an action", where=where, hint=f"Actions: {', '.join(ACTIONS)}.")
    for key in ACTIONS[action]:
        if key not in entry:
            raise UsageError(f"{action} needs the key {key!r}", where=where)
    return Edit(
        action,
        _memories(entry[action], where),
        factor=_factor(entry["factor"], where) if "factor" in entry else None,
        token=_token(entry["token"], tokenizer, where) if "token" in entry else None,
        after=_position(entry["after"], where) if "after" in entry else None,
    )


def edit_entry(edit: Edit, tokenizer: Tokenizer) -> dict[str, Any]:
    """The entry that `read_edit` reads as this edit."""
    token = None if edit.token is None else _written_token(edit.token, tokenizer)
    values = {edit.action: str(edit.memories), "factor": edit.factor, "after": edit.after, "token": token}
    return {key: value for key, value in values.items() if value is not None}


def dump_edits(edits: list[Edit], tokenizer: Tokenizer) -> str:
    """The text of a file that `load_edits` reads as these edits."""
    style = {
        "Dumper": _Dumper,
        "default_flow_style": True,
        "allow_unicode": True,
        "sort_keys": False,
        "width": math.inf,
    }
    return "edits:\n" + "".join(f"  - {yaml.dump(edit_entry(edit, tokenizer), **style)}" for edit in edits)


class _Text(str):
    """Text that is written in quotes, since a token such as `no` or `1e5` could be read as something else."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')
)


def _written_token(token: int, tokenizer: Tokenizer) -> str | int:
    """A token's text, or its id where no text stands for it alone (end-of-text, a part of a character)."""
    text = tokenizer.token_text(token)
    try:
        return _Text(text) if tokenizer.single(text) == token else token
    except (UsageError, DataError):
        return token


def _known(values: dict, keys: tuple[str, ...], where: object) -> None:
    """Refuse keys that an entry or a file does not have."""
    for key in values:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(keys)}."
            raise UsageError(f"unknown key {key!r}", where=where, hint=hint)


def _memories(name: Any, where: object) -> Memories:
    try:
        return Memories.parse(str(name))
    except UsageError as error:
        raise UsageError(error.message, where=where, hint=error.hint) from error


def _factor(value: Any, where: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"factor {value!r} is not a number", where=where, hint="For example: factor: 0.5")
    return float(value)


def _position(value: Any, where: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"after {value!r} is not a position", where=where, hint="Positions count from 0: after: 17")
    return value


def _token(value: Any, tokenizer: Tokenizer, where: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < tokenizer.vocab_size:
            raise UsageError(f"there is no token {value} in a vocabulary of {tokenizer.vocab_size}", where=where)
        return value
    if not isinstance(value, str):
        raise UsageError(f"token {value!r} is neither a text nor an id", where=where, hint='Quote it: token: "7"')
    return tokenizer.single(value, where)
