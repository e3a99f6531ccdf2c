"""`mosaic probe toy-3moons`: the sky by hand, a strict past, and measures whose right answer is known."""

import json
import math
from dataclasses import replace

import pytest
import torch

from mosaic_cli.commands.manual import JSON_OBJECTS
from mosaic_cli.probes import moons
from mosaic_cli.probes.moons import HELD_OUT, PAPER, TRIPLES, Experiment, Measurement, Setting, Triple

TINY = Setting(observations=36, batch_size=2, steps=2, seeds=(0, 1))
CALL = ("probe", "toy-3moons", "--steps", 2, "--observations", 36, "--seeds", 2, "--device", "cpu")
FIGURES = ("error_before_joint", "error_after_joint", "ratio", "ratio_heldout", "disentanglement")


def _x(seeds=2, sequences=3, length=36):
    generator = torch.Generator().manual_seed(5)
    which = torch.randint(HELD_OUT, (seeds * sequences,), generator=generator)
    return moons.draw_sequences(which, length, 2.0, generator).unflatten(0, (seeds, sequences))


# the sky


def test_the_nine_triples_of_the_lowest_joint_periods():
    periods = [triple.periods for triple in TRIPLES]
    assert periods == [
        (0.5, 1.0, 2.0),
        (0.5, 1.0, 1.5),
        (0.5, 1.0, 3.0),
        (0.5, 1.5, 3.0),
        (1.0, 1.5, 3.0),
        (0.5, 1.0, 2.5),
        (0.5, 1.5, 2.0),
        (0.5, 2.0, 3.0),
        (1.0, 1.5, 2.0),
    ]
    assert [triple.joint for triple in TRIPLES] == [2, 3, 3, 3, 3, 5, 6, 6, 6]
    assert TRIPLES[HELD_OUT].periods == (1.0, 1.5, 2.0) and TRIPLES[HELD_OUT].longest == 2
    assert max(triple.joint for triple in TRIPLES) * 3 == moons.HORIZON
    assert round(PAPER.rate, 2) == 44.44


def test_observations_by_hand():
    x = moons.observe(torch.tensor([1.0, 2.0, 4.0]), torch.tensor(0.5), 2, rate=2.0)  # at times 0.5 and 1
    turns = [[0.5, 0.25, 0.125], [1.0, 0.5, 0.25]]
    expected = [[f(2 * math.pi * turn + 0.3) for turn in row for f in (math.sin, math.cos)] for row in turns]
    torch.testing.assert_close(x, torch.tensor(expected))


def test_the_sky_repeats_after_the_joint_period_and_not_before():
    rate = 10.0
    for triple in TRIPLES:
        x = moons.observe(torch.tensor(triple.periods), torch.tensor(0.123), 200, rate)
        distance = (x[1:] - x[0]).abs().amax(dim=1)
        assert int((distance < 1e-3).nonzero()[0]) + 1 == round(triple.joint * rate)


def test_the_held_out_triple_is_never_drawn(monkeypatch):
    drawn = []
    original = moons.draw_sequences
    monkeypatch.setattr(moons, "draw_sequences", lambda which, *rest: drawn.append(which) or original(which, *rest))
    experiment = Experiment(3, replace(TINY, batch_size=100))
    list(experiment.train())
    assert set(torch.cat(drawn).tolist()) == set(range(HELD_OUT))


# the memory


def test_real_and_complex_form_agree():
    maps = moons.ComplexMaps([torch.Generator().manual_seed(seed) for seed in (1, 2)])
    x = _x()
    paired = torch.view_as_complex(x.unflatten(-1, (3, 2)).contiguous())  # (S, B, T, 3)
    expected = torch.einsum("sij,sbtj->sbti", maps.matrices(), paired)
    torch.testing.assert_close(maps(x), torch.view_as_real(expected).flatten(-2))


