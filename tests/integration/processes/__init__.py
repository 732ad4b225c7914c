"""Several processes on one log that nobody kills in the middle of a commit: who applies, and who sees what when.

`relay` is a program for two processes that know of each other by a number on a pipe alone.
"""
