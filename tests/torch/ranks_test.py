"""The door on several ranks. ranks_test.py gloo N starts N processes, ranks_test.py deserted two of which one
leaves; under mpirun: ranks_test.py mpi."""

import os
import sys
import tempfile
import time
import unittest

import torch

import oracle
import tessera.torch as tt


class Ranks(unittest.TestCase):
    comm = None

    def test_every_case_matches_plain_attention(self):
        for case in oracle.CASES:
            for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)):
                oracle.check_case(self, self.comm, case, dtype, tolerance)

    def test_gradcheck_in_fp64(self):
        oracle.check_gradients(self, self.comm)

    def test_a_refused_call_can_be_repeated(self):
        plan = tt.Plan(12, heads=2, width=4, ranks=self.comm.size, causal=True, strategy="zigzag")
        layer = tt.Attention(self.comm, plan)
        x = torch.randn(plan.tokens(self.comm.rank).numel(), 2, 4)
        if self.comm.rank == 0:
            with self.assertRaisesRegex(ValueError, "query: rows is 0"):
                layer(x[:0], x, x)
        self.assertEqual(layer(x, x, x).shape, x.shape)

    def test_ranks_that_disagree_are_named(self):
        plan = tt.Plan(12, heads=2, width=4 + self.comm.rank, ranks=self.comm.size)
        with self.assertRaisesRegex(RuntimeError, "FAILED_PRECONDITION: .*disagree on the problem"):
            tt.Attention(self.comm, plan)

    def test_sums(self):
        ranks = torch.full((3, 2), float(self.comm.rank))[:, ::2]
        self.comm.all_reduce(ranks)
        self.assertEqual(ranks.flatten().tolist(), [sum(range(self.comm.size))] * 3)
        with self.assertRaisesRegex(ValueError, "sums are taken of float32 and float64"):
            self.comm.all_reduce(torch.zeros(2, dtype=torch.int64))


def run(comm):
    torch.set_num_threads(1)
    Ranks.comm = comm
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Ranks)
    result = unittest.TextTestRunner(stream=sys.stderr if comm.rank == 0 else open("/dev/null", "w")).run(suite)
    for _, trace in result.failures + result.errors:
        print(f"rank {comm.rank}: {trace}", file=sys.stderr)
    comm.close()
    return result.wasSuccessful()


def gloo_rank(rank, size, store):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    good = run(tt.Communicator.process_group(deadline_seconds=60))
    torch.distributed.destroy_process_group()
    sys.exit(0 if good else 1)


def deserted_rank(rank, size, store, answers):
    """Rank 1 leaves, or stays and never attends: rank 0 is told, by gloo at once or by the deadline."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    comm = tt.Communicator.process_group(deadline_seconds=3)
    layer = tt.Attention(comm, tt.Plan(12, heads=2, width=4, ranks=size, strategy="ring"))
    if rank == 1:
        if answers == "dead":
            os._exit(0)
        time.sleep(10)
        os._exit(0)
    x = torch.randn(layer.plan.tokens(rank).numel(), 2, 4)
    try:
        layer(x, x, x)
    except RuntimeError as error:
        print(f"{answers} peer: {error}")
        comm.close()
        os._exit(0)
    os._exit(1)


def main():
    if sys.argv[1:] == ["deserted"]:
        for answers in ("dead", "silent"):
            with tempfile.TemporaryDirectory() as folder:
                torch.multiprocessing.spawn(deserted_rank, args=(2, f"{folder}/store", answers), nprocs=2)
        return
    if sys.argv[1:2] == ["mpi"]:
        sys.exit(0 if run(tt.Communicator.mpi(deadline_seconds=60)) else 1)
    if len(sys.argv) != 3 or sys.argv[1] != "gloo" or not sys.argv[2].isdigit():
        sys.exit("usage: ranks_test.py gloo N | ranks_test.py deserted | mpirun -n N ranks_test.py mpi")
    size = int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(gloo_rank, args=(size, f"{folder}/store"), nprocs=size)


if __name__ == "__main__":
    main()
