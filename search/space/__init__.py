"""Which backbones there are: random, mutated, equal ones and their costs. Needs numpy only."""
