#!/usr/bin/env python3
"""Prints registers and spills of every attention kernel from what ptxas said while they were built, and fails where a
kernel spills or exceeds its budget.

usage: registers.py BUDGET FOLDER   (FOLDER: the build folder that holds the *.ptxas files)
"""
import pathlib
import re
import sys

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
KERNEL = re.compile(r"(Attend|Backward|Decode)Kernel(Sm90)?I\w*?(BFloat16|Float16)ELi(\d+)ELi(\d+)E(.*)")


def read_budget(path):
    budget = {}
    for line in path.read_text().splitlines():
        line = line.split("#")[0].split()
        if line:
            budget[line[0], line[1]] = int(line[2])
    return budget


def read_kernels(folder):
    """(architecture, kernel, widths, variant, registers, spilled bytes) of every hot kernel."""
    for path in sorted(folder.rglob("*.ptxas")):
        kernel = spills = None
        for line in path.read_text().splitlines():
            if entry := ENTRY.search(line):
                name = KERNEL.search(entry[1])
                # The build compiles every source for every target; for others than their own wgmma kernels are empty.
                empty = name and name[2] and not entry[2].startswith("sm_90")
                kernel = name and not empty and (entry[2], name[1] + (name[2] or ""), f"{name[4]}/{name[5]}",
                                                 variant(name))
            elif spill := SPILLS.search(line):
                spills = int(spill[2]) + int(spill[3])
            elif (used := USED.search(line)) and kernel:
                yield *kernel, int(used[1]), spills


def variant(name):
    text = "bf16" if name[3] == "BFloat16" else "fp16"
    if gradient := re.search(r"GradientE(\d)", name[6]):
        text += " " + ("query", "key and value", "key", "value")[int(gradient[1])]
    if name[1] == "Decode":
        text += " latent" if name[6].startswith("Lb1") else " grouped"
    if name[2]:
        text += " copy engine" if re.search(r"Lb1EE", name[6]) else " copies"
    return text


def main():
    budget = read_budget(pathlib.Path(sys.argv[1]))
    failures, seen = [], set()
    print(f"{'target':8}{'kernel':13}{'widths':10}{'variant':32}{'registers':>10}{'spilled bytes':>15}")
    for target, kernel, widths, what, registers, spilled in sorted(read_kernels(pathlib.Path(sys.argv[2]))):
        print(f"{target:8}{kernel:13}{widths:10}{what:32}{registers:10}{spilled:15}")
        seen.add((kernel, widths))
        if spilled > 0:
            failures.append(f"{kernel} {widths} {what} on {target} spills {spilled} bytes")
        if registers > budget.get((kernel, widths), 0):
            failures.append(f"{kernel} {widths} {what} on {target} uses {registers} registers; "
                            f"its budget is {budget.get((kernel, widths), 0)}")
    failures += [f"{' '.join(missing)} has a budget and was not built" for missing in sorted(set(budget) - seen)]
    for failure in failures:
        print("FAILED: " + failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
