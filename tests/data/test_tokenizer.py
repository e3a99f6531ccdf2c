"""Tokenizers: lossless on any text, GPT-2's own ids, cuts that change nothing, damage noticed."""

import json
import random

import numpy as np
import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Inner

from mosaic_cli.data import tokenizer as tokenizer_module
from mosaic_cli.data.hub import HubUnreachable
from mosaic_cli.data.tokenizer import Tokenizer, make_tokenizer
from mosaic_cli.errors import DataError, UsageError

FRAGMENTS = [
    "  ",
    "\n\n\n",
    "\r\n",
    " ",
    "<|endoftext|>",
    "👩‍👩‍👧",
    "é",
    "e\u0301",
    "\u0000",
    "\t",
    "hello",
    "'s",
    "\u2028",
    "漢字",
    "\U0010ffff",
    "▁",
    "1984",
    "?!",
    "\ufffd",
]


def random_text(rng, length=40):
    return "".join(rng.choice([*FRAGMENTS, chr(rng.randrange(1, 0xD800))]) for _ in range(rng.randrange(length)))


def write_gpt2(folder, vocabulary="encoder.json", merges="vocab.bpe"):
    """A small vocabulary in GPT-2's two files."""
    characters = tokenizer_module._byte_characters()
    tokens = {token: id for id, token in enumerate([*characters, "he", "ll", "hell", "hello", "Ġw", "<|endoftext|>"])}
    (folder / vocabulary).write_text(json.dumps(tokens))
    (folder / merges).write_text("#version: 0.2\nh e\nl l\nhe ll\nhell o\nĠ w\n")
    return folder


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = write_gpt2(tmp_path_factory.mktemp("gpt2"))
    text = "hello hello world, it's the world of 漢字 and 👩‍👩‍👧.\n\n" * 5
    return {"bpe": Tokenizer.train([text], 320), "byte": Tokenizer.of_bytes(), "file": Tokenizer.from_path(folder)}


@pytest.mark.parametrize("kind", ["bpe", "byte", "file"])
def test_any_text_survives_the_round_trip(kinds, kind):
    tokenizer, rng = kinds[kind], random.Random(0)
    texts = [random_text(rng) for _ in range(300)]
    batch = tokenizer.encode_batch(texts)
    for text, ids in zip(texts, batch, strict=True):
        assert tokenizer.encode(text) == ids.tolist()
        assert tokenizer.decode(ids) == text
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == text


@pytest.mark.parametrize("kind", ["bpe", "byte", "file"])
def test_stream_of_any_tokens_gives_what_decode_gives(kinds, kind):
    tokenizer, rng = kinds[kind], random.Random(1)
    for _ in range(50):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(60)]
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)


def test_stream_never_tears_a_character(kinds):
    stream = kinds["byte"].stream()
    assert [stream.push(byte) for byte in "é🦊".encode()] == ["", "é", "", "", "", "🦊"]


def test_characters(tmp_path):
    text = "To be, or not to be:\r\nthat is ▁ the <|question|>.\0é漢"
    tokenizer = Tokenizer.of_characters(text)
    assert tokenizer.vocab_size == len(set(text)) + 1 and tokenizer.end_of_text == len(set(text))
    ids = tokenizer.encode(text)
    assert [sorted(set(text))[id] for id in ids] == list(text)
    assert tokenizer.decode([*ids, tokenizer.end_of_text]) == text
    assert [tokenizer.token_text(id) for id in ids] == list(text)
    stream = tokenizer.stream()
    assert [stream.push(id) for id in ids] == list(text)


def test_unknown_character_is_named():
    tokenizer = Tokenizer.of_characters("abc")
    for encode in (lambda: tokenizer.encode("abzxa"), lambda: tokenizer.encode_batch(["a", "abzxa"])):
        with pytest.raises(DataError, match=r"the character 'z' \(U\+007A\) is not one of the 3") as caught:
            encode()
        assert caught.value.where == "character 2 of the text"


def test_bytes_are_their_own_ids():
    tokenizer = Tokenizer.of_bytes()
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)
    assert tokenizer.encode("aé\n") == list("aé\n".encode())


