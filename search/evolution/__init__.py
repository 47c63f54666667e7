"""How a space is searched: strategies, the loop, and the history. Knows nothing of BERT; needs numpy only."""
