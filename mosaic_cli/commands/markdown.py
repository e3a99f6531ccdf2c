"""Pieces of the generated pages."""

from collections.abc import Iterable, Iterator
from pathlib import Path


def code(text: str) -> str:
    """A block of code."""
    return f"```\n{text}\n```"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; line breaks in cells become spaces."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def marks(command: str) -> tuple[str, str]:
    """The lines of a page between which stands what this command has written."""
    return f"<!-- begin: {command} -->", "<!-- end -->"


def write_between(page: Path, command: str, text: str) -> None:
    """Put what a command has made into a page, between its marks.

    Raises:
        ValueError: the page has no such marks.
    """
    begin, end = marks(command)
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"{page} has no place for {command}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def header_comment(path: Path) -> Iterator[str]:
    """The comment a YAML file opens with, in paragraphs; what is indented there is code."""
    prose: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").removeprefix(" ")
        if text.startswith("  "):
            yield "\n".join(prose)
            yield code(text.strip())
            prose = []
        else:
            prose.append(text)
    if prose:
        yield "\n".join(prose)
