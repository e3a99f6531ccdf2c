"""Whether traces tell the truth: held against what deleting and replacing memories really does.

The ground truth are built-in stories that no run was trained on: a story states a fact and recalls it later, so the
memory that must have answered is known. One recall is asked of each story, the four forms in turn, so that prompts are
independent of each other. docs/probes.md defines every figure.
"""

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from mosaic_cli.core.model import LanguageModel
from mosaic_cli.core.mosaic import Mosaic
from mosaic_cli.data.recalls import HELD_OUT_SEED, TokenRecall, TokenStory, token_stories
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.errors import DataError, UsageError
from mosaic_cli.probes.deletions import after_deletions, single_deletions, unread_by_newest, unread_effects
from mosaic_cli.probes.edits import Edit, Memories, edited, resolve
from mosaic_cli.probes.reading import Reading, pair_kinds, peek, read_text
from mosaic_cli.probes.report import plain_logit_error
from mosaic_cli.probes.trace import Trace, trace

FORMS = ("mention", "retell", "reply", "question")
# Of the stored pairs, deleted or kept: AOPC's steps. Retrieval is nearly one-hot: of a thousand pairs a few matter, so
# shares above a few percent would not tell rankings apart.
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
SUBSETS, SUBSET_SHARE = 24, 0.1  # random deletions that sums of effects must foretell
ANSWER_STORIES = 300  # whose answers edits are drawn from: enough for every kind
TRIED_STORIES = 2  # for each prompt, at most
TOP = (1, 3, 10)
RANKINGS = ("contribution", "leave_one_out", "unread", "raw_weight", "recency", "random")


@dataclass(frozen=True)
class Prompt:
    """One recall of one held-out story. `holders` are the stored pairs whose value is the fact's answer."""

    story: TokenStory
    recall: TokenRecall
    holders: tuple[int, ...]

    @property
    def tokens(self) -> list[int]:
        """The story up to the answer."""
        return self.story.tokens[: self.recall.answer]

    @property
    def answer(self) -> int:
        """The answer's first token."""
        return self.story.tokens[self.recall.answer]


@dataclass
class Finding:
    """What one prompt showed: figures by name; None where a figure does not apply. `rank` has them by ranking too."""

    form: str
    kind: str
    figures: dict[str, float | None] = field(default_factory=dict)
    rank: dict[str, dict[str, float]] = field(default_factory=dict)
    layers: list[tuple[float, float]] = field(default_factory=list)
    """Of each layer's costliest pair, what its loss was to cost directly (leave-one-out) and what it did cost."""


def held_out_prompts(model: LanguageModel, tokenizer: Tokenizer, count: int, seed: int = 0) -> Iterator[Prompt]:
    """`count` prompts, one of each story; the four forms in turn, another form where a story lacks the one due.

    Stories that a transformer has no room for are passed over; fewer prompts where too few of them fit.
    """
    longest = math.inf if isinstance(model, Mosaic) else model.config.context_length
    tried = TRIED_STORIES * count
    stories = token_stories(tokenizer, tried, HELD_OUT_SEED, start=seed * tried)
    fitting = (story for story in stories if len(story.tokens) <= longest)
    for number, story in enumerate(islice(fitting, count)):
        due = [r for r in story.recalls if r.recall.form == FORMS[number % len(FORMS)]] or list(story.recalls)
        recall = due[number % len(due)]
        yield Prompt(story, recall, tuple(source - peek(model) for source in recall.sources))


def verify(model: LanguageModel, tokenizer: Tokenizer, count: int, seed: int = 0) -> Iterator[Finding]:
    """Examine `count` prompts, one finding at a time. The model is in evaluation mode and computes in float32.

    Raises:
        UsageError: a tokenizer without the stories' characters, or a transformer whose context holds too few of them.
        NonFiniteError: the model's logits are not numbers.
    """
    try:
        prompts, answers = list(held_out_prompts(model, tokenizer, count, seed)), _other_answers(tokenizer)
    except DataError as error:
        raise UsageError(
            f"this run's tokenizer cannot read the built-in stories: {error.message}",
            hint="Verify a run that was trained on them: mosaic train quickstart",
        ) from error
    if len(prompts) < count:
        raise UsageError(
            f"of {TRIED_STORIES * count} stories only {len(prompts)} fit into the {model.config.context_length} tokens "
            "that the transformer reads",
            hint="Verify a run that was trained with a longer context_length.",
        )
    for number, prompt in enumerate(prompts):
        yield examine(model, tokenizer, prompt, answers, random.Random(f"{seed}:{number}"))


