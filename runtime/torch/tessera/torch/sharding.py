"""Whole tensors to this rank's rows and back, inside the graph."""

import torch


def shard(tensor, plan, comm, side="query", dim=0):
    """The rows of a whole tensor that this rank holds. `side` is "query", or "key" for keys and values.

    Every rank gives the same whole tensor. In the backward pass the shares of all ranks are summed (float32 and float64;
    collective), so that every rank sees the gradient of the whole tensor. Where that is not wanted, index with
    plan.tokens(rank, side).
    """
    return _Shard.apply(tensor, plan.tokens(comm.rank, side), comm, _length(tensor, plan, side, dim), dim)


def unshard(tensor, plan, comm, side="query", dim=0):
    """The whole tensor, on every rank, of all ranks' rows. Collective; float32 and float64.

    Every rank then computes the same from it, so the backward pass takes this rank's rows of the gradient.
    """
    tokens = plan.tokens(comm.rank, side)
    if tensor.shape[dim] != tokens.numel():
        raise ValueError(f"the tensor has {tensor.shape[dim]} rows; this rank's plan needs {tokens.numel()}")
    return _Unshard.apply(tensor, tokens, comm, plan.length(side), dim)


def _length(tensor, plan, side, dim):
    length = plan.length(side)
    if tensor.shape[dim] != length:
        raise ValueError(f"the tensor has {tensor.shape[dim]} rows; the plan's sequence has {length}")
    return length


def _whole(tensor, tokens, comm, length, dim):
    shape = list(tensor.shape)
    shape[dim] = length
    return comm.all_reduce(tensor.new_zeros(shape).index_copy(dim, tokens, tensor))


class _Shard(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, tokens, comm, length, dim):
        ctx.rest = (tokens, comm, length, dim)
        return tensor.index_select(dim, tokens)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return (_whole(gradient, *ctx.rest), None, None, None, None)


class _Unshard(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, tokens, comm, length, dim):
        ctx.rest = (tokens, dim)
        return _whole(tensor, tokens, comm, length, dim)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        tokens, dim = ctx.rest
        return (gradient.index_select(dim, tokens), None, None, None, None)
