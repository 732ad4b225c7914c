"""Every table about the checkpointer, one after the other.

    python -m tests.benchmarks.checkpointer [--quick]

Draining one-row inserts, the mixed load on this machine's line and on one of 20 ms, and a million entries that wait.
Some 15 minutes; `--quick` takes a tenth of everything, which is enough to see that it runs, and not for figures. Each
table is a program of its own, with options of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

WHOLE = (
    ("drain", []),
    ("mixed_load", []),
    ("slow_line", []),
    ("large_backlog", []),
)
QUICK = (
    ("drain", ["--rounds", "1", "--entries", "2000"]),
    ("mixed_load", ["--rounds", "1", "--transactions", "2000"]),
    ("slow_line", ["--transactions", "1000", "--mixed", "2000", "--direct", "30"]),
    ("large_backlog", ["--entries", "100000"]),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    failed = []
    for name, arguments in QUICK if options.quick else WHOLE:
        print(f"\n== {name} {' '.join(arguments)}", flush=True)
        if subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}", *arguments], check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