@torch.no_grad()
def examine(
    model: LanguageModel, tokenizer: Tokenizer, prompt: Prompt, answers: "Answers", draw: random.Random
) -> Finding:
    """Everything that is measured of one prompt. `answers` are those that edits choose from."""
    reading = read_text(model, prompt.tokens)
    reading.check_finite()
    found = trace(reading, -1, prompt.answer)
    finding = Finding(prompt.recall.recall.form, prompt.recall.recall.kind)
    right = bool(reading.logits[-1].argmax() == prompt.answer)
    finding.figures |= {
        "completeness_error": found.completeness_error,
        "plain_logit_error": plain_logit_error(model, reading),
        "answered": float(right),
    }
    if right:
        whole = read_text(model, prompt.story.tokens)
        _judge_traces(model, prompt, reading, whole, found, finding, draw)
        _judge_source_deletion(model, prompt, whole, finding)
        _judge_edits(model, tokenizer, prompt, whole, answers, finding, draw)
    return finding


def _judge_traces(
    model: LanguageModel,
    prompt: Prompt,
    reading: Reading,
    whole: Reading,
    found: Trace,
    finding: Finding,
    draw: random.Random,
) -> None:
    """Every ranking of the pairs against the true source and the measured effects of deletions."""
    measured = single_deletions(model, reading, prompt.answer)  # (N, H, S)
    scores = _scores(model, reading, found, draw)
    costliest = int(measured.argmin())
    for name, score in scores.items():
        order = score.flatten().argsort(descending=True)
        finding.rank[name] = {
            **{f"source_top{k}": float(_hits_source(order[:k], score.shape[-1], prompt)) for k in TOP},
            "costliest_in_top3": float(costliest in order[:3]),
            "rank_correlation": _spearman(score.flatten(), -measured.flatten()),
            **_deleting_top(model, prompt, reading, whole, order, score.shape),
        }
    finding.figures |= finding.rank["contribution"]
    finding.figures["costliest_in_top3"] = finding.rank["unread"]["costliest_in_top3"]
    finding.figures |= _judge_subsets(model, prompt, reading, scores, draw)
    direct = torch.stack([share.leave_one_out for share in found.parts.pairs])
    finding.layers = [(d.flatten()[m.argmin()].item(), m.min().item()) for d, m in zip(direct, measured, strict=True)]


def _scores(model: LanguageModel, reading: Reading, found: Trace, draw: random.Random) -> dict[str, Tensor]:
    """How each ranking values the stored pairs (N, H, S): the trace's three numbers, then the controls."""
    weights = torch.stack([share.weights for share in found.parts.pairs])
    N, H, S = weights.shape
    noise = torch.tensor([draw.random() for _ in range(2 * N * H * S)], device=weights.device).view(2, N, H, S)
    return {
        "contribution": torch.stack([share.contributions for share in found.parts.pairs]),
        "leave_one_out": -torch.stack([share.leave_one_out for share in found.parts.pairs]),
        "unread": -unread_effects(model, reading, found.target),
        "raw_weight": weights,
        "recency": torch.arange(S, device=weights.device) + noise[0],  # heads of one position in random order
        "random": noise[1],
    }


def _hits_source(order: Tensor, num_pairs: int, prompt: Prompt) -> bool:
    return any(int(place) % num_pairs in prompt.holders for place in order)


