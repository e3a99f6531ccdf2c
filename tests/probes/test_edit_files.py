"""Files of edits: read as written, written as read, and refused with the place and the nearest word."""

import pytest

from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.errors import UsageError
from mosaic_cli.probes.edit_files import dump_edits, edit_entry, load_edits
from mosaic_cli.probes.edits import Edit, Memories

TEXT = "the kite is behind the tree, the kite is under the bridge, no 17 1e5 \n" * 9
EXAMPLE = """
edits:
  - {delete: L*.H*.ctx.17}
  - {scale: L1.H0.slot.411, factor: 0.5}
  - {replace: L*.H*.ctx.17, token: " behind"}
  - {add: L*.H*.ctx, after: 17, token: " behind"}
"""


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT], 400)


@pytest.fixture
def load(tmp_path, tokenizer):
    def call(text):
        path = tmp_path / "some.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_edits(path, tokenizer)

    return call


def test_the_example_is_read(load, tokenizer):
    behind = tokenizer.single(" behind")
    pair, heads = Memories(None, None, "ctx", 17), Memories(None, None, "ctx", None)
    assert load(EXAMPLE) == [
        Edit("delete", pair),
        Edit("scale", Memories(1, 0, "slot", 411), factor=0.5),
        Edit("replace", pair, token=behind),
        Edit("add", heads, after=17, token=behind),
    ]


def test_what_is_dumped_is_read_as_it_was(load, tokenizer):
    edits = load(EXAMPLE)
    edits += [Edit("scale", edits[0].memories, factor=factor) for factor in (-1e-5, 0.0, 1e20, 3.0)]
    edits += [Edit("replace", edits[0].memories, token=token) for token in range(tokenizer.vocab_size)]
    text = dump_edits(edits, tokenizer)
    assert "\n" + text[: text.index("factor: -")].rpartition("\n")[0] + "\n" == EXAMPLE
    assert load(text) == edits
    assert load(dump_edits(edits[::-1], tokenizer)) == edits[::-1]


def test_a_text_that_looks_like_something_else_stays_text(load):
    tokenizer = Tokenizer.of_characters("0123456789 ~n")
    memories = Memories(0, 0, "ctx", 1)
    for text in ("7", "~", "n", " "):
        edit = Edit("replace", memories, token=tokenizer.single(text))
        assert edit_entry(edit, tokenizer) == {"replace": "L0.H0.ctx.1", "token": text}
        assert f'token: "{text}"' in dump_edits([edit], tokenizer)


def test_a_token_may_be_an_id(load, tokenizer):
    (edit,) = load(f"edits: [{{replace: L0.H0.ctx.1, token: {tokenizer.end_of_text}}}]")
    assert edit.token == tokenizer.end_of_text
    assert edit_entry(edit, tokenizer)["token"] == "<|endoftext|>"


@pytest.mark.parametrize(
    ("entry", "message", "hint"),
    [
        ("{delet: L0.H0.ctx.1}", "unknown key 'delet'", "Did you mean delete?"),
        ("{frobnicate: 1}", "unknown key 'frobnicate'", "delete, scale, replace, add"),
        ("{scale: L0.H0.ctx.1, facter: 2}", "unknown key 'facter'", "Did you mean factor?"),
        ("{delete: L0.H0.ctx.1, factor: 2}", "unknown key 'factor'", "delete"),
        ("{add: L0.H0.ctx, afer: 3, token: kite}", "unknown key 'afer'", "Did you mean after?"),
        ("{delete: L0.H0.ctx.1, scale: L0.H0.ctx.1}", "both delete and scale", "two entries"),
        ("{}", "without an action", "delete, scale, replace, add"),
        ("delete", "'delete' is not an edit", "edits: ["),
        ("{scale: L0.H0.ctx.1}", "scale needs the key 'factor'", None),
        ("{add: L0.H0.ctx, token: the}", "add needs the key 'after'", None),
        ("{delete: 17}", "'17' does not name a memory", "L1.H0.ctx.17"),
        ("{scale: L0.H0.ctx.1, factor: half}", "factor 'half' is not a number", "0.5"),
        ("{scale: L0.H0.ctx.1, factor: .inf}", "is not a number", "0.5"),
        ("{scale: L0.H0.ctx.1, factor: true}", "is not a number", "0.5"),
        ("{add: L0.H0.ctx, after: -1, token: the}", "after -1 is not a position", "from 0"),
        ("{add: L0.H0.ctx, after: 1.5, token: the}", "after 1.5 is not a position", "from 0"),
        ("{replace: L0.H0.ctx.1, token: kitebridge}", "is not one token", "one of these tokens"),
        ("{replace: L0.H0.ctx.1, token: 4000}", "there is no token 4000", None),
        ("{replace: L0.H0.ctx.1, token: 1e5}", "neither a text nor an id", "Quote it"),
    ],
)
def test_an_entry_that_is_no_edit_is_refused(load, entry, message, hint):
    with pytest.raises(UsageError) as caught:
        load(f"edits:\n  - {{delete: L0.H0.ctx.1}}\n  - {entry}\n")
    error = caught.value
    assert message in error.message and error.where.endswith("some.yaml: edits[1]")
    assert hint is None or hint in error.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- {delete: L0.H0.ctx.1}", "a map with the key 'edits'"),
        ("edits:", "not a list of edits"),
        ("edits: {delete: L0.H0.ctx.1}", "not a list of edits"),
        ("edits: []", "not a list of edits"),
        ("edit: []", "unknown key 'edit'"),
        ("edits: [", "not valid YAML"),
        ("edits: []\nedits: []", "given twice"),
        (b"edits: \xff\xfe", "not UTF-8"),
        (b"edits: \x00", "not valid YAML"),
    ],
)
def test_a_file_that_holds_no_edits_is_refused(load, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        load(text)
    assert "some.yaml" in caught.value.where


def test_a_file_that_is_not_there_is_refused(tmp_path, tokenizer):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match="cannot be read") as caught:
            load_edits(path, tokenizer)
        assert caught.value.where == str(path)
