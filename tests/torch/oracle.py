"""Plain attention in torch, and the problems that the door is tested with."""

import torch

import tessera.torch as tt


def band(plan_tokens, key_tokens, causal=False, window=None, documents=None):
    """[query, key] booleans."""
    q = torch.arange(plan_tokens)[:, None]
    k = torch.arange(key_tokens)[None, :]
    offset = key_tokens - plan_tokens
    keep = torch.ones(plan_tokens, key_tokens, dtype=torch.bool)
    if causal:
        keep &= k <= q + offset
    if window is not None:
        left, right = window
        if left >= 0:
            keep &= k >= q + offset - left
        if right >= 0:
            keep &= k <= q + offset + right
    if documents is not None:
        name = torch.bucketize(torch.arange(plan_tokens), torch.tensor(documents[1:]), right=True)
        keep &= name[:, None] == name[None, :]
    return keep


def plain(query, key, value, keep, scale, soft_cap=0.0, alibi_slopes=None, sinks=None):
    """Whole tensors [tokens, heads, width]."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    score = torch.einsum("qhd,khd->hqk", query, key) * scale
    if soft_cap:
        score = soft_cap * torch.tanh(score / soft_cap)
    if alibi_slopes is not None:
        distance = (torch.arange(query.shape[0])[:, None] + key.shape[0] - query.shape[0] -
                    torch.arange(key.shape[0])[None, :]).abs()
        score = score - alibi_slopes.to(score.dtype)[:, None, None] * distance
    score = score.masked_fill(~keep, float("-inf"))
    if sinks is not None:
        column = sinks.to(score.dtype)[:, None, None].expand(-1, query.shape[0], 1)
        weight = torch.softmax(torch.cat([score, column], dim=2), dim=2)[:, :, :-1]
    else:
        weight = torch.softmax(score, dim=2)
    return torch.einsum("hqk,khd->qhd", weight, value)


CASES = [
    dict(tokens=37, heads=4, kv_heads=2, width=16, strategy="zigzag", causal=True),
    dict(tokens=29, heads=3, kv_heads=1, width=16, v_width=8, strategy="ring", causal=True, window=(9, -1)),
    dict(tokens=24, heads=4, kv_heads=4, width=8, strategy="allgather", soft_cap=5.0, alibi=True),
    dict(tokens=31, heads=4, kv_heads=2, width=16, strategy="auto", causal=True, sink=True,
         documents=[0, 7, 7, 20, 31]),
    dict(tokens=26, heads=4, kv_heads=2, width=16, strategy="ulysses", causal=True),
]


def tensors(case, dtype, seed=3):
    """Whole query, key, value, alibi_slopes and sinks; the last two None where the case has none."""
    generator = torch.Generator().manual_seed(seed)
    tokens, heads, kv, width = case["tokens"], case["heads"], case["kv_heads"], case["width"]

    def draw(rows, n, d):
        return torch.randn(rows, n, d, generator=generator, dtype=torch.float64).to(dtype)

    query, key, value = draw(tokens, heads, width), draw(tokens, kv, width), draw(tokens, kv, case.get("v_width", width))
    slopes = 0.5 / torch.arange(1, heads + 1, dtype=torch.float32) if case.get("alibi") else None
    sinks = torch.randn(heads, generator=generator) if case.get("sink") else None
    return query, key, value, slopes, sinks


def truth(case, query, key, value, slopes, sinks):
    keep = band(case["tokens"], case["tokens"], case.get("causal", False), case.get("window"), case.get("documents"))
    scale = float(torch.tensor(case["width"], dtype=torch.float32)**-0.5)
    return plain(query, key, value, keep, scale, case.get("soft_cap", 0.0), slopes, sinks)


def check_case(test, comm, case, dtype, tolerance):
    """Output and gradients of one distributed case against autograd of the plain one in fp64."""
    plan = tt.Plan(dtype=dtype, ranks=comm.size, **case)
    layer = tt.Attention(comm, plan)
    query, key, value, slopes, sinks = tensors(case, dtype)
    incoming = torch.randn(case["tokens"], case["heads"], case.get("v_width", case["width"]), dtype=torch.float64,
                           generator=torch.Generator().manual_seed(5)).to(dtype)
    mine, mine_keys = plan.tokens(comm.rank), plan.tokens(comm.rank, "key")
    local = [x[rows].clone().requires_grad_() for x, rows in ((query, mine), (key, mine_keys), (value, mine_keys))]
    local_sinks = None if sinks is None else sinks.clone().requires_grad_()
    out, lse = layer(*local, alibi_slopes=slopes, sinks=local_sinks, return_lse=True)
    test.assertFalse(lse.requires_grad)
    test.assertEqual(lse.dtype, torch.float64 if dtype == torch.float64 else torch.float32)
    out.backward(incoming[mine])

    whole = [x.double().clone().requires_grad_() for x in (query, key, value)]
    whole_sinks = None if sinks is None else sinks.double().requires_grad_()
    expected = truth(case, *whole, slopes, whole_sinks)
    expected.backward(incoming.double())

    def near(got, want, what):
        error = (got.double() - want).abs().max().item()
        test.assertLessEqual(error, tolerance * max(1.0, want.abs().max().item()), f"{what} of {case} in {dtype}")

    near(out, expected[mine], "output")
    for x, y, rows, what in zip(local, whole, (mine, mine_keys, mine_keys), ("dq", "dk", "dv")):
        near(x.grad, y.grad[rows], what)
    if sinks is not None:
        total = comm.all_reduce(local_sinks.grad.clone())
        error = (total.double() - whole_sinks.grad).abs().max().item()
        test.assertLessEqual(error, max(tolerance, 1e-5), "dsink")  # fp32 for every dtype
    layer.close()


def check_gradients(test, comm):
    """torch.autograd.gradcheck in fp64 of whole tensors through shard, attention and unshard."""
    for case in [dict(tokens=7, heads=2, kv_heads=1, width=3, v_width=2, strategy="zigzag", causal=True),
                 dict(tokens=6, heads=2, kv_heads=2, width=2, strategy="allgather", soft_cap=3.0)]:
        plan = tt.Plan(dtype=torch.float64, ranks=comm.size, **case)
        layer = tt.Attention(comm, plan)
        query, key, value, _, _ = tensors(case, torch.float64)

        def whole(q, k, v):
            out = tt.attention(tt.shard(q, plan, comm), tt.shard(k, plan, comm, "key"),
                               tt.shard(v, plan, comm, "key"), layer)
            return tt.unshard(out, plan, comm)

        inputs = [x.requires_grad_() for x in (query, key, value)]
        test.assertTrue(torch.autograd.gradcheck(whole, inputs))
        layer.close()
