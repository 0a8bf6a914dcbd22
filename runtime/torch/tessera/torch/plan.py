"""What is computed, and how it is spread over ranks."""

import enum

import torch

from tessera.torch import _C


class SliceType(enum.IntEnum):
    """Which pairs of a slice [q0, q1) x [k0, k1) attend."""
    FULL = 0
    CAUSAL = 1  # aligned at the last query and the last key
    INVERSE_CAUSAL = 2  # aligned at the first of both
    BI_CAUSAL = 3  # both


class Plan:
    """A distributed attention of one problem. Making it is local; every rank makes the same.

    tokens: the sequence's length, or (queries, keys). heads, kv_heads: query heads, a multiple of key/value heads.
    width: of query and key heads, and of values unless v_width says otherwise. ranks: of the communicator.
    strategy: "ring", "zigzag", "striped", "balanced", "allgather", "ulysses", "grid:HxS", "double-ring[:NODES]",
    "tree" or "auto".
    The mask: causal or full, over everything or, with documents=[0, ..., tokens], within each document; or
    slices=[(query_begin, query_end, key_begin, key_end, SliceType), ...] that never cover a pair twice.
    window=(left, right) keeps keys in [q - left, q + right]; negative is unbounded.
    scale: 0 is width^-1/2. soft_cap: 0 is off. alibi: slopes are given at each call. sink: sink logits are.
    """

    def __init__(self, tokens, *, heads, width, ranks, kv_heads=None, v_width=None, dtype=torch.float32,
                 strategy="auto", causal=False, documents=None, slices=None, window=None, scale=0.0, soft_cap=0.0,
                 alibi=False, sink=False, ranks_per_node=0):
        query_tokens, key_tokens = tokens if isinstance(tokens, (tuple, list)) else (tokens, tokens)
        self._native = _C.Plan(query_tokens=query_tokens, key_tokens=key_tokens, query_heads=heads,
                               kv_heads=heads if kv_heads is None else kv_heads, qk_width=width,
                               v_width=width if v_width is None else v_width, dtype=dtype, ranks=ranks,
                               strategy=strategy, causal=causal, documents=documents,
                               slices=None if slices is None else [[int(n) for n in s] for s in slices],
                               window=window, scale=scale, soft_cap=soft_cap, alibi=alibi, sink=sink,
                               ranks_per_node=ranks_per_node)

    def tokens(self, rank, side="query"):
        """The global token of each local row of `rank`, int64; side is "query" or "key"."""
        if side == "query":
            return self._native.local_query_tokens(rank)
        if side == "key":
            return self._native.local_key_tokens(rank)
        raise ValueError(f'side is {side!r}; it must be "query" or "key"')

    def length(self, side="query"):
        """Tokens of the whole sequence."""
        return self._native.query_tokens if side == "query" else self._native.key_tokens

    ranks = property(lambda self: self._native.ranks)
    digest = property(lambda self: self._native.digest)
    dtype = property(lambda self: self._native.dtype)
    heads = property(lambda self: self._native.query_heads)
    kv_heads = property(lambda self: self._native.kv_heads)
    width = property(lambda self: self._native.qk_width)
    v_width = property(lambda self: self._native.v_width)
    sink = property(lambda self: self._native.sink)

    def __repr__(self):
        return repr(self._native)