def test_trained_vocabulary_holds_bytes_and_end_of_text():
    tokenizer = Tokenizer.train(["the cat and the hat and the bat"] * 3, 265)
    assert tokenizer.vocab_size == 265 and tokenizer.kind == "bpe"
    singles = {tokenizer.encode(text)[0] for text in map(chr, range(128))}
    assert len(singles) == 128 and tokenizer.end_of_text not in singles
    assert len(tokenizer.encode("the and the")) < len("the and the")
    assert Tokenizer.train(["ab"], 4096).vocab_size == 257, "too small a text has nothing to merge"


def test_training_is_deterministic():
    rng = random.Random(2)
    texts = [random_text(rng, 200) for _ in range(50)]
    first, second = (Tokenizer.train(iter(texts), 400) for _ in range(2))
    assert first.fingerprint == second.fingerprint


def test_end_of_text_written_out_is_plain_text(kinds):
    for tokenizer in kinds.values():
        ids = tokenizer.encode("a<|endoftext|>b")
        assert tokenizer.end_of_text not in ids
        assert tokenizer.decode([*ids, tokenizer.end_of_text]) == "a<|endoftext|>b"
        assert tokenizer.token_text(tokenizer.end_of_text) == "<|endoftext|>"


def test_token_text_shows_bytes_that_are_no_character(kinds):
    tokenizer = kinds["byte"]
    assert [tokenizer.token_text(byte) for byte in b" \nA\xe2\x80"] == [" ", "\n", "A", "\\xe2", "\\x80"]
    with pytest.raises(DataError, match="no token 257 in a vocabulary of 257"):
        tokenizer.token_text(257)


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_folder_of_gpt2_files(tmp_path, names):
    tokenizer = make_tokenizer(str(write_gpt2(tmp_path, *names)))
    assert tokenizer.vocab_size == 262 and tokenizer.end_of_text == 261
    assert [tokenizer.token_text(id) for id in tokenizer.encode("hello wax")] == ["hello", " w", "a", "x"]


def test_gpt2_is_recognised_by_its_size(monkeypatch, tmp_path):
    monkeypatch.setattr(tokenizer_module, "GPT2_VOCABULARY", 262)
    assert Tokenizer.from_path(write_gpt2(tmp_path)).kind == "gpt2"


@pytest.mark.parametrize("kind", ["bpe", "byte", "char", "file"])
def test_saved_tokenizer_is_the_same_and_readable_by_others(tmp_path, kinds, kind):
    tokenizer = Tokenizer.of_characters("a b▁") if kind == "char" else kinds[kind]
    tokenizer.save(tmp_path / "tokenizer.json")
    for loaded in (Tokenizer.load(tmp_path / "tokenizer.json"), Tokenizer.from_path(tmp_path)):
        assert (loaded.kind, loaded.vocab_size, loaded.end_of_text, loaded.fingerprint, loaded.dtype) == (
            tokenizer.kind,
            tokenizer.vocab_size,
            tokenizer.end_of_text,
            tokenizer.fingerprint,
            tokenizer.dtype,
        )
    assert Inner.from_file(str(tmp_path / "tokenizer.json")).encode("a b").ids == tokenizer.encode("a b")


def test_fingerprints_differ_where_tokens_do(kinds):
    others = [Tokenizer.of_characters("ab"), Tokenizer.of_characters("ac"), Tokenizer.train(["abab" * 9], 300)]
    assert len({tokenizer.fingerprint for tokenizer in [*kinds.values(), *others]}) == 6


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"version": "9.0"}', "\udcff"])
def test_damaged_file(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content, errors="surrogateescape")
    for read in (Tokenizer.load, Tokenizer.from_path):
        with pytest.raises(DataError, match=r"not a tokenizer\.json, or a damaged one") as caught:
            read(path)
        assert caught.value.where == str(path)


def test_truncated_file(tmp_path, kinds):
    kinds["bpe"].save(tmp_path / "tokenizer.json")
    whole = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_damaged_gpt2_files(tmp_path):
    write_gpt2(tmp_path)
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nx q z\n")
    with pytest.raises(DataError, match="GPT-2's vocabulary and merges"):
        Tokenizer.from_path(tmp_path)


def test_tokenizer_of_another_make(tmp_path):
    inner = Inner(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.enable_truncation(2)
    inner.enable_padding(length=9)
    inner.save(str(tmp_path / "other.json"))
    with pytest.raises(DataError, match=r"no <\|endoftext\|> token"):
        Tokenizer.load(tmp_path / "other.json")
    tokenizer = Tokenizer.from_path(tmp_path / "other.json")
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.end_of_text) == ("wordlevel", 4, 3)
    assert tokenizer.encode("a b a b") == [0, 1, 0, 1], "neither cut short nor padded"


