"""Tests of the storages for tests."""
