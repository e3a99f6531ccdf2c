"""The source that a recipe names."""

from texts import documents_of

from mosaic_cli.data.long_stories import told_in_turns
from mosaic_cli.data.sources import open_source
from mosaic_cli.recipe import DataSection


def test_builtin_stories_are_the_same_each_time(tmp_path):
    source = open_source(DataSection(source="builtin", num_documents=5, seed=3), tmp_path)
    first = documents_of(source)
    assert len(first) == len(set(first)) == 5 and first == documents_of(source)
    assert (source.done, source.total, source.unit) == (5, 5, "records")
    assert source.used == source.requested == "builtin: stories (5 documents, seed 3)"


def test_stories_in_turns_are_a_source(tmp_path):
    source = open_source(DataSection(source="builtin", builtin="stories-in-turns", num_documents=3, seed=4), tmp_path)
    assert documents_of(source) == [told_in_turns(4, index) for index in range(3)]
    assert source.used == "builtin: stories-in-turns (3 documents, seed 4)"
