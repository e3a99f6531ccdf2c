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
