"""What is wrong with a recipe, an option or a name: exit code 2, the key, the nearest valid one, and the way on."""

import pytest

TRAIN = ("train", "tiny.yaml", "--run", "new")


def test_for_people_an_error_says_what_where_and_what_next(world, mosaic):
    result = mosaic(*TRAIN, "--set", "train.learnin_rate=1")
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines() == [
        "error: unknown key 'train.learnin_rate'",
        "  at --set: train.learnin_rate",
        "  next: Did you mean learning_rate?",
    ]


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ("train.learnin_rate=1", "unknown key 'train.learnin_rate'", "Did you mean learning_rate?"),
        ("model.num_head=1", "unknown key 'model.num_head'", "Did you mean num_heads?"),
        ("trian.max_steps=1", "unknown key 'trian'", "Did you mean train?"),
        ("train.=1", "unknown key 'train.'", "Known keys: max_steps"),
        ("train.max_steps=many", "train.max_steps = 'many'", None),
        ("train.max_steps=", "train.max_steps = None", None),
        ("train.max_steps=2.5", "train.max_steps = 2.5", None),
        ("train.max_steps.x=1", "train.max_steps = {'x': 1}", None),
        ("train=1", "train = 1", None),
        ("train.betas=[2, 0.9]", "train.betas.0 = 2", None),
        ("train.learning_rate=.inf", "train.learning_rate = inf", None),
        ("train.learning_rate=.nan", "train.learning_rate = nan", None),
        ("train.dtype=float16", "train.dtype = 'float16'", None),
        ("data.val_fraction=1", "data.val_fraction = 1", None),
        ("data.files=[a, b", "not valid YAML", None),
        ("data={[a]: b}", "not valid YAML: a key is not a word", None),
        ("data={a: 1, a: 2}", "not valid YAML: key 'a' is given twice", None),
        ("name=a/b", "name 'a/b' is not a plain name", "letters, digits"),
        ("train.max_steps", "--set 'train.max_steps' is not KEY=VALUE", "--set train.max_steps=100"),
        ("=1", "--set '=1' is not KEY=VALUE", "--set"),
        ("train.micro_batch_size=3", "batch_size 4 is not a multiple of micro_batch_size 3", None),
        ("model.num_heads=3", "d_model 8 is not a multiple of num_heads 3", None),
    ],
)
def test_settings(world, refused, setting, message, hint):
    error = refused(2, *TRAIN, "--set", setting)
    assert message in error["message"] and (hint is None or hint in error["hint"])
    assert error["where"] or "KEY=VALUE" in error["message"]
    assert not (world / "runs" / "new").exists()


