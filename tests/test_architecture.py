"""The table of docs/architecture.md, read off the imports: who may know whom."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mosaic_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
FLOORS = (  # from the ground up; a part may import those of its own floor and below
    {"errors"},
    {"core"},
    {"files", "intervals", "recipe", "device"},
    {"data"},
    {"runs"},
    {"decoding", "evaluation", "generation", "probes"},
    {"training"},
    {"studies"},
    {"commands", "lm_eval"},
    {"app"},
)
HEAVY = {
    "torch",
    "datasets",
    "numpy",
    "pydantic",
    "yaml",
    "matplotlib",
    "tokenizers",
    "safetensors",
    "jinja2",
    "pyarrow",
}


def _name(path):
    return path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def _part(module):
    """`mosaic_cli.core.ops` -> core; the package itself, which holds only the version, belongs to the ground."""
    return module.split(".")[1] if "." in module else "errors"


def _floor(part):
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


@cache
def _imports(path, everywhere=True):
    """Modules that a file imports: anywhere in it, or only where importing the file runs it. What it does when run as
    a program does not count: then it stands above everything."""
    return frozenset(
        name
        for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), everywhere)
        for name in _imported(node, _name(path).split("."))
    )


def _nodes(node, everywhere):
    for child in ast.iter_child_nodes(node):
        condition = ast.dump(child.test) if isinstance(child, ast.If) else ""
        later = isinstance(child, ast.FunctionDef | ast.Lambda) or "TYPE_CHECKING" in condition
        if "__main__" not in condition and (everywhere or not later):
            yield child
            yield from _nodes(child, everywhere)


def _imported(node, own):
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = ".".join([*own[: len(own) - node.level], node.module or ""]).strip(".") if node.level else node.module
        yield from [f"{module}.{alias.name}" for alias in node.names] if module == "mosaic_cli" else [module]


def _outside(path, everywhere=True):
    """Packages of others that a file imports."""
    return {name.split(".")[0] for name in _imports(path, everywhere)} - {"mosaic_cli"}


def _inside(path):
    return {name for name in _imports(path) if name.split(".")[0] == "mosaic_cli" and not name.endswith("__version__")}


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_point_down(path):
    own = _floor(_part(_name(path)))
    above = {name for name in _inside(path) if _floor(_part(name)) > own}
    assert not above


def test_the_core_needs_nothing_but_torch_and_numpy():
    allowed = {"torch", "numpy"} | sys.stdlib_module_names
    for path in (PACKAGE / "core").rglob("*.py"):
        more = {"triton", "numba", "llvmlite"} if path.parent.name == "kernels" else set()
        assert not _outside(path) - allowed - more, path
        assert {_part(name) for name in _inside(path)} <= {"core", "errors"}, path


def test_core_and_data_do_not_know_each_other():
    for one, other in (("core", "data"), ("data", "core")):
        for path in (PACKAGE / one).rglob("*.py"):
            assert not {name for name in _inside(path) if _part(name) == other}, path


def test_the_shape_of_a_model_is_known_without_torch():
    assert "torch" not in _outside(PACKAGE / "core" / "config.py") | _outside(PACKAGE / "recipe.py")


@pytest.mark.parametrize(
    ("package", "places"),
    [
        ("typer", {"app", "commands"}),
        ("rich", {"app", "commands"}),
        ("click", set()),
        ("datasets", {"data/hub.py"}),
        ("lm_eval", {"lm_eval"}),
        ("matplotlib", {"commands/figures.py", "commands/study_figures.py", "commands/probes/moon_figures.py"}),
        ("triton", {f"core/kernels/{name}.py" for name in ("decoding", "gated", "leaky", "rows", "values")}),
        ("numba", {f"core/kernels/{name}.py" for name in ("compiled", "halves", "prefetch", "tile", "weighted")}),
        ("llvmlite", {f"core/kernels/{name}.py" for name in ("prefetch", "processor", "tile", "weighted")}),
        *((name, set()) for name in ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")),
    ],
)
def test_a_package_is_known_only_where_it_belongs(package, places):
    for path in MODULES:
        if package in _outside(path):
            where = path.relative_to(PACKAGE)
            assert where.as_posix() in places or where.parts[0].removesuffix(".py") in places, path


def test_the_kernels_are_loaded_only_to_run():
    package = "mosaic_cli.core.kernels"
    kernels = {path.stem for path in (PACKAGE / "core" / "kernels").glob("*.py")} - {"__init__"}
    for path in MODULES:
        if path.parent.name == "kernels" and path.stem in kernels:
            continue  # they may load each other
        for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), everywhere=False):
            if isinstance(node, ast.ImportFrom) and node.module == package:
                assert not kernels & {alias.name for alias in node.names}, path
        assert not {f"{package}.{name}" for name in kernels} & _imports(path, everywhere=False), path


def test_matplotlib_is_loaded_only_to_draw():
    for path in MODULES:
        assert "matplotlib" not in _outside(path, everywhere=False), path


def test_nothing_is_read_or_written_as_a_pickle():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("load", "save") and isinstance(node.value, ast.Name):
                assert node.value.id not in ("torch", "np", "numpy"), f"{path}:{node.lineno}"
            if isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", f"{path}:{node.value.lineno}"


def test_help_loads_nothing_heavy():
    code = "import sys, mosaic_cli.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "typer" in loaded and not loaded & HEAVY
