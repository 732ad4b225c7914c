"""`docs/reference/captured.md` is true: each of its rows has cases, and each case goes the way that its row says."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.contract.captured import page, registry
from tests.support.databases import make_transactions_real

pytest.register_assert_rewrite("tests.contract.captured.runs")
runs = importlib.import_module("tests.contract.captured.runs")
for module in sorted(Path(__file__).parent.glob("case_*.py")):
    importlib.import_module(f"tests.contract.captured.{module.stem}")

ROWS = {row.name: row for row in page.rows()}


MARKS: dict[str, Any] = {
    registry.SQLITE: (),
    registry.POSTGRESQL: (pytest.mark.postgresql, pytest.mark.slow),
    registry.MARIADB: (pytest.mark.mariadb, pytest.mark.slow),
}


def _parameters(cases: list[registry.Case]) -> list[Any]:
    return [
        pytest.param(case, f"{database}_pair", id=f"{case.name}-{database}", marks=MARKS[database])
        for case in cases
        for database in case.on
    ]


# SQLAlchemy leaves a server-side cursor of psycopg's open, which was never executed, when a listener raises before it.
@pytest.mark.filterwarnings("ignore:<psycopg.ServerCursor object.*was deleted while still open:ResourceWarning")
@pytest.mark.parametrize(("case", "pair"), _parameters(registry.CASES))
def test_a_construct_goes_the_way_that_the_page_says(
    case: registry.Case, pair: str, others: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    row = ROWS.get(case.row)
    assert row is not None, f"no row of {page.PAGE.name} is named {case.row!r}"
    plain, target = request.getfixturevalue(pair)
    runs.run(case, row, plain, target, others, tmp_path / "log")


@pytest.mark.slow
@pytest.mark.parametrize(("case", "pair"), _parameters([case for case in registry.CASES if case.fits_in_savepoint]))
def test_it_goes_the_same_way_inside_of_a_savepoint(
    case: registry.Case, pair: str, others: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    plain, target = request.getfixturevalue(pair)
    for engine in (plain, target, *others):
        make_transactions_real(engine)
    runs.run_in_savepoint(case, ROWS[case.row], plain, target, others, tmp_path / "log")


def test_every_row_of_the_page_has_a_case_and_every_case_a_row() -> None:
    shown = {case.row for case in registry.CASES}
    assert sorted(ROWS.keys() - shown) == [], "rows without a case"
    assert sorted(shown - ROWS.keys()) == [], "cases without a row"


def test_no_two_rows_and_no_two_cases_have_one_name() -> None:
    names = [row.name for row in page.rows()] + [case.name for case in registry.CASES]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_every_row_says_why() -> None:
    assert [row.name for row in page.rows() if not row.why.strip()] == []


def test_a_way_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="sideways"):
        page.rows("| construct | way | why |\n|---|---|---|\n| a | sideways | so |\n")
