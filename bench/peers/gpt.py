"""The GPT that every peer trains: the same layers as nfold's "gpt2" model.

Pre-layer-norm blocks, GELU (tanh), fused causal attention, learned positions,
biases everywhere but in the untied head. No dropout. Parameters have the names
of nfold's weight files, which are Hugging Face's; there the matrices of the
blocks lie turned around (TRANSPOSED).
"""

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F

TRANSPOSED = ("c_attn.weight", "c_fc.weight", "c_proj.weight")


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
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (part.view(batch, length, self.num_heads, -1).transpose(1, 2)
                   for part in self.c_attn(x).split(width, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    """forward(tokens, targets), both int64 [batch, length], gives the loss."""

    def __init__(self, options):
        super().__init__()
        width = options.width
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(options.vocab_size, width),
            "wpe": nn.Embedding(options.max_positions, width),
            "h": nn.ModuleList(Block(width, options.num_heads)
                               for _ in range(options.num_layers)),
            "ln_f": nn.LayerNorm(width),
        })
        self.lm_head = nn.Linear(width, options.vocab_size, bias=False)

    @property
    def blocks(self):
        return self.transformer["h"]

    def forward(self, tokens, targets):
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.transformer["wte"](tokens) + self.transformer["wpe"](positions)
        for block in self.blocks:
            x = block(x)
        logits = self.lm_head(self.transformer["ln_f"](x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def load_weights(model, path):
    """Fills the parameters, which may be DTensors, from nfold's file."""
    from safetensors import safe_open
    from torch.distributed.tensor import DTensor, distribute_tensor

    with safe_open(path, "pt") as file, torch.no_grad():
        for name, param in model.named_parameters():
            value = file.get_tensor(name)
            if name.endswith(TRANSPOSED):
                value = value.t()
            if isinstance(param, DTensor):
                # Every rank reads the file, so that nothing has to be sent.
                value = distribute_tensor(value, param.device_mesh,
                                          param.placements, src_data_rank=None)
            param.copy_(value)
