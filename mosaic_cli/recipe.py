"""Recipes: one YAML file says everything about one run. The schema, and how values from several places are resolved.

Values come from, in rising order: defaults, the recipe that is extended, the recipe, command-line flags, `--set`.
Each keeps its origin, so that `--dry-run` can show where a value came from.
"""

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.errors import UsageError

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63 - 1)]  # one more is taken for dropout
Share = Annotated[float, Field(ge=0, lt=1)]
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TASK_TOKENIZERS = {  # what a token of each built-in task is
    "regbench": "char",
    "mqar": "char",
    "induction": "char",
    "manyshot": "word",
}
_PACKAGED = Path(__file__).parent / "recipes"  # in an installed wheel; a checkout keeps them at its top
BUILTIN_RECIPES = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "recipes"


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
        validate_default=True,
        allow_inf_nan=False,
    )


class DataSection(Section):
    """Where the text comes from and how it becomes tokens."""

    source: Literal["files", "hub", "builtin"] = "files"
    """`files` (text, jsonl, parquet; plain, .gz or .zst), `hub` (a data set by name) or `builtin`."""
    files: list[str] = []
    """Files or folders, looked up beside the recipe and then in the current folder; `-` is standard input."""
    hub: str | None = None
    """Name of a data set on the hub, such as `roneneldan/TinyStories`."""
    hub_config: str | None = None
    """Configuration of that data set, where it has several (`20231101.simple` of `wikimedia/wikipedia`)."""
    hub_split: str = "train"
    """Split to train on."""
    hub_val_split: str | None = None
    """Split to validate on; without one, documents are held out of `hub_split`."""
    builtin: Literal["stories", "stories-in-turns", "regbench", "mqar", "induction", "manyshot"] = "stories"
    """Which built-in generator writes the documents: `stories`; `stories-in-turns`, where a third of the
    documents are two stories, told a paragraph of either at a time; or the problems of a task, each read by itself:
    `regbench` (strings of a random regular language), `mqar` (pairs, then each key asked for its value), `induction`
    (a string, then a part of it again), `manyshot` (requests, each with the label of its class). Tasks validate on
    problems of their own."""
    num_documents: Positive | None = None
    """Read this many documents and no more; problems to train on, for a task. A built-in generator takes 20,000
    without a number."""
    text_field: str = "text"
    """Field of a jsonl, parquet or hub record that holds the text."""
    tokenizer: str = "bpe"
    """`bpe` (byte-level, trained on this text), `gpt2`, `char`, `byte`, or a tokenizer.json file or a folder holding
    one (or GPT-2's vocabulary and merges). Of tasks `char`, but `word` of `manyshot`."""
    vocab_size: Annotated[int, Field(ge=257, le=1 << 24)] = 4096
    """Entries of a trained BPE, the 256 bytes and the end-of-text token among them."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share held out for validation: every 1/val_fraction-th document, or the tail of a single one."""
    dir: str | None = None
    """Folder the token shards are written to; default `data/<recipe name>`."""
    if_unreachable: Literal["error", "builtin"] = "error"
    """When the hub cannot be reached: stop, or train on the built-in stories instead (announced and recorded)."""
    skip_bad: bool = False
    """Skip and count records that cannot be read, instead of stopping at the first."""
    seed: Seed = 0
    """Seed of the built-in generator."""

    @model_validator(mode="after")
    def _source_is_complete(self) -> Self:
        if self.source == "files" and not self.files:
            raise UsageError(
                "data.source is files, but data.files is empty",
                where="data.files",
                hint="Name a file: --set data.files=[input.txt]",
            )
        if self.source == "hub" and not self.hub:
            raise UsageError(
                "data.source is hub, but data.hub names no data set",
                where="data.hub",
                hint="Name one: --set data.hub=roneneldan/TinyStories",
            )
        own = TASK_TOKENIZERS.get(self.builtin)
        if self.source == "builtin" and own and self.tokenizer != own:
            raise UsageError(
                f"the tokens of the task {self.builtin} are {own}s, but data.tokenizer is {self.tokenizer!r}",
                where="data.tokenizer",
                hint=f"Set data.tokenizer to {own}.",
            )
        return self


