"""The page on configuration has every field of every config, with its default, and no other."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

import walsync
from tests.support.processes import REPOSITORY

PAGE = (REPOSITORY / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "config", [walsync.LogConfig, walsync.CheckpointConfig, walsync.KeyConfig, walsync.SessionConfig]
)
def test_the_page_has_every_field_with_its_default(config: Any) -> None:
    (section,) = re.findall(rf"^## {config.__name__}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    documented = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE))
    assert documented == {field.name: repr(field.default) for field in dataclasses.fields(config)}
