"""What a page shows of an example is what the example says, line for line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import PAGES, blocks, page_name
from tests.support.examples import EXAMPLES

SHOWN = [
    (page, block.lines[0].removeprefix("# "), block)
    for page in PAGES
    for block in blocks(page, "python")
    if block.lines and block.lines[0].startswith("# ") and (EXAMPLES / block.lines[0].removeprefix("# ")).is_file()
]


def test_the_page_on_web_servers_shows_both_examples() -> None:
    shown = {name for page, name, _ in SHOWN if page.name == "use-with-web-servers.md"}
    assert shown == {"web_fastapi.py", "web_flask.py"}


@pytest.mark.parametrize(
    ("page", "name", "number"),
    [(page, name, number) for number, (page, name, _) in enumerate(SHOWN)],
    ids=[f"{page_name(page)}-{block.first_line}" for page, _, block in SHOWN],
)
def test_code_of_an_example_is_in_the_example(page: Path, name: str, number: int) -> None:
    shown = "\n".join(SHOWN[number][2].lines[1:]) + "\n"
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert f"\n{shown}" in f"\n{text}", f"{page_name(page)} shows what {name} does not say"
