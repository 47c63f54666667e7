"""Which backbones are possible: random and mutated ones, equivalence, costs. Needs numpy only."""
