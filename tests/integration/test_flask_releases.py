"""The documentation of one program at four releases, synced in turn: each question as of a release is answered from it.

The questions come from real differences: sentences that only one release has, asked by their rarest words.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.database import Database
from orchestrator.knowledge.store import PgStore
from orchestrator.knowledge.sync import sync
from orchestrator.testing import HashEmbedder

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("DEVELOPMENT_DATA", ROOT.parent / "shared" / "data")) / "flask_docs"
DATES = ("2017-05-16", "2018-04-26", "2021-05-11", "2024-04-07")
EMPTY = "select (select count(*) from chunks where not isempty(live)) as live, (select chunk_count from collections) as counted"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the releases (../shared/data/flask_docs, DEVELOPMENT_DATA) are absent"
)


@pytest.fixture(scope="module")
def freshness() -> ModuleType:
    """The benchmark, which derives the questions."""
    spec = importlib.util.spec_from_file_location("freshness", ROOT / "benchmarks" / "freshness.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


async def test_every_release_answers_its_own_questions_and_no_other(
    freshness: ModuleType, tmp_path: Path, store: PgStore, embedder: HashEmbedder, database: Database
) -> None:
    releases = freshness.read_releases(DATA, DATES)
    shares = []
    for release in releases:
        shutil.rmtree(tmp_path / "checkout", ignore_errors=True)
        shutil.copytree(release.folder, tmp_path / "checkout")
        synced = await sync(
            tmp_path / "checkout",
            store=store,
            embedder=embedder,
            collection="c",
            valid_from=release.moment,
            confirm=lambda plan: True,
        )
        shares.append(synced.ingest.chunks_new / (synced.ingest.chunks_new + synced.ingest.chunks_shared))
        listed = await store.list_documents("c", limit=1_000, as_of=release.moment)
        assert {one.external_id for one in listed} == set(release.documents)

    asked = freshness.derive_questions(releases)
    verdict = await freshness.ask_all(store.search, "c", releases, asked, "lexical")

    assert len(asked) >= 40
    assert min(Counter(one.release for one in asked).values()) >= 8
    assert (verdict.foreign, verdict.faults) == (0, [])
    assert verdict.right == len(asked)
    assert shares[0] == 1.0
    assert shares[3] < 0.6  # 3.0.3 has most of 2.0.0
    counts = await database.fetch_one(EMPTY)
    assert counts is not None
    assert counts.live == counts.counted
