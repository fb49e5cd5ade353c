"""Takes a page apart as a browser would, without one."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "input", "base", "source"}


@dataclass
class Element:
    """One element: its name, attributes, and what is in it."""

    name: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, with single spaces."""
        parts = [c if isinstance(c, str) else c.text for c in self.children]
        return " ".join(" ".join(parts).replace("\u2060", "").split())

    def all(self, *names: str) -> list[Element]:
        """Elements of these names in it, in order; without names, all."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                found += [child] if not names or child.name in names else []
                found += child.all(*names)
        return found

    def with_id(self, identity: str) -> Element:
        """The element of this id."""
        (found,) = [e for e in self.all() if e.attributes.get("id") == identity]
        return found

    def table(self, label: str) -> list[list[str]]:
        """Rows of the table in the region of this aria-label, as texts."""
        (region,) = [e for e in self.all() if e.attributes.get("aria-label") == label and e.all("table")]
        return [[cell.text for cell in row.all("th", "td")] for row in region.all("tr")]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(html: str) -> Element:
    """The page as a tree; every element must be closed in order."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert len(parser.open) == 1, f"<{parser.open[-1].name}> is never closed"
    return parser.root


def inner_svgs(page: Element) -> list[str]:
    """The SVG images that lie in the page."""
    start = "data:image/svg+xml;base64,"
    sources = [image.attributes["src"] for image in page.all("img")]
    return [base64.b64decode(source[len(start) :]).decode() for source in sources if source.startswith(start)]
