"""What goes where: results on stdout, all else on stderr, escape codes only on a terminal, help with examples."""

import os
import pty
import re
import subprocess
import sys

import pytest

COMMANDS = ("prepare", "train", "eval", "generate")
COLOUR = re.compile(r"\x1b\[(\d+;)*(3[0-7]|9[0-7])(;\d+)*m")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_an_example(mosaic, command):
    result = mosaic(command, "-h")
    assert (result.code, result.err) == (0, "") and result.out == mosaic(command, "--help").out
    end = result.out.rstrip().rpartition("\n\n")[2]
    assert " ".join(end.split()).startswith(f"Example: mosaic {command} ")


def test_help_and_version_of_the_whole(mosaic):
    assert all(command in mosaic("-h").out for command in COMMANDS)
    result = mosaic("--version")
    assert result.code == 0 and re.fullmatch(r"mosaic \d+\.\d+\.\d+\n", result.out)


def test_prepare_reports_the_folder(world, mosaic):
    result = mosaic("prepare", "text.txt", "--tokenizer", "char", "--out", "data/a")
    assert (result.code, result.out) == (0, "data/a\n") and "char tokenizer of" in result.err
    result = mosaic("prepare", "text.txt", "--tokenizer", "char", "--out", "data/a", "--force", "--json")
    assert result.json["schema"] == "mosaic.prepare/1" and result.json["data"] == "data/a"
    assert result.json["manifest"]["source"]["used"] == "files: text.txt"
    assert mosaic("prepare", "--verify", "data/a").out.startswith("data/a: 3 files")
    assert mosaic("prepare", "--verify", "data/a", "--json").json["schema"] == "mosaic.prepare-verify/1"


def test_prepare_takes_a_recipe_and_standard_input(world, mosaic):
    assert mosaic("prepare", "tiny.yaml", "--out", "data/recipe").code == 0
    assert mosaic("prepare", "-", "--tokenizer", "char", stdin=b"the cat sat on the mat").out == "data/stdin\n"


def test_bad_records_are_counted_and_shown(world, mosaic):
    (world / "some.jsonl").write_text('{"text": "the cat sat"}\nbroken\n{"text": "the mat"}\n')
    result = mosaic("prepare", "some.jsonl", "--tokenizer", "char", "--val-fraction", "0.5", "--skip-bad")
    assert result.code == 0 and "WARNING 1 bad records were skipped, the first: some.jsonl:2" in result.err


def test_elsewhere_than_on_a_terminal_there_are_no_escape_codes(world, mosaic):
    for arguments in (
        ("train", "tiny.yaml", "--run", "new"),
        ("eval", "--ckpt", "tiny"),
        ("-h",),
        ("generate", "--ckpt", "tiny", "the", "--max-new-tokens", 3),
        ("train", "nowhere"),
    ):
        result = mosaic(*arguments)
        assert "\x1b" not in result.out + result.err, arguments


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("1", False)])
def test_a_terminal_gets_colour_unless_it_is_not_wanted(workdir, no_color, coloured):
    environment = {
        key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLORTERM")
    }
    environment |= {"TERM": "xterm-256color"} | ({"NO_COLOR": no_color} if no_color else {})
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "mosaic_cli.app", "train", "nowhere"],
        stderr=theirs,
        stdout=theirs,
        env=environment,
        cwd=workdir,
        check=False,
    )
    os.close(theirs)
    said = os.read(ours, 10_000).decode()
    assert done.returncode == 2 and "no recipe 'nowhere'" in said
    assert bool(COLOUR.search(said)) == coloured, said


def test_a_reader_that_goes_away_is_no_failure(workdir):
    help_ = subprocess.Popen(
        [sys.executable, "-m", "mosaic_cli.app", "-h"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=workdir
    )
    help_.stdout.close()
    _, said = help_.communicate()
    assert help_.returncode == 0 and said == b""