class TrainSection(Section):
    """How long, how fast and how carefully to train."""

    max_steps: Positive = 1000
    """Optimizer steps."""
    batch_size: Positive = 32
    """Sequences per optimizer step."""
    micro_batch_size: Positive | None = None
    """Sequences held in memory at once; a divisor of `batch_size`, whose gradients are accumulated. Default: all."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Highest learning rate, reached after the warm-up."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-4
    """Learning rate at the last step, reached along half a cosine."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps of linear rise to `learning_rate`."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """AdamW's averaging rates of the gradient and of its square."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's decay of parameters of two or more dimensions; scalars and norms do not decay."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the matrix work. `auto`: bfloat16 where the device computes it natively, else float32."""
    device: str = "auto"
    """`auto` (cuda, then mps, then cpu), or one by name: `cpu`, `cuda`, `cuda:1`, `mps`."""
    compile: bool = False
    """Compile the model with torch.compile, for a GPU; the first step then takes 10 to 60 seconds, that of v2 two or
    three minutes. On a CPU a mosaic's steps are slower, which then does without the loops (docs/performance.md), v2's
    changing delay cannot be compiled, and no two runs round alike."""
    eval_interval: Positive = 250
    """Steps between validations."""
    eval_tokens: Positive | None = None
    """Validation tokens to use while training, from the start of the split; default all. The last one uses all."""
    save_interval: Positive = 500
    """Steps between checkpoints."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints to keep; the best one is kept besides."""
    log_interval: Positive = 10
    """Steps between lines of metrics.jsonl."""
    sample_prompt: str | None = None
    """Write a sample from this prompt at each validation."""
    sample_tokens: Positive = 100
    """Length of that sample, in tokens."""
    seed: Seed = 1337
    """Seed of the starting weights, the order of the windows, and dropout."""

    @model_validator(mode="after")
    def _steps_divide(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise UsageError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}",
                where="train.micro_batch_size",
            )
        if self.min_lr > self.learning_rate:
            raise UsageError(
                f"min_lr {self.min_lr:g} is above learning_rate {self.learning_rate:g}",
                where="train.min_lr",
                hint="Lower it too: --set train.min_lr=0",
            )
        return self


