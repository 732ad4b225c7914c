"""Unit tests of `walsync.session`."""
