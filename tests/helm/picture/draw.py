"""Draws the dashboard from the answers that `evaluate` printed: draw.py ANSWERS.json OUT.png

Not Grafana, only like it: places, titles, units, stacking, legends and thresholds are those of the panels.
"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates as dates
import matplotlib.pyplot as plt
from datetime import datetime, timezone

COLORS = ["#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642", "#cca300"]
INK, DIM, PANEL, GROUND = "#d8d9da", "#8e8e8e", "#181b1f", "#111217"
CELL = 38  # pixels of a row of the grid


def told(value, unit, decimals=None):
    if unit == "percentunit":
        return f"{value * 100:.{1 if decimals is None else decimals}f} %"
    if unit == "currencyUSD":
        return f"${value:.{3 if decimals is None else decimals}f}"
    if unit == "s":
        if value >= 120:
            return f"{value / 60:.1f} min"
        return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.{0 if decimals is None else decimals}f} s"
    if unit == "binBps":
        return f"{value / 2**20:.1f} MiB/s"
    short = f"{value:,.{decimals}f}" if decimals is not None else (f"{value / 1000:.1f} K" if abs(value) >= 1000 else f"{value:.3g}")
    return short + (" /s" if unit == "cps" else "")


def times(points):
    return [datetime.fromtimestamp(at, timezone.utc) for at, _ in points]


def override(panel, name, key):
    import re

    for rule in panel["fieldConfig"]["overrides"]:
        matcher = rule["matcher"]
        hit = matcher["options"] == name if matcher["id"] == "byName" else re.fullmatch(matcher["options"], name)
        if hit:
            for entry in rule["properties"]:
                if entry["id"] == key:
                    return entry["value"]
    return None


def series(panel):
    return [answer for target in panel["targets"] for answer in target.get("answers") or [] if answer["points"]]


def stat(figure, box, panel):
    defaults = panel["fieldConfig"]["defaults"]
    axes = figure.add_axes(box, facecolor=PANEL)
    axes.axis("off")
    axes.add_patch(plt.Rectangle((0, 0), 1, 1, transform=axes.transAxes, color=PANEL))
    axes.text(0.05, 0.93, panel["title"], color=INK, fontsize=9, va="top", transform=axes.transAxes, weight="bold")
    answers = series(panel)
    if not answers:
        axes.text(0.5, 0.45, "No data", color=DIM, ha="center", transform=axes.transAxes)
        return
    values = [value for _, value in answers[0]["points"]]
    color = INK
    for threshold in (defaults.get("thresholds") or {}).get("steps", []):
        if threshold["value"] is None or values[-1] >= threshold["value"]:
            color = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c"}[threshold["color"]]
    axes.text(0.5, 0.5, told(values[-1], defaults.get("unit"), defaults.get("decimals")), color=color, fontsize=21, ha="center", va="center", transform=axes.transAxes)
    spark = figure.add_axes([box[0], box[1], box[2], box[3] * 0.25], facecolor="none")
    spark.axis("off")
    spark.fill_between(range(len(values)), values, color=color, alpha=0.25, lw=0)


def heatmap(axes, panel):
    answers = series(panel)
    bounds = sorted({float(a["legend"]) for a in answers if a["legend"] != "+Inf"})
    at = {float(a["legend"]): dict((t, v) for t, v in a["points"]) for a in answers if a["legend"] != "+Inf"}
    stamps = sorted({t for row in at.values() for t in row})
    grid = []
    for index, bound in enumerate(bounds):
        below = at[bounds[index - 1]] if index else {}
        grid.append([max(0, at[bound].get(t, 0) - below.get(t, 0)) for t in stamps])
    axes.pcolormesh([datetime.fromtimestamp(t, timezone.utc) for t in stamps], range(len(bounds)), grid, cmap="Blues_r", shading="nearest")
    axes.set_yticks(range(0, len(bounds), 3), [f"{bound:,.0f}" for bound in bounds[::3]])


def lines(axes, panel):
    custom, unit = panel["fieldConfig"]["defaults"].get("custom", {}), panel["fieldConfig"]["defaults"].get("unit")
    answers = series(panel)
    stacked = (custom.get("stacking") or {}).get("mode") == "normal"
    right = None
    if stacked and answers:
        stamps = sorted({t for answer in answers for t, _ in answer["points"]})
        rows = [[dict(map(tuple, answer["points"])).get(t, 0) for t in stamps] for answer in answers]
        axes.stackplot([datetime.fromtimestamp(t, timezone.utc) for t in stamps], rows, colors=COLORS * 4, alpha=0.75, labels=[a["legend"] for a in answers])
    else:
        for index, answer in enumerate(answers):
            target, name = axes, answer["legend"] or answer["labels"]
            if override(panel, name, "custom.axisPlacement") == "right":
                right = right or axes.twinx()
                target = right
            values = [value for _, value in answer["points"]]
            if (override(panel, name, "custom.drawStyle") or custom.get("drawStyle")) == "bars":
                target.bar(times(answer["points"]), values, width=30 / 86400, color=COLORS[index % 10], alpha=0.7, label=name)
            else:
                target.plot(times(answer["points"]), values, color=COLORS[index % 10], lw=1, label=name)
                if custom.get("fillOpacity"):
                    target.fill_between(times(answer["points"]), values, color=COLORS[index % 10], alpha=custom["fillOpacity"] / 100, lw=0)
    if (custom.get("scaleDistribution") or {}).get("type") == "log":
        axes.set_yscale("log")
    elif answers:
        axes.set_ylim(bottom=0)
        if panel["fieldConfig"]["defaults"].get("max") is not None:
            axes.set_ylim(top=panel["fieldConfig"]["defaults"]["max"])
    axes.yaxis.set_major_formatter(lambda value, _: told(value, unit))
    if right:
        name = [a["legend"] for a in answers if override(panel, a["legend"], "custom.axisPlacement")][0]
        right.set_ylim(bottom=0)
        right.yaxis.set_major_formatter(lambda value, _: told(value, override(panel, name, "unit") or unit))
        right.tick_params(colors=DIM, labelsize=7)
        for spine in right.spines.values():
            spine.set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    if right:
        more, more_names = right.get_legend_handles_labels()
        handles, names = handles + more, names + more_names
    last = {a["legend"] or a["labels"]: a["points"][-1][1] for a in answers}
    if panel["options"]["legend"]["placement"] == "right":
        names = [f"{name}   {told(last.get(name, 0), unit)}" for name in names]
        axes.legend(handles, names, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7, frameon=False, labelcolor=INK)
    else:
        axes.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, fontsize=7, frameon=False, labelcolor=INK)


def main():
    dashboard = json.load(open(sys.argv[1]))
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"]) * CELL + 40
    width = 1500
    figure = plt.figure(figsize=(width / 100, height / 100), dpi=100, facecolor=GROUND)
    figure.text(10 / width, 1 - 22 / height, dashboard["title"], color=INK, fontsize=14, weight="bold")
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        left, top = grid["x"] / 24, 1 - (grid["y"] * CELL + 40) / height
        box_width, box_height = grid["w"] / 24, grid["h"] * CELL / height
        if panel["type"] == "row":
            figure.text(10 / width, top - 0.65 * box_height, "⌄ " + panel["title"], color=INK, fontsize=11, weight="bold")
            continue
        box = [left + 4 / width, top - box_height + 4 / height, box_width - 8 / width, box_height - 8 / height]
        if panel["type"] == "stat":
            stat(figure, box, panel)
            continue
        figure.patches.append(plt.Rectangle((box[0], box[1]), box[2], box[3], transform=figure.transFigure, color=PANEL, zorder=-5))
        figure.text(box[0] + 8 / width, box[1] + box[3] - 18 / height, panel["title"], color=INK, fontsize=9, weight="bold")
        beside = panel["type"] == "timeseries" and panel["options"]["legend"]["placement"] == "right"
        axes = figure.add_axes(
            [box[0] + 62 / width, box[1] + (24 if beside else 56) / height, box[2] - (330 if beside else 120) / width, box[3] - (56 if beside else 88) / height],
            facecolor=PANEL,
        )
        axes.grid(color="#2c3235", lw=0.6)
        axes.set_axisbelow(True)
        (heatmap if panel["type"] == "heatmap" else lines)(axes, panel)
        axes.tick_params(colors=DIM, labelsize=7)
        axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
        for spine in axes.spines.values():
            spine.set_visible(False)
        if not series(panel):
            axes.text(0.5, 0.5, "No data", color=DIM, ha="center", transform=axes.transAxes)
    figure.savefig(sys.argv[2], facecolor=GROUND)


main()
