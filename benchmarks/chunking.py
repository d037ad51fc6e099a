"""How well splitters and joined passages hit the gold spans of a folder with questions.jsonl and the texts it names.

python benchmarks/chunking.py FOLDER [--k 5] [--weight 0.7] [--product] [--json]

Each splitter's chunks of all texts go into one index and are searched alike: cosine of the local embedder and BM25, fused
by a convex combination. Recall, precision, precision omega and IoU as "Evaluating Chunking Strategies for Retrieval"
(Smith & Troynikov, Chroma 2024) and its code define them: over characters, and a character that is returned twice counts
twice. `--product` adds a row for what `search` returns from a new embedded database under a temporary home.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.knowledge.embed import open_embedder
from orchestrator.knowledge.join import CANDIDATES, join_passages
from orchestrator.knowledge.split import split
from orchestrator.launch import postgres, weights
from orchestrator.resources import processor
from orchestrator.settings import Settings
from orchestrator.types import Chunk, Document, Passage

Array = npt.NDArray[np.float64]
Span = tuple[int, int]
Place = tuple[str, int, int]  # text, start, end
Embed = Callable[[Sequence[str]], Awaitable[Array]]

K1, B = 1.2, 0.75
METRICS = ("recall", "precision", "iou")


@dataclass(frozen=True)
class Question:
    """A question with the spans of one text that answer it."""

    text: str
    source: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Row:
    """One line of the table: means and standard errors over the questions."""

    name: str
    chunks: int
    characters: float  # of a chunk
    returned: float  # characters of what is returned
    passages: float
    omega: float | None
    means: Mapping[str, float]
    errors: Mapping[str, float]


async def main(folder: Path, k: int, weight: float, product: bool, as_json: bool) -> None:
    """Prints the table, or its JSON."""
    texts, questions = load(folder)
    embedder = await asyncio.to_thread(open_embedder, Settings.from_env(), _tell)
    kept: dict[str, list[float]] = {}

    async def embed(wanted: Sequence[str]) -> Array:
        new = [text for text in dict.fromkeys(wanted) if text not in kept]
        kept.update(zip(new, await embedder.embed(new), strict=True))
        return np.array([kept[text] for text in wanted])

    rows = []
    for name, splitter in (await splitters(texts, embed)).items():
        _tell(name)
        chunks = [(source, *span) for source, text in texts.items() for span in splitter(source, text)]
        index = Index([texts[source][start:end] for source, start, end in chunks])
        found = await index.search(questions, embed, weight)
        returned = [[chunks[number] for number in order[:k]] for order, *_ in found]
        rows.append(measure(name, questions, chunks, returned))
    rows += await _ours(texts, questions, embed, k, weight)
    if product:
        rows.append(await _product(folder, texts, questions, k))
    _print(rows, len(questions), k, weight, as_json)


def load(folder: Path) -> tuple[dict[str, str], list[Question]]:
    """The texts by name and the questions. Raises SystemExit that names what is missing."""
    if not (folder / "questions.jsonl").exists():
        raise SystemExit(f"{folder} has no questions.jsonl")
    lines = (folder / "questions.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    sources = dict.fromkeys(row["corpus"] for row in rows)
    texts = {source: (folder / f"{source}.md").read_bytes().decode() for source in sources}
    spans = [tuple((span["start_index"], span["end_index"]) for span in row["references"]) for row in rows]
    for row, found in zip(rows, spans, strict=True):
        if any(
            texts[row["corpus"]][a:b] != span["content"] for (a, b), span in zip(found, row["references"], strict=True)
        ):
            raise SystemExit(f"a reference of {row['question']!r} is not at its place in {row['corpus']}.md")
    return texts, [Question(row["question"], row["corpus"], found) for row, found in zip(rows, spans, strict=True)]


# --- metrics


def union(spans: Iterable[Span]) -> list[Span]:
    """The spans without overlaps, in order."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def size(spans: Iterable[Span]) -> int:
    """Characters of all spans; an overlap counts as often as it is there."""
    return sum(end - start for start, end in spans)


def hits(question: Question, places: Iterable[Place]) -> int:
    """Characters of the question's spans that the places hold."""
    return size(
        union(
            (max(start, low), min(end, high))
            for source, start, end in places
            for low, high in question.spans
            if source == question.source and max(start, low) < min(end, high)
        )
    )


def scores(question: Question, returned: Sequence[Place]) -> dict[str, float]:
    """Recall, precision and IoU of what is returned for one question."""
    hit = hits(question, returned)
    amount = size((start, end) for _, start, end in returned)
    missed = size(union(question.spans)) - hit
    return {
        "recall": hit / size(question.spans),
        "precision": hit / amount if amount else 0.0,
        "iou": hit / (amount + missed),
    }


