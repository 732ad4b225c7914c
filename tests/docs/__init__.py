"""The README, the documentation and the examples run, and say what the package does."""
