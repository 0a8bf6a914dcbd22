"""The door on one rank: results, gradients, shared memory, strides, refusals."""

import unittest

import torch

import oracle
import tessera.torch as tt


class OneRank(unittest.TestCase):
    def setUp(self):
        self.comm = tt.Communicator.self()

    def layer(self, dtype=torch.float32, backward=True, **changes):
        case = dict(tokens=9, heads=2, kv_heads=2, width=4, causal=True, ranks=1)
        case.update(changes)
        return tt.Attention(self.comm, tt.Plan(dtype=dtype, **case), backward=backward)

    def test_every_case_matches_plain_attention(self):
        for case in oracle.CASES:
            for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)):
                oracle.check_case(self, self.comm, case, dtype, tolerance)

    def test_gradcheck_in_fp64(self):
        oracle.check_gradients(self, self.comm)

    def test_shares_memory_by_dlpack(self):
        tensor = torch.randn(9, 2, 4)
        back = tt.from_dlpack(tt.to_dlpack(tensor))
        self.assertEqual(back.data_ptr(), tensor.data_ptr())
        try:
            import numpy
        except ImportError:
            self.skipTest("NumPy is not installed")
        array = numpy.random.default_rng(1).standard_normal((9, 2, 4), dtype=numpy.float32)
        view = tt.from_dlpack(array)
        self.assertEqual(view.data_ptr(), array.__array_interface__["data"][0])
        layer = self.layer()
        out = tt.attention(array, array, array, layer)
        self.assertTrue(torch.equal(out, layer(view, view, view)))
        self.assertEqual(numpy.from_dlpack(out).__array_interface__["data"][0], out.data_ptr())
        with self.assertRaisesRegex(ValueError, "list is neither a tensor nor does it speak DLPack"):
            tt.attention([1.0], array, array, layer)

    def test_takes_strided_views(self):
        layer = self.layer()
        packed = torch.randn(9, 2, 3, 4)
        q, k, v = packed.unbind(2)
        dense = [x.contiguous() for x in (q, k, v)]
        self.assertFalse(q.is_contiguous())
        self.assertTrue(torch.equal(layer(q, k, v), layer(*dense)))
        packed.requires_grad_()
        layer(*packed.unbind(2)).sum().backward()  # the gradient of sum() has strides 0
        for x in dense:
            x.requires_grad_()
        layer(*dense).sum().backward()
        self.assertTrue(torch.equal(packed.grad, torch.stack([x.grad for x in dense], 2)))

    def test_layers_share_an_attention(self):
        layer = self.layer(torch.float64)
        x = torch.randn(9, 2, 4, dtype=torch.float64, requires_grad=True)
        self.assertTrue(torch.autograd.gradcheck(lambda y: layer(layer(y, y, y), y, y), [x]))

    def test_module_learns_its_sinks(self):
        plan = tt.Plan(9, heads=2, width=4, ranks=1, sink=True)
        module = tt.ContextParallelAttention(self.comm, plan)
        other = tt.ContextParallelAttention(self.comm, plan, shared=module)
        self.assertIs(other.attention, module.attention)
        x = torch.randn(9, 2, 4)
        module(x, x, x).square().sum().backward()
        self.assertGreater(module.sinks.grad.abs().max().item(), 0)
        with self.assertRaisesRegex(ValueError, "shared was made for another plan"):
            tt.ContextParallelAttention(self.comm, tt.Plan(9, heads=2, width=4, ranks=1), shared=module)

    def test_refusals_name_the_argument(self):
        layer = self.layer()
        x = torch.randn(9, 2, 4)

        def refuses(kind, text, *args, **keywords):
            with self.assertRaisesRegex(kind, text):
                layer(*args, **keywords)

        refuses(ValueError, "key: rows is 8; this rank's plan needs 9", x, x[:8], x)
        refuses(ValueError, "query: dtype is fp64; this rank's plan needs fp32", x.double(), x, x)
        refuses(ValueError, "query has dtype Int; allowed: float32, bfloat16", x.int(), x, x)
        refuses(ValueError, r"value has 2 dimensions; it must be \[rows, heads, width\]", x, x, x[:, 0])
        refuses(ValueError, r"value has stride 9 along its width; .* call \.contiguous\(\)", x, x,
                torch.randn(2, 4, 9).permute(2, 0, 1))
        refuses(ValueError, r"query is on meta; this release computes in host memory", x.to("meta"), x, x)
        refuses(ValueError, "sinks are given, and the plan's problem has none", x, x, x, sinks=torch.zeros(2))
        forward_only = self.layer(backward=False)
        forward_only(x, x, x)
        with self.assertRaisesRegex(ValueError, "created with backward=False"):
            forward_only(x.requires_grad_(), x, x)
        with self.assertRaisesRegex(RuntimeError, "attention cannot be differentiated twice"):
            torch.autograd.grad(layer(x, x, x).sum(), x, create_graph=True)

    def test_plans_refuse_what_the_library_refuses(self):
        for text, keywords in (("heads", dict(kv_heads=4)), ("strategy", dict(strategy="star")),
                               ("dtype Long", dict(dtype=torch.int64)), ("width", dict(width=0)),
                               ("exclude each other", dict(documents=[0, 9], slices=[]))):
            arguments = dict(heads=6, width=4, ranks=2)
            arguments.update(keywords)
            with self.assertRaisesRegex(ValueError, text):
                tt.Plan(9, **arguments)
        with self.assertRaisesRegex(ValueError, "the plan is for 2 ranks .* and the communicator has 1"):
            tt.Attention(self.comm, tt.Plan(9, heads=2, width=4, ranks=2))
        with self.assertRaisesRegex(RuntimeError, "no attention kernel called \"fast\""):
            tt.Attention(self.comm, tt.Plan(9, heads=2, width=4, ranks=1), kernel="fast")
        with self.assertRaisesRegex(ValueError, 'side is "?\'?row'):
            tt.Plan(9, heads=2, width=4, ranks=1).tokens(0, "row")

    def test_a_closed_communicator_says_so(self):
        layer = self.layer()
        self.comm.close()
        with self.assertRaisesRegex(RuntimeError, "the attention is closed"):
            layer(*[torch.randn(9, 2, 4)] * 3)
        with self.assertRaisesRegex(RuntimeError, "the communicator is closed"):
            self.comm.all_reduce(torch.zeros(1))
        with self.assertRaisesRegex(ValueError, "init_process_group"):
            tt.Communicator.process_group()


if __name__ == "__main__":
    unittest.main()
