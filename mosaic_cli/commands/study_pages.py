"""What the pages say of studies: docs/studies.md, and the blocks of docs/results.md between markers."""

import re
from pathlib import Path

from mosaic_cli.commands.markdown import header_comment, table
from mosaic_cli.commands.study_figures import drawings
from mosaic_cli.studies.results import load_results
from mosaic_cli.studies.study import BUILTIN_STUDIES, Published, Study
from mosaic_cli.studies.tables import provenance, study_tables

BLOCK = re.compile(r"(<!-- study:(\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
INTRODUCTION = """
A study is one YAML file that says which runs are compared and by which figures. `mosaic compare STUDY` trains and evaluates what is not done, and writes `studies/results/NAME.json` ([keys](formats.md#results-of-studies)), two figures and tables; `mosaic compare STUDY --dry-run` says what that will cost.

Every run gets the study's recipe with, in rising order, what `set`, the cell (`variants`, `vary`), `tune` and `seeds` say, and at last `-s KEY=VALUE` from the command line. All recipes are checked before the first run begins. Runs are ordinary runs, named after study, cell, tuned values and seed (`stories-depth-mosaic-l2-lr0.004-s1`): `mosaic eval`, `generate` and `probe` know them. A study that is called again skips the runs that are done, goes on with one that was stopped, and refuses when a run of a name is there that it would not have made.

Where something is tuned, the first seed of every cell runs with every combination, and the one with the lowest validation loss runs with the other seeds. It is chosen on the split that is reported on, for all cells alike. Each mosaic also runs with the combination that suits the transformer beside it, as in the paper: *carried over*.

A run whose loss becomes infinite or not a number has *diverged*: it counts as the worst in a sweep, and every table says how many did.

**Equal size.** The two kinds have equal blocks by rule, but a transformer also has position embeddings: nothing in a large model, more than 1 % of a small one. Then the mosaic of a study gets as many more slots as make it as large, and the baseline keeps its standard shape. `equal_size: false` leaves both as the recipe has them.
""".strip()  # noqa: E501  a paragraph of Markdown is one line, whatever the width


def studies_page(note: str) -> str:
    """Every key of a study, and the studies that come with the toolkit."""
    parts = ["# Studies", note, INTRODUCTION, "## Keys of a study", _keys(Study), "## Keys of `published`"]
    parts += [_keys(Published), "## Built-in studies"]
    for path in sorted(BUILTIN_STUDIES.glob("*.yaml")):
        parts += [f"### {path.stem}", *header_comment(path), f"[studies/{path.name}](../studies/{path.name})"]
    return "\n\n".join(parts) + "\n"


def fill_blocks(page: str, folder: Path) -> str:
    """A page with each `<!-- study:NAME -->` ... `<!-- end -->` filled from `folder/NAME.json`."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{_block(found[2], folder)}\n\n{found[3]}", page)


def _block(name: str, folder: Path) -> str:
    path = folder / f"{name}.json"
    if not path.is_file():
        return f"Not measured yet: `mosaic compare {name}`."
    results = load_results(path)
    parts = []
    for one in study_tables(results):
        parts += [f"**{one.title}**", table(one.columns, one.rows), one.caption]
    parts.append(" ".join(provenance(results)))
    for what, words in drawings(results).items():
        parts.append(f"![{name}: {words}](../studies/results/{name}-{what}.png)")
    return "\n\n".join(parts)


def _keys(section: type) -> str:
    schema = section.model_json_schema()
    rows = []
    for key, entry in schema["properties"].items():
        default = "required" if key in schema.get("required", []) else _default(entry.get("default"))
        rows.append((f"`{key}`", default, entry["description"]))
    return table(("key", "default", "meaning"), rows)


def _default(value: object) -> str:
    if value is None or value == {}:
        return ""
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`".replace("'", "")