def _deleting_top(
    model: LanguageModel, prompt: Prompt, reading: Reading, whole: Reading, order: Tensor, shape: torch.Size
) -> dict[str, float]:
    """What deleting the first pairs of an order does to the answer and to the rest of the story."""
    top3 = _chosen(order[:3], shape)
    (logits,) = after_deletions(model, whole, _widened(top3, whole)[None])
    counts = [max(1, round(share * len(order))) for share in SHARES]
    firsts = torch.stack([_chosen(order[:count], shape) for count in counts])
    probability = _answer_probability(reading.logits[-1], prompt)
    deleted = torch.cat([out[:, -1] for out in after_deletions(model, reading, firsts, newest_only=True)])
    kept = torch.cat(list(unread_by_newest(model, reading, ~firsts)))
    return {
        "deletion_efficacy": float(logits[0, prompt.recall.answer - 1].argmax() != prompt.answer),
        "deletion_specificity": _kept(logits[0], whole, prompt),
        "comprehensiveness": (probability - _answer_probability(deleted, prompt)).mean().item(),
        "sufficiency": (probability - _answer_probability(kept, prompt)).mean().item(),
    }


def _answer_probability(logits: Tensor, prompt: Prompt) -> Tensor:
    return logits.double().softmax(-1)[..., prompt.answer]


def _chosen(places: Tensor, shape: torch.Size) -> Tensor:
    """A mask of `shape` (N, H, S) with these flat places set."""
    mask = torch.zeros(shape, dtype=torch.bool, device=places.device)
    mask.view(-1)[places] = True
    return mask


def _widened(mask: Tensor, whole: Reading) -> Tensor:
    """The mask (N, H, S) of a prompt's pairs over all pairs of the whole story."""
    missing = whole.layers[0].pairs.keys.shape[1] - mask.shape[-1]
    return torch.nn.functional.pad(mask, (0, missing))


def _kept(logits: Tensor, whole: Reading, prompt: Prompt) -> float:
    """Share of the story's other predictions that stay as they were: those after the statement, but for the places
    where this very fact is recalled."""
    same_fact = {r.answer - 1 for r in prompt.story.recalls if r.source == prompt.recall.source}
    others = [t for t in range(prompt.recall.source, len(prompt.story.tokens) - 1) if t not in same_fact]
    return (logits[others].argmax(-1) == whole.logits[others].argmax(-1)).double().mean().item()


def _judge_subsets(
    model: LanguageModel, prompt: Prompt, reading: Reading, scores: dict[str, Tensor], draw: random.Random
) -> dict[str, float]:
    """Delete random tenths of all pairs: how well do sums over the deleted foretell the order of the effects?"""
    shape = scores["unread"].shape
    drawn = [[draw.random() < SUBSET_SHARE for _ in range(math.prod(shape))] for _ in range(SUBSETS)]
    dropped = torch.tensor(drawn, device=reading.logits.device).view(SUBSETS, *shape)
    after = torch.cat([out[:, -1] for out in after_deletions(model, reading, dropped, newest_only=True)])
    measured = _answer_probability(after, prompt).log()
    sums = {name: (dropped * scores[name]).sum((1, 2, 3)) for name in ("contribution", "unread")}
    return {f"subset_correlation_{name}": _spearman(-foretold, measured) for name, foretold in sums.items()}


def _judge_source_deletion(model: LanguageModel, prompt: Prompt, whole: Reading, finding: Finding) -> None:
    """Forget everything stored where the fact is stated or repeated, in all heads and layers."""
    pairs = whole.layers[0].pairs.keys.shape
    dropped = torch.zeros(1, len(whole.layers), *pairs[:2], dtype=torch.bool, device=whole.logits.device)
    dropped[..., list(prompt.holders)] = True
    (logits,) = after_deletions(model, whole, dropped)
    answered = logits[0, prompt.recall.answer - 1].argmax() == prompt.answer
    finding.figures["source_deletion_efficacy"] = float(not answered)
    finding.figures["source_deletion_specificity"] = _kept(logits[0], whole, prompt)


