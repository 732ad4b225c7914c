"""Several processes on one log, killed at random, while the others go on.

`herd` keeps them running and kills them; each is a `tests.crash.child`, whose words go to a file that outlives it.
"""
