"""Unit tests of `walsync.journal`."""
