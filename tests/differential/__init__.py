"""The same ORM program run directly and through walsync must leave equal databases behind.

`schema` holds the mapped classes, `planner` turns random bytes into a program that the database will not refuse,
`interpreter` runs a program on a session, `comparison` compares two databases up to the renaming of generated keys,
`sides` opens the databases that the programs run on.

`test_order` is about batches: `ordered_schema` and `ordered_programs` hold programs in which the order of changes
shows, `reference` applies entries in the simplest way that is right.
"""
