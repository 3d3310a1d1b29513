"""Draws the curves of the three stages from their logs.

python plot.py --log models/demo/training/log --out models/demo/training/curves.png
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

STAGES = {
    "sight": (("leaf", "colour", "pattern"), "share of pictures read rightly"),
    "text": (("products", "ads", "copying"), "nats per answer"),
    "joint": (("products", "ads"), "nats per answer, lowest of sixteen lines"),
}


def smooth(values, stage):
    """An average that forgets, because one line of the log holds few batches.

    In the joint stage the lowest of sixteen: lines with an order of keys that nobody can know say little.
    """
    if stage == "joint":
        return [min(values[max(0, at - 15) : at + 1]) for at in range(len(values))]
    share = 0.5 if stage == "sight" else 0.8
    mean, out = values[0], []
    for value in values:
        mean = share * mean + (1 - share) * value
        out.append(mean)
    return out


def read(folder, stage):
    """The lines of a stage, whose goes lie in files of their own and follow each other."""
    lines, before = [], 0.0
    for path in sorted(folder.glob(f"{stage}*.jsonl")):
        went = [json.loads(line) for line in path.open()]
        lines += [line | {"minutes": line["minutes"] + before} for line in went]
        before = lines[-1]["minutes"]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8))
    for axis, (stage, (names, label)) in zip(axes, STAGES.items()):
        lines = read(args.log, stage)
        for name in names:
            points = [(line["minutes"], line[name]) for line in lines if name in line]
            minutes, values = zip(*points)
            axis.plot(minutes, smooth(values, stage), label=name)
        axis.set(title=stage, xlabel="minutes", ylabel=label)
        if stage != "sight":
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(args.out, dpi=80)


if __name__ == "__main__":
    main()
