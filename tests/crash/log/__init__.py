"""The bare log in real processes that strace kills, or whose system calls it fails, at chosen calls."""
