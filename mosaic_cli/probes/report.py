"""Traces in words: records that can be printed or stored, with the texts that keys and values stand for.

Texts are shown as `visible` makes them: spaces stay, everything else that leaves no mark on paper is spelled out.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mosaic_cli.core.model import LanguageModel
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.probes.reading import Reading
from mosaic_cli.probes.trace import (
    Contribution,
    Decomposition,
    Path,
    Trace,
    contributions,
    matches,
    pair_contribution,
    paths,
)

KEY_TOKENS = 4  # tokens shown of what a key is an average of: with the usual leaks, older ones have faded
PUSHED_TOKENS = 3  # tokens shown of what a slot's value makes likelier
LISTED_SHARE = 1e-3  # contributions below this share of the sum of all sizes are added up as `rest`: so at most 1,000
COSTLIEST = 5  # pairs listed by what their loss would change, however little they contribute
SLOT_BATCH = 256  # slots read through the head at once, which bounds the memory for a large vocabulary
_MARKS = {"\n": "↵", "\t": "⇥"}


def visible(text: str) -> str:
    """Text with line ends as ↵, tabs as ⇥, and other invisible characters, such as marks of direction, as escapes."""
    return "".join(_MARKS.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


@torch.no_grad()
def plain_logit_error(model: LanguageModel, reading: Reading) -> float:
    """The largest difference between the logits of a reading and those of the same model without hooks."""
    plain = model(torch.tensor([reading.tokens], device=next(model.parameters()).device))[0]
    return (plain.to(reading.logits.device) - reading.logits).abs().max().item()


def predictions(reading: Reading, position: int, token_text: Callable[[int], str], count: int = 5) -> list[dict]:
    """The likeliest tokens after a position: `token`, `text`, `probability`, `logit`, the likeliest first."""
    logits = reading.logits[position].double()
    probabilities, ids = logits.softmax(-1).topk(min(count, len(logits)))
    return [
        {"token": id, "text": token_text(id), "probability": p, "logit": logits[id].item()}
        for id, p in zip(ids.tolist(), probabilities.tolist(), strict=True)
    ]


def standing(reading: Reading, position: int, target: int) -> dict[str, Any]:
    """How a token was predicted after a position: `probability`, `rank` (1 is the likeliest) and `loss` (nats)."""
    logs = reading.logits[position].double().log_softmax(-1)
    loss = -logs[target].item()
    return {"probability": logs[target].exp().item(), "rank": 1 + int((logs > logs[target]).sum()), "loss": loss}


def sums(parts: Decomposition) -> list[dict[str, Any]]:
    """What each layer's memories of a kind gave in all: `kind`, `layer`, `contribution`. They add up to the number."""
    found = [{"kind": "embedding", "layer": None, "contribution": parts.embedding}]
    for layer, (pairs, slots, mlp) in enumerate(zip(parts.pairs, parts.slots, parts.mlp, strict=True)):
        given = [*pairs.by_kind(), *([("mlp", mlp)] if slots is None else slots.by_kind())]
        found += [{"kind": kind, "layer": layer, "contribution": amount} for kind, amount in given]
    return found


