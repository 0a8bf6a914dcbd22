"""A few steps of the training run: lm_test.py FOLDER. Ranks agree, a resumed run gives the same curve, bad arguments are
refused."""

import json
import os
import subprocess
import sys
import tempfile

folder = sys.argv[1]
small = ["--tokens", "96", "--layers", "1", "--steps", "6"]


def train(*arguments):
    return subprocess.run([sys.executable, f"{folder}/train.py", *arguments], capture_output=True, text=True)


def losses(*arguments):
    done = train(*arguments)
    if done.returncode != 0:
        sys.exit(f"train.py {arguments} ended with {done.returncode}:\n{done.stderr}")
    with open(arguments[-1]) as file:
        return json.load(file)["losses"]


def refuses(text, *arguments):
    done = train(*arguments)
    if done.returncode != 2 or text not in done.stderr or "Traceback" in done.stderr:
        sys.exit(f"train.py {arguments}: code {done.returncode}, {text!r} expected:\n{done.stderr}")


with tempfile.TemporaryDirectory() as out:
    subprocess.run([f"{folder}/compare", "--python", sys.executable, "--out", out, *small], check=True)
    curve, checkpoint = f"{out}/curve.json", f"{out}/state.pt"
    straight = losses("--ranks", "2", *small, "--curve", curve)
    losses("--ranks", "2", *small[:-1], "3", "--checkpoint", checkpoint, "--curve", curve)
    resumed = losses("--ranks", "2", *small, "--checkpoint", checkpoint, "--curve", curve)
    if resumed != straight:
        sys.exit(f"a resumed run differs: {resumed} instead of {straight}")
    refuses("was made with tokens 96, not 64", *small, "--tokens", "64", "--checkpoint", checkpoint)
    with open(checkpoint, "wb") as file:
        file.write(b"not a checkpoint")
    refuses("cannot be read", *small, "--checkpoint", checkpoint)
    refuses("--text: [Errno 2]", "--text", f"{out}/nothing")
    refuses("has 16 bytes; a sequence of 96 needs more", *small, "--text", checkpoint)
    refuses("--strategy", *small, "--strategy", "star")
    refuses("0 must be greater than 0", "--steps", "0")
    refuses("--attention plain runs in one process", "--attention", "plain", "--ranks", "2")
    assert os.path.exists(curve)
print("the training run works")
