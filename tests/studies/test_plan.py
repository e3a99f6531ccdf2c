"""Plans: names, recipes, folders of data, and models of equal size."""

import pytest

from mosaic_cli.core.model import parameters_of
from mosaic_cli.errors import UsageError
from mosaic_cli.studies.plan import SIZE_TOLERANCE, Plan
from mosaic_cli.studies.study import load_study

BASE = """
model: {num_layers: 1, num_heads: 2, d_model: 16, context_length: 32}
data: {source: builtin, dir: data/base}
train: {min_lr: 1e-4}
"""


@pytest.fixture
def plan(workdir):
    def make(text, *overrides):
        (workdir / "base.yaml").write_text(BASE)
        (workdir / "one.yaml").write_text(f"recipe: base.yaml\n{text}")
        return Plan(load_study("one.yaml", list(overrides)))

    return make


GRID = "vary: {model.kind: [mosaic, transformer], model.num_layers: [1, 3]}\nseeds: [1, 2]\n"


def test_runs_are_the_full_product_under_plain_names(plan):
    made = plan(GRID + "tune: {train.learning_rate: [2e-3, 1e-3]}\nset: {train.max_steps: 7}")
    assert len(made.runs) == 2 * 2 * 2 * 2 and len(made.sweep()) == 8
    run = made.runs["one-transformer-l3-lr0.001-s2"]
    assert (run.recipe.model.kind, run.recipe.model.num_layers, run.recipe.train.seed) == ("transformer", 3, 2)
    assert (run.recipe.train.learning_rate, run.recipe.train.max_steps, run.recipe.name) == (1e-3, 7, run.name)
    assert {run.seed for run in made.sweep()} == {1}


def test_after_a_sweep_each_cell_has_its_own_values_and_a_mosaic_the_transformer_s_too(plan):
    made = plan(GRID + "tune: {train.learning_rate: [2e-3, 1e-3]}")
    low, high = {"train.learning_rate": 1e-3}, {"train.learning_rate": 2e-3}
    chosen = {"mosaic-l1": high, "mosaic-l3": high, "transformer-l1": low, "transformer-l3": None}
    labels = [run.name for run in made.follow_up(chosen)]
    assert labels == [
        *(f"one-mosaic-l1-lr{rate}-s{seed}" for rate in ("0.002", "0.001") for seed in (1, 2)),
        *(f"one-mosaic-l3-lr0.002-s{seed}" for seed in (1, 2)),
        *(f"one-transformer-l1-lr0.001-s{seed}" for seed in (1, 2)),
    ]


def test_a_mosaic_gets_as_many_slots_as_make_it_as_large_as_the_transformer(plan):
    made, free = plan(GRID), plan(GRID + "equal_size: false")
    for layers in (1, 3):
        mosaic, transformer = (made.runs[f"one-{kind}-l{layers}-s1"].recipe for kind in ("mosaic", "transformer"))
        sizes = [parameters_of(recipe.model.with_vocab(500)) for recipe in (mosaic, transformer)]
        assert abs(sizes[0] - sizes[1]) <= SIZE_TOLERANCE * max(sizes)
        assert transformer == free.runs[f"one-transformer-l{layers}-s1"].recipe, "the baseline keeps its shape"
        assert mosaic.model.num_slots > free.runs[f"one-mosaic-l{layers}-s1"].recipe.model.num_slots == 56


def test_sizes_that_are_equal_already_are_left_alone(plan):
    made = plan(GRID, "model.context_length=2", "model.d_model=32")
    assert {run.recipe.model.num_slots for run in made.runs.values()} == {112}


def test_sizes_that_cannot_be_made_equal_are_refused(plan):
    with pytest.raises(UsageError, match="which could make them equal, is varied"):
        plan(GRID.replace("model.num_layers: [1, 3]", "model.num_slots: [8, 9]"))


@pytest.mark.parametrize(
    ("text", "overrides", "folders"),
    [
        ("", [], {"data/base"}),
        ("set: {data.num_documents: 9}", [], {"data/one"}),
        ("", ["data.seed=3"], {"data/one"}),
        ("set: {data.num_documents: 9, data.dir: data/mine}", [], {"data/mine"}),
        ("vary: {data.num_documents: [7, 9]}", [], {"data/one-n7", "data/one-n9"}),
        ("variants: {a: {}, b: {data.seed: 2}}", [], {"data/base", "data/one-b"}),
    ],
)
def test_data_that_differs_has_a_folder_of_its_own(plan, text, overrides, folders):
    made = plan(f"seeds: [1]\n{text}", *overrides)
    assert {str(run.recipe.data_dir) for run in made.runs.values()} == folders


def test_variants_differ_in_what_they_say(plan):
    made = plan("variants: {plain: {}, wide: {model.d_model: 32, train.weight_decay: 0}}\nseeds: [1]")
    assert list(made.runs) == ["one-plain-s1", "one-wide-s1"]
    assert [run.recipe.model.d_model for run in made.runs.values()] == [16, 32]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("vary: {model.num_layer: [1]}", "unknown key 'model.num_layer'", "Did you mean num_layers?"),
        ("vary: {model.num_layers: [x]}", "model.num_layers = 'x'", None),
        ("tune: {train.learning_rate: [1e-3, 1e-5]}", "min_lr 0.0001 is above learning_rate 1e-05", None),
        ("vary: {train.weight_decay: [0.1, 0.1000001]}", "two cells of the study have one name", None),
    ],
)
def test_every_recipe_is_checked_before_anything_runs(plan, text, message, hint):
    with pytest.raises(UsageError) as error:
        plan(f"seeds: [1]\n{text}")
    assert message in error.value.message and (hint is None or hint in error.value.hint)
