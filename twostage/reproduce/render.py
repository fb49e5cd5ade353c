"""Tables as Markdown and as an HTML page that opens offline."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2

from twostage.data.schema import write_aside
from twostage.reproduce.tables import Document, Table


def write_document(folder: Path, name: str, document: Document) -> list[Path]:
    """Writes `name`.md and `name`.html into a folder and returns their paths; the same document, the same bytes."""
    paths = [folder / f"{name}.md", folder / f"{name}.html"]
    for path, text in zip(paths, (markdown(document), html(document)), strict=True):
        write_aside(path, text.encode())
    return paths


def markdown(document: Document) -> str:
    """The whole page as Markdown."""
    blocks = [f"# {_inline(document.title)}", *map(_inline, document.intro)]
    for table in document.tables:
        blocks += [f"## {_inline(table.title)}", markdown_table(table), *map(_inline, table.notes)]
    return "\n\n".join(blocks) + "\n"


def markdown_table(table: Table) -> str:
    """A table alone, its columns aligned for those who read it as text."""
    lines = [[_inline(cell) for cell in line] for line in (table.columns, *table.rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(table.columns))]
    rule = [f":{'-' * (widths[0] - 1)}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    aligned = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (aligned[0], rule, *aligned[1:]))


def html(document: Document) -> str:
    """The whole page as HTML; every text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("tables.html.j2").render(document=document) + "\n"


def _inline(text: str) -> str:
    """Text that Markdown shows as it is: class names come from strangers."""
    return re.sub(r"([\\`*_|<>\[\]#])", r"\\\1", " ".join(text.split()))
