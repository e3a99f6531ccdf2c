"""The built-in story writer: short children's stories from a seeded grammar, and a controlled task of recall.

A story has three or four children, a place to be and one of seven plots. It states two to five facts, each once:

    place   Mia put the kite under the old bridge.        owner   Grandma chose the drum for Tom.
    colour  Ben painted the bell green.                   name    Ana called the duck Pepper.

and recalls them later, in four forms from easy to hard:

    mention   Tom went back to the kite under the old bridge.                  the words before the answer are the same
    retell    "The kite is under the old bridge," said Ana.                    other words, the answer in a statement
    reply     Where was the kite? The kite was under the old bridge.           asked, answered in a full sentence
    question  Where was the kite? It was under the old bridge.                 asked, answered alone

What makes it a task: an answer is drawn uniformly and independently of what it is about, so nothing but memory tells
it. Two facts of a kind never share an answer, nor its first word, and a thing never has both a place and a colour, so
the first word of an answer is decided by recall; owners are children who are not in the story, so that no answer is
left over by elimination; and which fact is recalled when is drawn too, so neither recency nor frequency decides. Words
and sentences are in `story_words.py`.

Every random choice goes through one chooser, which adds up what the choices cost. Each choice shows in the text, where
it is made or at the end of its sentence, and nothing is drawn that is not told; so two derivations never give one text,
and `Story.nats` is exactly the surprisal of the text. (A test changes the choices one at a time. Should two derivations
give one text after all, nats would be an upper bound.) The mean of `nats` over stories, divided by the mean number of
tokens of a story, is the floor of the loss of any model of them; the answers of recalls add nothing to it.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from . import story_words as words

# Tried out for a length of about 100 to 230 words; a story with four facts has no room for more.
MOST_FIRST_FACTS = 3
SECOND_FACTS_SHARE = 0.55
EVENT_SHARE = 0.4
ADULT_ASKS_SHARE = 0.5
LAST_WORDS_SHARE = 0.6
LATE_MENTION_SHARE = 0.5


class Span(NamedTuple):
    """Characters start to end (end not included) of a story's text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Recall:
    """A place where a fact stated earlier must be recalled.

    kind: place, owner, colour or name; form: mention, retell, reply or question; about: the thing or animal, a noun.
    answer: the words to recall, from the first that cannot be known without memory.
    source: the same words in the statement; sources: those, and every repetition before this one. All hold the same
    words; only the case of the first letter may differ.
    distance: words between source and answer; distractors: other facts of this kind stated before the answer.
    """

    kind: str
    form: str
    about: str
    answer: Span
    source: Span
    sources: tuple[Span, ...]
    distance: int
    distractors: int


@dataclass(frozen=True, slots=True)
class Story:
    """A story, its recalls in the order of the text, and the surprisal of its derivation in nats."""

    text: str
    recalls: tuple[Recall, ...]
    nats: float


def stories(count: int, seed: int = 0, start: int = 0) -> Iterator[Story]:
    """The stories start, start + 1, ... of a seed, `count` of them."""
    for index in range(start, start + count):
        yield write_story(seed, index)


def write_story(seed: int, index: int) -> Story:
    """Story number `index` of `seed`; the same on every machine and Python version."""
    return _write(_Chooser(random.Random(f"{seed}:{index}").random))


def _write(choose: "_Chooser") -> Story:
    page = _Page(choose)
    plot = choose.pick(words.PLOTS)
    _open(page, plot)
    _state_first(page, plot)
    _wander(page, plot)
    if len(page.facts) <= MOST_FIRST_FACTS and choose.coin(SECOND_FACTS_SHARE):
        _state_second(page, plot)
    _remember(page, plot)
    _ask(page)
    _close(page, plot)
    return page.story()


class _Chooser:
    """Makes every choice of a story, and adds up minus the log of their probabilities in `nats`."""

    def __init__(self, uniform: Callable[[], float]):
        self._uniform = uniform
        self.nats = 0.0

    def below(self, count: int) -> int:
        self.nats += _LOG[count]
        return int(self._uniform() * count)

    def coin(self, share: float) -> bool:
        heads = self._uniform() < share
        self.nats -= math.log(share if heads else 1 - share)
        return heads

    def pick(self, options):
        return options[self.below(len(options))]

    def draw(self, pool: list):
        """Take one out of the pool."""
        return pool.pop(self.below(len(pool)))


_LOG = [0.0] + [math.log(count) for count in range(1, 100)]


