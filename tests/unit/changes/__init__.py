"""Unit tests of `walsync.changes`."""
