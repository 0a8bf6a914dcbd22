"""Times oneDNN's matmul and softmax primitives (onednn.cc) and `tessera bench kernel` by turns and prints ratios.

Every round times both sides; a side's figure is the median over all runs of all rounds, so that other work on the
machine disturbs both alike. oneDNN computes whole score matrices, in the dtype of the tensors.

llama.cpp's flash attention is not here: its Python binding (llama-cpp-python) binds llama.h, which evaluates whole models
from files; the attention operator of the ggml library underneath is not among what it binds.
"""

import argparse
import os
import statistics
import subprocess
import sys

from tessera_record import tessera_record


def onednn_seconds(program, problem, dtype, threads, repeats):
    _, shape, tokens, _ = problem.split(":")
    heads, _, width, _ = shape.split("/")
    done = subprocess.run([program, heads, width, tokens, dtype, str(repeats)], capture_output=True, text=True,
                          check=False, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    if done.returncode != 0:
        sys.exit(f"{program} on {problem} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return [float(line) for line in done.stdout.splitlines()[:-1]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onednn", required=True, help="program built from onednn.cc")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], choices=["bf16", "fp32"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side per round")
    parser.add_argument("--tessera", default="build/launcher/tessera")
    args = parser.parse_args()
    print(f"{'problem':34} {'dtype':5} {'oneDNN':>10} {'Tessera':>10} {'ratio':>6}  implementation")
    for tokens in args.tokens:
        for width in args.widths:
            problem = f"forward:{args.heads}/{args.heads}/{width}/{width}:{tokens}:full"
            for dtype in args.dtypes:
                theirs, ours = [], []
                for _ in range(args.rounds):
                    theirs += onednn_seconds(args.onednn, problem, dtype, args.threads, args.repeats)
                    record = tessera_record(args.tessera, problem, dtype, args.threads, args.repeats)
                    ours += record["samples"]
                their_time, our_time = statistics.median(theirs), statistics.median(ours)
                print(f"{problem:34} {dtype:5} {their_time * 1e3:8.1f}ms {our_time * 1e3:8.1f}ms "
                      f"{their_time / our_time:6.2f}  {record['implementation']}", flush=True)


if __name__ == "__main__":
    main()
