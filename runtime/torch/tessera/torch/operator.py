"""The differentiable operator."""

import torch

from tessera.torch import _C
from tessera.torch.dlpack import from_dlpack


class Attention:
    """A plan made ready on a communicator. Collective. Layers with the same plan may share one.

    threads: compute threads of this rank. backward: also prepare the backward pass. kernel: by name, or the fastest.
    """

    def __init__(self, comm, plan, threads=1, backward=True, kernel=None):
        self._native = _C.Attention(comm._native, plan._native, threads=threads, backward=backward,
                                    kernel=kernel or "")
        self.comm = comm
        self.plan = plan

    @property
    def kernel(self):
        """The implementation that runs."""
        return self._native.kernel

    @property
    def stats(self):
        """Seconds and bytes of the last pass: seconds, compute_seconds, exposed_seconds, bytes_sent, ..."""
        return self._native.stats

    def close(self):
        self._native.close()

    def __call__(self, query, key, value, *, alibi_slopes=None, sinks=None, return_lse=False):
        return attention(query, key, value, self, alibi_slopes=alibi_slopes, sinks=sinks, return_lse=return_lse)


def attention(query, key, value, attention, *, alibi_slopes=None, sinks=None, return_lse=False):
    """softmax(scale * query key^T + mask) value over the whole sequence, for this rank's rows. Collective.

    query [query rows, heads, width], key [key rows, kv_heads, width] and value [key rows, kv_heads, v_width] are this
    rank's rows in the order of the plan, in its dtype, in host memory: tensors, or anything that speaks DLPack. Any
    strides are taken if the width has stride 1; dense tensors save a copy. alibi_slopes and sinks are float32 [heads].

    Returns the output [query rows, heads, v_width], with return_lse also the log-sum-exp [query rows, heads] (float32,
    or float64 with a float64 plan), which has no gradient. The backward pass is collective too: every rank runs it, in
    the same order. Gradients of query, key and value are complete; like that of any replicated parameter, the gradient
    of sinks is a rank's share of a sum over ranks.
    """
    tensors = [x if isinstance(x, torch.Tensor) else from_dlpack(x) for x in (query, key, value)]
    output, lse = attention._native.apply(*tensors, alibi_slopes, sinks)
    return (output, lse) if return_lse else output
