#!/usr/bin/env python3
"""One GPU: Tessera's attention beside PyTorch's and FlashAttention's on the same problems, in one run, as ratios.

Needs a Python with torch that sees the GPU; flash_attn is used where it is installed. Every problem is timed in turn by
every implementation, several rounds over, and the medians are compared: the clock of a GPU drifts.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# tokens, query heads, key/value heads, width, causal
PROBLEMS = [
    (4096, 32, 32, 64, True),
    (4096, 32, 8, 128, False),
    (16384, 32, 8, 128, True),
    (65536, 8, 8, 128, True),
]


def torch_times(tensors, causal, rounds, implementation):
    """Seconds of forward and of backward per round."""
    import torch

    forward, backward = [], []
    query, key, value = (t.detach().requires_grad_() for t in tensors)
    for _ in range(rounds):
        begin, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        begin.record()
        output = implementation(query, key, value, causal)
        middle.record()
        output.backward(torch.ones_like(output))
        end.record()
        torch.cuda.synchronize()
        forward.append(begin.elapsed_time(middle) / 1e3)
        backward.append(middle.elapsed_time(end) / 1e3)
    return forward, backward


def sdpa(query, key, value, causal):
    import torch

    # [tokens, heads, width] here, [batch, heads, tokens, width] there.
    group = query.shape[1] // key.shape[1]
    heads_first = [t.transpose(0, 1).unsqueeze(0) for t in (query, key, value)]
    heads_first[1:] = [t.repeat_interleave(group, dim=1) for t in heads_first[1:]]
    return torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=causal)


def flash(query, key, value, causal):
    from flash_attn import flash_attn_func

    return flash_attn_func(query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0), causal=causal)


def tessera_times(program, problem, rounds):
    """Records of `tessera bench scaling` on one rank: median seconds of forward and backward."""
    tokens, heads, kv_heads, width, causal = problem
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        command = [program, "bench", "scaling", "--device", "cuda", "--backward", "--repeat", str(rounds), "--verify", "0"]
        command += ["--seq", str(tokens), "--heads", str(heads), "--kv-heads", str(kv_heads), "--dim", str(width)]
        command += ["--mask", "causal" if causal else "full", "--dtype", "bf16", "--json", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        records = [json.loads(line) for line in path.read_text().splitlines()]
    return {record["pass"]: record for record in records}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", required=True, help="the tessera program, built with CUDA")
    parser.add_argument("--rounds", type=int, default=9, help="timings per problem and implementation")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("gpu.py: this Python has no torch; name one that has: tests/run-gpu --peer-python PYTHON")
    if not torch.cuda.is_available():
        sys.exit("gpu.py: torch sees no GPU")
    peers = {"torch sdpa": sdpa}
    try:
        import flash_attn

        peers[f"flash_attn {flash_attn.__version__}"] = flash
    except ImportError:
        print("flash_attn is not installed: not compared")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, medians of {arguments.rounds}")
    print(f"{'problem':34} {'pass':9} {'implementation':22} {'seconds':>10} {'TFLOP/s':>8} {'of Tessera':>11}")
    for problem in PROBLEMS:
        tokens, heads, kv_heads, width, causal = problem
        shapes = [(tokens, heads, width), (tokens, kv_heads, width), (tokens, kv_heads, width)]
        tensors = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]
        ours = tessera_times(arguments.tessera, problem, arguments.rounds)
        name = f"{tokens} tokens {heads}/{kv_heads} x {width} {'causal' if causal else 'full'}"
        timed = {"Tessera " + ours["forward"]["implementation"]: [ours[p]["seconds"] for p in ("forward", "backward")]}
        for peer, implementation in peers.items():
            torch_times(tensors, causal, 2, implementation)  # warms up
            times = torch_times(tensors, causal, arguments.rounds, implementation)
            timed[peer] = [statistics.median(t) for t in times]
        first = next(iter(timed.values()))
        for index, kind in enumerate(("forward", "backward")):
            for implementation, seconds in timed.items():
                rate = ours[kind]["flops"] / seconds[index] / 1e12
                ratio = first[index] / seconds[index]
                print(f"{name:34} {kind:9} {implementation:22} {seconds[index]:10.6f} {rate:8.1f} {ratio:10.2f}x")


if __name__ == "__main__":
    main()
