"""The pages say what is there: generated ones are fresh, and names, paths and links in the others exist."""

import ast
import dataclasses
import importlib
import re
from pathlib import Path

import pytest
import typer

from mosaic_cli.app import app
from mosaic_cli.commands import markdown
from mosaic_cli.commands.manual import JSON_OBJECTS, commands, pages, write_pages
from mosaic_cli.errors import CheckFailed
from mosaic_cli.generation import Sample
from mosaic_cli.studies.cost import CellCost

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
CORE_NAME = re.compile(r"`(config|reference|ops|features|memory|cache|mosaic|transformer|model)\.(\w+(?:\.\w+)*)`")


@pytest.mark.parametrize("name", ["cli.md", "recipes.md", "studies.md", "results.md"])
def test_generated_pages_are_fresh(name):
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == pages(app)[name], "run: make docs"


def test_a_stale_page_fails_the_check(tmp_path, monkeypatch):
    monkeypatch.setattr("mosaic_cli.commands.manual.DOCS", tmp_path)
    (tmp_path / "results.md").write_text("# Results\n")
    with pytest.raises(CheckFailed, match=r"cli\.md is stale"):
        write_pages(app, check=True)
    write_pages(app, check=False)
    write_pages(app, check=True)


def test_every_command_is_documented_with_an_example():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (mosaic .+?)$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    known = list(commands(typer.main.get_command(app)))
    assert known and set(sections) == {f"mosaic {name}" for name, _ in known}
    for name, command in known:
        section = sections[f"mosaic {name}"]
        assert f"```\nmosaic {name} " in section.rpartition("Example:")[2]
        assert command.epilog and command.epilog.removeprefix("Example: ") in section
        for option in command.params:
            assert option.help and all(word in section for word in option.opts if word.startswith("-"))
            assert "repeatable" in option.help or not getattr(option, "multiple", False)


def test_every_schema_is_documented_with_keys_that_are_written():
    words = _strings(ROOT / "mosaic_cli" / "commands")
    written = {word for word in words if re.fullmatch(r"mosaic\.[\w.-]+/\d+", word)} - {"mosaic.error/1"}
    assert {schema for schema, _ in JSON_OBJECTS.values()} == written
    known = words | _strings(ROOT / "mosaic_cli" / "probes")
    known |= {field.name for one in (Sample, CellCost) for field in dataclasses.fields(one)}
    known |= _strings(ROOT / "mosaic_cli" / "studies")
    keys = {part for _, keys in JSON_OBJECTS.values() for key in keys for part in re.split(r"\[\]\.|\.", key)}
    assert {key.removesuffix("_interval") for key in keys} <= known


def test_architecture_s_tree_is_the_tree():
    listed = _trees(ROOT / "docs" / "architecture.md")
    assert not [path for path in listed if not (ROOT / path).exists()]
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mosaic_cli").rglob("*.py")}
    assert {path for path in modules if not path.endswith("__init__.py")} == {p for p in listed if p.endswith(".py")}


def test_readme_s_tree_names_what_exists():
    assert not [path for path in _trees(ROOT / "README.md") if not (ROOT / path).exists()]


def test_names_in_equations_exist():
    page = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    named = set(CORE_NAME.findall(page))
    for module, name in named:
        found = importlib.import_module(f"mosaic_cli.core.{module}")
        for part in name.split("."):
            assert hasattr(found, part), f"docs/equations.md names {module}.{name}, which does not exist"
            found = getattr(found, part)
    for module in ("reference", "ops"):
        functions = {name for name in _functions(ROOT / f"mosaic_cli/core/{module}.py") if not name.startswith("_")}
        assert functions <= {name for file, name in named if file == module}, f"not in docs/equations.md: {functions}"


def test_tests_named_in_pages_exist():
    tests = {name for path in (ROOT / "tests").rglob("test_*.py") for name in _functions(path)}
    for page in PAGES:
        named = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
        assert named <= tests, f"{page.name} names {named - tests}"
        assert named or page.name != "equations.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    for link in LINK.findall(prose):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in _anchors(path), f"{page.name} links to {link}"


def _trees(page: Path) -> list[str]:
    """Paths that the page's code blocks with a line `mosaic_cli/` list, nested by indentation."""
    paths: list[str] = []
    for block in FENCE.findall(page.read_text(encoding="utf-8")):
        lines = [re.sub(r"[│├└─]", " ", line) for line in block.splitlines()[1:-1]]
        if not any(re.match(r"mosaic_cli/(\s|$)", line) for line in lines):
            continue
        above: list[tuple[int, str]] = []  # folders around the line: indentation, path
        for line in filter(str.strip, lines):
            indent = len(line) - len(line.lstrip())
            above = [folder for folder in above if folder[0] < indent]
            path = (above[-1][1] if above else "") + line.split()[0]
            paths.append(path)
            if path.endswith("/"):
                above.append((indent, path))
    return paths


def _anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives to the page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _functions(path: Path) -> set[str]:
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def _strings(folder: Path) -> set[str]:
    """Every string in the code of a folder but the manual's own."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py") if path.stem != "manual"]
    constants = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def test_what_is_generated_has_its_place(tmp_path):
    page = tmp_path / "page.md"
    begin, end = markdown.marks("make it")
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n", encoding="utf-8")
    markdown.write_between(page, "make it", "new")
    assert page.read_text(encoding="utf-8") == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    with pytest.raises(ValueError, match="no place for make tea"):
        markdown.write_between(page, "make tea", "new")
