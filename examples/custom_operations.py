"""Operations and a layer kind of one's own for a search: their names, rules and functions.

    autobert-zero search --train_file text.txt --own_operations examples/own_operations.py --output_dir runs/own

A rule is read like einsum: `ab->ab` keeps any type, in `ad->ad` the columns are the dimensions of a head (`d`), and `n` would be
tokens. A function takes tensors (batch, heads, rows, columns). What it says of a token may depend on that token alone:
summing over tokens is left to `matmul`, `softmax` and the like, which know what is a pad. This is checked.

A layer kind has the rule `layer` and a function that makes, of a configuration, a module: it is called with hidden states
(batch, tokens, hidden), 0 at pads, and which tokens are real, (batch, tokens) bool, and what it says of a token is added to that
token's hidden state. All its state is in parameters of its own.

The file is copied into the folder of the found model, and is loaded with it: it imports torch and nothing of the project.
"""

import torch
from torch import nn
from torch.nn import functional as F


class AveragePooling(nn.Module):
    """The mean over a window of tokens, less the token itself, as in PoolFormer (Yu et al., CVPR 2022, arXiv 2111.11418)."""

    def __init__(self, config, window: int = 5):
        super().__init__()
        self.window = window
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        def mean(x: torch.Tensor) -> torch.Tensor:
            return F.avg_pool1d(x.transpose(1, 2), self.window, stride=1, padding=self.window // 2).transpose(1, 2)

        # Of the real tokens in the window: 0 at pads adds nothing, and the share of real ones is divided by.
        share = mean(real[..., None].to(hidden_states.dtype)).clamp(min=1 / self.window)
        return self.dense(mean(hidden_states) / share - hidden_states)


OPERATIONS = {
    "relu": ("ab->ab", torch.relu),
    "square": ("ab->ab", torch.square),
    "multiply": ("ab,ab->ab", torch.mul),
    # Each row to length 1, where a row runs over dimensions and not over tokens.
    "normalize": ("ad->ad", lambda x: F.normalize(x, dim=-1)),
    "average_pooling": ("layer", AveragePooling),
}
