"""Words and sentences of the built-in stories; `stories.py` puts them together.

A sentence is written with slots in braces, which `_sentences` takes apart once, at import:

    {answer} {Answer}   the fact it tells, as it stands in a sentence or at its beginning
    {thing}             what the fact is about: a thing or an animal, without article
    {who}               who made the fact true: put, gave, painted or called the thing
    {a} {he} {him} {b}  two children who did not; in a sentence that asks, {a} asks and {b} answers
    {adult} {she} {her} the one grown-up of the story
    {cast} {number}     all the children, and how many they are
    {list}              things or animals that appear for the first time
    {goods}             "things" or "animals", whichever the story is about
    {setting} {weather} {time}

Two rules keep the task clean. Words of places, colours and animals' names tell facts and nothing else, as far as
English allows it. And what stands before {answer} is always followed by an answer: no other sentence begins alike and
goes on differently, so a model that misses an answer has failed to recall, not to guess the grammar.
"""

from typing import NamedTuple


class Person(NamedTuple):
    name: str
    he: str
    him: str


class Sentence(NamedTuple):
    """A sentence ready for `%`: the text around its answer (all of it is `before` if it has none), and who is in it."""

    before: str
    after: str
    capital: bool
    roles: tuple[str, ...]
    needs_adult: bool


class Plot(NamedTuple):
    """How a story goes: what the children want, the facts it states first, and those it may state second.

    `way` says how the first facts come about (a key of KINDS), `counts` how many there may be.
    """

    indoors: bool
    wants: tuple[Sentence, ...]
    lists: tuple[Sentence, ...]
    way: str
    counts: tuple[int, ...]
    statements: tuple[Sentence, ...]
    second_ways: tuple[str, ...]
    endings: tuple[Sentence, ...]


def _sentences(*texts: str) -> tuple[Sentence, ...]:
    return tuple(_sentence(text) for text in texts)


