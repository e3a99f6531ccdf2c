"""Data sets of the hub: a stand-in answers, fails or is silent, and each says what to do."""

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from texts import DOCUMENTS, FORMATS, as_jsonl, documents_of

from mosaic_cli.data import hub as module
from mosaic_cli.data.hub import HubUnreachable, ask_hub
from mosaic_cli.data.sources import StorySource, open_source
from mosaic_cli.errors import DataError, UsageError
from mosaic_cli.recipe import DataSection


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path, monkeypatch, hub_cache):
    """A stand-in for the hub: answers every request with `hub.code`."""
    import huggingface_hub.constants

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(server.code)
            if server.code == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def hub_section(name, **settings):
    return DataSection(source="hub", hub=str(name), **settings)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_data_set_with_two_splits(tmp_path, hub_cache, suffix):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / f"train-00000{suffix}").write_bytes(FORMATS[suffix](DOCUMENTS))
    (tmp_path / "set" / f"validation-00000{suffix}").write_bytes(FORMATS[suffix](["held out"]))
    source = open_source(hub_section(tmp_path / "set", hub_val_split="validation"), tmp_path)
    assert documents_of(source) == documents_of(source) == DOCUMENTS
    assert documents_of(source.validation) == ["held out"]
    assert (source.done, source.total, source.unit) == (3, 3, "records")
    assert source.used == source.requested == f"hub: {tmp_path}/set (split train)"


def test_data_set_errors_name_what_there_is(tmp_path, hub_cache):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_bytes(as_jsonl(DOCUMENTS))
    with pytest.raises(UsageError, match=r"Unknown split \"test\".*'train'"):
        open_source(hub_section(tmp_path / "set", hub_split="test"), tmp_path)
    with pytest.raises(UsageError, match=r"'simple' not found\. Available: \['default'\]"):
        open_source(hub_section(tmp_path / "set", hub_config="simple"), tmp_path)
    with pytest.raises(DataError, match="no field 'story', only 'id', 'text'"):
        open_source(hub_section(tmp_path / "set", text_field="story"), tmp_path)
    (tmp_path / "set" / "train.jsonl").write_bytes(b'{"text": "a"}\n{"text')
    with pytest.raises(DataError, match="the data set cannot be read: JSON parse error"):
        open_source(hub_section(tmp_path / "set"), tmp_path)


def test_hub_that_knows_no_such_data_set_is_no_unreachable_hub(tmp_path, hub):
    hub.code = 404
    with pytest.raises(DataError, match="the hub answers, but there is no data set 'no/such'") as caught:
        open_source(hub_section("no/such", if_unreachable="builtin"), tmp_path)
    assert not isinstance(caught.value, HubUnreachable)


def test_hub_that_fails_names_the_ways_out(tmp_path, hub):
    hub.code = 503
    with pytest.raises(HubUnreachable, match=r"cannot be reached: HfHubHTTPError: .*503.*not in the local") as caught:
        open_source(hub_section("some/set"), tmp_path)
    for way in ("data.source=files", "data.files=[FILE]", "data.if_unreachable=builtin"):
        assert way in caught.value.hint


def test_hub_that_fails_falls_back_if_the_recipe_says_so(tmp_path, hub):
    hub.code = 503
    source = open_source(hub_section("some/set", if_unreachable="builtin", num_documents=2), tmp_path)
    assert isinstance(source, StorySource) and len(documents_of(source)) == 2
    assert source.requested == "hub: some/set (split train)"
    assert source.used == "builtin: stories (2 documents, seed 0)"
    assert "cannot be reached" in source.fallback_reason


def test_download_that_breaks_off_counts_as_unreachable(tmp_path, hub_cache, monkeypatch):
    import datasets

    def break_off(*_args, **_kwargs):
        raise RuntimeError("while downloading") from TimeoutError("read timed out")

    monkeypatch.setattr(module, "ask_hub", lambda name: None)
    monkeypatch.setattr(datasets, "load_dataset", break_off)
    with pytest.raises(HubUnreachable, match="the download failed: while downloading"):
        open_source(hub_section("some/set"), tmp_path)


def test_cached_data_set_serves_without_the_hub(tmp_path, hub, hub_cache):
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories" / "train.jsonl").write_bytes(as_jsonl(DOCUMENTS))
    open_source(hub_section(tmp_path / "stories"), tmp_path)
    (hub_cache / "stories").rename(hub_cache / "owner___stories")
    hub.code = 503
    source = open_source(hub_section("owner/stories"), tmp_path)
    assert documents_of(source) == DOCUMENTS
    assert source.used == "hub: owner/stories (split train) (from the local cache)"


def test_name_that_cannot_be_one(tmp_path, hub_cache):
    with pytest.raises(UsageError, match="'a/b/c' is no name on the hub"):
        open_source(hub_section("a/b/c"), tmp_path)


def test_slow_name_server_does_not_hang(monkeypatch):
    monkeypatch.setattr(module, "HUB_SECONDS", 0.05)
    forever = threading.Event()
    monkeypatch.setattr(module, "_hub_problem", lambda *_: forever.wait(5))
    with pytest.raises(HubUnreachable, match="no answer within"):
        ask_hub("some/set")
    forever.set()


def test_offline_mode_is_honoured(tmp_path):
    script = (
        "import sys; from pathlib import Path; from mosaic_cli.data.sources import open_source\n"
        "from mosaic_cli.recipe import DataSection\n"
        "assert not {'datasets', 'pyarrow', 'huggingface_hub', 'torch'} & set(sys.modules)\n"
        "for choice in ('builtin', 'error'):\n"
        "    data = DataSection(source='hub', hub='roneneldan/TinyStories', if_unreachable=choice)\n"
        "    print(open_source(data, Path('.')).fallback_reason)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        timeout=60,
    )
    assert run.stdout.startswith("the hub cannot be reached: offline mode is on (HF_HUB_OFFLINE)")
    assert "HubUnreachable: the hub cannot be reached: offline mode is on" in run.stderr