def omega(question: Question, chunks: Sequence[Place]) -> float:
    """Precision when every chunk is returned that touches a gold span: the best that a splitter allows."""
    touching = [chunk for chunk in chunks if hits(question, [chunk])]
    covered = union([*((start, end) for _, start, end in touching), *question.spans])
    return hits(question, touching) / size(covered)


def measure(
    name: str, questions: Sequence[Question], chunks: Sequence[Place], returned: Sequence[Sequence[Place]]
) -> Row:
    """The row of one way to split and search."""
    table = [scores(question, places) for question, places in zip(questions, returned, strict=True)]
    values = {metric: np.array([row[metric] for row in table]) for metric in METRICS}
    return Row(
        name,
        len(chunks),
        size((start, end) for _, start, end in chunks) / max(len(chunks), 1),
        float(np.mean([size((start, end) for _, start, end in places) for places in returned])),
        float(np.mean([len(places) for places in returned])),
        float(np.mean([omega(question, chunks) for question in questions])) if chunks else None,
        {metric: float(found.mean()) for metric, found in values.items()},
        {metric: float(found.std(ddof=1)) / math.sqrt(len(found)) for metric, found in values.items()},
    )


# --- search


class Index:
    """Cosine and BM25 over a list of texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._counts = [Counter(_words(text)) for text in texts]
        lengths = np.array([counts.total() for counts in self._counts], float)
        self._norm = K1 * (1 - B + B * lengths / lengths.mean())
        self._holders: dict[str, list[int]] = {}
        for number, counts in enumerate(self._counts):
            for word in counts:
                self._holders.setdefault(word, []).append(number)

    async def search(
        self, questions: Sequence[Question], embed: Embed, weight: float
    ) -> list[tuple[list[int], Array, Array, Array]]:
        """For each question: the texts from best to worst, and the fused score, cosine and BM25 of every text."""
        cosines = await embed([question.text for question in questions]) @ (await embed(self._texts)).T
        found = []
        for question, cosine in zip(questions, cosines, strict=True):
            bm25 = self._bm25(question.text)
            fused = weight * _share(np.maximum(cosine, 0)) + (1 - weight) * _share(bm25)
            found.append((np.argsort(-fused, kind="stable").tolist(), fused, cosine, bm25))
        return found

    def _bm25(self, text: str) -> Array:
        total = np.zeros(len(self._texts))
        for word in dict.fromkeys(_words(text)):
            holders = self._holders.get(word, [])
            rarity = math.log(1 + (len(self._texts) - len(holders) + 0.5) / (len(holders) + 0.5))
            for number in holders:
                count = self._counts[number][word]
                total[number] += rarity * count * (K1 + 1) / (count + self._norm[number])
        return total


def _share(values: Array) -> Array:
    best = values.max()
    return values / best if best > 0 else values


def _words(text: str) -> list[str]:
    return [word[:5] for word in re.findall(r"\w+", text.lower())]


# --- splitters


async def splitters(texts: Mapping[str, str], embed: Embed) -> dict[str, Callable[[str, str], list[Span]]]:
    """The common splitters by name; a token is a word piece of the local embedder."""
    from langchain_text_splitters import MarkdownTextSplitter, RecursiveCharacterTextSplitter
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(str(weights.ensure_minilm(Settings.from_env().models) / "tokenizer.json"))
    tokens.no_truncation()
    tokens.no_padding()

    def count(text: str) -> int:
        return len(tokens.encode(text, add_special_tokens=False).ids)

    def recursive(limit: int, overlap: int, length: Callable[[str], int] = len) -> Callable[[str, str], list[Span]]:
        splitter = RecursiveCharacterTextSplitter(chunk_size=limit, chunk_overlap=overlap, length_function=length)
        return lambda _, text: locate(text, splitter.split_text(text))

    def fixed(limit: int, overlap: int) -> Callable[[str, str], list[Span]]:
        return lambda _, text: windows(tokens.encode(text, add_special_tokens=False).offsets, limit, overlap)

    found: dict[str, Callable[[str, str], list[Span]]] = {}
    for limit, overlap in ((200, 0), (200, 40), (400, 0), (400, 80), (800, 0), (800, 160), (1000, 200)):
        found[f"recursive, characters {limit}/{overlap}"] = recursive(limit, overlap)
    found["Markdown, characters 400/0"] = lambda _, text: locate(
        text, MarkdownTextSplitter(chunk_size=400, chunk_overlap=0).split_text(text)
    )
    for limit, overlap in ((200, 0), (200, 100), (400, 0), (400, 200), (800, 0), (800, 400)):
        found[f"recursive, tokens {limit}/{overlap}"] = recursive(limit, overlap, count)
    for limit, overlap in ((200, 0), (200, 100), (400, 0), (400, 200), (800, 0), (800, 400)):
        found[f"fixed, tokens {limit}/{overlap}"] = fixed(limit, overlap)
    found["sentences, 1"] = lambda _, text: by_sentences(text, 1)
    found["sentences, 3"] = lambda _, text: by_sentences(text, 3)
    for name, semantic in semantic_splitters(recursive(50, 0, count), count).items():
        spans = {source: await semantic(source, text, embed) for source, text in texts.items()}
        found[name] = partial(lambda spans, source, _: spans[source], spans)
    return found


def locate(text: str, pieces: Iterable[str]) -> list[Span]:
    """Where pieces stand that a splitter gave without their places."""
    spans: list[Span] = []
    for piece in pieces:
        start = text.find(piece, spans[-1][0] + 1 if spans else 0)
        start = start if start >= 0 else text.find(piece)
        if start < 0:
            raise SystemExit(f"the splitter changed the text: {piece[:60]!r}")
        spans.append((start, start + len(piece)))
    return spans


def windows(offsets: Sequence[Span], limit: int, overlap: int) -> list[Span]:
    """Windows of ``limit`` tokens with the given offsets."""
    starts = range(0, max(len(offsets) - overlap, 1), limit - overlap)
    return [(offsets[start][0], offsets[min(start + limit, len(offsets)) - 1][1]) for start in starts]


def by_sentences(text: str, count: int) -> list[Span]:
    """Groups of sentences, cut after a full stop and a blank."""
    spans = [match.span() for match in re.finditer(r"\S.*?(?:[.?!](?=\s)|\Z)", text, re.DOTALL)]
    return [(spans[start][0], spans[min(start + count, len(spans)) - 1][1]) for start in range(0, len(spans), count)]


Semantic = Callable[[str, str, Embed], Awaitable[list[Span]]]


def semantic_splitters(pieces: Callable[[str, str], list[Span]], count: Callable[[str], int]) -> dict[str, Semantic]:
    """Splitters that look at embeddings: Kamradt's, its form with a given size, and clustering (Chroma's report)."""

    async def kamradt(source: str, text: str, embed: Embed) -> list[Span]:
        spans = by_sentences(text, 1)
        distances = await _distances(text, spans, 1, embed)
        return _merged(spans, np.flatnonzero(distances > np.percentile(distances, 95)).tolist())

    async def sized(target: int, source: str, text: str, embed: Embed) -> list[Span]:
        spans = pieces(source, text)
        distances = await _distances(text, spans, 3, embed)
        cuts = min(sum(count(text[start:end]) for start, end in spans) // target, len(distances))
        return _merged(spans, sorted(np.argsort(-distances, kind="stable")[:cuts].tolist()))

    async def clustered(target: int, source: str, text: str, embed: Embed) -> list[Span]:
        spans = pieces(source, text)
        vectors = await embed([text[start:end] for start, end in spans])
        return _merged(spans, cluster_cuts(vectors @ vectors.T, target // 50))

    return {
        "semantic, Kamradt, 95th percentile": kamradt,
        **{f"semantic, Kamradt, about {target} tokens": partial(sized, target) for target in (200, 400)},
        **{f"semantic, clusters to {target} tokens": partial(clustered, target) for target in (200, 400)},
    }


async def _distances(text: str, spans: Sequence[Span], around: int, embed: Embed) -> Array:
    """Cosine distance between each piece with its neighbours and the next one with its own."""
    last = len(spans) - 1
    joined = [text[spans[max(i - around, 0)][0] : spans[min(i + around, last)][1]] for i in range(len(spans))]
    vectors = await embed(joined)
    distances: Array = 1 - np.einsum("ij,ij->i", vectors[:-1], vectors[1:])
    return distances


def _merged(spans: Sequence[Span], cuts: Sequence[int]) -> list[Span]:
    """The pieces joined; a cut stands after the piece of its number."""
    bounds = [-1, *(cut for cut in cuts if cut < len(spans) - 1), len(spans) - 1]
    return [(spans[before + 1][0], spans[last][1]) for before, last in pairwise(bounds)]


def cluster_cuts(similarity: Array, longest: int) -> list[int]:
    """Cuts that maximise the similarity over its mean within clusters of at most ``longest`` pieces, by dynamic programming."""
    count = len(similarity)
    gain = similarity - similarity[np.triu_indices(count, 1)].mean()
    np.fill_diagonal(gain, 0)
    best = np.zeros(count + 1)
    first = list(range(count))
    for last in range(count):
        best[last + 1] = best[last]
        for start in range(max(0, last - longest + 1), last):
            reward = best[start] + gain[start : last + 1, start : last + 1].sum()
            if reward > best[last + 1]:
                best[last + 1], first[last] = reward, start
    cuts = []
    last = count - 1
    while first[last] > 0:
        last = first[last] - 1
        cuts.append(last)
    return cuts[::-1]


# --- ours


async def _ours(
    texts: Mapping[str, str], questions: Sequence[Question], embed: Embed, k: int, weight: float
) -> list[Row]:
    chunks = [
        (source, chunk)
        for source, text in texts.items()
        for chunk in split(Document(source, source.replace("_", " "), text, source, "text/markdown"))
    ]
    places = [(source, *chunk.span) for source, chunk in chunks]
    found = await Index([chunk.indexed for _, chunk in chunks]).search(questions, embed, weight)
    whole = [[places[number] for number in order[:k]] for order, *_ in found]
    excerpts = []
    for question, (order, fused, cosine, bm25) in zip(questions, found, strict=True):
        passages = [_passage(n, *chunks[n], fused[n], cosine[n], bm25[n]) for n in order[:CANDIDATES]]
        stretches = join_passages(question.text, passages, k)
        excerpts.append([(stretch.lead.external_id, *stretch.span) for stretch in stretches])
    return [
        measure("ours, whole chunks", questions, places, whole),
        measure("ours, excerpts", questions, places, excerpts),
    ]


def _passage(number: int, source: str, chunk: Chunk, fused: float, cosine: float, bm25: float) -> Passage:
    return Passage(
        number,
        document_id=source,
        external_id=source,
        version=1,
        title=source,
        text=chunk.text,
        span=chunk.span,
        paragraph=chunk.paragraph,
        score=float(fused),
        scores={"cosine": float(cosine), "bm25": float(bm25)},
        heading_path=chunk.heading_path,
    )


async def _product(folder: Path, texts: Mapping[str, str], questions: Sequence[Question], k: int) -> Row:
    """What ``search`` returns, and a check that each passage's text is the file's at its span."""
    from orchestrator import Orchestrator

    home = Path(tempfile.mkdtemp(prefix="orch-bench-"))
    home.chmod(0o755)  # the embedded PostgreSQL's own user must reach it
    settings = Settings.from_env()
    database = settings.database_url or await asyncio.to_thread(postgres.start, home)
    try:
        async with Orchestrator.open(
            Settings.from_env(home=home, models_dir=settings.models, database_url=database)
        ) as o:
            await o.ingest(*(folder / f"{source}.md" for source in texts), collection="chunking")
            returned = []
            for question in questions:
                result = await o.search(question.text, k=k, collection="chunking", excerpts=True)
                returned.append([(_source(texts, passage), *passage.span) for passage in result.passages])
    finally:
        if settings.database_url is None:
            await asyncio.to_thread(postgres.stop, home)
        shutil.rmtree(home, ignore_errors=True)
    return measure("ours, `search` with excerpts", questions, [], returned)


def _source(texts: Mapping[str, str], passage: Passage) -> str:
    source = Path(passage.source).stem
    if texts[source][slice(*passage.span)] != passage.text:
        raise SystemExit(f"the passage at {passage.span} of {source} is not what the file holds there")
    return source


def _print(rows: Sequence[Row], questions: int, k: int, weight: float, as_json: bool) -> None:
    machine = {"processor": processor(), "cores": os.cpu_count(), "date": datetime.now(UTC).date().isoformat()}
    if as_json:
        settings = {"questions": questions, "k": k, "dense_weight": weight, "unit": "characters"}
        print(json.dumps({"machine": machine, **settings, "rows": [vars(row) for row in rows]}))
        return
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['date']}")
    print(f"{questions} questions, {k} passages, dense weight {weight:g}, in characters; +- one standard error\n")
    print("| splitter | chunks | mean length | returned | recall | precision | precision omega | IoU |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        shown = [f"{row.means[metric]:.3f} ± {row.errors[metric]:.3f}" for metric in METRICS]
        limit = "" if row.omega is None else f"{row.omega:.3f}"
        sizes = f"{row.chunks or ''} | {f'{row.characters:.0f}' if row.chunks else ''} | {row.returned:.0f} in {row.passages:.1f}"
        print(f"| {row.name} | {sizes} | {shown[0]} | {shown[1]} | {limit} | {shown[2]} |")


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds questions.jsonl and NAME.md for each corpus that it names")
    parser.add_argument("--k", type=int, default=5, help="passages to return (default 5)")
    parser.add_argument("--weight", type=float, default=0.7, help="of the dense side (default 0.7)")
    parser.add_argument("--product", action="store_true", help="also measure search on a real database")
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args()
    asyncio.run(main(asked.folder, asked.k, asked.weight, asked.product, asked.json))
