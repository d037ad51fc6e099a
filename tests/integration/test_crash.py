"""``kill -9`` at every step of an ingest, then the same ingest again: the contents equal those of an uninterrupted run."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from orchestrator.database import Database

Dump = dict[str, list[tuple[object, ...]]]

CHILD = """
import asyncio, sys
from orchestrator.database import Database
from orchestrator.knowledge.ingest import ingest
from orchestrator.knowledge.store import PgStore
from orchestrator.testing import HashEmbedder

async def main():
    async with Database.open(sys.argv[1], 2) as database:
        report = await ingest(sys.argv[2:], store=PgStore(database), embedder=HashEmbedder(), collection="c")
        assert not report.failures, report.failures

asyncio.run(main())
"""

# Everything that is stored but ids and clock times: `now()` only shows as the order of versions.
DUMP = {
    "documents": "select external_id, title, source, metadata, deleted_at is not null as deleted from documents order by 1",
    "versions": """
        select d.external_id, v.number, v.sha256, v.title, v.source, v.media_type, v.text, v.notes,
               v.valid_from = '-infinity' as since_ever, v.valid_to = 'infinity' as until_now, v.superseded_at is null as counts
        from versions v join documents d on d.id = v.document_id order by 1, 2""",
    "spans": """
        select d.external_id, v.number, m.ordinal, m.span_start, m.span_end, m.paragraph, m.heading_path, m.page, c.sha256
        from version_chunks m join versions v on v.id = m.version_id join documents d on d.id = v.document_id
        join chunks c on c.id = m.chunk_id order by 1, 2, 3""",
    "chunks": """
        select d.external_id, c.sha256, c.term_count, isempty(c.live) as dead, e.space, e.embedding::text as embedding
        from chunks c join documents d on d.id = c.document_id left join vectors e on e.chunk_id = c.id order by 1, 2""",
    "postings": """
        select t.term, t.document_count, d.external_id, c.sha256, p.frequency
        from postings p join terms t on t.id = p.term_id join chunks c on c.id = p.chunk_id
        join documents d on d.id = c.document_id order by 1, 3, 4""",
    "terms": "select term, document_count from terms order by 1",
    "collections": "select name, embedding_space, chunk_count, term_count from collections order by 1",
    "orphans": """
        select (select count(*) from chunks c where not exists (select from version_chunks m where m.chunk_id = c.id)),
               (select count(*) from postings p where not exists (select from terms t where t.id = p.term_id))""",
}

FAILPOINTS = [
    "loaded",
    "split",
    "embedded",
    "version-inserted",
    "chunks-inserted",
    "vectors-inserted",
    "postings-inserted",
    "before-commit",
    "after-commit",
    "version-inserted:2",
    "before-commit:3",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder as it was first ingested, and the same folder with a changed document and new ones."""
    path = tmp_path_factory.mktemp("folders")
    return _folder(path / "before", "Thirty days of leave.", 3), _folder(path / "after", "Thirty-one days.", 5)


@pytest.fixture(scope="module")
def uninterrupted(new_database: Callable[..., AbstractContextManager[str]], folders: tuple[Path, Path]) -> list[Dump]:
    """The contents after each of the two ingests when nothing dies."""

    async def run() -> list[Dump]:
        with new_database() as url:
            dumps = []
            for path in folders:
                assert await run_ingest(url, path) == 0
                dumps.append(await dump(url))
            return dumps

    return asyncio.run(run())


def _folder(path: Path, sentence: str, rows: int) -> Path:
    path.mkdir()
    filler = "More words that fill the page and make chunks of it. " * 12
    (path / "leave.md").write_text(f"# Leave\n\n{sentence} {filler}\n\n## Sick\n\n{filler}\n")
    (path / "dated.md").write_text("---\nid: leave-dated\nvalid_from: 2025-01-01\n---\nDated text.")
    lines = [json.dumps({"id": f"r{n}", "text": f"Row {n} of the table."}) for n in range(rows)]
    (path / "rows.jsonl").write_text("\n".join(lines))
    return path


async def run_ingest(url: str, path: Path, failpoint: str | None = None) -> int:
    environment = {**os.environ, **({"FAILPOINT": failpoint} if failpoint else {})}
    # The same working directory and relative path for every run: the path is stored as the documents' source.
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        url,
        ".",
        env={**environment, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path[1:]])},
        cwd=path,
    )
    return await child.wait()


async def dump(url: str) -> Dump:
    async with Database.open(url, 1) as database:
        return {name: [tuple(row) for row in await database.fetch(query)] for name, query in DUMP.items()}


def test_the_dump_sees_a_difference(uninterrupted: list[Dump]) -> None:
    first, second = uninterrupted
    assert [name for name in DUMP if first[name] != second[name]] == [name for name in DUMP if name != "orphans"]


@pytest.mark.parametrize("failpoint", FAILPOINTS)
async def test_killed_and_run_again_equals_uninterrupted(
    database_url: str, folders: tuple[Path, Path], uninterrupted: list[Dump], failpoint: str
) -> None:
    for path, expected in zip(folders, uninterrupted, strict=True):
        assert await run_ingest(database_url, path, failpoint) == -signal.SIGKILL
        assert await run_ingest(database_url, path) == 0
        assert await dump(database_url) == expected
