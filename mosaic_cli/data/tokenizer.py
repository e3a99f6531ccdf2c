"""One tokenizer format for every kind: Hugging Face's tokenizer.json, which other tools read too.

Kinds: `bpe` (byte-level, trained on the data), `byte`, `char`, `gpt2`, or a file. All stand for any text without loss
(`char` for text of its own characters), and hold the token that ends a document.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from mosaic_cli.data.documents import END_OF_TEXT
from mosaic_cli.data.hub import HubUnreachable, ask_hub
from mosaic_cli.errors import DataError, UsageError, first_line
from mosaic_cli.files import write_atomically

FILE_NAME = "tokenizer.json"
GPT2_REPOSITORY = "openai-community/gpt2"
GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
GPT2_VOCABULARY = 50_257
MIN_PAIR_COUNT = 2  # a merge seen once is an accident of the text
WINDOW_CHARS = 256  # far more than a word: what stands further from a cut does not change the tokens at it
SENTENCEPIECE_SPACE = "▁"
CUT_TRIES = 16  # places looked at before a search gives up; in ordinary text the first one will do

_GAP = re.compile(r"(?<=\S)\s")


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        kind: `bpe`, `byte`, `char`, `gpt2`, or the model's name in a tokenizer.json of another make.
        vocab_size: number of ids, the end-of-text token's among them.
        end_of_text: id of the token that ends a document.
    """

    def __init__(self, inner: tokenizers.Tokenizer):
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True  # "<|endoftext|>" in a text is thirteen characters like any others
        vocabulary = inner.get_vocab(with_added_tokens=True)
        self._inner = inner
        self._settings = json.loads(inner.to_str())
        decoder = json.dumps(self._settings["decoder"], ensure_ascii=False)
        self._byte_level, self._sentencepiece = '"ByteLevel"' in decoder, SENTENCEPIECE_SPACE in decoder
        self.vocab_size = max(vocabulary.values()) + 1
        self.end_of_text = vocabulary[END_OF_TEXT]
        self.kind = self._find_kind()
        self._alphabet = frozenset(vocabulary) if self.kind == "char" else None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """A byte-level BPE of at most `vocab_size` entries: a small text has fewer pairs worth merging."""
        inner = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=MIN_PAIR_COUNT,
            show_progress=False,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner)

    @classmethod
    def of_bytes(cls) -> "Tokenizer":
        """The 256 bytes, each its own id, and end-of-text."""
        vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
        return cls(_with_end(_byte_level(models.BPE(vocab=vocabulary, merges=[]))))

    @classmethod
    def of_characters(cls, alphabet: Iterable[str]) -> "Tokenizer":
        """These characters in the order of their code points, and end-of-text."""
        vocabulary = {character: id for id, character in enumerate(sorted(set(alphabet)))}
        inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        inner.decoder = decoders.Fuse()
        return cls(_with_end(inner))

    @classmethod
    def of_words(cls, words: Iterable[str]) -> "Tokenizer":
        """These words, between which a text has white space, in the order of the alphabet, and end-of-text."""
        vocabulary = {word: id for id, word in enumerate(sorted(set(words)))}
        inner = tokenizers.Tokenizer(models.WordLevel(vocab=vocabulary))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return cls(_with_end(inner))

    @classmethod
    def gpt2(cls) -> "Tokenizer":
        """GPT-2's tokenizer, from the hub or its local cache.

        Raises:
            DataError: the hub cannot be reached.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return cls.load(hf_hub_download(GPT2_REPOSITORY, FILE_NAME, local_files_only=True))
        except LocalEntryNotFoundError:
            pass  # not in the cache: ask for it
        try:
            ask_hub(GPT2_REPOSITORY, "model")
            return cls.load(hf_hub_download(GPT2_REPOSITORY, FILE_NAME))
        except (HubUnreachable, OSError) as error:
            raise DataError(
                f"GPT-2's tokenizer cannot be fetched: {error}",
                where="data.tokenizer = gpt2",
                hint="Name a folder that holds encoder.json and vocab.bpe, or a tokenizer.json: "
                "--set data.tokenizer=PATH",
            ) from error

    @classmethod
    def from_path(cls, path: str | Path) -> "Tokenizer":
        """A tokenizer.json of any make, or a folder with one or with GPT-2's vocabulary and merges.

        One without `<|endoftext|>` gets it as one more token.

        Raises:
            UsageError: no such path, or nothing of the kind in the folder.
            DataError: a damaged file, or one that would lose characters.
        """
        path = Path(path)
        for file in (path, path / FILE_NAME):
            if file.is_file():
                tokenizer = cls(_with_end(_read(file)))
                tokenizer._check_complete(file)
                return tokenizer
        for vocabulary, merges in GPT2_FILES:
            if (path / vocabulary).is_file() and (path / merges).is_file():
                return cls(_with_end(_read_gpt2(path / vocabulary, path / merges)))
        known = f"neither {FILE_NAME} nor GPT-2's {GPT2_FILES[0][0]} and {GPT2_FILES[0][1]} are in the folder"
        raise UsageError(
            f"no tokenizer here: {known if path.is_dir() else 'no such file or folder'}",
            where=path,
            hint="Tokenizers by name: bpe, byte, char, gpt2.",
        )

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """A tokenizer that was saved.

        Raises:
            DataError: missing, damaged, or without `<|endoftext|>`.
        """
        inner = _read(Path(path))
        if inner.token_to_id(END_OF_TEXT) is None:
            raise DataError(f"the tokenizer has no {END_OF_TEXT} token", where=path)
        return cls(_with_end(inner))

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json, whole or not at all."""
        write_atomically(Path(path), self._inner.to_str(pretty=True))

    def encode(self, text: str) -> list[int]:
        """Token ids of the text and nothing else.

        Raises:
            DataError: a character that a `char` tokenizer does not know.
        """
        self._check_alphabet(text)
        return self._encoded(self._inner.encode, text).ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text that a model is to read and go on from; an empty one begins a new document.

        Every command reads prompts by this, so that a position means the same token in all of them.

        Raises:
            DataError: as `encode`.
        """
        return self.encode(text) or [self.end_of_text]

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of the text, and the character at which each begins (a space before a word belongs to its token).

        Raises:
            DataError: a character that a `char` tokenizer does not know.
        """
        self._check_alphabet(text)
        encoding = self._encoded(self._inner.encode, text)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def single(self, text: str, where: object = None) -> int:
        """The one token that a text is: as written, or else with a space before it; `<|endoftext|>` is end-of-text.

        Raises:
            UsageError: it is several tokens either way, or none; `where` names the option or key.
        """
        if text == END_OF_TEXT:
            return self.end_of_text
        splits = []
        for form in (text, f" {text}"):
            try:
                ids = self.encode(form)
            except DataError as error:  # a character that a `char` tokenizer does not know
                splits.append(error.message)
                continue
            if len(ids) == 1 and text:
                return ids[0]
            splits.append(" + ".join(repr(self.token_text(id)) for id in ids) or "no token")
        raise UsageError(
            f"{text!r} is not one token: {splits[0]}; after a space: {splits[1]}",
            where=where,
            hint="Name one of these tokens; a space inside of the quotes belongs to it.",
        )

    def after_space(self, text: str) -> int | None:
        """The one token that a text is with a space before it, as a word has it inside of a sentence; or None."""
        try:
            ids = self.encode(f" {text}")
        except DataError:  # a `char` tokenizer that knows no space, or not the text
            return None
        return ids[0] if len(ids) == 1 else None

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, as arrays of `dtype`, on several cores."""
        for text in texts:
            self._check_alphabet(text)
        encodings = self._encoded(self._inner.encode_batch_fast, texts)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the tokens, end-of-text left out; bytes that are no character become U+FFFD."""
        return self._inner.decode([int(id) for id in ids], skip_special_tokens=True)

    def token_text(self, id: int) -> str:
        """What one token stands for, for people to read: bytes that are no character as \\xNN.

        Raises:
            DataError: no such token.
        """
        token = self._inner.id_to_token(id)
        if token is None:
            raise DataError(f"there is no token {id} in a vocabulary of {self.vocab_size}")
        if self._byte_level and all(character in _CHARACTER_BYTES for character in token):
            return bytes(_CHARACTER_BYTES[character] for character in token).decode(errors="backslashreplace")
        return token.replace(SENTENCEPIECE_SPACE, " ") if self._sentencepiece else token

    def stream(self) -> "TextStream":
        """Text token by token."""
        return TextStream(self)

    @property
    def dtype(self) -> np.dtype:
        """Smallest little-endian type that holds every id: uint16 or uint32."""
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what decides the ids: vocabulary, merges, added tokens, and how text is cut up first."""
        model = self._settings["model"]
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", [])]
        added = [[token["id"], token["content"]] for token in self._settings["added_tokens"]]
        canonical = [
            model["type"],
            model["vocab"],
            merges,
            added,
            self._settings["normalizer"],
            self._settings["pre_tokenizer"],
        ]
        return hashlib.sha256(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def cut(self, text: str, start: int, target: int, stop: int) -> int | None:
        """Where to cut `text` after `start`, near `target`, so that the two parts encode as the whole does.

        Before white space that follows a word, first looking back from `target`, then on up to `stop`. There a
        pre-tokenizer of GPT-2's kind splits anyway; as others may not, the tokens around the cut are compared.
        None: no such place.
        """
        return next((place for place in _gaps(text, start, target, stop) if self._same_when_cut(text, place)), None)

    def forced_cut(self, text: str, target: int) -> int:
        """A cut for text without any gap: where the tokens around it stay the same, if there is such a place."""
        places = range(target, target - CUT_TRIES, -1)
        return next((place for place in places if self._same_when_cut(text, place)), target)

    def _same_when_cut(self, text: str, place: int) -> bool:
        before, after = text[max(0, place - WINDOW_CHARS) : place], text[place : place + WINDOW_CHARS]
        return self.encode(before) + self.encode(after) == self.encode(before + after)

    def _check_alphabet(self, text: str) -> None:
        if self._alphabet is not None and (unknown := set(text) - self._alphabet):
            character = min(unknown, key=text.index)
            raise DataError(
                f"the character {character!r} (U+{ord(character):04X}) is not one of the "
                f"{self.vocab_size - 1} that this tokenizer knows",
                where=f"character {text.index(character):,} of the text",
                hint="Use only characters of the training text, or prepare it with --tokenizer bpe.",
            )

    @staticmethod
    def _encoded(encode: Callable, text: str | list[str]):
        try:
            return encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises plain Exceptions
            raise DataError(
                f"the tokenizer cannot encode the text: {first_line(error)}",
                hint="Give it a token for what it does not know, or take another one.",
            ) from error

    def _check_complete(self, path: Path) -> None:
        """Raises DataError where characters would be left out without a word."""
        model = self._settings["model"]
        silent = model["type"] == "BPE" and not model.get("unk_token") and not model.get("byte_fallback")
        if silent and not self._byte_level and self.kind != "char":
            raise DataError(
                "the tokenizer leaves out characters that it does not know, without a word",
                where=path,
                hint="Give it a token for those (unk_token), byte_fallback or a byte-level decoder.",
            )

    def _find_kind(self) -> str:
        model = self._settings["model"]
        if model["type"] != "BPE":
            return model["type"].lower()
        plain = self._settings["normalizer"] is None and not model["merges"]
        if plain and self._byte_level:
            return "byte"
        if plain and self._settings["pre_tokenizer"] is None and self._settings["decoder"] == {"type": "Fuse"}:
            return "char"
        is_gpt2 = self.vocab_size == GPT2_VOCABULARY and self.end_of_text == GPT2_VOCABULARY - 1
        return "gpt2" if is_gpt2 else "bpe"


class TextStream:
    """Text of tokens as it becomes complete: a character of several bytes is held back until its last byte."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = decoders.DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given = 0

    def push(self, id: int) -> str:
        """The text that this token completes, often its own, sometimes none."""
        self._ids.append(int(id))
        text = self._decoder.step(self._tokenizer._inner, int(id)) or ""
        self._given += len(text)
        return text

    def finish(self) -> str:
        """What is still held back: the bytes of an unfinished character, as U+FFFD."""
        return self._tokenizer.decode(self._ids)[self._given :]


