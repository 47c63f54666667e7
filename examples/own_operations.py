"""Operations of one's own for a search: their names, type rules and functions.

    autobert-zero search --train_file text.txt --own_operations examples/own_operations.py --output_dir runs/own

A rule is read like einsum: `ab->ab` keeps any type, in `ad->ad` the columns are the dimensions of a head (`d`), and `n` would be
tokens. A function takes tensors (batch, heads, rows, columns). What it says of a token may depend on that token alone:
summing over tokens is left to `matmul`, `softmax` and the like, which know what is a pad. This is checked.

The file is copied into the folder of the found model, and is loaded with it: it imports torch and nothing of the project.
"""

import torch
from torch.nn import functional as F


OPERATIONS = {
    "relu": ("ab->ab", torch.relu),
    "square": ("ab->ab", torch.square),
    "multiply": ("ab,ab->ab", torch.mul),
    # Each row to length 1, where a row runs over dimensions and not over tokens.
    "normalize": ("ad->ad", lambda x: F.normalize(x, dim=-1)),
}
