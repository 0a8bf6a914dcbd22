"""Tensors of other libraries, by DLPack: the memory is shared, nothing is copied."""

import torch
from torch.utils import dlpack


def from_dlpack(tensor):
    """A torch tensor over the memory of anything with __dlpack__ (NumPy, CuPy, JAX, ...) or of a DLPack capsule."""
    if not hasattr(tensor, "__dlpack__") and type(tensor).__name__ != "PyCapsule":
        raise ValueError(f"{type(tensor).__name__} is neither a tensor nor does it speak DLPack")
    return dlpack.from_dlpack(tensor)


def to_dlpack(tensor):
    """A DLPack capsule over a tensor's memory; an output that is part of a graph is detached first."""
    return dlpack.to_dlpack(tensor.detach())
