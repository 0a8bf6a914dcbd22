"""Runs `tessera bench kernel` on one problem."""

import json
import os
import subprocess
import sys
import tempfile


def tessera_record(program, problem, dtype, threads, repeats):
    """The record of the fastest implementation, which is the one that every other command would take."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "records.jsonl")
        command = [program, "bench", "kernel", "--problem", problem, "--dtype", dtype, "--threads", str(threads),
                   "--repeat", str(repeats), "--read-mebibytes", "64", "--kernel", "auto", "--json", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        with open(path) as file:
            return json.loads(file.readline())
