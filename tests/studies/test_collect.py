"""From outcomes to results, on numbers worked by hand."""

import json

import pytest

from mosaic_cli.errors import DataError
from mosaic_cli.intervals import T_95
from mosaic_cli.studies.collect import choose, collect, loss_at
from mosaic_cli.studies.outcome import Outcome
from mosaic_cli.studies.plan import Plan
from mosaic_cli.studies.results import load_results, write_results
from mosaic_cli.studies.study import load_study
from mosaic_cli.studies.tables import provenance, study_tables

STUDY = """
recipe: quickstart
vary: {model.kind: [mosaic, transformer]}
tune: {train.learning_rate: [1e-3, 2e-3, 3e-3]}
seeds: [1, 2]
published: {source: a paper, values: [{model.kind: mosaic, loss: 1.25}]}
"""
LOSSES = {  # (kind, learning rate, seed) -> validation loss, None where it diverged
    **{("mosaic", rate, 1): loss for rate, loss in ((1e-3, 2.0), (2e-3, 1.5), (3e-3, None))},
    **{("transformer", rate, 1): loss for rate, loss in ((1e-3, 1.75), (2e-3, 2.5), (3e-3, 3.0))},
    ("mosaic", 2e-3, 2): 1.7,
    ("mosaic", 1e-3, 2): 2.25,
    ("transformer", 1e-3, 2): 2.0,
}


@pytest.fixture
def plan(workdir):
    (workdir / "one.yaml").write_text(STUDY)
    return Plan(load_study("one.yaml"))


def _outcome(run, losses=LOSSES):
    loss = losses[run.recipe.model.kind, run.recipe.train.learning_rate, run.seed]
    seconds = {"mosaic": 20.0, "transformer": 10.0}[run.recipe.model.kind]
    info = {
        "seconds": seconds,
        "step": 100,
        "parameters": 5,
        "started": "now",
        "machine": "a machine",
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "versions": {"torch": "2"},
        "git_commit": None,
        "data_source": "words",
        "fallback_reason": None,
    }
    if loss is None:
        return Outcome(run, info, 0, [], [], None, None)
    return Outcome(run, info, 1000, [50, 100], [loss + 1, loss], loss, {"val.loss": loss})


def _results(plan):
    outcomes = {run.name: _outcome(run) for run in plan.sweep()}
    chosen = choose(plan, outcomes)
    outcomes |= {run.name: _outcome(run) for run in plan.follow_up(chosen)}
    return collect(plan, outcomes, chosen, ["mosaic", "compare", "one.yaml"])


def test_each_cell_takes_the_values_of_its_lowest_loss(plan):
    chosen = choose(plan, {run.name: _outcome(run) for run in plan.sweep()})
    assert chosen == {"mosaic": {"train.learning_rate": 2e-3}, "transformer": {"train.learning_rate": 1e-3}}
    hopeless = LOSSES | {("mosaic", rate, 1): None for rate in (1e-3, 2e-3, 3e-3)}
    assert choose(plan, {run.name: _outcome(run, hopeless) for run in plan.sweep()})["mosaic"] is None


def test_means_and_intervals_over_seeds(plan):
    mosaic, transformer = _results(plan)["cells"]
    found = mosaic["figures"]["val.loss"]
    assert found["mean"] == pytest.approx(1.6) and found["sd"] == pytest.approx(0.02**0.5) and found["n"] == 2
    assert found["high"] - found["mean"] == pytest.approx(T_95[0] * 0.1)
    assert (mosaic["at_edge"], transformer["at_edge"]) == ([], ["train.learning_rate"])
    assert mosaic["published"] == {"val.loss": 1.25} and transformer["published"] == {}


def test_differences_are_paired_by_seed_for_each_and_carried_over(plan):
    (one,) = _results(plan)["differences"]
    assert one["tuned_for_each"]["val.loss"]["mean"] == pytest.approx(-0.275)
    assert one["tuned_for_each"]["val.loss"]["sd"] == pytest.approx(0.05 / 2**0.5)
    carried = one["carried_over"]
    assert carried["tuned"] == {"train.learning_rate": 1e-3}
    assert carried["figures"]["val.loss"]["mean"] == pytest.approx(2.125)
    assert carried["differences"]["val.loss"]["mean"] == pytest.approx(0.25)
    assert one["seconds_ratio"]["mean"] == 2
    assert one["val_loss_at_equal_time"]["mean"] == pytest.approx(-0.275 + 1), "the mosaic is halfway by then"


def test_the_loss_at_a_time_lies_on_the_line_between_validations(plan):
    run = _outcome(plan.sweep()[0])
    assert [loss_at(run, seconds) for seconds in (5, 10, 15, 20, 25)] == [None, 3.0, 2.5, 2.0, 2.0]


def test_tables_show_every_number_and_what_diverged(plan):
    results = _results(plan)
    cells, differences, sweep = study_tables(results)
    assert cells.rows[0][:4] == ["mosaic", "5", "0.002", "1.6000 ± 1.2706"] and cells.rows[0][-1] == "1.2500"
    assert cells.rows[1][2] == "0.001 (edge)" and "better one may lie beyond" in cells.caption
    assert "-0.2750 ± 0.3177" in differences.rows[0] and "+0.2500 ± 0.0000" in differences.rows[0]
    assert sweep.rows == [["mosaic", "2.0000", "1.5000 *", "diverged"], ["transformer", "1.7500 *", "2.5000", "3.0000"]]
    assert all(len(row) == len(table.columns) for table in (cells, differences, sweep) for row in table.rows)
    told = " ".join(provenance(results))
    assert "mosaic compare one.yaml" in told and "Seeds: 1, 2." in told and "a machine" in told and "a paper" in told


def test_results_are_read_as_they_were_written(plan, workdir):
    results = _results(plan)
    assert load_results(write_results(results, workdir / "out")) == json.loads(json.dumps(results))
    (workdir / "other.json").write_text('{"format_version": 1}')
    with pytest.raises(DataError, match="not the results of a study"):
        load_results(workdir / "other.json")


def test_a_figure_that_a_kind_does_not_have_is_left_out(plan):
    outcomes = {run.name: _outcome(run) for run in plan.sweep()}
    chosen = choose(plan, outcomes)
    outcomes |= {run.name: _outcome(run) for run in plan.follow_up(chosen)}
    for outcome in outcomes.values():
        if outcome.planned.recipe.model.kind == "transformer":
            outcome.figures["val.loss"] = None
    results = collect(plan, outcomes, chosen, ["mosaic"])
    mosaics, transformers = (cell["figures"]["val.loss"] for cell in results["cells"])
    assert mosaics["n"] == 2 and (transformers["mean"], transformers["n"]) == (None, 0)
    assert results["differences"][0]["tuned_for_each"]["val.loss"]["mean"] is None
    assert "none" in study_tables(results)[0].rows[1]


def test_steps_to_a_loss_are_those_of_the_runs_that_get_there(workdir):
    (workdir / "one.yaml").write_text(STUDY + "reach: 1.75\n")
    results = _results(Plan(load_study("one.yaml")))
    mosaic, transformer = results["cells"]
    assert mosaic["steps_to_reach"]["mean"] == 100 and mosaic["steps_to_reach"]["n"] == 2
    assert transformer["steps_to_reach"]["n"] == 1  # the other seed ends at 2.0
    (row, other), columns = study_tables(results)[0].rows, study_tables(results)[0].columns
    at = columns.index("steps to a validation loss of 1.75")
    assert (row[at], other[at]) == ("100", "100 (1 of 2 runs)")