def test_numbers_may_be_written_as_people_write_them(world, mosaic):
    settings = ["train.learning_rate=1e-4", "train.min_lr=1e-5", "train.max_steps=1_0", "data.num_documents=08"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    result = mosaic(*TRAIN, *arguments, "--dry-run", "--json")
    values = {key: value for key, value, _ in result.json["recipe"]}
    assert (values["train.learning_rate"], values["train.min_lr"]) == ("0.0001", "1e-05")
    assert (values["train.max_steps"], values["data.num_documents"]) == ("10", "8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "a recipe is a map of sections"),
        (b"- a\n- b\n", "a recipe is a map of sections"),
        (b"\x80\x04\x95\x00\xff", "cannot read the recipe"),
        (b"model: {\n", "not valid YAML"),
        (b"model:\n\tnum_layers: 1\n", "not valid YAML"),
        (b"data: {source: builtin}\n", "the key 'model' is required"),
        (b"extends: nowhere.yaml\n", "extends names 'nowhere.yaml'"),
        (b"extends: bad.yaml\n", "in a circle"),
        (b"modle: {num_layers: 1}\ndata: {source: builtin}\n", "unknown key 'modle'"),
        (b"model: {num_layer: 1}\ndata: {source: builtin}\n", "unknown key 'model.num_layer'"),
    ],
)
def test_recipe_files(world, refused, text, message):
    (world / "bad.yaml").write_bytes(text)
    error = refused(2, "train", "bad.yaml")
    assert message in error["message"] and "bad.yaml" in error["where"]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("train", "quikstart"), "no recipe 'quikstart'", "Did you mean quickstart?"),
        (("train", "nowhere/x.yaml"), "no recipe 'nowhere/x.yaml'", "Built-in recipes: "),
        (("train",), "no recipe", "mosaic train RECIPE"),
        (("train", "--resume"), "no recipe", "--resume --run NAME"),
        (("train", "--resume", "--run", "nowhere"), "there is no run 'nowhere' to resume", "mosaic train RECIPE"),
        (("train", "tiny.yaml", "--resume", "--run", "nowhere"), "there is no run 'nowhere' to resume", "--resume"),
        (("train", "tiny.yaml", "--run", "../out"), "run name '../out' is not a plain name", "runs live in runs/"),
        (("train", "tiny.yaml", "--run", "a/b"), "run name 'a/b' is not a plain name", "runs live in runs/"),
        (("train", "tiny.yaml", "--run", ""), "run name '' is not a plain name", None),
        (("train", "tiny.yaml"), "the run 'tiny' exists", "--run tiny --resume"),
        (("train", "tiny.yaml", "--run", "b", "--time-limit", "soon"), "time limit 'soon' is not a duration", "10m"),
        (("train", "tiny.yaml", "--run", "b", "--time-limit", "-5m"), "time limit '-5m' is not a duration", "10m"),
        (("train", "tiny.yaml", "--run", "b", "--log-to", "paper"), "cannot log to 'paper'", "tensorboard"),
        (("train", "tiny.yaml", "--run", "b", "--steps", "0"), "--steps", "--help"),
        (("train", "tiny.yaml", "--run", "b", "--nosuch"), "No such option: --nosuch", "--help"),
        (("train", "tiny.yaml", "gpt.yaml"), "unexpected extra argument", "--help"),
        (("train", "tiny.yaml", "--run", "b", "--device", "cuda:99"), "this machine has no cuda:99", "--device auto"),
        (("train", "tiny.yaml", "--run", "b", "--device", "toaster"), "device 'toaster' is not a device", "cuda"),
        (("nosuch",), "No such command 'nosuch'", "--help"),
        (("prepare",), "no source", "mosaic prepare RECIPE"),
        (("prepare", "nowhere.txt"), "no such file or folder: nowhere.txt", None),
        (("prepare", "text.txt", "--out", "data/tiny"), "data/tiny is there already", "--force"),
        (("prepare", "text.txt", "--vocab-size", "3"), "data.vocab_size = 3", None),
        (("prepare", "text.txt", "--tokenizer", "nowhere.json"), "no tokenizer here", "bpe, byte, char, gpt2"),
        (("prepare", "text.txt", "builtin:stories", "--out", "x"), "builtin:stories cannot be mixed", "one at a time"),
        (("prepare", "tiny.yaml", "text.txt", "--out", "x"), "tiny.yaml cannot be mixed", "one at a time"),
        (("prepare", "", "--out", "x"), "a source without a name", "variable"),
        (("prepare", "text\udcff.txt", "--out", "x"), "the name is not UTF-8: text\\xff.txt", "Rename it"),
        (("prepare", "text.txt", "--out", "."), "cannot be replaced as a whole", "NAME"),
        (("prepare", "text.txt", "--out", "x", "--vocab-size", "1000000000000"), "16777216", None),
        (("prepare", "builtin:stories", "text.txt"), "cannot be mixed", "one at a time"),
        (("prepare", "builtin:poems"), "data.builtin = 'poems'", None),
        (("prepare", "--verify", "nowhere"), "no such folder: nowhere", "mosaic prepare"),
        (("eval",), "Missing option '--ckpt'", "--help"),
        (("eval", "--ckpt", "tini"), "no run 'tini'", "Did you mean tiny?"),
        (("eval", "--ckpt", "tiny@3"), "no checkpoint 3", "Steps saved: 6, 8"),
        (("eval", "--ckpt", "tiny@last"), "@last is not @best, @latest or @STEP", None),
        (("eval", "--ckpt", "tiny@²"), "@² is not", None),
        (("eval", "--ckpt", "tiny", "--context", "8,many"), "--context '8,many' is not a list of lengths", "256,512"),
        (("eval", "--ckpt", "tiny", "--context", "0"), "is not a list of lengths", "256,512"),
        (("eval", "--ckpt", "tiny", "--context", "²"), "is not a list of lengths", "256,512"),
        (("eval", "--ckpt", "gpt", "--context", "16"), "a transformer trained on 8 tokens cannot read 16", "mosaic"),
        (("eval", "--ckpt", "tiny", "--max", "los=1"), "--max 'los=1' is not NAME=VALUE", "Names: loss, perplexity"),
        (("eval", "--ckpt", "tiny", "--min", "loss=much"), "--min 'loss=much' is not NAME=VALUE", "Names: loss"),
        (("eval", "--ckpt", "tiny", "--min", "loss=nan"), "--min 'loss=nan' is not NAME=VALUE", "Names: loss"),
        (("eval", "--ckpt", "tiny", "--max", "loss"), "--max 'loss' is not NAME=VALUE", "Names: loss"),
        (
            ("eval", "--ckpt", "tiny", "--on", "nowhere.txt"),
            "no file 'nowhere.txt' to evaluate on",
            "path of a text file",
        ),
        (("eval", "--ckpt", "tiny", "--figure", "a.png"), "a figure needs the losses by position", "--by-position"),
        (("eval", "--ckpt", "tiny", "--by-position", "--figure", "a.gif"), "neither .png nor .svg", None),
        (("eval", "--ckpt", "tiny", "--batch-tokens", "0"), "--batch-tokens", "--help"),
        (("eval", "--ckpt", "tiny", "--dtype", "float16"), "dtype 'float16' is not one of", None),
        (("generate", "--ckpt", "tiny", "a", "--prompt-file", "text.txt"), "both a prompt and --prompt-file", "one of"),
        (("generate", "--ckpt", "tiny", "--prompt-file", "no.txt"), "the prompt cannot be read: No such file", None),
        (("generate", "--ckpt", "tiny", "a", "--temperature", "-1"), "temperature -1.0 is not 0 or more", None),
        (("generate", "--ckpt", "tiny", "a", "--temperature", "nan"), "temperature nan is not 0 or more", None),
        (("generate", "--ckpt", "tiny", "a", "--temperature", "1e-45"), "below 1e-20", "likeliest"),
        (("generate", "--ckpt", "tiny", "a", "--seed", "99999999999999999999"), "Invalid value for '--seed'", None),
        (("train", "tiny.yaml", "--run", "new", "--set", "train.seed=-1"), "0", None),
        (
            ("train", "tiny.yaml", "--run", "new", "--set", "train.seed=99999999999999999999"),
            "9223372036854775807",
            None,
        ),
        (("probe", "trace", "--ckpt", "tiny", "the", "--html", "."), "a folder, not a file", "page.html"),
        (("probe", "trace", "--ckpt", "tiny", "the", "--html", "text.txt/page.html"), "not a folder", "--html FILE"),
        (("probe", "toy-3moons", "--out", "text.txt"), "not a folder", "--out DIR"),
        (("generate", "--ckpt", "tiny", "a", "--top-p", "2"), "top_p 2.0 is not in (0, 1]", None),
        (("generate", "--ckpt", "tiny", "a", "--stop", ""), "a stop text is empty", "Leave it out"),
        (("generate", "--ckpt", "tiny", "a", "-n", "0"), "-n", "--help"),
        (
            ("generate", "--ckpt", "gpt", "the old cat"),
            "11 tokens and 200 new ones do not fit",
            "At most 0 new tokens fit",
        ),
        (("generate", "--ckpt", "gpt", "the"), "3 tokens and 200 new ones do not fit", "At most 6 new tokens fit"),
        (("generate", "--ckpt", "tiny", "\udcff"), "the prompt is not UTF-8 text", None),
    ],
)
def test_usage(world, refused, arguments, message, hint):
    error = refused(2, *arguments)
    assert message in error["message"] and (hint is None or hint in error["hint"])