def test_tokenizer_that_would_lose_characters_is_refused(tmp_path):
    inner = Inner(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="leaves out characters"):
        Tokenizer.from_path(tmp_path)
    Tokenizer.of_characters("ab").save(tmp_path / "tokenizer.json")  # which names what it does not know
    assert Tokenizer.from_path(tmp_path).kind == "char"


def test_tokenizer_that_stops_at_what_it_does_not_know(tmp_path):
    inner = Inner(models.WordLevel(vocab={"cat": 0}))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_path(tmp_path)
    for encode in (tokenizer.encode, tokenizer.encode_with_starts, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(DataError, match="cannot encode the text"):
            encode("cat dog")


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_path_without_a_tokenizer(tmp_path, name):
    with pytest.raises(UsageError, match="no tokenizer here"):
        make_tokenizer(str(tmp_path / name))
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        Tokenizer.load(tmp_path / name)


def test_gpt2_without_the_hub_tells_to_pass_a_file(tmp_path, monkeypatch):
    import huggingface_hub.constants

    def unreachable(*_):
        raise HubUnreachable("the hub cannot be reached: no network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(tokenizer_module, "ask_hub", unreachable)
    with pytest.raises(DataError, match="GPT-2's tokenizer cannot be fetched: the hub cannot be reached") as caught:
        make_tokenizer("gpt2")
    assert "--set data.tokenizer=PATH" in caught.value.hint


def test_dtype_follows_the_vocabulary():
    tokenizer = Tokenizer.of_bytes()
    assert tokenizer.dtype == np.dtype("<u2")
    for size, dtype in ((65_536, "<u2"), (65_537, "<u4")):
        tokenizer.vocab_size = size
        assert tokenizer.dtype == np.dtype(dtype)


def in_pieces(tokenizer, text, length):
    ids, start = [], 0
    while len(text) - start > length:
        cut = tokenizer.cut(text, start, start + length, len(text))
        if cut is None:
            break
        assert start < cut < len(text)
        ids += tokenizer.encode(text[start:cut])
        start = cut
    return ids + tokenizer.encode(text[start:]), start


@pytest.mark.parametrize("kind", ["bpe", "byte", "file"])
@pytest.mark.parametrize("length", [1, 5, 50])
def test_encoding_in_pieces_is_encoding_the_whole(kinds, kind, length):
    rng = random.Random(length)
    for _ in range(15):
        text = " ".join(random_text(rng, 6) for _ in range(20))
        ids, cuts = in_pieces(kinds[kind], text, length)
        assert cuts and ids == kinds[kind].encode(text)


def test_pieces_of_a_pre_tokenizer_that_keeps_line_breaks_with_punctuation(tmp_path, kinds):
    inner = Inner.from_str(kinds["bpe"]._inner.to_str())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\s\p{L}]+[\r\n]*|\s*[\r\n]+|\s?\p{L}+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.train_from_iterator(
        ["word.\n. word.\n\n"] * 50,
        trainers.BpeTrainer(
            vocab_size=300,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>"],
        ),
    )
    tokenizer = Tokenizer(inner)
    text = "word.\nword word.\n\nword\n" * 20
    assert tokenizer.encode(".\n") != tokenizer.encode(".") + tokenizer.encode("\n"), "this one would be a wrong cut"
    ids, cuts = in_pieces(tokenizer, text, 12)
    assert cuts and ids == tokenizer.encode(text)


def test_tokenizer_that_cannot_be_cut_is_not():
    inner = Inner(models.BPE(vocab={"▁": 0, "a": 1, "<|endoftext|>": 2}, merges=[]))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Replace("▁", " ")
    tokenizer = Tokenizer(inner)
    assert tokenizer.cut("aa aa aa aa", 0, 6, 11) is None
    assert tokenizer.token_text(0) == " "


def test_text_without_gaps_is_cut_by_force_where_tokens_part(kinds):
    assert kinds["file"].forced_cut("hello" * 9, 28) == 25
    assert kinds["file"].cut("hello" * 9, 0, 28, 45) is None
