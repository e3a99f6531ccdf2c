"""Studies: what a file may say, and errors that name the key."""

import pytest
import torch

from mosaic_cli.commands.eval_tasks import TASKS
from mosaic_cli.core.model import build_model, count_parameters
from mosaic_cli.errors import UsageError
from mosaic_cli.studies.plan import Plan
from mosaic_cli.studies.study import BUILTIN_STUDIES, FIGURES, load_study

KINDS = "recipe: quickstart\nvary: {model.kind: [mosaic, transformer]}\nseeds: [1, 2]\n"


@pytest.fixture
def study(workdir):
    def write(text):
        (workdir / "one.yaml").write_text(text)
        return "one.yaml"

    return write


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (KINDS.replace("seeds", "seed"), "unknown key 'seed'", "Did you mean seeds?"),
        (KINDS + "published: {sources: me, values: []}", "unknown key 'published.sources'", "Did you mean source?"),
        ("recipe: quickstart", "the key 'seeds' is required", "Add it"),
        ("- 1", "a study is a map of keys", "recipe"),
        (KINDS.replace("[1, 2]", "[1, 1]"), "seeds needs one or more numbers, each once: [1, 1]", None),
        (KINDS.replace("[1, 2]", "[]"), "seeds needs one or more numbers", None),
        (KINDS.replace("[mosaic, transformer]", "[]"), "model.kind needs one or more values", None),
        (KINDS + "set: {model.kind: mosaic}", "model.kind stands under both vary and set", None),
        (KINDS + "set: {train.seed: 3}", "train.seed stands under both seeds and set", None),
        (KINDS + "tune: {data.seed: [1, 2]}", "validation losses could not be compared", "vary: data.seed"),
        (KINDS + "evaluate: {vall: [loss]}", "cannot evaluate on 'vall'", "val, recall"),
        (KINDS + "evaluate: {val: [los]}", "'los' is not a figure of val", "loss, perplexity"),
        (KINDS + "evaluate: {val: []}", "evaluate names no figure", None),
        (KINDS + "published: {source: me, values: [{depth: 1, loss: 2}]}", "'depth' is neither", "model.kind, loss"),
        (KINDS + "name: a/b", "name 'a/b' is not a plain name", None),
    ],
)
def test_what_a_study_may_not_say(study, text, message, hint):
    with pytest.raises(UsageError) as error:
        load_study(study(text))
    assert message in error.value.message and error.value.where.startswith("one.yaml")
    assert hint is None or hint in error.value.hint


def test_what_the_study_varies_cannot_be_overridden(study):
    path = study(KINDS + "tune: {train.learning_rate: [1e-3]}\nvariants: {a: {model.dropout: 0.1}}")
    for key in ("model.kind=mosaic", "train.learning_rate=1", "train.seed=1", "model.dropout=0"):
        with pytest.raises(UsageError, match="is what the study one varies"):
            load_study(path, [key])
    assert load_study(path, ["train.max_steps=2"], rename="two").study.name == "two"


def test_an_unknown_study_is_told_apart_from_a_near_one(workdir):
    with pytest.raises(UsageError) as error:
        load_study("stories-dept")
    assert "Did you mean stories-depth?" in error.value.hint


@pytest.mark.parametrize("path", sorted(BUILTIN_STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_built_in_study_has_recipes_that_validate_and_says_what_it_is(path):
    plan = Plan(load_study(path))
    assert plan.runs and path.read_text().startswith("# ")
    assert all(run.recipe.name == name for name, run in plan.runs.items())


@pytest.mark.parametrize("on", sorted(TASKS.keys() & FIGURES.keys()))
def test_figures_are_those_of_the_evaluation(on):
    assert set(FIGURES[on]) <= set(TASKS[on].figures)


@pytest.mark.parametrize("name", ["v2-parts", "length", "length-long", "v2-parts-long", "regbench-parts"])
def test_parts_are_compared_at_equal_size(name):
    sizes = set()
    for run in Plan(load_study(name)).runs.values():
        with torch.device("meta"):
            sizes.add(count_parameters(build_model(run.recipe.model.with_vocab(1500))))
    assert max(sizes) <= 1.01 * min(sizes) and len(sizes) > 1
