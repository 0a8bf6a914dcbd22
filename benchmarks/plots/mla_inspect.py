#!/usr/bin/env python3
"""Draws what `tessera mla inspect --json FILE` measured: per basis and number of groups, the latent energy of each
group and the error of its logits, over the layers of the model.

    tessera mla inspect --model DIR --calibration TEXT --groups 2,4 --json inspect.json
    benchmarks/plots/mla_inspect.py inspect.json inspect.svg

Needs matplotlib (Debian: python3-matplotlib). The suffix of the output chooses the format.
"""
import argparse
import json
import sys

BASES = {"identity": "o", "hadamard": "s", "pca": "^", "matrix": "D"}  # and their markers
ROWS = (
    ("energy", "share of the latent's energy"),
    ("logit_error", "logit error, mu = 1"),
    ("fitted_logit_error", "logit error, fitted mu"),
)


def read_cuts(path):
    with open(path, encoding="utf-8") as file:
        document = json.load(file)
    if document.get("schema") != "tessera.mla.inspect/1" or not document["cuts"]:
        sys.exit(f"{path}: not the output of `tessera mla inspect --json`")
    return document


def draw(document, output):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cuts = document["cuts"]
    groups = sorted({cut["groups"] for cut in cuts})
    rows = [row for row in ROWS if row[0] in cuts[0]]
    figure, axes = pyplot.subplots(
        len(rows), len(groups), figsize=(4.5 * len(groups), 2.8 * len(rows)), sharex=True, sharey="row", squeeze=False
    )
    for row, (field, label) in enumerate(rows):
        for column, count in enumerate(groups):
            axis = axes[row][column]
            for basis, marker in BASES.items():
                own = sorted(
                    (cut for cut in cuts if cut["basis"] == basis and cut["groups"] == count),
                    key=lambda cut: cut["layer"],
                )
                for group in range(count if own else 0):
                    axis.plot(
                        [cut["layer"] for cut in own],
                        [cut[field][group] for cut in own],
                        marker=marker,
                        color=f"C{list(BASES).index(basis)}",
                        alpha=1.0 - 0.7 * group / count,  # the first group is the darkest
                        label=basis if group == 0 else None,
                    )
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
            axis.xaxis.get_major_locator().set_params(integer=True)
            if row == 0:
                axis.set_title(f"{count} groups")
            if row == len(rows) - 1:
                axis.set_xlabel("layer")
            if column == 0:
                axis.set_ylabel(label)
    axes[0][-1].legend()
    figure.suptitle(f"{document['model']}, {document['tokens']} tokens; first group darkest")
    figure.tight_layout()
    figure.savefig(output)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="JSON file of `tessera mla inspect`")
    parser.add_argument("output", help="picture to write: .svg, .pdf or .png")
    arguments = parser.parse_args()
    draw(read_cuts(arguments.input), arguments.output)


if __name__ == "__main__":
    main()
