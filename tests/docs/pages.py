"""Reading Markdown pages: their fenced blocks, links and headings. Knows as much Markdown as our pages use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import REPOSITORY

__all__ = ["PAGES", "Block", "anchors", "blocks", "links", "page_name", "python_script", "saved_files"]

PAGES = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *(page for page in REPOSITORY.glob("docs/**/*.md") if "_build" not in page.parts),
    ]
)

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")
LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(?P<title>.+?) *#*$")
FILE_NAME = re.compile(r"^# (?P<name>(?:\w+/)*\w+\.py)$")
CODE = re.compile(r"`[^`]*`")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language (the first word after the fence), its lines, and the number of the first one."""

    language: str
    first_line: int
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def page_name(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def _split(page: Path) -> tuple[list[Block], list[tuple[int, str]]]:
    """The fenced blocks of a page, and its other lines with their numbers."""
    found: list[Block] = []
    prose: list[tuple[int, str]] = []
    opening: re.Match[str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        match = FENCE.match(line)
        if opening is None:
            if match is None:
                prose.append((number, line))
            else:
                opening, lines = match, []
        elif match is not None and match["fence"].startswith(opening["fence"]) and not match["info"].strip():
            language = (opening["info"].split() or [""])[0]
            found.append(Block(language, number - len(lines), lines))
            opening = None
        else:
            lines.append(line.removeprefix(opening["indent"]))
    assert opening is None, f"{page_name(page)}: a fenced block is not closed"
    return found, prose


def blocks(page: Path, language: str) -> list[Block]:
    return [block for block in _split(page)[0] if block.language == language]


def _file_name(block: Block) -> str | None:
    """The name in the comment on a block's first line, where the page tells the reader to save it as a file."""
    match = FILE_NAME.match(block.lines[0]) if block.lines else None
    return match["name"] if match else None


def saved_files(page: Path) -> dict[str, str]:
    """The files that a page tells the reader to save: blocks that begin with a comment like `# orders.py`."""
    return {name: block.text + "\n" for block in blocks(page, "python") if (name := _file_name(block))}


def python_script(page: Path) -> str:
    """The other Python blocks of a page as one program whose line numbers are the page's; empty if there are none."""
    lines: list[str] = []
    for block in blocks(page, "python"):
        if _file_name(block) is None:
            lines += [""] * (block.first_line - 1 - len(lines)) + block.lines
    return "\n".join(lines)


def links(page: Path) -> Iterator[tuple[int, str]]:
    """The targets of the links of a page, with the number of their line. Code is not looked into."""
    for number, line in _split(page)[1]:
        for match in LINK.finditer(CODE.sub("", line)):
            yield number, match["target"]


def anchors(page: Path) -> set[str]:
    """What `#…` may name on this page: its headings, written as code hosting sites write them in a link."""
    found: set[str] = set()
    for _, line in _split(page)[1]:
        if heading := HEADING.match(line):
            title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading["title"].replace("`", ""))
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            count = sum(1 for name in found if re.fullmatch(re.escape(slug) + r"(-\d+)?", name))
            found.add(f"{slug}-{count}" if count else slug)
    return found
