"""One search from start to end, on one process or many."""