class Wording:
    """Puts the parts of one text's traces into words.

    Attributes:
        tokens: each token of the text, visible.
    """

    def __init__(self, reading: Reading, tokenizer: Tokenizer):
        self._reading = reading
        self._tokenizer = tokenizer
        self._pushed: dict[tuple[int, int, int], list[str]] = {}
        self.tokens = [self.token(id) for id in reading.tokens]

    def token(self, id: int) -> str:
        """A token of the vocabulary, visible."""
        return visible(self._tokenizer.token_text(id))

    def key_text(self, part: Contribution) -> str | None:
        """The last tokens that the key of a pair is an average of; None for what has no key in the text."""
        if not part.is_pair:
            return None
        return "".join(self.tokens[max(0, part.index + 1 - KEY_TOKENS) : part.index + 1])

    def value_text(self, part: Contribution, position: int) -> str | None:
        """What was stored: the token after the key (attention: the token itself); of a slot, the tokens it pushes.

        `position` is where the part stands, which the embedding's own part needs. None for an MLP.
        """
        if part.kind == "slot":
            return "|".join(self.pushed(part))
        if part.kind == "mlp":
            return None
        return self.tokens[self._value_position(part, position)]

    def pushed(self, slot: Contribution) -> list[str]:
        """The tokens that a slot's value makes likeliest when read through the last norm and the head."""
        place = (slot.layer, slot.head, slot.index)
        if place not in self._pushed:
            self.learn([slot])
        return self._pushed[place]

    @torch.no_grad()
    def learn(self, parts: Iterable[Contribution]) -> None:
        """Find what the slots among these parts push, all at once: one by one, a large head would take long."""
        slots = {(part.layer, part.head, part.index) for part in parts if part.kind == "slot"}
        places = sorted(slots - self._pushed.keys())
        final, layers = self._reading.final, self._reading.layers
        for start in range(0, len(places), SLOT_BATCH):
            batch = places[start : start + SLOT_BATCH]
            given = torch.stack([layers[n].slots.values[h, i] @ layers[n].slots.output[h] for n, h, i in batch])
            normed = (given - given.mean(-1, keepdim=True)) * final.weight  # (batch, C); a norm's scale keeps the order
            head = self._reading.head
            logits = normed.to(head.dtype) @ head.T  # (batch, V)
            for place, ids in zip(batch, logits.topk(min(PUSHED_TOKENS, len(head))).indices, strict=True):
                self._pushed[place] = [self.token(id) for id in ids.tolist()]

    def record(self, part: Contribution, position: int) -> dict[str, Any]:
        """One contribution to a number at `position`, as the JSON objects have it."""
        return {
            "id": part.id,
            "kind": part.kind,
            "layer": part.layer,
            "head": part.head,
            "position": part.index if part.is_pair else None if part.kind == "slot" else position,
            "key_text": self.key_text(part),
            "value_text": self.value_text(part, position),
            "pushes": self.pushed(part) if part.kind == "slot" else [],
            "weight": part.weight,
            "contribution": part.contribution,
            "leave_one_out": part.leave_one_out,
        }

    def matches(self, part: Contribution, position: int) -> list[dict[str, Any]]:
        """Why a pair answered: tokens `asked` and `stored` (positions and texts) and their `share` of the cosine.

        Empty for what is not a pair of a mosaic.
        """
        if not part.is_pair or self._reading.layers[part.layer].keys is None:
            return []
        found = matches(self._reading.layers[part.layer], part.row, position, part.index)
        return [vars(m) | {"asked_text": self.tokens[m.asked], "stored_text": self.tokens[m.stored]} for m in found]

    def path(self, path: Path) -> dict[str, Any]:
        """A path and those below it, nested."""
        part = path.contribution
        return {
            "id": part.id,
            "kind": part.kind,
            "position": path.position,
            "key_text": self.key_text(part),
            "value_text": self.value_text(part, path.position),
            "pushes": self.pushed(part) if part.kind == "slot" else [],
            "amount": path.amount,
            "children": [self.path(child) for child in path.children],
            "rest": path.rest,
        }

    def _value_position(self, part: Contribution, position: int) -> int:
        if part.kind == "embedding":
            return position
        return part.index + self._reading.peek


def report(
    reading: Reading, found: Trace, wording: Wording, share: float, explained: int, unread: Tensor
) -> dict[str, Any]:
    """A trace as the object that `mosaic probe trace --json` prints, but for its errors.

    Args:
        share: see `paths`.
        explained: so many of the pairs that contribute most get their `matches`.
        unread: (N, H, S), what losing each pair that the position may see would change: see `unread_effects`.
    """
    parts = found.parts
    listed = contributions(parts, LISTED_SHARE * parts.size)
    wording.learn(listed)
    asked = {part.id for part in [part for part in listed if part.is_pair][:explained]}
    rows = [
        _with_unread(wording.record(part, found.position), part, unread)
        | {"matches": wording.matches(part, found.position) if part.id in asked else []}
        for part in listed
    ]
    return {
        "tokens": wording.tokens,
        "position": found.position,
        "target": wording.token(found.target),
        "versus": None if found.versus is None else wording.token(found.versus),
        "logit": found.logit,
        **standing(reading, found.position, found.target),
        "completeness_error": found.completeness_error,
        "predictions": predictions(reading, found.position, wording.token),
        "sums": sums(parts),
        "contributions": rows,
        "rest": found.logit - sum(part.contribution for part in listed),
        "costliest": [
            _with_unread(wording.record(part, found.position), part, unread) for part in costliest(parts, unread)
        ],
        "paths": [wording.path(path) for path in paths(reading, parts, share)],
    }


def _with_unread(record: dict[str, Any], part: Contribution, unread: Tensor) -> dict[str, Any]:
    return record | {"unread": unread[part.layer, part.row, part.index].item() if part.is_pair else None}


def costliest(parts: Decomposition, unread: Tensor) -> list[Contribution]:
    """The pairs whose loss would change most (`unread`, (N, H, S)), in size, without those that change nothing."""
    effects = unread.flatten()
    places = effects.abs().topk(min(COSTLIEST, len(effects))).indices
    found = torch.stack(torch.unravel_index(places[effects[places] != 0], unread.shape), 1)
    return [pair_contribution(parts, *place) for place in found.tolist()]