@dataclass(slots=True)
class _Fact:
    """One fact of a story: how it came about, what is about what, who did it, and where the text says so."""

    way: str
    thing: str
    answer: str
    who: str
    spans: list[Span] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return words.KINDS[self.way]


class _Page:
    """A story while it is written: the text so far, its people and facts, and the words not used yet."""

    def __init__(self, choose: _Chooser):
        self.choose = choose
        self.slots: dict[str, str] = {}
        self.children: list[words.Person] = []
        self.adult: words.Person | None = None
        self.asker: words.Person | None = None
        self.facts: list[_Fact] = []
        self.latest: _Fact | None = None
        self._parts: list[str] = []
        self._length = 0
        self._gap = ""
        self._stated = dict.fromkeys(words.KINDS.values(), 0)
        self._recalls: list[tuple] = []
        self._pools: dict = {}

    def draw(self, options):
        """One of the options (a constant of story_words), and not the same again before all have had their turn."""
        left = self._pools.get(id(options))
        if not left:
            left = self._pools[id(options)] = list(options)
        return self.choose.draw(left)

    def new_paragraph(self) -> None:
        self._gap = "\n\n"

    def say(self, sentences: tuple[words.Sentence, ...]) -> None:
        """Write one of the sentences; they tell no fact."""
        sentence = self.draw(sentences)
        self._fill_roles(sentence, without="")
        self._add(self._gap + sentence.before % self.slots)

    def tell(self, fact: _Fact, sentences: tuple[words.Sentence, ...], form: str, link: str = "") -> None:
        """Write one of the sentences, which tell the fact: first its statement, later a recall of this form."""
        sentence = self.draw(sentences)
        self._fill_roles(sentence, fact.who)  # who put or painted a thing is not the one to wonder about it
        self.slots["thing"], self.slots["who"] = fact.thing, fact.who
        before = self._gap + link + sentence.before % self.slots
        answer = fact.answer[0].upper() + fact.answer[1:] if sentence.capital else fact.answer
        start = self._length + len(before)
        self._note(fact, form, Span(start, start + len(answer)))
        self._add(before + answer + sentence.after % self.slots)

    def meet_adult(self) -> None:
        self.adult = self.choose.pick(words.ADULTS)
        self.slots["adult"], self.slots["she"], self.slots["her"] = self.adult

    def story(self) -> Story:
        text = "".join(self._parts)
        recalls = tuple(_recall(text, *recall) for recall in self._recalls)
        return Story(text, recalls, self.choose.nats)

    def _add(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)
        self._gap = " "

    def _note(self, fact: _Fact, form: str, span: Span) -> None:
        if fact.spans:
            self._recalls.append((fact.kind, form, fact.thing, span, tuple(fact.spans), self._stated[fact.kind] - 1))
        else:
            self.facts.append(fact)
            self._stated[fact.kind] += 1
        fact.spans.append(span)
        self.latest = fact

    def _fill_roles(self, sentence: words.Sentence, without: str) -> None:
        if sentence.needs_adult and not self.adult:
            self.meet_adult()
        if not sentence.roles:
            return
        people = [child for child in self.children if child.name != without]
        for role in sentence.roles:
            person = self.asker if role == "a" and self.asker else self.choose.draw(people)
            self.slots[role] = person.name
            if role == "a":
                self.slots["he"], self.slots["him"] = person.he, person.him


def _recall(
    text: str, kind: str, form: str, about: str, answer: Span, sources: tuple[Span, ...], distractors: int
) -> Recall:
    source = sources[0]
    distance = len(text[source.start : answer.start].split()) - len(text[source.start : source.end].split())
    return Recall(kind, form, about, answer, source, sources, distance, distractors)


def _open(page: _Page, plot: words.Plot) -> None:
    page.children = [page.draw(words.CHILDREN) for _ in range(page.choose.pick((3, 4)))]
    page.slots["cast"] = _in_a_row([child.name for child in page.children])
    page.slots["number"] = words.NUMBERS[len(page.children)]
    page.slots["setting"] = page.draw(words.SETTINGS[plot.indoors])
    page.slots["weather"] = page.draw(words.WEATHERS)
    page.slots["time"] = page.draw(words.TIMES)
    page.say(words.OPENINGS)
    page.say(plot.wants)


def _in_a_row(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1]


def _bring(page: _Page, nouns: tuple, count: int) -> list[str]:
    """Draw new things or animals for the next sentence's list; their nouns in the order of the list."""
    drawn = [page.draw(nouns) for _ in range(count)]
    page.slots["list"] = _in_a_row([with_article for _, with_article in drawn])
    return [noun for noun, _ in drawn]


