"""The tests of walsync, by kind; docs/how-to/run-the-tests.md says what each kind is for."""
