from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from walsync.checkpoint import CheckpointConfig
from walsync.exceptions import ConfigurationError


def test_defaults_are_valid_and_named_with_units() -> None:
    config = CheckpointConfig()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and field.name != "retry_jitter":
            assert field.name.endswith("_s"), field.name


def test_config_is_frozen_and_keyword_only() -> None:
    config = CheckpointConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.batch_changes = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        CheckpointConfig(5)  # type: ignore[misc]


@pytest.mark.parametrize(
    "field, value",
    [
        ("batch_changes", 0),
        ("batch_changes", 1.5),
        ("batch_changes", True),
        ("batch_bytes", 0),
        ("max_backlog_bytes", -1),
        ("max_backlog_entries", 0),
        ("batch_delay_s", -0.1),
        ("batch_delay_s", "1"),
        ("retry_initial_s", 0),
        ("retry_max_s", float("inf")),
        ("retry_max_s", float("nan")),
        ("retry_jitter", 1.1),
        ("retry_jitter", True),
        ("retry_jitter", float("nan")),
        ("blocked_retry_s", 0),
        ("waited_retry_max_s", 0),
        ("log_every_s", 0),
        ("backlog_timeout_s", -1),
        ("target_lock_timeout_s", -1),
        ("check_timeout_s", -1),
        ("watermark_schema", 5),
        ("max_quarantine_entries", 0),
        ("max_quarantine_bytes", -1),
        ("quarantine_timeout_s", -1),
        ("on_reject", "discard"),
        ("paused", 1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=field):
        CheckpointConfig(**{field: value})


def test_initial_wait_above_the_longest_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="retry_initial_s"):
        CheckpointConfig(retry_initial_s=10, retry_max_s=5)


def test_zero_means_no_wait_where_that_has_a_meaning() -> None:
    config = CheckpointConfig(batch_delay_s=0, backlog_timeout_s=0, target_lock_timeout_s=0, retry_jitter=0)
    assert config.batch_delay_s == 0