def _judge_edits(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Prompt,
    whole: Reading,
    answers: "Answers",
    finding: Finding,
    draw: random.Random,
) -> None:
    """Let the stored pairs hold another answer: is it given, also when asked otherwise, and is the rest left alone?"""
    tokens, recall = prompt.story.tokens, prompt.recall
    others = [pair for pair in answers.get(_likeness(prompt.story, recall), []) if pair[0] not in tokens]
    if not others:  # with letters for tokens, a story holds them all
        return
    stored, said = draw.choice(others)
    logits = _edited_logits(model, tokens, prompt.holders, stored).to(whole.logits.device)
    finding.figures["edit_efficacy"] = float(logits[recall.answer - 1].argmax() == said)
    finding.figures["edit_specificity"] = _kept(logits, whole, prompt)
    rephrased = _rephrased(tokenizer, prompt)
    if rephrased is not None:
        asked, expected = rephrased
        plain = model(torch.tensor([asked], device=model.embedding.weight.device))[0, -1]
        if plain.argmax() == expected:  # a question that the model fails at says nothing about edits
            changed = _edited_logits(model, asked, prompt.holders[:1], stored)[-1]
            finding.figures["edit_generalisation"] = float(changed.argmax() in (stored, said))


def _edited_logits(model: LanguageModel, tokens: list[int], pairs: tuple[int, ...], new: int) -> Tensor:
    """Logits (T, V) of a text whose stored pairs, in all heads and layers, hold the token `new`."""
    edits = [
        Edit("replace", Memories(None, None, kind, pair), token=new) for pair in pairs for kind in pair_kinds(model)
    ]
    with edited(model, resolve(model, tokens, edits)):
        return model(torch.tensor([tokens], device=model.embedding.weight.device))[0]


Answers = dict[tuple[str, bool], list[tuple[int, int]]]
"""Pairs of tokens (as stated, as recalled) by kind of fact and by whether the two differ, in the case of a letter."""


def _likeness(story: TokenStory, recall: TokenRecall) -> tuple[str, bool]:
    return recall.recall.kind, story.tokens[recall.source] != story.tokens[recall.answer]


def _other_answers(tokenizer: Tokenizer) -> Answers:
    """The answers of some more stories, each once."""
    found: dict[tuple[str, bool], dict[tuple[int, int], None]] = {}
    for story in token_stories(tokenizer, ANSWER_STORIES, HELD_OUT_SEED + 1):
        for recall in story.recalls:
            tokens = story.tokens[recall.source], story.tokens[recall.answer]
            found.setdefault(_likeness(story, recall), {})[tokens] = None
    return {likeness: sorted(pairs) for likeness, pairs in found.items()}


def _rephrased(tokenizer: Tokenizer, prompt: Prompt) -> tuple[list[int], int] | None:
    """The story up to the end of the statement's paragraph, then a later sentence that asks for the same fact in
    another form, up to its answer, which comes second; None where the story has no such sentence."""
    text, asked = prompt.story.story.text, prompt.recall.recall
    end = text.find("\n", asked.source.end)
    thing = _thing(text, asked.source.start)
    for other in prompt.story.recalls:
        recall = other.recall
        if recall.source != asked.source or recall.form == asked.form or thing is None or recall.answer.start < end:
            continue
        start = _sentence_with(text, thing, recall.answer.start)
        joined = f"{text[:end]}\n\n{text[start : recall.answer.start].rstrip()}"
        return [tokenizer.end_of_text, *tokenizer.encode(joined)], prompt.story.tokens[other.answer]
    return None


def _thing(text: str, source: int) -> str | None:
    """What a statement is about: the last `the NAME` before what is stated of it."""
    sentence = text[max(text.rfind(mark, 0, source) for mark in (".", "!", "?", "\n")) + 1 : source]
    found = re.findall(r"\b[Tt]he (\w+)", sentence)
    return found[-1] if found else None


def _sentence_with(text: str, word: str, before: int) -> int:
    """Where the sentence begins that last names a word before a place, an opening quotation mark included."""
    named = max(text.rfind(f" {word}", 0, before), 0)
    start = max(text.rfind(mark, 0, named) for mark in (". ", "! ", "? ", '" ', "\n"))
    return start + (1 if text[start] == "\n" else 2)


def _spearman(a: Tensor, b: Tensor) -> float | None:
    """Rank correlation of two series of numbers, equal ones sharing their mean rank; None where one is constant."""
    ranks = torch.stack([_ranks(a), _ranks(b)])
    if (ranks == ranks[:, :1]).all(1).any():
        return None
    return torch.corrcoef(ranks)[0, 1].item()


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = values.double().unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[inverse]
