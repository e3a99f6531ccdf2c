"""Small things many tests need."""

import io
import itertools
import json
import os
import shutil
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mosaic_cli import app

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network
os.environ["TRITON_INTERPRET"] = "1"  # nor need a GPU; Triton reads this when it is first imported, by torch at times
os.environ.pop("MOSAIC_DEBUG", None)


class ArrayTokens:
    """Tokens in memory, with the interface of token shards."""

    def __init__(self, ids):
        self.ids = np.asarray(ids, dtype=np.int64)

    def __len__(self):
        return len(self.ids)

    def read(self, start, stop):
        return self.ids[start:stop]


@pytest.fixture
def array_tokens():
    return ArrayTokens


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


TINY = """
model: {num_layers: 1, num_heads: 2, d_model: 8, num_slots: 4, context_length: 8, dropout: 0.1}
data: {source: files, files: [text.txt], tokenizer: char, dir: data/tiny}
train: {max_steps: 8, batch_size: 4, micro_batch_size: 2, warmup_steps: 1, eval_interval: 4, save_interval: 2,
        log_interval: 1, dtype: float32, device: cpu}
"""
TEXT = "".join(
    f"{a} {b} the {c}.\n"
    for a, b, c in itertools.product(
        ("Mia", "Tom", "a cat", "the bird"), ("saw", "hid", "took", "found"), ("kite", "ball", "egg", "old hat")
    )
)


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """The one object on stdout, where nothing else may stand."""
        assert self.out.endswith("\n") and self.out.count("\n") == 1, self.out
        return json.loads(self.out)


@pytest.fixture
def mosaic(monkeypatch, capsys):
    """Runs the command line in this process: mosaic("generate", "--ckpt", "tiny", stdin=b"...") -> Result.

    Standard input is a pipe with these bytes, or a terminal for None. Unless told otherwise it computes on the CPU in
    float32, whatever the machine.
    """
    monkeypatch.setattr("mosaic_cli.device._best_device", lambda: "cpu")
    monkeypatch.setattr("mosaic_cli.device._has_native_bfloat16", lambda _: False)

    def call(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["mosaic", *map(str, arguments)])
        pipe = io.TextIOWrapper(io.BytesIO(stdin or b""), encoding="utf-8")
        monkeypatch.setattr(pipe.buffer, "isatty", lambda: stdin is None)
        monkeypatch.setattr(sys, "stdin", pipe)
        capsys.readouterr()
        code = app.run()
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(mosaic):
    """Runs a command that must fail with this exit code and one error object on stdout; returns what it says."""

    def call(code, *arguments, **options):
        result = mosaic(*arguments, "--json", **options)
        assert result.code == code, result
        document = result.json
        assert document.keys() == {"schema", "error"} and document["schema"] == "mosaic.error/1"
        error = document["error"]
        assert error.keys() == {"message", "hint", "where"} and "unexpected" not in str(error["hint"]), error
        assert "Traceback" not in result.err
        return error

    return call


@pytest.fixture(scope="session")
def _trained_world(tmp_path_factory):
    world = tmp_path_factory.mktemp("world")
    (world / "text.txt").write_text(TEXT)
    (world / "tiny.yaml").write_text(TINY)
    (world / "gpt.yaml").write_text("extends: tiny.yaml\nmodel: {kind: transformer}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        for name in ("tiny", "gpt"):
            patch.setattr(sys, "argv", ["mosaic", "train", f"{name}.yaml"])
            assert app.run() == 0
    return world


@pytest.fixture
def world(_trained_world, workdir):
    """The current folder: text.txt, tiny.yaml, its transformer twin gpt.yaml, data/tiny, runs/tiny and runs/gpt, both
    finished at step 8. A copy of the test's own, to damage at will."""
    shutil.copytree(_trained_world, workdir, dirs_exist_ok=True)
    return workdir
