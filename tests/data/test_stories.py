"""The story writer's promises: annotations that are right, facts that only memory tells, English without slips."""

import hashlib
import math
import random
import re
from collections import Counter

import pytest
from tokenizers import ByteLevelBPETokenizer

from mosaic_cli.data import story_words
from mosaic_cli.data.stories import Span, _Chooser, _write, stories, write_story

CHILDREN = {child.name for child in story_words.CHILDREN}
ADULTS = {word for adult in story_words.ADULTS for word in adult.name.split()}
NOUNS = {noun for noun, _ in story_words.THINGS + story_words.ANIMALS}


@pytest.fixture(scope="module")
def many():
    return list(stories(5000, seed=1))


@pytest.fixture(scope="module")
def recalls(many):
    return [(story, recall) for story in many[:2000] for recall in story.recalls]


def words_of(story, span: Span) -> str:
    return story.text[span.start : span.end]


def statements(story) -> set:
    """The facts of a story that are recalled at least once: (kind, source, answer)."""
    return {(recall.kind, recall.source, words_of(story, recall.source)) for recall in story.recalls}


def sentence_before(story, recall) -> str:
    """From the full stop before an answer to the answer."""
    return story.text[story.text.rfind(".", 0, recall.answer.start) : recall.answer.start]


def test_a_story_is_the_same_everywhere():
    digest = hashlib.sha256()
    for story in stories(20, seed=3):
        digest.update(f"{story.text}|{story.recalls}|{story.nats:.6f}".encode())
    assert digest.hexdigest() == "af835ce955d4dbcd1d9c2e7a8c0f25b4c24f1c47216888bcc490877b9b618d85"


def test_stories_are_write_story_in_order():
    assert list(stories(3, seed=5, start=7)) == [write_story(5, index) for index in (7, 8, 9)]
    assert write_story(5, 7) != write_story(6, 7)


def test_spans_hold_the_same_words_and_sources_come_first(recalls):
    for story, recall in recalls:
        answer = words_of(story, recall.answer)
        assert answer
        assert recall.source == recall.sources[0]
        for earlier, later in zip(recall.sources, (*recall.sources[1:], recall.answer), strict=True):
            assert earlier.end < later.start
            assert words_of(story, earlier).lower() == answer.lower()
        for span in (*recall.sources, recall.answer):
            assert story.text[span.start - 1] == " ", "an answer starts with the space that its first token holds"


def test_sources_are_all_earlier_tellings_of_the_fact(many):
    for story in many[:1000]:
        told = {}
        for recall in story.recalls:
            assert recall.sources == tuple(told.setdefault(recall.source, [recall.source]))
            told[recall.source].append(recall.answer)


def test_distance_counts_the_words_between(recalls):
    for story, recall in recalls:
        between = re.sub(r"^\S*", "", story.text[recall.source.end : recall.answer.start])
        assert recall.distance == len(between.split())


def test_facts_of_a_kind_differ_in_their_first_word_and_distract(many):
    for story in many:
        first_words = Counter((kind, answer.split()[0].lower()) for kind, _, answer in statements(story))
        assert set(first_words.values()) <= {1}
        assert all(recall.distractors >= 1 for recall in story.recalls)


def test_recalls_name_what_they_are_about(many):
    for story in many:
        about = {}
        for recall in story.recalls:
            assert about.setdefault(recall.source, recall.about) == recall.about
            assert re.search(rf"\b{recall.about}\b", story.text[: recall.answer.start], re.IGNORECASE)
        assert len({(recall.kind, recall.about) for recall in story.recalls}) == len(about)


def test_recalls_are_in_the_order_of_the_text(many):
    for story in many:
        starts = [recall.answer.start for recall in story.recalls]
        assert len(starts) >= 5
        assert starts == sorted(starts)


def test_every_kind_and_form_has_its_share(recalls):
    pairs = Counter((recall.kind, recall.form) for _, recall in recalls)
    assert {kind for kind, _ in pairs} == {"place", "owner", "colour", "name"}
    assert {form for _, form in pairs} == {"mention", "retell", "reply", "question"}
    assert len(pairs) == 16
    assert min(pairs.values()) > 0.02 * len(recalls)
    assert sum(count for (_, form), count in pairs.items() if form == "mention") > 0.4 * len(recalls)