def make_tokenizer(name: str) -> Tokenizer:
    """The tokenizer a recipe names, unless it depends on the data (`bpe`, `char`).

    Raises:
        UsageError: not a name and not a path. DataError: see `gpt2` and `from_path`.
    """
    if name == "byte":
        return Tokenizer.of_bytes()
    return Tokenizer.gpt2() if name == "gpt2" else Tokenizer.from_path(name)


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def _with_end(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Makes end-of-text a special token; it keeps its id if the vocabulary has it."""
    inner.add_special_tokens([END_OF_TEXT])
    return inner


def _read(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the tokenizer: {error.strerror}", where=path) from error
    except Exception as error:  # the library raises plain Exceptions
        raise DataError(
            f"not a tokenizer.json, or a damaged one: {error}",
            where=path,
            hint="Prepare the data again: mosaic prepare ... --force",
        ) from error


def _read_gpt2(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    try:
        return _byte_level(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # the library raises plain Exceptions
        raise DataError(f"not GPT-2's vocabulary and merges, or damaged: {error}", where=vocabulary.parent) from error


def _byte_characters() -> list[str]:
    """GPT-2's printable character of each byte: itself where it is visible, else one from U+0100 on."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]


_CHARACTER_BYTES = {character: byte for byte, character in enumerate(_byte_characters())}


def _gaps(text: str, start: int, target: int, stop: int) -> Iterator[int]:
    """Places before white space after a word: lines, then spaces from `target` back to `start`, then up to `stop`."""
    for space in "\n ":
        place = target
        for _ in range(CUT_TRIES):
            place = text.rfind(space, start + 1, place)
            if place < 0:
                break
            if not text[place - 1].isspace():
                yield place
    yield from (gap.start() for gap in islice(_GAP.finditer(text, target, stop), CUT_TRIES))
