"""Search of AutoBERT-Zero backbones: OP-NAS with bi-branch weight sharing.

- `settings`, `seeding`, `files`, `provenance`, `stopping`: what every part needs
- `space`: which backbones are possible; random, mutated, equal ones and their costs (numpy only)
- `evolution`: how they are searched; knows nothing of BERT (numpy only)
- `text`: from a text file to masked batches
- `custom_operations`, `genomes`: operations of the user; genomes from files, runs and the Hub
- `evaluation`: what a candidate is worth: super-network, training, scores, GLUE
- `report`: what is shown: pictures, pages, tables, model cards
- `run`: one search from start to end, on one process or many
- `cli`: the command line

Each part imports only parts above it.
"""
