"""A record as files: record.json, table.md, plot.png."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures, machine
from benchmarks.figures import Outcome, Spread
from benchmarks.workload import Workload

_OURS, _OTHER, _ROUND = "#0b6e4f", "#9aa5b1", "#22303c"


def write(record: dict[str, Any], out: Path) -> None:
    """Write what `record` holds so far."""
    (out / "record.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    (out / "table.md").write_text(table(record), encoding="utf-8")
    if record["outcomes"]:
        plot(record, out / "plot.png")


def title(record: dict[str, Any]) -> str:
    link, work = record["link"], record["workload"]
    return (
        f"{'SMALL MODEL (trial). ' if work['small'] else ''}{link['rate']}, {link['hosts']} host(s), "
        f"{link['bytes_per_second'] * 8 / 1e6:,.0f} Mbit/s measured; {work['ranks']} ranks x {work['threads']} thread(s); "
        f"N={work['accumulation']}, B={work['batch_size']}, T={work['sequence_length']}; "
        f"{work['parameters'] / 1e6:.1f} M parameters"
    )


def table(record: dict[str, Any]) -> str:
    """The record as Markdown: speeds, ratios, what was checked, and what failed."""
    outcomes = [Outcome(**outcome) for outcome in record["outcomes"]]
    parts = [f"{title(record)}\n", f"{machine.one_line(record)}; commit {record['commit']}\n", f"`{record['command']}`\n"]
    for size in sorted({outcome.size for outcome in outcomes}, reverse=True):
        group = [outcome for outcome in outcomes if outcome.size == size]
        parts += [f"**{size} rank(s)**\n", _speeds(group, record), _ratios(group), _exposed(group, outcomes)]
    parts += [f"FAILED: {failure['peer']}, round {failure['round']}: {failure['error']}\n" for failure in record["failures"]]
    return "\n".join(part for part in parts if part)


def _speeds(group: Sequence[Outcome], record: dict[str, Any]) -> str:
    checks = {check.peer: check for check in figures.check_losses(group)}
    work = {key: value for key, value in record["workload"].items() if key not in ("small", "parameters")}
    needed = Workload(**work).needed_bytes
    rows = []
    for peer in dict.fromkeys(outcome.peer for outcome in group):
        runs = figures.of_peer(group, peer)
        peak, program = max(max(run.peak_bytes) for run in runs), record["program_bytes"].get(peer)
        check = checks.get(peer)
        rows.append(
            [
                peer,
                f"{figures.speed(group, peer):,.0f}",
                f"{statistics.median(statistics.median(run.seconds) for run in runs):.3f}",
                f"{check.difference:.0e}{'' if check.agrees else ' DISAGREES'}" if check else "",
                f"{peak / 1e6:,.0f}",
                f"{program / 1e6:,.0f}" if program else "",
                f"{(peak - program) / needed:.2f}" if program else "",
                f"{sent / 1e6:,.0f}" if (sent := statistics.median(run.sent_bytes for run in runs)) else "",
            ]
        )
    header = [
        "peer",
        "tokens/s, median [quartiles]",
        "s/window",
        "loss off by",
        "peak MB",
        "program MB",
        "model / needed",
        "sent MB",
    ]
    note = (
        "Program: the peak with a small model; what is above it is the model's. "
        f"Needed: weights, gradients, Adam and activations, {needed / 1e6:,.0f} MB. Sent: by all hosts, start included.\n"
    )
    return f"{figures.markdown_table(header, rows)}\n{note}"


def _ratios(group: Sequence[Outcome]) -> str:
    """Ours / peer, ratio of medians and the quartiles of the pairs."""
    others = [peer for peer in dict.fromkeys(outcome.peer for outcome in group) if not peer.endswith("-copies")]
    ours = [peer for peer in others if figures.of_peer(group, peer)[0].is_ours]
    if not ours or len(others) < 2:
        return ""
    rows = [[peer, *(_cell(group, mine, peer) for mine in ours)] for peer in others]
    caption = "Speed of ours / of the peer in the row: ratio of medians [quartiles of the rounds' ratios]"
    return f"{caption}\n\n{figures.markdown_table(['', *ours], rows)}"


def _cell(group: Sequence[Outcome], ours: str, peer: str) -> str:
    pairs = figures.ratio(group, ours, peer)
    if pairs is None or ours == peer:
        return ""
    return f"{figures.ratio_of_medians(group, ours, peer):.2f} [{pairs.low:.2f}, {pairs.high:.2f}]"


def _exposed(group: Sequence[Outcome], outcomes: Sequence[Outcome]) -> str:
    lines = []
    for peer in dict.fromkeys(o.peer for o in group if o.is_ours and o.size > 1):
        copies = f"ours-{peer.split('-')[1]}-copies"
        if exposed := figures.exposed_seconds(outcomes, peer, copies):
            slowest, mean = exposed
            lines.append(f"- {peer}: {slowest:.3f} beyond the slower rank, {mean:.3f} beyond the mean of the ranks")
    return "Seconds of a window beyond the same ranks without a reduction:\n\n" + "\n".join(lines) + "\n" if lines else ""


def plot(record: dict[str, Any], path: Path) -> None:
    """A bar for the median of each peer, a dot for each round; one panel for each number of ranks."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    outcomes = [Outcome(**outcome) for outcome in record["outcomes"]]
    groups = [[o for o in outcomes if o.size == size] for size in sorted({o.size for o in outcomes}, reverse=True)]
    names = [sorted({o.peer for o in group}, key=lambda peer: figures.speed(outcomes, peer).median) for group in groups]
    rows = [len(group) for group in names]
    figure, panels = plt.subplots(
        len(groups),
        1,
        figsize=(9, 1.4 + 0.32 * sum(rows) + 0.6 * len(groups)),
        height_ratios=rows,
        squeeze=False,
        layout="constrained",
    )
    for panel, group, peers in zip(panels[:, 0], groups, names, strict=True):
        spreads: list[Spread] = [figures.speed(group, peer) for peer in peers]
        colors = [_OURS if figures.of_peer(group, peer)[0].is_ours else _OTHER for peer in peers]
        panel.barh(peers, [spread.median for spread in spreads], color=colors, height=0.65)
        widest = max(outcome.tokens_per_second for outcome in group)
        for row, (peer, spread) in enumerate(zip(peers, spreads, strict=True)):
            rates = [outcome.tokens_per_second for outcome in figures.of_peer(group, peer)]
            panel.plot(rates, [row] * len(rates), "o", color=_ROUND, markersize=3)
            panel.text(max(rates) + 0.015 * widest, row, f"{spread.median:,.0f}", va="center", fontsize=8)
        panel.set_xlim(0, 1.12 * widest)
        panel.set_title(f"{group[0].size} rank(s)", loc="left", fontsize=9)
        panel.set_xlabel("tokens/s of all ranks: median (bar) and each round (dots)", fontsize=8)
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title(record).replace("; N=", "\nN="), fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)
