#!/usr/bin/env python3
"""Trains a byte-level transformer with the sequence spread over ranks, through tessera.torch.

    train.py --ranks 2 --curve curve.json              starts 2 processes that talk over gloo
    mpirun -n 2 train.py --comm mpi --curve curve.json
    train.py --attention plain                         one process, PyTorch's own operators

Each step reads one sequence. Every rank holds all parameters and the rows that the plan gives it; gradients are summed.
"""

import argparse
import json
import os
import sys
import tempfile

import torch
from torch.nn import functional as F

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from model import Transformer  # noqa: E402

HEADS, KV_HEADS, WIDTH = 4, 2, 128
TEXT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../launcher/data/kjv-heldout-64k.txt")


class Stop(Exception):
    """A request that cannot be served; the text is all there is to say."""


def positive(kind):

    def parse(text):
        try:
            number = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not number > 0:
            raise argparse.ArgumentTypeError(f"{text} must be greater than 0")
        return number

    return parse


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", choices=["tessera", "plain"], default="tessera")
    parser.add_argument("--comm", choices=["gloo", "mpi"], default="gloo")
    parser.add_argument("--ranks", type=positive(int), default=1, help="processes to start (gloo)")
    parser.add_argument("--strategy", default="zigzag")
    parser.add_argument("--steps", type=positive(int), default=200)
    parser.add_argument("--tokens", type=positive(int), default=256, help="length of a sequence")
    parser.add_argument("--layers", type=positive(int), default=5)
    parser.add_argument("--learning-rate", type=positive(float), default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", default=TEXT, help="what to read")
    parser.add_argument("--curve", help="write the losses here, as JSON")
    parser.add_argument("--plot", help="draw the losses here (needs matplotlib)")
    parser.add_argument("--checkpoint", help="save here at the end and every --every steps, and go on from it")
    parser.add_argument("--every", type=positive(int), default=50)
    arguments = parser.parse_args()
    if arguments.attention == "plain" and (arguments.ranks > 1 or arguments.comm == "mpi"):
        parser.error("--attention plain runs in one process: --ranks 1 and no --comm mpi")
    if arguments.comm == "mpi" and arguments.ranks > 1:
        parser.error("--ranks is for gloo; with --comm mpi, mpirun says how many")
    return arguments


def read_text(arguments):
    try:
        with open(arguments.text, "rb") as file:
            data = torch.tensor(list(file.read()), dtype=torch.long)
    except OSError as error:
        raise Stop(f"--text: {error}") from None
    if data.numel() <= arguments.tokens:
        raise Stop(f"--text: {arguments.text} has {data.numel()} bytes; a sequence of {arguments.tokens} needs more")
    return data


def sequence(data, arguments, step):
    """The sequence of a step and what follows each of its bytes; the same whatever the number of ranks."""
    generator = torch.Generator().manual_seed(arguments.seed * 1000003 + step)
    begin = torch.randint(data.numel() - arguments.tokens, (1,), generator=generator).item()
    return data[begin:begin + arguments.tokens], data[begin + 1:begin + arguments.tokens + 1]


def plain_attention(tokens):
    hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)

    def attend(query, key, value):
        group = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
        score = torch.einsum("qhd,khd->hqk", query, key) * query.shape[2]**-0.5
        return torch.einsum("hqk,khd->qhd", torch.softmax(score.masked_fill(hidden, float("-inf")), 2), value)

    return attend


class World:
    """How this rank attends, and how sums are taken."""

    def __init__(self, arguments, comm):
        self.rank = 0 if comm is None else comm.rank
        self.comm = comm
        if comm is None:
            self.rows = torch.arange(arguments.tokens)
            self.attend = plain_attention(arguments.tokens)
            return
        import tessera.torch as tt
        try:
            plan = tt.Plan(arguments.tokens, heads=HEADS, kv_heads=KV_HEADS, width=WIDTH // HEADS, ranks=comm.size,
                           strategy=arguments.strategy, causal=True)
        except ValueError as error:
            raise Stop(f"--strategy: {error}") from None
        self.rows = plan.tokens(comm.rank)
        self.attend = tt.Attention(comm, plan)

    def sum(self, tensor):
        return tensor if self.comm is None else self.comm.all_reduce(tensor)


