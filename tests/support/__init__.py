"""What several suites of tests share: servers, databases, processes, waiting. Its own test is test_support.py."""