def _sentence(text: str) -> Sentence:
    capital = "{Answer}" in text
    roles = tuple(role for role in ("a", "b") if "{" + role + "}" in text)
    before, _, after = text.replace("{Answer}", "{answer}").partition("{answer}")
    before, after = (part.replace("{", "%(").replace("}", ")s") for part in (before, after))
    return Sentence(before, after, capital, roles, "{adult}" in text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _with_article(nouns: str) -> tuple[tuple[str, str], ...]:
    return tuple((noun, ("an " if noun[0] in "aeiou" else "a ") + noun) for noun in nouns.split())


GIRLS = _words("Mia Ana Lily Zoe Emma Sara Nora Lucy Ella Clara Maya Rosa Eva Tina Molly Amy Kate Jane Nina Alice")
BOYS = _words("Ben Tom Sam Max Leo Tim Jack Noah Finn Oscar Hugo Adam Luke Theo Paul Peter Otto Dan Fred Omar")
CHILDREN = tuple([Person(name, "she", "her") for name in GIRLS] + [Person(name, "he", "him") for name in BOYS])
ADULTS = (
    Person("Grandma", "she", "her"),
    Person("Grandpa", "he", "him"),
    Person("Aunt May", "she", "her"),
    Person("Uncle Joe", "he", "him"),
)
NUMBERS = {3: "three", 4: "four"}

# (noun, noun with its article). Things are small enough to be carried, animals small enough to sleep on a chair.
THINGS = _with_article(
    "kite drum ball doll bell book cup hat scarf lamp flute whistle shell ring spoon mirror map mask button glove "
    "boot bucket spade blanket pillow umbrella ribbon crown flag candle clock vase jar lantern puppet trumpet rope "
    "bowl bottle robot"
)
ANIMALS = _with_article(
    "dog cat rabbit duck hen mouse parrot turtle frog squirrel kitten puppy goose lamb hamster otter"
)

COLOURS = _words(
    "red blue green yellow white black brown pink purple orange grey silver golden violet scarlet turquoise"
)
ANIMAL_NAMES = _words(
    "Pepper Biscuit Ginger Cookie Muffin Patch Snowy Lucky Rusty Daisy Honey Coco Fluffy Misty Toffee Pickle "
    "Button Pebble Sunny Clover"
)

PREPOSITIONS = _words("under behind beside near inside on by between in at below outside against opposite")
# Adjectives and nouns of places, outdoors and indoors; every adjective goes with every noun beside it.
ADJECTIVES = (
    _words("old big little huge tiny crooked pretty strange funny lovely wide mossy muddy wet"),
    _words("old big little huge tiny crooked pretty strange funny lovely wide dusty low wooden"),
)
_AROUND_OUTDOORS = _words("bench tree gate fence shed cart wagon barrel bush rock wall log hut bridge")
_AROUND_INDOORS = _words("table chair desk shelf bench stool cupboard chest trunk door crate barrel basket box")
PLACES = (
    {
        "under": _words("bench tree cart wagon bush table bridge"),
        "behind": _words("bench tree gate fence shed cart wagon barrel bush rock wall log hut"),
        "beside": _AROUND_OUTDOORS,
        "near": _AROUND_OUTDOORS,
        "inside": _words("shed cart wagon barrel hut basket crate tent"),
        "on": _words("bench cart wagon barrel rock wall log crate table"),
        "by": _AROUND_OUTDOORS,
        "between": _words("trees rocks bushes benches barrels carts logs crates"),
        "in": _words("shed cart wagon barrel hut basket crate tent"),
        "at": _AROUND_OUTDOORS,
        "below": _words("bench tree cart wagon bush table bridge"),
        "outside": _words("gate fence shed hut tent"),
        "against": _words("bench tree gate fence shed cart wagon barrel rock wall log hut"),
        "opposite": _AROUND_OUTDOORS,
    },
    {
        "under": _words("table chair desk shelf bench stool"),
        "behind": _words("chair desk bench cupboard chest trunk door crate barrel basket box"),
        "beside": _AROUND_INDOORS,
        "near": _AROUND_INDOORS,
        "inside": _words("cupboard chest trunk crate barrel basket box"),
        "on": _words("table chair desk shelf bench stool chest trunk crate box"),
        "by": _AROUND_INDOORS,
        "between": _words("tables chairs stools chests crates barrels baskets boxes"),
        "in": _words("cupboard chest trunk crate barrel basket box"),
        "at": _AROUND_INDOORS,
        "below": _words("table chair desk shelf bench stool"),
        "outside": _words("cupboard chest trunk door"),
        "against": _words("table chair desk shelf bench stool cupboard chest trunk door crate barrel basket box"),
        "opposite": _AROUND_INDOORS,
    },
)

SETTINGS = (
    _words("garden park meadow yard field forest orchard village"),
    _words("house cottage cabin attic barn school cellar hall"),
)
WEATHERS = _words("sunny warm bright windy quiet fine cool mild")
TIMES = ("morning", "afternoon", "day", "summer day", "spring morning")

OPENINGS = _sentences(
    "One {weather} {time}, {cast} met in the {setting}.",
    "It was a {weather} {time}, and {cast} were in the {setting}.",
    "{cast} were good friends. One {weather} {time}, they met in the {setting}.",
    "Once upon a time there were {number} friends, {cast}. One {weather} {time}, they went to the {setting}.",
    "On a {weather} {time}, {cast} came to the {setting}.",
)

# Statements of these ways begin with who did it, so they can be linked.
LINKED_WAYS = ("put", "given", "painted", "called")
FIRST_LINKS = ("", "First, ", "First of all, ")
NEXT_LINKS = ("", "Then ", "Next, ", "After that, ")

_PUT_AWAY = _sentences(
    "{who} put the {thing} {answer}.",
    "{who} left the {thing} {answer}.",
    "{who} placed the {thing} {answer}.",
    "{who} was quick and put the {thing} {answer}.",
    "{who} took great care and put the {thing} {answer}.",
)
_CALLED = _sentences(
    "{who} called the {thing} {answer}.",
    "{who} thought for a moment and called the {thing} {answer}.",
    "{who} laughed and called the {thing} {answer}.",
    "{who} called the {thing} {answer}, and the others liked it.",
)
_LOOKED = _sentences(
    "The {thing} was {answer}.",
    "The {thing} was {answer} from top to bottom.",
    "The {thing} was {answer}, with a shine to it.",
    "The {thing} was {answer} and very fine.",
)
_COLLECTED = _sentences(
    "At last they picked everything up and went home.",
    "When the sun went down, they picked everything up and went home.",
    "In the end nothing was lost, and they carried everything home.",
)

PLOTS = (
    Plot(
        indoors=False,
        wants=_sentences(
            "They wanted to play a hiding game.",
            '"Let us play a hiding game," said {a}, and the others agreed.',
            "Nobody wanted to sit still, so they began a hiding game.",
        ),
        lists=_sentences("They had {list}.", "{a} had brought {list}.", "Their bag held {list}."),
        way="put",
        counts=(2, 3, 4),
        statements=_sentences(
            "{who} hid the {thing} {answer}.",
            "{who} put the {thing} {answer}.",
            "{who} hid the {thing} {answer} and ran back.",
            "{who} put the {thing} {answer} without a sound.",
            "{who} giggled and hid the {thing} {answer}.",
        ),
        second_ways=("belonged", "called", "looked"),
        endings=_COLLECTED,
    ),
    Plot(
        indoors=False,
        wants=_sentences(
            'Then a strong wind began to blow. "We must keep our things safe," said {a}.',
            'Dark clouds came over the hill. "Let us find a safe place for our things," said {a}.',
            "Soon the wind grew strong, and they had to keep their things safe.",
        ),
        lists=_sentences("They had {list}.", "{a} had brought {list}.", "All around them were their toys: {list}."),
        way="put",
        counts=(2, 3, 4),
        statements=_PUT_AWAY,
        second_ways=("belonged", "called", "looked"),
        endings=_COLLECTED,
    ),
    Plot(
        indoors=True,
        wants=_sentences(
            "There were things all over the floor, so they began to tidy up.",
            '"What a mess," said {a}. "Let us tidy up."',
            "{adult} asked them to tidy up, and they were glad to help.",
        ),
        lists=_sentences("On the floor they saw {list}.", "They picked up {list}.", "{a} picked up {list}."),
        way="put",
        counts=(2, 3, 4),
        statements=_PUT_AWAY,
        second_ways=("belonged", "looked"),
        endings=_sentences(
            "At last the room was tidy, and they went out to play.",
            "Now the floor was clean, and they danced on it.",
            "When all the work was done, they had cake.",
        ),
    ),
    Plot(
        indoors=True,
        wants=_sentences(
            "Then {adult} came in with gifts for their cousins, and they helped {her} to wrap them.",
            "{adult} had bought gifts for their cousins, and {she} wanted to wrap them.",
            "There was a knock, and {adult} walked in with gifts for all their cousins.",
        ),
        lists=_sentences("{adult} showed them {list}.", "They saw {list}.", "Out came {list}."),
        way="given",
        counts=(2, 3, 4),
        statements=_sentences(
            "{who} chose the {thing} for {answer}.",
            "{who} smiled and chose the {thing} for {answer}.",
            "{who} wrapped the {thing} for {answer}.",
            "{who} found some paper and wrapped the {thing} for {answer}.",
        ),
        second_ways=("looked", "put"),
        endings=_sentences(
            "{adult} thanked them all, and they played until dark.",
            "They all gave {adult} a hug and sang for {her}.",
            "In the evening they all had cake with {adult}.",
        ),
    ),
    Plot(
        indoors=False,
        wants=_sentences(
            "They had many pots of paint.",
            '"Let us paint some things," said {a}, and the others agreed.',
            "{adult} had given them some paint, and they wanted to use it.",
        ),
        lists=_sentences("They wanted to paint {list}.", "They chose {list}.", "{a} had brought {list}."),
        way="painted",
        counts=(2, 3),
        statements=_sentences(
            "{who} painted the {thing} {answer}.",
            "{who} took a brush and painted the {thing} {answer}.",
            "{who} worked slowly and painted the {thing} {answer}.",
            "{who} sang a song and painted the {thing} {answer}.",
        ),
        second_ways=("belonged", "called"),
        endings=_sentences(
            "When the paint was dry, they took everything home.",
            "In the evening they washed the paint from their hands.",
            "There was paint on their noses, but nobody minded.",
        ),
    ),
    Plot(
        indoors=True,
        wants=_sentences(
            "They wanted to put on a play for the whole town.",
            '"Let us put on a play," said {a}, and the others agreed.',
            "There would be a play that night, and they had much to do.",
        ),
        lists=_sentences(
            "For the play they needed {list}.", "They had found {list} for it.", "{a} had brought {list}."
        ),
        way="looked",
        counts=(2, 3),
        statements=_LOOKED,
        second_ways=("belonged", "called"),
        endings=_sentences(
            "In the evening, the whole town clapped for their play.",
            "The play was a joy, and everyone clapped.",
            "They put on their play, and it went very well.",
        ),
    ),
    Plot(
        indoors=False,
        wants=_sentences(
            "They loved animals, and this was their lucky day.",
            '"Listen," said {a}. "I can hear some animals."',
            "They had come to look for animals.",
        ),
        lists=_sentences(
            "Soon they met {list}, and none of them had a name.",
            "There they found {list}, who had no names yet.",
            "They made friends with {list}, and each of them needed a name.",
        ),
        way="called",
        counts=(2, 3),
        statements=_CALLED,
        second_ways=("rested", "belonged"),
        endings=_sentences(
            "In the evening they said good night to the animals.",
            "When the sun went down, they fed the animals and went home.",
            "The animals were sad to see them go.",
        ),
    ),
)

# What leads to the second facts of a story, by their way; {list} only where new things or animals appear.
SECOND_LEADS = {
    "put": _sentences(
        "Soon it was time for lunch, and some of the gifts were in the way.",
        "When they were hungry, they put two of the gifts away.",
        '"Now put some things away," said {adult}, and they did.',
    ),
    "rested": _sentences(
        "After a while the animals grew tired.",
        "The animals had run all day, and they needed some rest.",
        "Soon it was time for the animals to sleep.",
    ),
    "belonged": _sentences(
        "None of the {goods} was their own, and they talked about that.",
        "All the {goods} had owners, who were not there that day.",
        "{a} wanted to know more about the {goods}, and {b} could help.",
    ),
    "looked": _sentences(
        "{a} still had {list} to show.",
        "Later {a} came back with {list}.",
        "{a} opened a bag and took out {list}.",
    ),
    "called": _sentences(
        "Soon {list} came to join them.",
        "Just then {list} came along.",
        "They were not alone, because {list} had come to watch them.",
    ),
}
GIFTS_SHINE = _sentences(
    "They held everything up to the light.",
    "Now they looked more closely.",
    "{a} turned on the light, so that they could see better.",
)
STATEMENTS = {
    "put": _PUT_AWAY,
    "rested": _sentences(
        "The {thing} slept {answer}.",
        "The {thing} rested {answer}.",
        "The {thing} lay down {answer}.",
        "The {thing} fell asleep {answer}.",
    ),
    "belonged": _sentences(
        "The {thing} belonged to {answer}.",
        "The {thing} belonged to {answer}, who loved it.",
        "The {thing} belonged to {answer}, who was proud of it.",
        "Of course the {thing} belonged to {answer}.",
    ),
    "looked": _LOOKED,
    "called": _CALLED,
}

EVENTS = (
    _sentences(
        "A butterfly flew over their heads.",
        "High up in the sky, a bird sang.",
        "The wind played with the leaves.",
        "The sun warmed their faces.",
        "They ate some bread and cheese in the grass.",
        "They drank cold milk and told each other stories.",
        "They raced to the road and back, and {a} won.",
        "{a} fell, but {b} helped {him} up.",
        "{a} told a joke, and {b} laughed.",
        "{a} sang a song, and {b} danced.",
        "{a} picked some flowers and gave them to {b}.",
        "{a} jumped over a stream, and {b} jumped after {him}.",
        "{a} shared a sweet pear with {b}.",
        "{a} saw a cloud that had the shape of a fish.",
    ),
    _sentences(
        "Soft rain fell on the roof.",
        "The wind knocked on the window.",
        "A spider watched them from its web.",
        "The sun shone in through the window.",
        "They ate some warm soup and bread.",
        "They drank hot tea and told each other stories.",
        "They danced around the room, and {a} spun the fastest.",
        "{a} made a face, and everyone laughed.",
        "{a} told a joke, and {b} laughed.",
        "{a} sang a song, and {b} clapped.",
        "{a} shared a cookie with {b}.",
        "{a} read a story aloud, and {b} listened.",
        "{a} was cold, so {b} gave {him} a coat.",
        "{a} drew a ship for {b}.",
    ),
)

ASKED_BY_NEW_ADULT = _sentences(
    "Then {adult} came to see them and asked many questions.",
    "Later {adult} sat down with them and wanted to know everything.",
    "{adult} heard them laugh and came to ask what they had done.",
)
ASKED_BY_ADULT = _sentences(
    "{adult} wanted to see how much they knew.",
    "Then {adult} asked them many questions.",
    "{adult} had some questions for them.",
)
ASKED_BY_CHILDREN = _sentences(
    "They sat down in a circle and asked each other questions.",
    "They wanted to know who remembered the most.",
    "Now {a} made up a game with questions.",
)

_PLACE = {
    "mention": _sentences(
        "{a} looked at the {thing} {answer} and smiled.",
        "{a} went back to the {thing} {answer}.",
        "{a} found the {thing} {answer} and left it there.",
        "{a} thought of the {thing} {answer}.",
        "{a} showed {b} the {thing} {answer}.",
        "{a} did not touch the {thing} {answer}.",
        "As before, the {thing} was {answer}.",
        "{a} went to look, and the {thing} was {answer}.",
    ),
    "late": _sentences(
        "That night, {a} dreamed of the {thing} {answer}.",
        "Before {a} fell asleep, {he} thought of the {thing} {answer}.",
        "For a long time, {a} remembered the {thing} {answer}.",
    ),
    "retell": _sentences(
        "{a} said that the {thing} was {answer}.",
        "{a} told {b} that the {thing} was {answer}.",
        '"The {thing} is {answer}," said {a}.',
        '"Do not forget that the {thing} is {answer}," said {a}.',
        "{b} was not sure, but {a} knew that the {thing} was {answer}.",
    ),
    "reply": _sentences(
        "Where was the {thing}? The {thing} was {answer}.",
        '"Where is the {thing}?" asked {a}. "The {thing} is {answer}," said {b}.',
        '{a} asked where to find the {thing}. "The {thing} is {answer}," said {b}.',
    ),
    "question": _sentences(
        "Where was the {thing}? It was {answer}.",
        '"Where is the {thing}?" asked {a}. "It is {answer}," said {b}.',
        "{a} asked about the {thing}, and {b} said that it was {answer}.",
        "And where was the {thing} now? {Answer}.",
    ),
}
_OWNER = {
    "mention": _sentences(
        "The {thing} belonged to {answer}, and nobody forgot it.",
        "The others liked the {thing} that belonged to {answer}.",
        "Everyone was glad that the {thing} belonged to {answer}.",
        "They took good care of the {thing} that belonged to {answer}.",
        "They all knew that the {thing} belonged to {answer}.",
        "As before, the {thing} belonged to {answer}.",
    ),
    "late": _sentences(
        "For a long time, everyone remembered that the {thing} belonged to {answer}.",
        "Even after many years, the {thing} belonged to {answer}.",
    ),
    "retell": _sentences(
        '"That {thing} is for {answer}," said {a}.',
        '"The {thing} belongs to {answer}," said {a}.',
        '"The owner of the {thing} is {answer}," said {a}.',
        "It was clear to all that the owner of the {thing} was {answer}.",
    ),
    "reply": _sentences(
        "Whose {thing} was it? The {thing} belonged to {answer}.",
        '"Whose is the {thing}?" was one of the questions. "The {thing} belongs to {answer}," said {b}.',
        'Someone asked who owned the {thing}. "The {thing} belongs to {answer}," said {b}.',
    ),
    "question": _sentences(
        "Whose {thing} was it? It was {answer}'s.",
        '"And whose is the {thing}?" came next. "It is {answer}\'s," said {b}.',
        "Who owned the {thing}? It was {answer}.",
        "Who was the owner of the {thing}? {answer} was.",
    ),
}
_COLOUR = {
    "mention": _sentences(
        "The {thing} was {answer}, and it looked just right.",
        "{a} liked that the {thing} was {answer}.",
        "{a} was glad that the {thing} was {answer}.",
        "In the light, they could see that the {thing} was {answer}.",
        "{a} and {b} were sure that the {thing} was {answer}.",
    ),
    "late": _sentences(
        "That night, {a} dreamed that the {thing} was {answer}.",
        "For a long time, {a} remembered that the {thing} was {answer}.",
    ),
    "retell": _sentences(
        '"The {thing} is {answer}," said {a}.',
        "{a} told {b} that the {thing} was {answer}.",
        "{a} said that the colour of the {thing} was {answer}.",
        '"I like the colour of the {thing}. It is {answer}," said {a}.',
    ),
    "reply": _sentences(
        "What colour was the {thing}? The {thing} was {answer}.",
        '"What colour is the {thing}?" asked {a}. "The {thing} is {answer}," said {b}.',
        '{a} wanted to know the colour of the {thing}. "The {thing} is {answer}," said {b}.',
    ),
    "question": _sentences(
        "What colour was the {thing}? It was {answer}.",
        '"What colour is the {thing}?" asked {a}. "It is {answer}," said {b}.',
        "{a} asked about the colour of the {thing}, and {b} said that it was {answer}.",
        "And which colour did the {thing} have? {Answer}.",
    ),
}
_NAME = {
    "mention": _sentences(
        "{a} called the {thing} {answer}, and it came at once.",
        "They all called the {thing} {answer}.",
        "Again and again, {a} called the {thing} {answer}.",
        "Everyone called the {thing} {answer} and gave it something to eat.",
        "{a} and {b} called the {thing} {answer}, just like the others.",
    ),
    "late": _sentences(
        "Even in a dream that night, {a} called the {thing} {answer}.",
        "For a long time, they called the {thing} {answer}.",
    ),
    "retell": _sentences(
        "{a} said that the name of the {thing} was {answer}.",
        '"The name of the {thing} is {answer}," said {a}.',
        "{a} told {b} that the name of the {thing} was {answer}.",
        '"Come here, {thing}," said {a}. "You are {answer}."',
    ),
    "reply": _sentences(
        "What did they call the {thing}? They called the {thing} {answer}.",
        '"What do you call the {thing}?" asked {a}. "We call the {thing} {answer}," said {b}.',
        '{a} wanted to know the name of the {thing}. "We call the {thing} {answer}," said {b}.',
    ),
    "question": _sentences(
        "What was the name of the {thing}? It was {answer}.",
        '"What is the name of the {thing}?" asked {a}. "It is {answer}," said {b}.',
        "{a} asked about the name of the {thing}, and {b} said that it was {answer}.",
        "And what did they call the {thing} now? {answer}.",
    ),
}


def _with_more(sentences: dict, **more: tuple[Sentence, ...]) -> dict:
    return {form: known + more.get(form, ()) for form, known in sentences.items()}


KINDS = {
    "put": "place",
    "rested": "place",
    "given": "owner",
    "belonged": "owner",
    "painted": "colour",
    "looked": "colour",
    "called": "name",
}
# How a fact is told again, by its way and by form; "late" holds the mentions that close a story.
TELLINGS = {
    "put": _with_more(
        _PLACE,
        mention=_sentences(
            "{a} knew that {who} had put the {thing} {answer}.",
            "{a} had seen how {who} put the {thing} {answer}.",
        ),
        question=_sentences("Where did {who} leave the {thing}? {Answer}."),
    ),
    "rested": _PLACE,
    "given": _with_more(
        _OWNER,
        mention=_sentences(
            "Everyone knew that {who} had chosen the {thing} for {answer}.",
            "They had all seen how {who} chose the {thing} for {answer}.",
        ),
    ),
    "belonged": _OWNER,
    "painted": _with_more(
        _COLOUR,
        mention=_sentences(
            "{a} knew that {who} had painted the {thing} {answer}.",
            "{a} had seen how {who} painted the {thing} {answer}.",
        ),
    ),
    "looked": _COLOUR,
    "called": _NAME,
}

LAST_WORDS = _sentences(
    "Everyone was tired but happy.",
    "It had been a wonderful day.",
    "They could not wait to meet again.",
    "{a} hugged {b}, and they all said good night.",
    "And so the day came to a good end.",
    "They were the best of friends.",
    "Nobody wanted the day to end.",
    "What a day that was!",
)
