"""Draws loss curves."""

import sys


def draw(curves, path):
    """curves: name -> losses. The largest difference from the first curve goes into the legend of the others."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot: matplotlib is not installed")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    first = next(iter(curves.values()))
    for index, (name, losses) in enumerate(curves.items()):
        apart = max(abs(a - b) for a, b in zip(first, losses))
        label = name if index == 0 else f"{name}: at most {apart:.1e} apart"
        axes.plot(range(1, len(losses) + 1), losses, label=label, linestyle=["-", "--", ":"][index % 3],
                  linewidth=2.5 - 0.7 * index)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per byte)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
