"""One self-contained page on how every token of a text was predicted. It asks nothing of the network.

The template shows the data; all texts reach it as JSON in which nothing can end the script, and are shown as text.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from mosaic_cli.probes.reading import Reading
from mosaic_cli.probes.report import KEY_TOKENS, Wording, costliest, predictions, standing, sums
from mosaic_cli.probes.trace import Contribution, Path, Trace, contributions, paths, trace

TEMPLATE = "trace.html.j2"
ROWS = 8  # contributions shown for a token: 512 tokens stay well below 2 MB
DIGITS = 6  # significant digits of a number on the page


def page_items(
    reading: Reading,
    wording: Wording,
    chosen: Trace,
    share: float = 0.02,
    unread_of: Callable[[Trace], Tensor | None] = lambda found: None,
) -> Iterator[dict[str, Any]]:
    """How each token of the text but the first was predicted, and then what is predicted after its end.

    Each position traces the token that really came next, the last one the likeliest; that of `chosen` traces what it
    does. One at a time, as a trace holds a number for each memory of the model.

    Args:
        share: see `paths`.
        unread_of: what losing each pair would change (N, H, S), see `unread_effects`; None where that was not asked.
    """
    T = len(reading.tokens)
    for position in range(T):
        target = reading.tokens[position + 1] if position + 1 < T else reading.logits[position].argmax().item()
        found = chosen if position == chosen.position else trace(reading, position, target)
        yield _item(reading, wording, found, share, unread_of(found))


def page_data(reading: Reading, wording: Wording, chosen: Trace, items: list[dict], name: str) -> dict[str, Any]:
    """What the page shows.

    Args:
        chosen: the trace on which the page opens.
        items: all that `page_items` yields.
        name: the model's, for the title.

    Returns:
        `name`; `tokens`; `key_tokens`, how many tokens of a key are shown; `peek`, 1 where a value is the token after
        its key; `chosen`, an index of `items`; `items[i]`: how token i was predicted, none for token 0.
    """
    return {
        "name": name,
        "tokens": wording.tokens,
        "key_tokens": KEY_TOKENS,
        "peek": reading.peek,
        "chosen": chosen.position + 1,
        "items": [None, *items],
    }


def _item(reading: Reading, wording: Wording, found: Trace, share: float, unread: Tensor | None) -> dict[str, Any]:
    listed = contributions(found.parts, found.parts.nth_size(ROWS))
    costly = [] if unread is None else costliest(found.parts, unread)
    followed = paths(reading, found.parts, share)
    wording.learn([*listed, *_parts(followed)])
    likeliest = predictions(reading, found.position, wording.token)
    return {
        "target": wording.token(found.target),
        "versus": None if found.versus is None else wording.token(found.versus),
        **{key: _short(value) for key, value in standing(reading, found.position, found.target).items()},
        "logit": _short(found.logit),
        "error": _short(found.completeness_error),
        "predictions": [(row["text"], _short(row["probability"])) for row in likeliest],
        "sums": [(part["kind"], part["layer"], _short(part["contribution"])) for part in sums(found.parts)],
        "rows": [_row(wording, part, found.position, unread) for part in listed],
        "rest": _short(found.logit - sum(part.contribution for part in listed)),
        "costliest": [_row(wording, part, found.position, unread) for part in costly],
        "paths": [_path(wording, path) for path in followed],
        "paths_rest": _short(found.logit - sum(path.amount for path in followed)),
    }


def _row(wording: Wording, part: Contribution, position: int, unread: Tensor | None) -> dict[str, Any]:
    record = wording.record(part, position)
    row = {key: record[key] for key in ("id", "kind", "position", "value_text", "pushes")}
    numbers = {key: _short(record[key]) for key in ("weight", "contribution", "leave_one_out")}
    if part.is_pair and unread is not None:
        numbers["unread"] = _short(unread[part.layer, part.row, part.index].item())
    why = [(m["asked"], m["stored"], _short(m["share"])) for m in wording.matches(part, position)]
    return row | numbers | {"why": why}


def _path(wording: Wording, path: Path) -> list[Any]:
    """A path as a list, which takes half the room: id, position, amount, rest, children, and what a slot pushes."""
    part = path.contribution
    children = [_path(wording, child) for child in path.children]
    pushes = [wording.pushed(part)] if part.kind == "slot" else []
    return [part.id, path.position, _short(path.amount), _short(path.rest), children, *pushes]


def _parts(found: Iterable[Path]) -> Iterator[Contribution]:
    """The parts along paths."""
    for path in found:
        yield path.contribution
        yield from _parts(path.children)


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.{DIGITS}g}")


def render_page(data: dict[str, Any]) -> str:
    """The page, from what `page_data` gives."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("mosaic_cli.probes", ""), autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # its own default sorts, and spends spaces
    return environment.get_template(TEMPLATE).render(name=data["name"], data=data)
