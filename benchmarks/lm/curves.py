"""Compares the loss curves that train.py wrote: curves.py FIRST OTHER... [--plot FILE] [--within 1e-3]"""

import argparse
import json
import sys

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("files", nargs="+")
parser.add_argument("--plot")
parser.add_argument("--within", type=float, default=1e-3)
arguments = parser.parse_args()

curves = {}
for path in arguments.files:
    try:
        with open(path) as file:
            record = json.load(file)
        curves[f"{record['attention']}, {record['ranks']} rank{'s' if record['ranks'] > 1 else ''}"] = record["losses"]
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"curves.py: {path}: {error}")
if len({len(losses) for losses in curves.values()}) != 1:
    sys.exit("curves.py: the curves have different lengths")

names = list(curves)
worst = 0.0
print(f"{len(curves[names[0]])} steps; largest difference of the loss, and its step")
for i, a in enumerate(names):
    for b in names[i + 1:]:
        apart, step = max((abs(x - y), n + 1) for n, (x, y) in enumerate(zip(curves[a], curves[b])))
        worst = max(worst, apart)
        print(f"  {a:18} {b:18} {apart:.2e}  step {step}")
if arguments.plot:
    from plot import draw
    draw(curves, arguments.plot)
if not worst <= arguments.within:
    sys.exit(f"curves.py: the curves are {worst:.2e} apart; at most {arguments.within:g} is allowed")
print(f"within {arguments.within:g}")
