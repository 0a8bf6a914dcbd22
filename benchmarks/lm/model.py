"""A small byte-level transformer: grouped-query attention, rotary positions, SwiGLU. What attends is given to it."""

import torch
from torch import nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


def rotary(x, positions):
    """Rotates pairs of x [rows, heads, width] by angles of the global positions [rows]."""
    half = x.shape[-1] // 2
    angles = positions.to(torch.float64)[:, None] * 10000.0**(-torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angles.cos().to(x.dtype)[:, None], angles.sin().to(x.dtype)[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Block(nn.Module):
    def __init__(self, width, heads, kv_heads, hidden):
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.attention_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width)
        self.q_proj = nn.Linear(width, heads * self.head_width, bias=False)
        self.kv_proj = nn.Linear(width, 2 * kv_heads * self.head_width, bias=False)
        self.o_proj = nn.Linear(heads * self.head_width, width, bias=False)
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x, positions, attend):
        y = self.attention_norm(x)
        query = rotary(self.q_proj(y).view(-1, self.heads, self.head_width), positions)
        key, value = self.kv_proj(y).view(-1, 2, self.kv_heads, self.head_width).unbind(1)  # value is a strided view
        x = x + self.o_proj(attend(query, rotary(key, positions), value).flatten(1))
        y = self.mlp_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Transformer(nn.Module):
    """Bytes [rows] at global positions [rows] to logits [rows, 256]."""

    def __init__(self, layers=5, width=128, heads=4, kv_heads=2, hidden=352):
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, hidden) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, 256, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, data, positions, attend):
        x = self.embedding(data)
        for block in self.blocks:
            x = block(x, positions, attend)
        return self.head(self.norm(x))
