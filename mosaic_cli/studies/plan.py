"""From a study to its runs: which cells there are, what each run's recipe is, and whether sizes are equal."""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import parameters_of
from mosaic_cli.errors import UsageError
from mosaic_cli.recipe import LoadedRecipe, Recipe, load_recipe
from mosaic_cli.studies.study import DATA_DIR, KIND, SLOTS, LoadedStudy

SIZE_TOLERANCE = 0.01  # models of one size have parameters that differ by at most this share of the larger one's
SLOTS_TRIED = 60  # more slots, to see what one weighs: a feed-forward layer in their place has whole hidden units
SHORT = {  # keys that are common in the names of runs
    KIND: "",
    "model.num_layers": "l",
    "model.d_model": "d",
    SLOTS: "m",
    "model.context_length": "t",
    "train.learning_rate": "lr",
    "data.num_documents": "n",
}
Chosen = dict[str, dict[str, Any] | None]
"""A cell's label -> its combination of tuned values, the best of the sweep; None where all runs diverged."""


@dataclass(frozen=True)
class Cell:
    """One combination of what a study varies."""

    values: dict[str, Any]
    """The study's axes, each with this cell's value."""
    label: str
    """The cell in the names of its runs: `mosaic-l2`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Dotted recipe keys and their values."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study, begun or not."""

    name: str
    cell: Cell
    tuned: dict[str, Any]
    """The values of the tuned keys."""
    seed: int
    loaded: LoadedRecipe

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe


class Plan:
    """All that a study may run. Which of a tuned cell's runs follow the sweep depends on its outcome.

    Raises:
        UsageError: a recipe does not validate, two runs have one name, or sizes cannot be made equal.
    """

    def __init__(self, loaded: LoadedStudy):
        self.loaded, self.study = loaded, loaded.study
        cells = [self._cell(values) for values in _product(self.study.axes)]
        self.cells = {cell.label: cell for cell in cells}
        if len(self.cells) < len(cells):
            raise UsageError("two cells of the study have one name", where=f"{loaded.path}: vary")
        if self.study.equal_size:
            self.cells = {label: self._equalised(cell) for label, cell in self.cells.items()}
        self.runs: dict[str, PlannedRun] = {}
        for cell in self.cells.values():
            for tuned in self.combinations:
                loaded = self._recipe(cell, tuned)
                for seed in self.study.seeds:
                    name = self._name(cell, tuned, seed)
                    self.runs[name] = PlannedRun(name, cell, tuned, seed, self._of_run(loaded, cell, seed, name))
        if len(self.runs) < len(self.cells) * len(self.combinations) * len(self.study.seeds):
            raise UsageError("two values of a tuned key have one name", where=f"{loaded.path}: tune")

    @cached_property
    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of the tuned keys; a single empty one where nothing is tuned."""
        return list(_product(self.study.tune))

    def sweep(self) -> list[PlannedRun]:
        """What runs first: every cell and combination with the first seed."""
        first = self.study.seeds[0]
        return [self.run(cell, tuned, first) for tuned in self.combinations for cell in self.cells.values()]

    def chosen_runs(self, cell: Cell, tuned: dict[str, Any]) -> list[PlannedRun]:
        """The runs of a cell with one combination, all seeds."""
        return [self.run(cell, tuned, seed) for seed in self.study.seeds]

    def follow_up(self, chosen: Chosen) -> list[PlannedRun]:
        """What runs once the sweep is known: all seeds of each cell with its own combination and, beside a
        transformer, with the transformer's. Runs of the sweep are among them."""
        runs: dict[str, PlannedRun] = {}
        for label, cell in self.cells.items():
            partner = self.partner(cell)
            wanted = [chosen[label]] + ([chosen[partner.label]] if partner else [])
            for tuned in (one for one in wanted if one is not None):
                runs |= {run.name: run for run in self.chosen_runs(cell, tuned)}
        return list(runs.values())

    def partner(self, cell: Cell) -> Cell | None:
        """The transformer beside a mosaic: the cell that differs in nothing but the kind."""
        if cell.values.get(KIND) != "mosaic":
            return None
        other = cell.values | {KIND: "transformer"}
        return next((found for found in self.cells.values() if found.values == other), None)

    def run(self, cell: Cell, tuned: dict[str, Any], seed: int) -> PlannedRun:
        """One of `runs`."""
        return self.runs[self._name(cell, tuned, seed)]

    def _name(self, cell: Cell, tuned: dict[str, Any], seed: int) -> str:
        words = [self.study.name, cell.label, *itertools.starmap(_word, tuned.items()), f"s{seed}"]
        return "-".join(word for word in words if word)

    def _of_run(self, loaded: LoadedRecipe, cell: Cell, seed: int, name: str) -> LoadedRecipe:
        recipe = loaded.recipe
        parts = {
            "name": name,
            "data": recipe.data.model_copy(update={"dir": str(self._data_dir(cell, recipe))}),
            "train": recipe.train.model_copy(update={"seed": seed}),
        }
        return replace(loaded, recipe=recipe.model_copy(update=parts))

    def _cell(self, values: dict[str, Any]) -> Cell:
        settings = {key: value for key, value in values.items() if key != "variant"}
        settings |= self.study.variants.get(values.get("variant"), {})
        label = "-".join(word for word in itertools.starmap(_word, values.items()) if word)
        return Cell(values, label, settings)

    def _recipe(self, cell: Cell, tuned: dict[str, Any]) -> LoadedRecipe:
        settings = {str(self.loaded.path): self.study.set | cell.settings | tuned}
        return load_recipe(self.loaded.recipe, settings=settings, overrides=list(self.loaded.overrides))

    def _data_dir(self, cell: Cell, recipe: Recipe) -> Path:
        """The recipe's own folder, unless the study changes the data; then one of the study's, or of the cell's."""
        overrides = [override.partition("=")[0].strip() for override in self.loaded.overrides]
        shared = [key for key in (*self.study.set, *overrides) if key.startswith("data.")]
        varied = {key: value for key, value in cell.values.items() if key.startswith("data.")}
        if any(key.startswith("data.") for key in self.study.variants.get(cell.values.get("variant"), {})):
            varied["variant"] = cell.values["variant"]
        own = recipe.data_dir if DATA_DIR in shared or not (shared or varied) else Path("data") / self.study.name
        return own.with_name("-".join([own.name, *itertools.starmap(_word, varied.items())]))

    def _equalised(self, cell: Cell) -> Cell:
        """A mosaic's cell with as many slots as make it as large as the transformer beside it; others as they are."""
        partner = self.partner(cell)
        if partner is None:
            return cell
        transformer = self._recipe(partner, self.combinations[0]).recipe.model

        def mosaic(slots: int | None = None) -> ModelConfig:
            chosen = {} if slots is None else {SLOTS: slots}
            one = replace(cell, settings=cell.settings | chosen)
            return self._recipe(one, self.combinations[0]).recipe.model

        slots = equal_slots(mosaic, transformer)
        if slots == mosaic().num_slots:
            return cell
        if SLOTS in self.study.axes:
            raise UsageError(
                f"{cell.label} and {partner.label} differ in size, and {SLOTS}, which could make them equal, is varied",
                where=f"{self.loaded.path}: equal_size",
                hint="Set equal_size: false.",
            )
        return replace(cell, settings=cell.settings | {SLOTS: slots})