def test_distances_are_near_and_far(recalls):
    distances = sorted(recall.distance for _, recall in recalls)
    assert distances[len(distances) // 10] < 30
    assert distances[-len(distances) // 10] > 100


def test_english_without_slips(many):
    slips = re.compile(r"\b(\w+) \1\b|\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|  |[%{}]| [.,?!]|[.,?!]\w|\band,|,,")
    # A sentence begins with a capital; what follows a quoted question goes on with it.
    small_start = re.compile(r'[.!?] "?[a-z]|[.!]" [a-z]|(?<!")[?] [a-z]')
    for story in many[:2000]:
        assert story.text.isascii()
        assert not slips.search(story.text), slips.search(story.text)
        assert not small_start.search(story.text), small_start.search(story.text)
        for paragraph in story.text.split("\n\n"):
            assert re.fullmatch(r'["A-Z].*[.!"]', paragraph)
            assert paragraph.count('"') % 2 == 0


def test_lengths(many):
    lengths = sorted(len(story.text.split()) for story in many)
    assert lengths[0] >= 90
    assert lengths[-1] <= 260
    assert lengths[int(0.95 * len(lengths))] <= 225


def test_no_story_twice(many):
    assert len({story.text for story in many}) == len(many)


def assert_uniform(counts: Counter, cells: int) -> None:
    """Chi-square within five standard deviations of what chance gives."""
    expected = sum(counts.values()) / cells
    assert len(counts) == cells
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert abs(chi_square - (cells - 1)) < 5 * math.sqrt(2 * (cells - 1))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("place", story_words.PREPOSITIONS),
        ("colour", story_words.COLOURS),
        ("name", story_words.ANIMAL_NAMES),
        ("owner", CHILDREN),
    ],
)
def test_answers_are_uniform(many, kind, options):
    first_words = Counter(answer.split()[0] for story in many for told, _, answer in statements(story) if told == kind)
    assert_uniform(first_words, len(options))


def test_places_do_not_depend_on_things(many):
    pairs = Counter()
    for story in many:
        for kind, source, answer in statements(story):
            thing = story.text[: source.start].split()[-1]
            if kind == "place" and thing in NOUNS:
                pairs[thing, answer.split()[0]] += 1
    things = {thing for thing, _ in pairs}
    assert_uniform(pairs, len(things) * len(story_words.PREPOSITIONS))


def test_an_owner_is_not_told_by_who_else_is_named(recalls):
    for story, recall in recalls:
        if recall.kind == "owner":
            assert not CHILDREN & set(re.findall(r"\w+", sentence_before(story, recall)))


def test_what_stands_before_an_answer_is_always_followed_by_one(many):
    """So that a wrong answer is a failure to recall, and the best model's loss on answers is nothing."""
    answers = {*story_words.PREPOSITIONS, *story_words.COLOURS, *map(str.lower, story_words.ANIMAL_NAMES), "<child>"}
    contexts, others = set(), set()
    for story in many[:1000]:
        found = list(re.finditer(r"\w+|[^\w\s]", story.text))
        tokens = [_class_of(match.group()) for match in found]
        starts = {recall.answer.start for recall in story.recalls}
        for place in range(5, len(tokens)):
            context = tuple(tokens[place - 5 : place])
            if found[place].start() in starts:
                contexts.add(context)
            elif tokens[place].lower() not in answers:
                others.add(context)
    assert not contexts & others


def _class_of(word: str) -> str:
    if word in CHILDREN:
        return "<child>"
    return "<adult>" if word in ADULTS else "<noun>" if word in NOUNS else word


def test_an_owner_is_not_left_over_by_elimination(many):
    for story in many:
        owners = {story.text[r.answer.start : r.answer.end] for r in story.recalls if r.kind == "owner"}
        opening = story.text.partition("\n")[0]
        assert not any(re.search(rf"\b{owner}\b", opening) for owner in owners)


def test_vocabulary_is_small_and_answers_are_single_tokens(many):
    texts = [story.text for story in many[:2000]]
    vocabulary = {word.lower() for text in texts for word in re.findall(r"[A-Za-z]+", text)}
    assert 500 <= len(vocabulary) <= 900
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=2048, show_progress=False)
    for word in {word for story in many for _, _, answer in statements(story) for word in answer.split()}:
        assert len(tokenizer.encode(" " + word).ids) == 1
    for word in story_words.PREPOSITIONS + story_words.COLOURS:
        assert len(tokenizer.encode(" " + word.capitalize()).ids) == 1


class Detour(_Chooser):
    """Chooses like the writer's own, but takes another option at one turn; keeps its own account of the nats."""

    def __init__(self, index: int, turn: int | None = None):
        super().__init__(random.Random(f"0:{index}").random)
        self.turn, self.turns, self.account, self.took_it = turn, 0, 0.0, False

    def below(self, count: int) -> int:
        chosen = super().below(count)
        self.account += math.log(count)
        if self._is_the_turn() and count > 1:
            self.took_it = True
            chosen = (chosen + 1) % count
        return chosen

    def coin(self, share: float) -> bool:
        heads = super().coin(share)
        self.account -= math.log(share if heads else 1 - share)
        if self._is_the_turn():
            self.took_it = True
            heads = not heads
        return heads

    def _is_the_turn(self) -> bool:
        self.turns += 1
        return self.turns - 1 == self.turn


def test_every_choice_shows_and_is_accounted_for():
    for index in range(15):
        chooser = Detour(index)
        story = _write(chooser)
        assert story == write_story(0, index)
        assert story.nats == pytest.approx(chooser.account)
        texts = [story.text]
        for turn in range(chooser.turns):
            detour = Detour(index, turn)
            other = _write(detour)
            if detour.took_it:
                texts.append(other.text)
        assert len(texts) > 40
        assert len(set(texts)) == len(texts)


def test_nats_are_plausible(many):
    nats = [story.nats for story in many]
    assert min(nats) > 50
    assert max(nats) < 180
    assert 90 < sum(nats) / len(nats) < 120
