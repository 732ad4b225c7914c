"""Real processes, really killed: what was acknowledged is in the database exactly once, whole, and in order.

`ledger` is the schema and its audit, `child` the process that is killed, `test_kill` the one that kills.
"""
