"""Runs every Python example of a page: documentation_test.py PAGE MPIEXEC. Those that name a process group or MPI run on
two ranks."""

import os
import re
import socket
import subprocess
import sys
import tempfile


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(path, mpiexec, text):
    if ".mpi(" in text:
        return [subprocess.Popen([mpiexec, "-n", "2", sys.executable, path])]
    if "process_group" not in text:
        return [subprocess.Popen([sys.executable, path])]
    port = str(free_port())
    return [subprocess.Popen([sys.executable, path], env=dict(os.environ, RANK=str(rank), WORLD_SIZE="2",
                                                              MASTER_ADDR="127.0.0.1", MASTER_PORT=port))
            for rank in range(2)]


page, mpiexec = sys.argv[1:]
with open(page) as file:
    examples = re.findall(r"^```python\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL)
if len(examples) < 3:
    sys.exit(f"{page} has {len(examples)} Python examples; at least 3 were expected")
for number, text in enumerate(examples):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"example{number}.py")
        with open(path, "w") as file:
            file.write(text)
        codes = [process.wait(timeout=120) for process in start(path, mpiexec, text)]
    if any(codes):
        sys.exit(f"example {number} of {page} ended with {codes}:\n{text}")
print(f"{len(examples)} examples ran")
