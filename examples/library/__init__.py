"""A lending library: an application with a test suite of its own, and without a word of walsync in it.

`database.py` has the engine and the factory of sessions, `models.py` the classes, `services.py` what the desk does,
`reports.py` what it reads. Its tests run by themselves (`cd examples/library && python -m pytest`). How it is attached,
and what of it should not be buffered, is in docs/how-to/attach-to-an-existing-application.md; walsync's own tests run
the suite both ways.
"""
