"""The log on a simulated disk: random crashes by the ten thousand, every operation failing, and the gate that proves
the suite.

model          what must be there after a recovery, and the errors that say it is not
workload       random work of one life of a log, from a random source
scenario       lives, crashes and recoveries in a row, all from one seed
damage         a durable byte changes: what must be an error, told by a reader of its own
campaign       many scenarios over processes; `python -m tests.simulation`
mutations      parts of the engine, taken out one at a time
"""
