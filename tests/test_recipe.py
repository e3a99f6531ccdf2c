"""Recipes: types, origins, merging, and errors that name the key."""

import pytest
import torch

from mosaic_cli.core.model import build_model, count_parameters
from mosaic_cli.errors import UsageError
from mosaic_cli.recipe import BUILTIN_RECIPES, documented_keys, load_data_section, load_recipe, parse_yaml, validate

MODEL = "model: {num_layers: 1, num_heads: 2, d_model: 8, context_length: 4}\n"
BASE = MODEL + "data: {source: builtin}\n"


@pytest.fixture
def recipe(workdir):
    def write(text: str, name: str = "one.yaml"):
        path = workdir / name
        path.write_text(text)
        return path

    return write


def test_numbers_written_with_exponents_are_numbers(recipe):
    path = recipe(BASE + "train: {learning_rate: 1e-4, min_lr: 1E-5, max_steps: 1e3, betas: [.9, 0.99]}")
    train = load_recipe(path).recipe.train
    assert (train.learning_rate, train.min_lr, train.max_steps, train.betas) == (1e-4, 1e-5, 1000, (0.9, 0.99))


def test_words_that_old_yaml_takes_for_booleans_stay_words():
    assert parse_yaml("{a: no, b: on, c: true, d: 1_000, e: 12:30}", "x") == {
        "a": "no",
        "b": "on",
        "c": True,
        "d": 1000,
        "e": "12:30",
    }


def test_later_sources_win_and_are_remembered(recipe):
    recipe(BASE + "train: {max_steps: 1, batch_size: 2, seed: 3, warmup_steps: 4}", "base.yaml")
    path = recipe("extends: base.yaml\ntrain: {batch_size: 20, seed: 30, warmup_steps: 40}")
    loaded = load_recipe(
        path,
        flags={"train.seed": 300, "train.warmup_steps": 400, "train.compile": None},
        overrides=["train.warmup_steps=4000"],
    )
    train = loaded.recipe.train
    assert (train.max_steps, train.batch_size, train.seed, train.warmup_steps) == (1, 20, 300, 4000)
    assert loaded.origin("train.max_steps").endswith("base.yaml")
    assert loaded.origin("train.batch_size").endswith("one.yaml")
    assert loaded.origin("train.seed") == "flag"
    assert loaded.origin("train.warmup_steps") == "--set"
    assert loaded.origin("train.compile") == "default"


def test_lists_replace_instead_of_merging(recipe):
    recipe(MODEL + "data: {files: [a.txt, b.txt]}", "base.yaml")
    path = recipe("extends: base.yaml\ndata: {files: [c.txt]}")
    assert load_recipe(path).recipe.data.files == ["c.txt"]


def test_files_are_looked_up_beside_the_recipe_first(recipe, workdir):
    (workdir / "sub").mkdir()
    (workdir / "sub" / "here.txt").write_text("x")
    (workdir / "sub" / "r.yaml").write_text(MODEL + "data: {files: [here.txt, elsewhere.txt]}")
    assert load_recipe(workdir / "sub" / "r.yaml").recipe.data.files == ["sub/here.txt", "elsewhere.txt"]


