"""The GPT that every peer trains: the same layers as nfold's "gpt2" model.

Pre-layer-norm blocks, GELU (tanh), fused causal attention, learned positions,
biases everywhere but in the untied head. No dropout.
"""

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class GptOptions:
    num_layers: int
    width: int
    num_heads: int
    vocab_size: int
    max_positions: int

    @classmethod
    def from_config(cls, model):
        """From the "model" section of a trainer configuration."""
        if model.get("tie_word_embeddings", True):
            raise ValueError("the peers' GPT has an untied head; set "
                             "model.tie_word_embeddings to false")
        return cls(num_layers=model["n_layer"], width=model["n_embd"],
                   num_heads=model["n_head"], vocab_size=model["vocab_size"],
                   max_positions=model["n_positions"])


class Attention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (part.view(batch, length, self.num_heads, -1).transpose(1, 2)
                   for part in self.qkv(x).split(width, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.ln_2 = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 4 * width)
        self.proj = nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        hidden = F.gelu(self.fc(self.ln_2(x)), approximate="tanh")
        return x + self.proj(hidden)


class Gpt(nn.Module):
    """forward(tokens, targets), both int64 [batch, length], gives the loss."""

    def __init__(self, options):
        super().__init__()
        width = options.width
        self.wte = nn.Embedding(options.vocab_size, width)
        self.wpe = nn.Embedding(options.max_positions, width)
        self.blocks = nn.ModuleList(
            Block(width, options.num_heads) for _ in range(options.num_layers))
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, options.vocab_size, bias=False)
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, tokens, targets):
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.ln_f(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