@pytest.mark.parametrize("num_heads", [1, 3])
def test_predictions_are_those_of_the_equation(num_heads):
    """y_T = W_z softmax_t(50 k_T.k_t) W_psi x_{t+1} over t < T, in loops."""
    memory = Experiment(num_heads, TINY).memory
    x = _x(length=9)
    predicted, s, b = memory(x), 1, 2
    w_phi, w_psi, w_z = (maps.real()[s] for maps in (memory.keys, memory.values, memory.output))
    keys = (x[s, b] @ w_phi.T).unflatten(-1, (num_heads, -1))
    values = (x[s, b] @ w_psi.T).unflatten(-1, (num_heads, -1))
    for T in range(9):
        read = torch.zeros(num_heads, 6 // num_heads)
        for h in range(num_heads if T else 0):
            weights = torch.stack([50 * keys[T, h].dot(keys[t, h]) for t in range(T)]).softmax(dim=0)
            read[h] = sum(weight * values[t + 1, h] for t, weight in enumerate(weights))
            torch.testing.assert_close(memory.last_weights(x[:, :, : T + 1])[s, b, h], weights)
        torch.testing.assert_close(predicted[s, b, T], w_z @ read.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_heads", [1, 3])
def test_nothing_later_changes_a_prediction(num_heads):
    memory, x = Experiment(num_heads, TINY).memory, _x()
    changed = x.clone()
    changed[:, :, 20:] = 7.0
    before, after = memory(x), memory(changed)
    assert torch.equal(before[:, :, :20], after[:, :, :20]) and not torch.equal(before[:, :, 20], after[:, :, 20])
    assert not before[:, :, 0].any()


def test_a_seed_does_not_depend_on_its_neighbours():
    alone, both = (Experiment(3, replace(TINY, seeds=seeds)) for seeds in ((1,), (0, 1)))
    for experiment in (alone, both):
        assert len(list(experiment.train())) == TINY.steps
    assert not torch.equal(both.memory.keys.parts[0], both.memory.keys.parts[1])
    torch.testing.assert_close(alone.memory.keys.parts[0], both.memory.keys.parts[1])


def test_a_perfect_memory_of_three_heads_predicts_after_the_longest_single_period():
    """Each head has a moon of its own and asks sharply; at ten observations a unit every period fits exactly."""
    setting = replace(TINY, observations=180)
    experiment = Experiment(3, setting)
    for maps, size in (
        (experiment.memory.keys, 10.0),
        (experiment.memory.values, 1.0),
        (experiment.memory.output, 1.0),
    ):
        with torch.no_grad():
            maps.parts.zero_()[:, 0] = size * torch.eye(3)
    measured = experiment.measure()
    for index, triple in enumerate(TRIPLES):
        known = round(triple.longest * setting.rate)
        assert measured.curves[:, index, known:].max() < 1e-3 < measured.curves[:, index, : known // 2].max()
    assert measured.by_seed()["disentanglement"] == [1.0, 1.0]


def test_free_running_goes_on_from_its_own_predictions():
    memory, x = Experiment(3, TINY).memory, _x(length=10)
    free = moons.free_run(memory, x, 4)
    assert free.shape == (2, 3, 4, 6)
    known = torch.cat([x, free], dim=2)
    torch.testing.assert_close(memory(known)[:, :, 9:13], free)


# the measures


def test_errors_before_and_after_the_joint_period_by_hand():
    curve = torch.tensor([9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 3.0, 4.0, 5.0, 6.0, 7.0, 0.5, 1.5])  # two a unit of time
    before, after = moons.split_errors(curve, Triple((1.0, 1.5, 2.0)), rate=2.0)  # longest 2, joint 6
    assert before == pytest.approx((1 + 2 + 3 + 3 + 4 + 5 + 6 + 7) / 8) and after == pytest.approx(1.0)
    before, after = moons.split_errors(curve, Triple((1.0, 1.5, 3.0)), rate=2.0)  # joint 3 is the longest
    assert before is None and after == pytest.approx(sum(curve[6:]) / 8)


def _measurement(num_heads, between, elsewhere=0.1):
    """Errors of `between` from the longest single to the joint period, else of `elsewhere`; two seeds."""
    time = torch.arange(180) / 10
    curves = [((time >= triple.longest) & (time < triple.joint)) * (between - elsewhere) for triple in TRIPLES]
    maps = torch.eye(3, dtype=torch.complex64).expand(2, 3, 3, 3)
    return Measurement(num_heads, 10.0, elsewhere + torch.stack(curves).expand(2, -1, -1), maps)


def test_figures_of_known_curves():
    figures = _measurement(1, between=0.3).by_seed()
    assert tuple(figures) == FIGURES
    assert figures["error_before_joint"] == pytest.approx([0.3, 0.3])
    assert figures["error_after_joint"] == pytest.approx([0.1, 0.1])
    assert figures["ratio"] == figures["ratio_heldout"] == pytest.approx([3.0, 3.0])
    assert figures["disentanglement"] == pytest.approx([1 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("one", "three", "holds"), [(0.21, 0.12, True), (0.19, 0.12, False), (0.21, 0.14, False), (0.19, 0.14, False)]
)
def test_the_claim(one, three, holds):
    assert moons.claim_holds([_measurement(1, one), _measurement(3, three)]) is holds


def test_disentanglement_is_one_for_a_moon_each_however_the_heads_are_ordered_and_scaled():
    order = torch.eye(3)[[2, 0, 1]]
    phase = torch.diag(torch.exp(1j * torch.tensor([0.3, 2.0, -1.0])) * torch.tensor([0.1, 1.0, 5.0]))
    keys, values = phase @ order.cfloat(), 3 * phase @ order.cfloat()
    assert moons.disentanglement(keys, values, order.T.cfloat(), 3) == pytest.approx(1)
    assert moons.disentanglement(keys, values, torch.linalg.inv(values), 1) == pytest.approx(1 / 3)


def test_disentanglement_of_even_mixing_is_a_third():
    fourier = torch.fft.fft(torch.eye(3))
    assert moons.disentanglement(fourier, fourier, fourier, 3) == pytest.approx(1 / 3)
    eye = torch.eye(3, dtype=torch.complex64)
    assert moons.disentanglement(fourier, eye, eye, 3) == pytest.approx(1 / 3), "keys that mix are enough"
    assert moons.disentanglement(eye, eye, fourier, 3) == pytest.approx(1 / 3), "and so is an output"


def test_heads_that_share_a_moon_leave_another_without():
    one_moon = torch.zeros(3, 3, dtype=torch.complex64)
    one_moon[:, 0] = 1  # every head looks at moon 0
    assert moons.disentanglement(one_moon, one_moon, one_moon.T, 3) == pytest.approx(1 / 3)


def test_disentanglement_of_one_head_does_not_depend_on_its_inner_basis():
    generator = torch.Generator().manual_seed(3)
    keys, values, output, mix = torch.randn(4, 3, 3, dtype=torch.complex64, generator=generator)
    unitary = torch.linalg.qr(mix).Q
    mixed = moons.disentanglement(unitary @ keys, mix @ values, output @ torch.linalg.inv(mix), 1)
    assert mixed == pytest.approx(moons.disentanglement(keys, values, output, 1), rel=1e-4)


def test_the_typical_seed_is_the_median_one():
    measured = _measurement(3, 0.1)
    shades = torch.tensor([0.4, 0.0, 0.2, 0.1])  # how much every map mixes
    maps = (1 - shades[:, None, None, None]) * measured.matrices[:1] + shades[:, None, None, None] / 3
    assert replace(measured, matrices=maps).typical_seed() == 2


def test_the_interval_is_student_s():
    assert moons.interval([1.0]) is None
    low, high = moons.interval([1.0, 2.0, 3.0, 4.0, 5.0])  # standard error sqrt(0.5); quantile for four: 2.7764
    assert (low, high) == pytest.approx((3 - 2.7764 * 0.5**0.5, 3 + 2.7764 * 0.5**0.5), abs=1e-3)
    assert moons.interval([0.0, 2.0])[1] == pytest.approx(1 + 12.7062, abs=2e-3)


# the command


def test_everything_is_written_and_printed(workdir, mosaic):
    result = mosaic(*CALL, "--json")
    assert result.code == 0, result.err
    schema, keys = JSON_OBJECTS["probe toy-3moons"]
    document = result.json
    assert document["schema"] == schema and not document["claim_holds"]
    assert [row["num_heads"] for row in document["heads"]] == [1, 3]
    assert document.keys() - {"schema", "heads"} == {key for key in keys if "[]" not in key}
    row = document["heads"][1]
    assert {key for key in row if key != "triples"} == {
        key.split("[].")[1] for key in keys if key.startswith("heads[].") and "triples" not in key
    }
    assert row["seeds"] == 2
    for key in FIGURES:
        low, high = row[f"{key}_interval"]
        assert low <= row[key] <= high and row[key] == pytest.approx(sum(row["by_seed"][key]) / 2)
    assert [triple["before"] is None for triple in row["triples"]] == [t.longest == t.joint for t in TRIPLES]
    folder = workdir / "probes" / "toy-3moons"
    assert json.loads((folder / "results.json").read_text()) == document
    drawn = {f"{name}.{kind}" for name in ("orbits", "errors", "retrieval", "matrices") for kind in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == drawn | {"results.json"}


def test_a_claim_that_does_not_hold_is_exit_code_3_only_when_it_is_asked(workdir, mosaic, refused, monkeypatch):
    monkeypatch.setattr("mosaic_cli.commands.probes.moon_figures.draw", lambda *_: None)
    plain = mosaic(*CALL, "--seeds", 1, "--out", "here")
    assert plain.code == 0 and "The claim does not hold" in plain.out and "±" not in plain.out.splitlines()[3]
    assert (workdir / "here" / "results.json").is_file()
    checked = mosaic(*CALL, "--check")
    assert checked.code == 3 and "disentanglement" in checked.out, "the table is shown in any case"
    error = refused(3, *CALL, "--check")
    assert error["message"].startswith("The claim does not hold") and error["where"] == "--check"


def test_too_few_observations_are_refused(mosaic):
    assert mosaic("probe", "toy-3moons", "--observations", 10).code == 2


def test_the_group_lists_its_probes(mosaic):
    result = mosaic("probe")
    assert result.code == 0 and "toy-3moons" in result.out