def _state_first(page: _Page, plot: words.Plot) -> None:
    page.new_paragraph()
    about_animals = plot.way == "called"
    page.slots["goods"] = "animals" if about_animals else "things"
    count = page.choose.pick(plot.counts)
    nouns = _bring(page, words.ANIMALS if about_animals else words.THINGS, count)
    page.say(plot.lists)
    _state(page, plot, plot.way, plot.statements, nouns, count)


def _state_second(page: _Page, plot: words.Plot) -> None:
    """More facts: of another kind about the same things, or about new ones."""
    page.new_paragraph()
    way = page.choose.pick(plot.second_ways)
    nouns = [fact.thing for fact in page.facts]
    leads = words.SECOND_LEADS[way]
    if way == "called":
        nouns = _bring(page, words.ANIMALS, 2)
    elif way == "looked" and plot.way == "put":
        nouns = _bring(page, words.THINGS, 2)
    elif way == "looked":
        leads = words.GIFTS_SHINE
    page.say(leads)
    _state(page, plot, way, words.STATEMENTS[way], nouns, 2)


def _state(page: _Page, plot: words.Plot, way: str, sentences: tuple, nouns: list[str], count: int) -> None:
    """State `count` facts, about nouns drawn in any order."""
    nouns = list(nouns)
    doer = ""
    for number in range(count):
        link = ""
        if way in words.LINKED_WAYS:
            doer = page.adult.name if way == "given" else _another_child(page, doer)
            link = page.draw(words.NEXT_LINKS if number else words.FIRST_LINKS)
        fact = _Fact(way, page.choose.draw(nouns), _answer(page, plot, words.KINDS[way]), doer)
        page.tell(fact, sentences, "statement", link)


def _another_child(page: _Page, name: str) -> str:
    return page.choose.pick([child.name for child in page.children if child.name != name])


def _answer(page: _Page, plot: words.Plot, kind: str) -> str:
    """Draw an answer that no other fact of this story has, uniformly and whatever it will be about."""
    if kind == "owner":
        return page.draw(words.CHILDREN).name  # one of those who are not in the story
    if kind == "colour":
        return page.draw(words.COLOURS)
    if kind == "name":
        return page.draw(words.ANIMAL_NAMES)
    preposition = page.draw(words.PREPOSITIONS)
    adjective = page.draw(words.ADJECTIVES[plot.indoors])
    return f"{preposition} the {adjective} {page.choose.pick(words.PLACES[plot.indoors][preposition])}"


def _wander(page: _Page, plot: words.Plot) -> None:
    """Something happens, and one or two facts are mentioned."""
    page.new_paragraph()
    page.say(words.EVENTS[plot.indoors])
    _recall_some(page, (1, 2), ("mention",))


def _remember(page: _Page, plot: words.Plot) -> None:
    """Something may happen, and facts are mentioned or told in other words."""
    page.new_paragraph()
    if page.choose.coin(EVENT_SHARE):
        page.say(words.EVENTS[plot.indoors])
    _recall_some(page, (2, 3), ("mention", "retell"))


def _ask(page: _Page) -> None:
    """A grown-up, or the children, ask for facts."""
    page.new_paragraph()
    if page.choose.coin(ADULT_ASKS_SHARE):
        page.say(words.ASKED_BY_ADULT if page.adult else words.ASKED_BY_NEW_ADULT)
        page.asker = page.adult
    else:
        page.say(words.ASKED_BY_CHILDREN)
    _recall_some(page, (2, 3), ("reply", "question"))


def _close(page: _Page, plot: words.Plot) -> None:
    page.new_paragraph()
    page.asker = None
    page.say(plot.endings)
    if page.choose.coin(LAST_WORDS_SHARE):
        page.say(words.LAST_WORDS)
    if page.choose.coin(LATE_MENTION_SHARE):
        fact = page.choose.pick(page.facts)
        page.tell(fact, words.TELLINGS[fact.way]["late"], "mention")


def _recall_some(page: _Page, counts: tuple[int, ...], forms: tuple[str, ...]) -> None:
    """Recall some facts, one of `counts`, all different, and not first the one that was told last."""
    # A count beyond the facts would read like a smaller one, and a choice that does not show falsifies the nats.
    count = page.choose.pick([count for count in counts if count <= len(page.facts)])
    facts = [fact for fact in page.facts if fact is not page.latest]
    held_back = [page.latest]
    for _ in range(count):
        fact = page.choose.draw(facts)
        facts += held_back
        held_back = []
        form = page.choose.pick(forms)
        page.tell(fact, words.TELLINGS[fact.way][form], form)
