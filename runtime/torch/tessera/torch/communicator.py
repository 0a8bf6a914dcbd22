"""Where the ranks live."""

import atexit
import sys
import weakref

import torch

from tessera.torch import _C

_open_mpi = weakref.WeakSet()


class Communicator:
    """This rank's end of a world. Use `self`, `mpi` or `process_group` to make one."""

    def __init__(self, native, group=None):
        self._native = native
        self._group = group  # kept alive

    @classmethod
    def self(cls):
        """One rank alone."""
        return cls(_C.make_self())

    @classmethod
    def mpi(cls, comm=None, deadline_seconds=30.0):
        """Ranks of an MPI communicator: mpi4py's, or the address of an MPI_Comm; None is MPI_COMM_WORLD.

        Initialises MPI with MPI_THREAD_MULTIPLE where nobody has, and finalises it at exit if so. Collective.
        """
        address = 0
        if isinstance(comm, int):
            address = comm
        elif comm is not None:
            from mpi4py import MPI
            address = MPI._addressof(comm)
        made = cls(_C.make_mpi(mpi_comm=address, deadline_ms=_milliseconds(deadline_seconds)))
        if not _open_mpi:
            atexit.register(_close_mpi)
        _open_mpi.add(made)
        return made

    @classmethod
    def process_group(cls, group=None, deadline_seconds=300.0):
        """Ranks of a torch.distributed process group; None is the default group. Collective over all of that group.

        Messages travel by a gloo group of their own over the same ranks. There is no heartbeat: a rank that waits
        `deadline_seconds` without a message gives up, so they must exceed the longest time that a peer computes.
        """
        import torch.distributed as dist
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError("process_group: torch.distributed is not initialised; call init_process_group first")
        ranks = None if group is None else [dist.get_global_rank(group, r) for r in range(dist.get_world_size(group))]
        own = dist.new_group(ranks=ranks, backend="gloo")
        return cls(_C.make_process_group(group=own, deadline_ms=_milliseconds(deadline_seconds)), own)

    @property
    def rank(self):
        return self._native.rank

    @property
    def size(self):
        return self._native.size

    def all_reduce(self, tensor):
        """Sums a float32 or float64 tensor over all ranks, in place, without autograd. Collective. Returns it."""
        self._native.all_reduce(tensor.detach())
        return tensor

    def close(self):
        """Ends this communicator and every attention made with it. Collective with MPI."""
        self._native.close()

    def abort(self):
        """Tells the peers that this rank cannot go on, so that they need not wait for the deadline."""
        self._native.abort()

    def __repr__(self):
        return f"<tessera communicator: rank {self.rank} of {self.size}>"


def _milliseconds(seconds):
    if not seconds > 0:
        raise ValueError(f"deadline_seconds is {seconds}; it must be greater than 0")
    return max(1, int(seconds * 1000))


def _close_mpi():
    # Closing is collective: after an exception the peers are told, and MPI is not finalised.
    if getattr(sys, "last_value", None) is not None:
        for comm in _open_mpi:
            comm.abort()
        return
    for comm in list(_open_mpi):
        comm.close()
    _C.finalize_mpi()
