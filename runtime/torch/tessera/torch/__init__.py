"""Distributed attention as a differentiable PyTorch operator.

    comm = tessera.torch.Communicator.process_group()          # or .mpi(), or .self()
    plan = tessera.torch.Plan(4096, heads=8, kv_heads=2, width=64, ranks=comm.size, causal=True)
    attention = tessera.torch.Attention(comm, plan)
    q, k, v = (tessera.torch.shard(x, plan, comm) for x in (q, k, v))
    out = tessera.torch.attention(q, k, v, attention)

Tensors are [rows, heads, width] in host memory; the rows of a rank are the global tokens plan.tokens(rank) names.
"""

import torch  # noqa: F401  the extension needs its libraries

from tessera.torch.communicator import Communicator
from tessera.torch.dlpack import from_dlpack, to_dlpack
from tessera.torch.module import ContextParallelAttention
from tessera.torch.operator import Attention, attention
from tessera.torch.plan import Plan, SliceType
from tessera.torch.sharding import shard, unshard

__all__ = [
    "Attention", "Communicator", "ContextParallelAttention", "Plan", "SliceType", "attention", "from_dlpack", "shard",
    "to_dlpack", "unshard"
]
