"""What the pages say works: their Python runs, their links lead somewhere, and they build without a warning."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, anchors, blocks, links, page_name, python_script, saved_files
from tests.support.processes import REPOSITORY, run_python

# Libraries that pages use, and that make SQLAlchemy 2.1 warn of what they do themselves.
NOT_OURS = "ignore:The declarative_mixin decorator"

PAGES_WITH_PYTHON = [page for page in PAGES if python_script(page)]


def test_there_are_pages_with_python_to_run() -> None:
    assert "README.md" in {page_name(page) for page in PAGES_WITH_PYTHON}


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=page_name)
def test_python_of_the_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    """All blocks of a page are one program, run in an empty directory; a traceback's line number is the page's."""
    script = tmp_path / "page" / f"{page.stem}.py"
    script.parent.mkdir()
    script.write_text(python_script(page), encoding="utf-8")
    directory = tmp_path / "empty"
    directory.mkdir()
    for name, text in saved_files(page).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")
    run_python("-W", "error", "-W", NOT_OURS, script, cwd=directory)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_that_the_page_tells_to_save_compile(page: Path) -> None:
    for name, text in saved_files(page).items():
        compile(text, f"{page_name(page)}: {name}", "exec")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_to_a_page_and_a_heading_that_exist(page: Path) -> None:
    broken = []
    for number, target in links(page):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        if not aim.exists():
            broken.append(f"{page_name(page)}:{number}: {target}: there is no such file")
        elif anchor and anchor not in anchors(aim):
            broken.append(f"{page_name(page)}:{number}: {target}: there is no such heading")
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_code_blocks_name_their_language(page: Path) -> None:
    """A block without one would be taken for prose by the reader's eye, and for nothing by these tests."""
    assert [block.first_line for block in blocks(page, "")] == []


@pytest.mark.slow
def test_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    if shutil.which("sphinx-build", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("Sphinx is not installed (pip install '.[docs]')")
    run_python(
        "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-b", "html", REPOSITORY / "docs", tmp_path
    )
    assert (tmp_path / "index.html").is_file()
