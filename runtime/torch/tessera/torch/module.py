"""Attention as a module."""

import torch

from tessera.torch.operator import Attention, attention


class ContextParallelAttention(torch.nn.Module):
    """Exact attention of a sequence spread over ranks, for the inside of a layer: between its projections.

    Takes (query, key, value) of this rank's rows. Has a parameter only when the plan has sinks: their logits [heads],
    replicated like every other parameter, whose gradients are to be summed over ranks. `shared` is another such module
    with the same plan, whose buffers serve this one too.
    """

    def __init__(self, comm, plan, threads=1, kernel=None, shared=None):
        super().__init__()
        if shared is not None and shared.attention.plan is not plan:
            raise ValueError("shared was made for another plan")
        self.attention = Attention(comm, plan, threads=threads, kernel=kernel) if shared is None else shared.attention
        self.sinks = torch.nn.Parameter(torch.zeros(plan.heads)) if plan.sink else None

    def forward(self, query, key, value, alibi_slopes=None):
        return attention(query, key, value, self.attention, alibi_slopes=alibi_slopes, sinks=self.sinks)

    def extra_repr(self):
        return repr(self.attention.plan)