def equal_slots(mosaic: Callable[[int | None], ModelConfig], transformer: ModelConfig) -> int:
    """The mosaic's num_slots, changed where it must be for as many parameters as the transformer has.

    The blocks are equal by rule (core/config.py), but a transformer also has position embeddings, which weigh much in
    a small model. The baseline keeps its standard shape; what it spends on positions the mosaic may spend on slots.
    The tokens' embeddings, which both share, are left out: so the answer is the same before and after the data is
    there, and the whole models are closer still.

    Args:
        mosaic: its shape with so many slots; with None, as the recipe has it.

    Raises:
        UsageError: no number of slots brings them within 1 %.
    """
    target, config = parameters_of(transformer.with_vocab(1)), mosaic(None)
    size = parameters_of(config.with_vocab(1))
    if differ(size, target):
        more = parameters_of(mosaic(config.num_slots + SLOTS_TRIED).with_vocab(1)) - size
        slots = config.num_slots + round((target - size) * SLOTS_TRIED / more) if more else config.num_slots
        config = mosaic(max(1, slots))
        size = parameters_of(config.with_vocab(1))
    if differ(size, target):
        raise UsageError(
            f"a mosaic of {size:,} and a transformer of {target:,} parameters beside the tokens' embeddings: no "
            f"number of slots makes them equal",
            where="equal_size",
            hint="Change their shapes, or set equal_size: false in the study.",
        )
    return config.num_slots


def differ(one: int, other: int) -> bool:
    """Whether two numbers of parameters are further apart than models of equal size may be."""
    return abs(one - other) > SIZE_TOLERANCE * max(one, other)


def _product(axes: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _word(key: str, value: Any) -> str:
    """One setting in the name of a run: `gated-keys`, `mosaic`, `l2`, `lr0.002`, `dropout0.1`, `init-paper`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    text = f"{value:g}" if isinstance(value, float) else "-".join(str(value).split())
    text = re.sub(r"[^A-Za-z0-9._-]+", "", text)
    if key in (KIND, "variant"):
        return text
    return SHORT.get(key, key.rpartition(".")[2] + ("" if is_number else "-")) + text