class Recipe(Section):
    """One run: the model, its data and its training."""

    name: str = "recipe"
    """Name of the run and of its data folder unless others are given; default: the file's name."""
    model: ModelConfig
    data: DataSection
    train: TrainSection = TrainSection()

    @property
    def data_dir(self) -> Path:
        """Folder of the token shards."""
        return Path(self.data.dir or f"data/{self.name}")

    def to_yaml(self) -> str:
        """The resolved recipe, itself a valid recipe."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and, for each dotted key that is not a default, where its value came from."""

    recipe: Recipe
    origins: dict[str, str] = field(default_factory=dict)

    def origin(self, key: str) -> str:
        """Where the value of a dotted key came from: a file, a flag, `--set` or `default`."""
        return self.origins.get(key, "default")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: 1e-4 is a number, 010 is ten, `no` is a word; a key given twice is an error."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a word", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_integer(self, node):
        return int(self.construct_scalar(node).replace("_", ""))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def parse_yaml(text: str, where: object) -> Any:
    """Read YAML with 1.2 scalars.

    Raises:
        UsageError: not YAML, or a key given twice.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"not valid YAML: {getattr(error, 'problem', error)}", where=f"{where}{line}") from error


def load_recipe(
    recipe: str | Path,
    *,
    flags: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
    base: dict | None = None,
    settings: dict[str, dict[str, Any]] | None = None,
) -> LoadedRecipe:
    """Load a recipe file, or a built-in recipe by name, and apply flags and `KEY=VALUE` overrides.

    Args:
        recipe: path of a YAML file, or the name of a file in the toolkit's recipes folder.
        flags: dotted key -> value, from command-line flags; a None is skipped.
        overrides: `dotted.key=yaml` strings, the last word.
        base: values below the recipe's own, as a nested dictionary.
        settings: values above the recipe's own and below the flags: their origin -> dotted key -> value.

    Raises:
        UsageError: no such recipe, an unknown key, a value of the wrong type.
    """
    path = find_yaml(recipe, BUILTIN_RECIPES, "recipe")
    origins: dict[str, str] = {}
    values: dict = {"name": path.stem}
    _merge(values, base or {}, "default", origins)
    for layer_path, layer in _layers(path):
        _merge(values, layer, str(layer_path), origins)
    for origin, dotted in (settings or {}).items():
        for key, value in dotted.items():
            _merge(values, _nested(key, value), origin, origins)
    for key, value in (flags or {}).items():
        if value is not None:
            _merge(values, _nested(key, value), "flag", origins)
    for override in overrides or []:
        _merge(values, _parse_override(override), "--set", origins)
    return LoadedRecipe(validate(values, origins, path), origins)


def validate(values: dict, origins: dict[str, str], path: object) -> Recipe:
    """Check nested values against the schema.

    Raises:
        UsageError: the first key that is unknown, missing or of the wrong type, with the nearest valid key.
    """
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise schema_error(error, origins, path, _siblings) from error
    if not RUN_NAME.fullmatch(recipe.name):
        raise UsageError(
            f"name {recipe.name!r} is not a plain name",
            where=f"{path}: name",
            hint="Use letters, digits, dots, dashes and underscores.",
        )
    return recipe


def load_data_section(values: dict[str, Any], overrides: list[str] | None = None) -> DataSection:
    """A data section alone, for text that comes without a recipe; overrides are `data.KEY=yaml`.

    Raises:
        UsageError: an unknown key or a value of the wrong type.
    """
    model = {"num_layers": 1, "num_heads": 1, "d_model": 1, "context_length": 1}  # a recipe needs one; it is not used
    nested = {"model": model, "data": dict(values)}
    origins: dict[str, str] = {}
    for override in overrides or []:
        _merge(nested, _parse_override(override), "--set", origins)
    return validate(nested, origins, "command line").data


def documented_keys() -> list[tuple[str, str, str]]:
    """Every recipe key as (dotted key, default, description), in the order of the schema."""
    rows = []
    for section, model in (("model", ModelConfig), ("data", DataSection), ("train", TrainSection)):
        schema = TypeAdapter(model).json_schema()
        for key, entry in schema["properties"].items():
            default = "required" if key in schema.get("required", []) else entry.get("default")
            rows.append((f"{section}.{key}", str(default), " ".join(entry.get("description", "").split())))
    return rows


def find_yaml(name: str | Path, folder: Path, word: str) -> Path:
    """A YAML file by its path, or by the name of a file in the toolkit's own folder of such files.

    Args:
        word: what such a file is called, such as `recipe`.

    Raises:
        UsageError: neither a file nor a built-in name.
    """
    path = Path(name)
    if path.is_file():
        return path
    builtin = folder / f"{name}.yaml"
    if path.parent == Path(".") and builtin.is_file():
        return builtin
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    near = difflib.get_close_matches(path.stem, names, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"no {word} {str(name)!r}: neither a file nor a built-in name",
        where=name,
        hint=f"{hint}Built-in {folder.name}: {', '.join(names) or 'none'}.",
    )


def _layers(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[Path, dict]]:
    """The chain of extended recipes, the most basic first."""
    if path.resolve() in seen:
        raise UsageError("recipes extend each other in a circle", where=path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe: {error}", where=path) from error
    if not isinstance(values, dict):
        raise UsageError("a recipe is a map of sections (model, data, train)", where=path)
    parent = values.pop("extends", None)
    _resolve_files(values, path)
    if parent is None:
        return [(path, values)]
    parent_path = path.parent / str(parent)
    if not parent_path.is_file():
        raise UsageError(f"extends names {str(parent)!r}, which is not a file beside it", where=f"{path}: extends")
    return [*_layers(parent_path, (*seen, path.resolve())), (path, values)]


def _resolve_files(values: dict, path: Path) -> None:
    """Relative `data.files` are looked up beside the recipe first."""
    data = values.get("data")
    if isinstance(data, dict) and isinstance(data.get("files"), list):
        data["files"] = [_beside(str(file), path) for file in data["files"]]


def _beside(file: str, recipe_path: Path) -> str:
    beside = recipe_path.parent / file
    if file == "-" or os.path.isabs(file) or not beside.exists():
        return file
    return os.path.relpath(beside) if beside.resolve().is_relative_to(Path.cwd()) else str(beside.resolve())


def _parse_override(override: str) -> dict:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {override!r} is not KEY=VALUE", hint="For example: --set train.max_steps=100")
    return _nested(key.strip(), parse_yaml(text, f"--set {key}"))


def _nested(key: str, value: Any) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(into: dict, layer: dict, origin: str, origins: dict[str, str], prefix: str = "") -> None:
    """Maps merge, everything else replaces."""
    for key, value in layer.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], value, origin, origins, f"{dotted}.")
        else:
            into[key] = value
            origins[dotted] = origin


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's words, for its models and for dataclasses


def schema_error(
    error: ValidationError, origins: dict[str, str], path: object, siblings: Callable[[list[str]], list[str]]
) -> UsageError:
    """What pydantic found wrong with a file, in our words: one key, and where its value came from.

    Args:
        siblings: from the parts of a dotted key to the keys that may stand in its place.
    """
    # an unknown key before all else: where a required one is misspelt, that one is missing too
    first = min(error.errors(), key=lambda one: one["type"] not in _UNKNOWN)
    loc = [str(part) for part in first["loc"]]
    dotted = ".".join(loc)
    where = f"{origins.get(dotted, path)}: {dotted}"
    if first["type"] in _UNKNOWN:
        known = siblings(loc)
        near = difflib.get_close_matches(loc[-1], known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(known)}."
        return UsageError(f"unknown key {dotted!r}", where=where, hint=hint)
    if first["type"] in ("missing", "missing_argument"):
        return UsageError(f"the key {dotted!r} is required", where=str(path), hint=f"Add it, or --set {dotted}=VALUE")
    return UsageError(f"{dotted} = {first['input']!r}: {first['msg'].lower()}", where=where)


def _siblings(loc: list[str]) -> list[str]:
    return _known_keys(loc[0]) if len(loc) > 1 else ["model", "data", "train", "name", "extends"]


def _known_keys(section: str) -> list[str]:
    return [key.split(".", 1)[1] for key, _, _ in documented_keys() if key.startswith(f"{section}.")]
