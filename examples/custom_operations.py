"""Custom operations and a custom layer kind for a search.

    autobert-zero search --train_file text.txt --custom_operations examples/custom_operations.py --output_dir runs/custom

A type rule is read like einsum: `ab->ab` keeps any type; in `ad->ad` the columns are the dimensions of a head (`d`); `n` would
be tokens. A function receives tensors (batch, heads, rows, columns). Its output for a token may depend on that token only:
sums over tokens are left to `matmul`, `softmax` and others, which ignore padding. This is tested when the file is loaded.

A layer kind has the rule `layer` and a function from a configuration to a module. The module is called with hidden states
(batch, tokens, hidden), 0 at padding, and which tokens are real, (batch, tokens) bool; its output is added to the hidden
states. All its state must be in parameters.

The file is copied into the folder of the found model and loaded with it: it imports torch and nothing of the project.
"""

import torch
from torch import nn
from torch.nn import functional as F


class AveragePooling(nn.Module):
    """The mean over a window of tokens minus the token itself, as in PoolFormer (Yu et al., CVPR 2022, arXiv 2111.11418)."""

    def __init__(self, config, window: int = 5):
        super().__init__()
        self.window = window
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        def mean(x: torch.Tensor) -> torch.Tensor:
            return F.avg_pool1d(x.transpose(1, 2), self.window, stride=1, padding=self.window // 2).transpose(1, 2)

        # The mean of the real tokens in the window: padding is 0, and the fraction of real tokens is divided out.
        fraction = mean(real[..., None].to(hidden_states.dtype)).clamp(min=1 / self.window)
        return self.dense(mean(hidden_states) / fraction - hidden_states)


OPERATIONS = {
    "relu": ("ab->ab", torch.relu),
    "square": ("ab->ab", torch.square),
    "multiply": ("ab,ab->ab", torch.mul),
    # Rows of length 1; the type ad requires rows over dimensions, not over tokens.
    "normalize": ("ad->ad", lambda x: F.normalize(x, dim=-1)),
    "average_pooling": ("layer", AveragePooling),
}