def test_a_resolved_recipe_is_a_recipe(recipe):
    resolved = load_recipe(recipe(BASE)).recipe
    assert validate(parse_yaml(resolved.to_yaml(), "x"), {}, "x") == resolved


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("train: {learnin_rate: 1}", "unknown key 'train.learnin_rate'", "Did you mean learning_rate?"),
        ("model: {d_modl: 1}", "unknown key 'model.d_modl'", "Did you mean d_model?"),
        ("trian: {}", "unknown key 'trian'", "Did you mean train?"),
        ("train: {max_steps: many}", "train.max_steps = 'many'", None),
        ("train: {max_steps: 1.5}", "train.max_steps = 1.5", None),
        ("train: {max_steps: 0}", "greater than or equal to 1", None),
        ("model: {kind: rnn}", "model.kind = 'rnn'", None),
        ("model: {num_heads: 3}", "d_model 8 is not a multiple of num_heads 3", None),
        ("data: {source: files}", "data.files is empty", "--set data.files"),
        ("data: {source: hub}", "names no data set", "--set data.hub"),
        ("train: {batch_size: 6, micro_batch_size: 4}", "not a multiple of micro_batch_size", None),
        ("train: {learning_rate: 1e-5}", "min_lr 0.0001 is above", "min_lr=0"),
        ("name: a/b", "'a/b' is not a plain name", None),
    ],
)
def test_errors_say_what_and_where(recipe, text, message, hint):
    recipe(BASE, "base.yaml")
    with pytest.raises(UsageError) as caught:
        load_recipe(recipe("extends: base.yaml\n" + text))
    assert message in caught.value.message and caught.value.where
    assert hint is None or hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {num_layers: 1}\ndata: {source: builtin}", "required"),
        ("just words", "a map of sections"),
        ("a: [1", "not valid YAML"),
        (BASE + "train: {seed: 1, seed: 2}", "given twice"),
        ("extends: nowhere.yaml", "not a file beside it"),
        ("extends: one.yaml", "in a circle"),
    ],
)
def test_broken_recipes_are_refused(recipe, text, message):
    with pytest.raises(UsageError, match=message):
        load_recipe(recipe(text))


def test_a_recipe_that_does_not_exist_gets_the_nearest_name(workdir):
    with pytest.raises(UsageError) as caught:
        load_recipe("quickstrat")
    assert "Did you mean quickstart?" in caught.value.hint


@pytest.mark.parametrize("override", ["train.max_steps", "=3"])
def test_an_override_needs_key_and_value(recipe, override):
    with pytest.raises(UsageError, match="is not KEY=VALUE"):
        load_recipe(recipe(BASE), overrides=[override])


def test_data_without_a_recipe():
    data = load_data_section({"source": "files", "files": ["a.txt"]}, ["data.val_fraction=0.2"])
    assert data.val_fraction == 0.2


def test_every_key_is_documented():
    undocumented = [key for key, _, description in documented_keys() if len(description) < 15]
    assert not undocumented


@pytest.mark.parametrize("path", sorted(BUILTIN_RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_says_what_it_costs(path):
    load_recipe(path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert path.read_text().startswith("#") and any("parameters" in line for line in header)


def test_twins_differ_in_nothing_but_the_kind():
    for path in BUILTIN_RECIPES.glob("*-transformer.yaml"):
        twin = load_recipe(path).recipe.model_dump()
        own = load_recipe(path.with_name(path.name.replace("-transformer", ""))).recipe.model_dump()
        twin["model"]["kind"], twin["name"] = own["model"]["kind"], own["name"]
        assert twin == own


@pytest.mark.parametrize(
    ("name", "vocab_size", "parameters", "with_a_head"),
    [("v2-large", 128256, 9.40e9, 9.9e9), ("v2-small", 128256, 1.93e9, 2.19e9)],
)
def test_the_models_of_v2_have_their_size(name, vocab_size, parameters, with_a_head):
    """9.9 B is the paper's word for large; it has a head beside the embedding, which is tied here."""
    config = load_recipe(name).recipe.model.with_vocab(vocab_size)
    with torch.device("meta"):
        model = build_model(config)
    count = count_parameters(model)
    assert count == pytest.approx(parameters, rel=2e-3)
    assert count + vocab_size * config.d_model == pytest.approx(with_a_head, rel=5e-3)


def test_v1_and_v2_are_compared_at_equal_size():
    sizes = []
    for name in ("stories-recall", "stories-v2"):
        recipe = load_recipe(name).recipe
        sizes.append(count_parameters(build_model(recipe.model.with_vocab(recipe.data.vocab_size))))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.005)
