"""Studies: one YAML file says which runs are compared, and by which figures. The schema, and how a file is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from mosaic_cli.errors import UsageError
from mosaic_cli.recipe import RUN_NAME, Section, find_yaml, parse_yaml, schema_error

_PACKAGE = Path(__file__).parent.parent
_PACKAGED = _PACKAGE / "builtin_studies"  # in an installed wheel; a checkout keeps them at its top
BUILTIN_STUDIES = _PACKAGED if _PACKAGED.is_dir() else _PACKAGE.parent / "studies"
KIND, SEED, DATA_DIR, SLOTS = "model.kind", "train.seed", "data.dir", "model.num_slots"


class Figure(NamedTuple):
    """A figure of an evaluation: its name in the objects of `mosaic eval --json`, and how people read it."""

    words: str
    unit: str
    lower_is_better: bool


FIGURES: dict[str, dict[str, Figure]] = {  # what follows `--on` -> name -> figure
    "val": {
        "loss": Figure("validation loss", "nats per token", True),
        "perplexity": Figure("validation perplexity", "1", True),
        "bits_per_byte": Figure("validation bits per byte", "bits per byte", True),
    },
    "recall": {"accuracy": Figure("facts recalled", "share", False)},
    "recall-far": {
        f"accuracy_{distance}": Figure(f"answers right {distance:,} tokens later", "share", False)
        for distance in (128, 256, 512, 1024, 2048, 4096)
    },
    "recall-after": {
        "alone": Figure("facts recalled in stories alone", "share", False),
        **{
            f"{group}_{length}": Figure(f"facts after {length:,} tokens, {words}", "share", False)
            for length in (512, 1024, 2048, 4096)
            for group, words in (("clear", "clear"), ("clash", "clashing"))
        },
    },
    "length": {
        "loss": Figure("loss in the second half of training windows", "nats per token", True),
        **{
            f"ratio_{times}": Figure(f"loss at up to {times} training lengths over that", "ratio", True)
            for times in (2, 4, 8, 16)
        },
    },
    "manyshot": {
        "semantic": Figure("semantic labels right in context", "share", False),
        "anonymous": Figure("anonymous labels right in context", "share", False),
        "semantic_beyond": Figure("semantic labels right beyond the training length", "share", False),
        "anonymous_beyond": Figure("anonymous labels right beyond the training length", "share", False),
    },
    **{
        task: {
            "accuracy": Figure("answers right, lists as in training", "share", False),
            "accuracy_beyond": Figure("answers right, longer lists", "share", False),
        }
        for task in ("mqar", "induction")
    },
    "regbench": {
        "accuracy": Figure("RegBench accuracy", "share", False),
        "tvd": Figure("RegBench TVD", "total variation distance", True),
    },
}


class Published(Section):
    """Numbers of others for the same cells, shown beside the measured ones."""

    source: str
    """Where they stand."""
    note: str | None = None
    """What a reader must know to compare them; shown below the table."""
    values: list[dict[str, Any]]
    """For each number or set of numbers, the varied keys that name the cell, and figures: `{model.kind: mosaic,
    loss: 1.5}`."""


class Study(Section):
    """Which runs are compared, and by which figures."""

    name: str = "study"
    """Names the results and begins the runs' names; default: the file's name."""
    recipe: str
    """What every run is based on: a file, looked up beside the study, or the name of a built-in recipe."""
    set: dict[str, Any] = Field(default={})
    """Dotted recipe keys that all runs share, and their values."""
    vary: dict[str, list[Any]] = Field(default={})
    """Dotted recipe key -> values. Every combination is a cell of the study."""
    variants: dict[str, dict[str, Any]] = Field(default={})
    """Name -> dotted recipe keys and values: for what differs in one thing at a time. Combined with `vary`."""
    tune: dict[str, list[Any]] = Field(default={})
    """Dotted recipe key -> values. Each cell takes the combination whose first seed has the lowest validation loss."""
    seeds: list[int]
    """Values of train.seed; with `tune`, the first is also the one of the sweep."""
    evaluate: dict[str, list[str]] = Field(default={"val": ["loss"]})
    """What to evaluate on, as after `mosaic eval --on`, and the figures to report, the main one first."""
    reach: float | None = None
    """A validation loss: reported is after how many steps a run first has it, as its validations tell."""
    equal_size: bool = True
    """Where cells differ in model.kind alone and in more than 1 % of their parameters, choose the mosaic's num_slots
    so that it has as many as the transformer. False leaves them as they are."""
    published: Published | None = None
    """Numbers of others, to stand beside the measured ones; see below."""

    @field_validator("vary", "tune")
    @classmethod
    def _has_distinct_values(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in grid.items():
            if not values or len({repr(value) for value in values}) < len(values):
                raise UsageError(f"{key} needs one or more values, each once: {values}", where=key)
        return grid

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not RUN_NAME.fullmatch(self.name):
            raise UsageError(f"name {self.name!r} is not a plain name", where="name", hint="Letters, digits, . _ -")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds needs one or more numbers, each once: {self.seeds}", where="seeds")
        for key in self.tune:
            if key.startswith("data."):
                raise UsageError(
                    f"tune: {key} changes the data, so validation losses could not be compared",
                    where="tune",
                    hint=f"Put it under vary: {key}.",
                )
        self._check_keys_have_one_place()
        self._check_figures()
        self._check_published()
        return self

    def _check_keys_have_one_place(self) -> None:
        places = {"seeds": [SEED], "vary": self.vary, "tune": self.tune, "set": self.set}
        seen: dict[str, str] = {}
        for place, keys in places.items():
            for key in keys:
                if key in seen:
                    raise UsageError(f"{key} stands under both {seen[key]} and {place}", where=place)
                seen[key] = place

    def _check_figures(self) -> None:
        if not self.evaluate or not all(self.evaluate.values()):
            raise UsageError("evaluate names no figure", where="evaluate", hint="For example: {val: [loss]}")
        for on, names in self.evaluate.items():
            known = FIGURES.get(on)
            if known is None:
                raise UsageError(f"cannot evaluate on {on!r}", where="evaluate", hint=f"Known: {', '.join(FIGURES)}.")
            for name in names:
                if name not in known:
                    raise UsageError(
                        f"{name!r} is not a figure of {on}", where=f"evaluate.{on}", hint=f"Known: {', '.join(known)}."
                    )

    def _check_published(self) -> None:
        figures = {name for names in self.evaluate.values() for name in names}
        for row in self.published.values if self.published else []:
            for key in row:
                if key not in self.axes and key not in figures:
                    raise UsageError(
                        f"{key!r} is neither a varied key nor a figure of this study",
                        where="published.values",
                        hint=f"Known: {', '.join([*self.axes, *sorted(figures)])}.",
                    )

    @property
    def axes(self) -> dict[str, list[Any]]:
        """What tells cells apart: `variant`, where there are any, and the varied keys, each with its values."""
        return ({"variant": list(self.variants)} if self.variants else {}) | self.vary

    @property
    def figures(self) -> list[tuple[str, str]]:
        """(what it is evaluated on, name) of every figure that is reported, the main one first."""
        return [(on, name) for on, names in self.evaluate.items() for name in names]


@dataclass(frozen=True)
class LoadedStudy:
    """A study, its file, and what the command line overrides."""

    study: Study
    path: Path
    recipe: str | Path
    """The base of all runs: a path, or the name of a built-in recipe."""
    overrides: tuple[str, ...] = ()
    """`dotted.key=yaml`, above everything that the study says."""


def load_study(name: str | Path, overrides: list[str] | None = None, rename: str | None = None) -> LoadedStudy:
    """Read a study's file, or a built-in study by name.

    Args:
        overrides: recipe keys from the command line, `dotted.key=yaml`.
        rename: another name for the study.

    Raises:
        UsageError: no such study, an unknown key, a value that does not fit, or an override of what the study varies.
    """
    path = find_yaml(name, BUILTIN_STUDIES, "study")
    values = parse_yaml(path.read_text(encoding="utf-8"), path)
    if not isinstance(values, dict):
        raise UsageError("a study is a map of keys", where=path, hint=f"Known keys: {', '.join(Study.model_fields)}.")
    try:
        study = Study.model_validate({"name": path.stem, **values, **({"name": rename} if rename else {})})
    except ValidationError as error:
        raise schema_error(error, {}, path, _siblings) from error
    except UsageError as error:
        raise UsageError(error.message, where=f"{path}: {error.where}", hint=error.hint) from error
    chosen = {*study.axes, *study.tune, SEED, *(key for values in study.variants.values() for key in values)}
    for override in overrides or []:
        key = override.partition("=")[0].strip()
        if key in chosen:
            raise UsageError(
                f"{key} is what the study {study.name} varies", where=f"--set {key}", hint=f"Change it in {path}."
            )
    beside = path.parent / study.recipe
    return LoadedStudy(study, path, beside if beside.is_file() else study.recipe, tuple(overrides or ()))


def _siblings(loc: list[str]) -> list[str]:
    return list((Published if loc[0] == "published" and len(loc) > 1 else Study).model_fields)
