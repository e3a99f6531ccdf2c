"""`mosaic prepare`: from text to token shards."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic_cli.commands import display
from mosaic_cli.commands.options import Debug, Json, Seed, Set
from mosaic_cli.errors import DataError, UsageError

if TYPE_CHECKING:
    from mosaic_cli.data.shards import Manifest
    from mosaic_cli.recipe import DataSection

EPILOG = "Example: mosaic prepare stories.txt --tokenizer bpe --out data/stories"


def prepare(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            help="A recipe; or text, jsonl or parquet files (plain, .gz, .zst), folders, - for standard "
            "input, hub:owner/name[:split], builtin:stories|stories-in-turns|regbench|mqar|induction|manyshot."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: the recipe's, or data/NAME.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="bpe, gpt2, char, byte, or a tokenizer file or folder.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Entries of a trained BPE.")] = None,
    text_field: Annotated[str | None, typer.Option(help="Field of a record that holds the text.")] = None,
    val_fraction: Annotated[float | None, typer.Option(help="Share held out for validation.")] = None,
    num_documents: Annotated[int | None, typer.Option(help="Read this many documents and no more.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that tokenize; default: one a core.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip and count records that cannot be read.")] = False,
    verify: Annotated[
        Path | None, typer.Option(help="Check a prepared folder's files by hash; prepare nothing.")
    ] = None,
    seed: Seed = None,
    set_: Set = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn text into token shards that training reads in any order. Prints the data folder."""
    if verify is not None:
        return _verify(verify, json)
    if not source:
        raise UsageError("no source", hint="mosaic prepare RECIPE, or mosaic prepare FILE... --out DIR")
    flags = {
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "text_field": text_field,
        "val_fraction": val_fraction,
        "num_documents": num_documents,
        "skip_bad": skip_bad or None,
        "seed": seed,
    }
    data, folder = _from_recipe(source[0], flags, set_) if _is_recipe(source) else _from_sources(source, flags, set_)
    folder = out or folder
    manifest = prepare_with_progress(data, folder, force=force, workers=workers)
    _report(manifest, folder, json)


def prepare_with_progress(data: "DataSection", folder: Path, **options: object) -> "Manifest":
    """Prepare, drawing how far it is; returns the manifest."""
    from mosaic_cli.data.prepare import prepare as run

    display.note(f"preparing {folder}")
    with display.Bar() as bar:
        for progress in run(data, folder, **options):
            if progress.warning:
                display.warn(progress.warning)
            detail = f"{progress.documents:,} documents" + (f", {progress.tokens:,} tokens" if progress.tokens else "")
            bar.update(progress.phase, progress.done, progress.total, detail)
    manifest = progress.manifest
    source = manifest.source
    if source.skipped_records:
        display.warn(f"{source.skipped_records} bad records were skipped, the first: {source.first_skipped}")
    return manifest


def _is_recipe(source: list[str]) -> bool:
    from mosaic_cli.recipe import BUILTIN_RECIPES

    if len(source) != 1:
        return False
    return source[0].endswith((".yaml", ".yml")) or (
        not Path(source[0]).exists() and (BUILTIN_RECIPES / f"{source[0]}.yaml").is_file()
    )


def _from_recipe(name: str, flags: dict[str, object], overrides: list[str] | None) -> tuple["DataSection", Path]:
    from mosaic_cli.recipe import load_recipe

    dotted = {f"data.{key}": value for key, value in flags.items()}
    recipe = load_recipe(name, flags=dotted, overrides=overrides).recipe
    return recipe.data, recipe.data_dir


def _from_sources(
    source: list[str], flags: dict[str, object], overrides: list[str] | None
) -> tuple["DataSection", Path]:
    """The data section that the arguments of the command line stand for, and its default folder."""
    from mosaic_cli.data.streams import printable
    from mosaic_cli.recipe import TASK_TOKENIZERS, load_data_section

    for name in source if len(source) > 1 else ():
        if name.startswith(("hub:", "builtin:")) or name.endswith((".yaml", ".yml")):
            raise UsageError(f"{name} cannot be mixed with other sources", hint="Prepare one at a time.")
    for name in source:
        if printable(name) != name:
            raise UsageError(f"the name is not UTF-8: {printable(name)}", hint="Rename it, or read it from a folder.")
    kind, _, rest = source[0].partition(":")
    if kind == "hub":
        name, _, split = rest.partition(":")
        values = {"source": "hub", "hub": name, "hub_split": split or "train"}
        default = name.rpartition("/")[2]
    elif kind == "builtin":
        values, default = {"source": "builtin", "builtin": rest}, rest
        if rest in TASK_TOKENIZERS:
            values["tokenizer"] = TASK_TOKENIZERS[rest]
    else:
        values, default = {"source": "files", "files": source}, Path(source[0]).name.split(".")[0] or "text"
        default = "stdin" if source == ["-"] else default
    values |= {key: value for key, value in flags.items() if value is not None}
    data = load_data_section(values, overrides)
    return data, Path(data.dir) if data.dir else Path("data") / default


def _verify(folder: Path, json: bool) -> None:
    from mosaic_cli.data.shards import verify

    report = verify(folder)
    if not report.ok:
        raise DataError(
            "; ".join(report.problems),
            where=folder,
            hint=f"Prepare the data again: mosaic prepare RECIPE --out {folder} --force",
        )
    if json:
        display.print_json(
            "mosaic.prepare-verify/1", {"data": str(folder), "files": report.files, "bytes": report.bytes}
        )
    else:
        display.result(f"{folder}: {report.files} files, {display.format_bytes(report.bytes)}, as the manifest says")


def _report(manifest: "Manifest", folder: Path, json: bool) -> None:
    if json:
        display.print_json("mosaic.prepare/1", {"data": str(folder), "manifest": asdict(manifest)})
        return
    for name, split in (("train", manifest.train), ("val", manifest.val)):
        display.note(
            f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {display.format_bytes(split.bytes)}"
        )
    display.note(f"{manifest.tokenizer.kind} tokenizer of {manifest.vocab_size:,}, from {manifest.source.used}")
    display.result(str(folder))
