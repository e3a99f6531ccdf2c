"""What people see while a command works, on a terminal and elsewhere."""

import re
from types import SimpleNamespace

import pytest

from mosaic_cli.commands import display


def _report(step, loss=1.5, validation=None, sample=None, is_best=False):
    return SimpleNamespace(
        step=step, loss=loss, tokens=100 * step, validation=validation, sample=sample, is_best=is_best
    )


@pytest.fixture
def clock(monkeypatch):
    """clock.now: seconds that stand still until they are set."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("mosaic_cli.commands.display.time.monotonic", lambda: clock.now)
    return clock


def test_the_line_has_step_loss_speed_and_when_it_ends(clock):
    shown = display.TrainingDisplay(100)
    shown.show(_report(10))
    clock.now += 20
    line = shown._line(_report(20, loss=2.25))
    pattern = r"step 20/100  loss 2\.2500  50 tokens/s  2 min 40 s left, done at \d\d:\d\d:\d\d"
    assert re.fullmatch(pattern, line)


def test_elsewhere_a_line_comes_now_and_then_and_at_validations(clock, capsys):
    shown = display.TrainingDisplay(100)
    for step in range(1, 8):
        clock.now += 4
        shown.show(_report(step))
    shown.show(_report(8, validation=SimpleNamespace(loss=1.25), is_best=True, sample="a [red]cat[/red] :cat:"))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and [line.split()[1] for line in lines[:2]] == ["3/100", "6/100"]
    assert lines[2:] == ["step 8: validation loss 1.2500, the best so far", "  sample: a [red]cat[/red] :cat:"]


def test_a_bar_elsewhere_is_a_line_now_and_then(clock, capsys):
    with display.Bar() as bar:
        for done in range(5):
            clock.now += 6
            bar.update("encode", done, 5, "some")
        bar.update("scan", 1, None)
    assert capsys.readouterr().err.splitlines() == ["encode 20% some", "encode 60% some"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds, text):
    assert display.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_000_000, "2.0 MB"), (3e15, "3000.0 TB")]
)
def test_sizes(size, text):
    assert display.format_bytes(size) == text