def load(arguments, settings):
    if not arguments.checkpoint or not os.path.exists(arguments.checkpoint):
        return None
    try:
        state = torch.load(arguments.checkpoint, map_location="cpu")
        saved = state["settings"]
    except Exception as error:
        raise Stop(f"--checkpoint: {arguments.checkpoint} cannot be read: {error}") from None
    for name, value in settings.items():
        if saved.get(name) != value:
            raise Stop(f"--checkpoint: {arguments.checkpoint} was made with {name} {saved.get(name)}, not {value}")
    return state


def save(arguments, settings, model, optimizer, losses):
    temporary = f"{arguments.checkpoint}.tmp"
    torch.save({"settings": settings, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "losses": losses}, temporary)
    os.replace(temporary, arguments.checkpoint)


def progress(steps, begin, shown):
    if shown:
        try:
            from tqdm import tqdm
            return tqdm(total=steps, initial=begin, unit="step")
        except ImportError:
            print("tqdm is not installed: no progress bar", file=sys.stderr)
    return None


def train(arguments, comm):
    torch.set_num_threads(1)
    data = read_text(arguments)
    world = World(arguments, comm)
    torch.manual_seed(arguments.seed)
    model = Transformer(arguments.layers, WIDTH, HEADS, KV_HEADS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    settings = {"tokens": arguments.tokens, "layers": arguments.layers, "learning_rate": arguments.learning_rate,
                "seed": arguments.seed}
    losses = []
    state = load(arguments, settings)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        losses = state["losses"][:arguments.steps]
    bar = progress(arguments.steps, len(losses), world.rank == 0 and sys.stderr.isatty())
    parameters = list(model.parameters())
    for step in range(len(losses), arguments.steps):
        source, target = sequence(data, arguments, step)
        logits = model(source[world.rows], world.rows, world.attend)
        # A rank's share of the mean; shares and their gradients are summed over ranks.
        loss = F.cross_entropy(logits, target[world.rows], reduction="sum") / arguments.tokens
        optimizer.zero_grad()
        loss.backward()
        total = world.sum(torch.cat([loss.detach().reshape(1)] + [p.grad.reshape(-1) for p in parameters]))
        losses.append(total[0].item())
        for p, gradient in zip(parameters, total[1:].split([p.numel() for p in parameters])):
            p.grad.copy_(gradient.view_as(p))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if bar is not None:
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
            bar.update()
        last = step + 1 == arguments.steps
        if arguments.checkpoint and world.rank == 0 and (last or (step + 1) % arguments.every == 0):
            save(arguments, settings, model, optimizer, losses)
    if bar is not None:
        bar.close()
    if world.rank == 0:
        report(arguments, 1 if comm is None else comm.size, losses, sum(p.numel() for p in parameters))


def report(arguments, ranks, losses, parameters):
    print(f"{arguments.attention} attention, {ranks} ranks, {parameters} parameters: loss {losses[0]:.4f} at step 1, "
          f"{losses[-1]:.4f} at step {len(losses)}")
    if arguments.curve:
        with open(arguments.curve, "w") as file:
            json.dump({"schema": "tessera-lm-1", "attention": arguments.attention, "ranks": ranks,
                       "parameters": parameters, "losses": losses}, file)
    if arguments.plot:
        from plot import draw
        draw({f"{arguments.attention}, {ranks} ranks": losses}, arguments.plot)


def gloo_rank(rank, arguments, store):
    import tessera.torch as tt
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=arguments.ranks)
    guarded(arguments, lambda: tt.Communicator.process_group())
    torch.distributed.destroy_process_group()


def guarded(arguments, make_comm):
    comm = None
    try:
        comm = make_comm()
        train(arguments, comm)
    except Stop as stop:  # the same on every rank: nobody waits
        if comm is None or comm.rank == 0:
            print(f"train.py: {stop}", file=sys.stderr)
        os._exit(2) if arguments.ranks > 1 else sys.exit(2)
    if comm is not None:
        comm.close()


def main():
    arguments = parse_arguments()
    if arguments.attention == "plain":
        guarded(arguments, lambda: None)
        return
    try:
        import tessera.torch as tt
    except ImportError as error:
        sys.exit(f"train.py: {error}; build the package with runtime/torch/build and set PYTHONPATH as it says")
    if arguments.comm == "mpi":
        guarded(arguments, tt.Communicator.mpi)
    elif arguments.ranks == 1:
        guarded(arguments, tt.Communicator.self)
    else:
        with tempfile.TemporaryDirectory() as folder:
            try:
                torch.multiprocessing.spawn(gloo_rank, args=(arguments, f"{folder}/store"), nprocs=arguments.ranks)
            except torch.multiprocessing.ProcessExitedException as error:
                sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
