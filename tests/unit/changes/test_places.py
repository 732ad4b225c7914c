"""Where the key and the version of a row lie in what is recorded of it."""

from __future__ import annotations

import pytest

from walsync.changes.places import RowPlaces, row_places


@pytest.mark.parametrize(
    ("columns", "keys", "primary_key", "expected"),
    [
        (("n", "id"), (), ("id",), RowPlaces((1,))),
        (("n",), (), ("id",), RowPlaces(None)),
        (("n",), (), (), RowPlaces(None)),
        (("n",), ("id",), ("id",), RowPlaces((1,))),
        (("n", "v"), ("id", "v"), ("id",), RowPlaces((2,), None, "v", 3, 1)),
        (("n",), ("v", "id"), ("id",), RowPlaces((2,), None, "v", 1, None)),
        ((), ("b", "v", "a"), ("a", "b"), RowPlaces((2, 0), None, "v", 1, None)),
        (("b", "v"), ("a", "b", "v"), ("a", "b"), RowPlaces((2, 3), (2, 0), "v", 4, 1)),
        (("n",), ("id", "x", "y"), ("id",), RowPlaces((1,))),
    ],
)
def test_places(
    columns: tuple[str, ...], keys: tuple[str, ...], primary_key: tuple[str, ...], expected: RowPlaces
) -> None:
    assert row_places(columns, keys, primary_key) == expected
