"""The sample that a tokenizer is trained on: bounded, and spread over all of the text."""

from mosaic_cli.data import sample as module
from mosaic_cli.data.sample import Sample


def test_training_sample_is_bounded_and_spread(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_BYTES", 40_000)
    sample = Sample()
    for number in range(20_000):
        sample.add(f"{number:05d}" * 4, number)
        assert sample._size <= 40_000
    kept = sorted(int(text[:5]) for text in sample.texts(None))
    assert len(kept) > 80
    assert max(b - a for a, b in zip([0, *kept], [*kept, 20_000], strict=True)) < 3 * 20_000 / len(kept)
    assert sorted(filter(None, sample.texts(kept[3]))) == [f"{number:05d}" * 4 for number in kept[:3]]


def test_training_stops_at_so_many_distinct_words(monkeypatch):
    monkeypatch.setattr(module, "DISTINCT_BYTES", 1000)
    prose, gapless = Sample(), Sample()
    for number in range(1000):
        prose.add("the same few words again", number)
        gapless.add(f"{number:05d}漢字漢字漢", number)
    assert len(list(prose.texts(None))) == 1000
    kept = sorted(int(text[:5]) for text in gapless.texts(None))
    assert len(kept) == 50, "20 bytes each"
    assert max(b - a for a, b in zip([0, *kept], [*kept, 1000], strict=True)) < 3 * 1000 / 50
