"""What `docs/reference/captured.md` says of each construct, shown by programs.

Every row of a table there with a column "way" has at least one *case* here: a small program that uses the construct.
It is run twice, in a session without walsync and in an attached one, on databases that are equal in the beginning;
what it returns and what the databases hold afterwards must be equal, and the journal must have counted what the row
says: buffered, direct (for the reason that the row names), or neither. Of a row that says "error" the program must
raise what the row names, with a message that says what to do instead, and leave nothing behind.

The cases stand in the modules ``case_*``, each about one idea; `registry` has the decorators, `page` reads the page,
`runs` runs a case.
"""
