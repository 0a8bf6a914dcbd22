"""Times PyTorch's attention and `tessera bench kernel` on the same problems by turns and prints ratios.

A problem is one of `tessera bench kernel`: OPERATION:HEADS/KV_HEADS/WIDTH/WIDTH:TOKENS:MASK with OPERATION forward or
backward and MASK full or causal. Every round times both sides for each problem; a side's figure is the median over
all runs of all rounds, so that other work on the machine disturbs both alike. Tessera's time does not contain the
rounding of the output to bf16, which reads and writes each row once.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from tessera_record import tessera_record

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
DEFAULT = [
    f"{operation}:8/8/{width}/{width}:4096:{mask}"
    for operation in ("forward", "backward")
    for width in (64, 128)
    for mask in ("full", "causal")
]


class Peer:
    """One problem in PyTorch, [1, heads, tokens, width]."""

    def __init__(self, problem, dtype):
        self.operation, shape, tokens, mask = problem.split(":")
        heads, kv_heads, width, v_width = (int(n) for n in shape.split("/"))
        if self.operation not in ("forward", "backward") or mask not in ("full", "causal"):
            sys.exit(f"problem {problem}: allowed are forward or backward, full or causal")
        self.arguments = {"is_causal": mask == "causal", "enable_gqa": heads != kv_heads}
        backward = self.operation == "backward"

        def tensor(count, columns):
            data = torch.rand(1, count, int(tokens), columns) * 4 - 2
            return data.to(DTYPES[dtype]).requires_grad_(backward)

        self.inputs = [tensor(heads, width), tensor(kv_heads, width), tensor(kv_heads, v_width)]
        if backward:
            self.output = F.scaled_dot_product_attention(*self.inputs, **self.arguments)
            self.gradient = torch.rand_like(self.output)

    def seconds(self):
        start = time.perf_counter()
        if self.operation == "forward":
            with torch.no_grad():
                F.scaled_dot_product_attention(*self.inputs, **self.arguments)
        else:
            torch.autograd.grad(self.output, self.inputs, self.gradient, retain_graph=True)
        return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=DEFAULT)
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], choices=sorted(DTYPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side per round")
    parser.add_argument("--tessera", default="build/launcher/tessera")
    parser.add_argument("--json", help="file for one record per problem")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"PyTorch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), {args.threads} threads, "
          f"{args.rounds} rounds of {args.repeats} runs")
    print(f"{'problem':34} {'dtype':5} {'PyTorch':>10} {'Tessera':>10} {'ratio':>6}  {'of limit':>8}  implementation")
    records = []
    for problem in args.problems:
        for dtype in args.dtypes:
            peer = Peer(problem, dtype)
            peer.seconds()  # makes its primitives
            theirs, ours, shares = [], [], []
            for _ in range(args.rounds):
                theirs += [peer.seconds() for _ in range(args.repeats)]
                record = tessera_record(args.tessera, problem, dtype, args.threads, args.repeats)
                ours += record["samples"]
                shares.append(record["share_of_limit"])
            their_time, our_time = statistics.median(theirs), statistics.median(ours)
            records.append({"schema": "tessera-bench-peers-1", "peer": f"PyTorch {torch.__version__}",
                            "problem": problem, "dtype": dtype, "threads": args.threads, "peer_seconds": their_time,
                            "tessera_seconds": our_time, "ratio": their_time / our_time,
                            "share_of_limit": statistics.median(shares), "implementation": record["implementation"],
                            "revision": record["revision"], "machine": record["machine"]})
            print(f"{problem:34} {dtype:5} {their_time * 1e3:8.1f}ms {our_time * 1e3:8.1f}ms "
                  f"{their_time / our_time:6.2f}  {statistics.median(shares):8.0%}  {record['implementation']}",
                  flush=True)
    if args.json:
        with open(args.json, "w") as file:
            for record in records:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
