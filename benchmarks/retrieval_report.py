"""What benchmarks/retrieval.py prints for a person: its result, a dict of JSON values, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(result: dict[str, Any]) -> str:
    """The result for a person."""
    which = result["set"]
    parts = [
        f"## {which['name']}: {which['documents']} documents ({which['chunks']} chunks), {which['questions']} of "
        f"{which['questions_of_set']} questions",
        quality_table(result),
        "\n".join(
            f"- {row['system']} against {row['against']}: {row['difference']:+.4f} "
            f"(95 % {row['low']:+.4f} to {row['high']:+.4f}, p = {row['p']:.4f})"
            for row in result["comparisons"]
        ),
        cost_table(result),
        end_table(result["end_to_end"]),
        table(
            [f"{result['at_once']} at once", "searches/s", "of `SELECT 1`", "of the dense query"],
            [
                [name, f"{row['per_s']:.0f}", f"{row['ratio_to_select_1']:.3f}", f"{row['ratio_to_dense']:.2f}"]
                for name, row in result["throughput"].items()
            ],
        ),
        ingest_line(result["ingest"]),
        table(
            ["MiB", "rows", "indexes", "beside the rows"],
            [[name, *(f"{size / 2**20:.1f}" for size in row.values())] for name, row in result["bytes"].items()],
        ),
        f"{result['machine']['processor']}, {result['machine']['cores']} cores, {result['date']}.",
    ]
    return "\n\n".join(parts)


def quality_table(result: dict[str, Any]) -> str:
    """Quality with standard errors in brackets."""
    metrics = [name for name in next(iter(result["quality"].values())) if "@" in name]
    return table(
        ["", *metrics, "same at any depth"],
        [
            [
                name,
                *(f"{row[m]['value']:.4f} ({row[m]['error']:.4f})" for m in metrics),
                f"{row['same_at_any_depth']:.1%}",
            ]
            for name, row in result["quality"].items()
        ],
    )


def cost_table(result: dict[str, Any]) -> str:
    """CPU and latency, the embedding of the question left out."""
    return table(
        ["one search, embedding left out", "client CPU ms", "server CPU ms", "p50 ms", "p95 ms", "CPU of `SELECT 1`",
         "of the dense query"],
        [
            [name, f"{row['client_cpu_ms']:.2f}", "–" if row["server_cpu_ms"] is None else f"{row['server_cpu_ms']:.2f}",
             f"{row['p50_ms']:.2f}", f"{row['p95_ms']:.2f}", f"{row['ratio_to_select_1']:.1f}", f"{row['ratio_to_dense']:.2f}"]
            for name, row in result["cost"].items()
        ],
    )  # fmt: skip


def end_table(end: dict[str, Any]) -> str:
    """End to end, and its stages."""
    return table(
        ["from text to passages, as configured", "p50 ms", "p95 ms", "client CPU ms", "server CPU ms"],
        [
            [name, f"{row['p50_ms']:.1f}", f"{row['p95_ms']:.1f}", f"{row['client_cpu_ms']:.2f}",
             "–" if row["server_cpu_ms"] is None else f"{row['server_cpu_ms']:.2f}"]
            for name, row in {**end["stages"], "all": end}.items()
        ],
    )  # fmt: skip


def ingest_line(row: dict[str, Any]) -> str:
    """Ingest in one line."""
    if not row["chunks"]:
        return "Everything was indexed already: ingest was not measured."
    server = "" if row["server_cpu_s"] is None else f", PostgreSQL's {row['server_cpu_s']:.1f} s"
    return (
        f"Ingest: {row['documents_per_s']:.1f} documents/s ({row['documents']} in {row['seconds']:.0f} s), "
        f"{row['wall_ratio_to_embedding']:.2f} times the time of embedding alone. CPU: ours {row['client_cpu_s']:.1f} s{server}; "
        f"{row['cpu_ratio_to_embedding']:.2f} times that of embedding alone ({row['embedding_alone_cpu_s']:.1f} s)."
    )