def test_a_run_that_exists_is_neither_overwritten_nor_resumed_unasked(world, refused):
    before = {path: path.read_bytes() for path in (world / "runs").rglob("*") if path.is_file()}
    refused(2, "train", "tiny.yaml", "--steps", "20")
    refused(2, "train", "gpt.yaml", "--run", "tiny")
    assert before == {path: path.read_bytes() for path in (world / "runs").rglob("*") if path.is_file()}


def test_a_prompt_that_is_not_text(world, refused):
    (world / "prompt.txt").write_bytes(b"a\xff")
    assert "not UTF-8" in refused(2, "generate", "--ckpt", "tiny", "--prompt-file", "prompt.txt")["message"]
    assert "not UTF-8" in refused(2, "generate", "--ckpt", "tiny", stdin=b"a\xff")["message"]


def test_without_a_command_there_is_help(mosaic):
    result = mosaic()
    assert (result.code, result.err) == (0, "") and result.out == mosaic("--help").out


def test_no_prompt_on_a_terminal(world, refused):
    error = refused(2, "generate", "--ckpt", "tiny", stdin=None)
    assert error["message"] == "no prompt" and "mosaic generate" in error["hint"]


def test_cuda_on_a_machine_without_one(world, refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for arguments in (TRAIN, ("eval", "--ckpt", "tiny"), ("generate", "--ckpt", "tiny", "a")):
        error = refused(2, *arguments, "--device", "cuda")
        assert "this machine has no cuda" in error["message"] and "--device auto" in error["hint"]
