"""What prepare makes of some files, read back."""

import random

import numpy as np

from mosaic_cli.data.prepare import prepare
from mosaic_cli.data.shards import Manifest, open_split, verify
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.recipe import DataSection

WORDS = ["the", "old", "fox", "ran", "hill,", "it's", "3", "o'clock\n\n", "again:", "", "Käfer", "漢字", "🦊"]


def words(seed, count):
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(count)) + "."


DOCUMENTS = [words(seed, 5 + 7 * seed % 60) for seed in range(50)]


def run(out, *files, force=False, **settings):
    items = list(prepare(DataSection(files=list(map(str, files)), **settings), out, force=force))
    assert items[-1].manifest == Manifest.load(out)
    assert verify(out).ok
    assert not list(out.parent.glob("*.partial")) and not (out / "lock").exists()
    return items[-1].manifest


def documents_in(folder, split):
    """The documents of a split, read back from its tokens."""
    tokenizer, shards = Tokenizer.load(folder / "tokenizer.json"), open_split(folder, split)
    ids = shards.read(0, len(shards))
    ends = np.flatnonzero(ids == tokenizer.end_of_text)
    parts = np.split(ids, ends + 1)
    return [tokenizer.decode(part) for part in parts if len(part)]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
