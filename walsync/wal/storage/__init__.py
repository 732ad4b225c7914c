"""Places that keep the log's files: a directory, or memory. `protocol` says what the log asks of them."""
