"""Orchestrator: opens everything and answers. The only file that knows every class."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.behaviour.registry import Registry, ensure_shipped
from orchestrator.database import Database
from orchestrator.errors import DatabaseError, InputError, OrchestratorError
from orchestrator.feedback import Feedback, give_feedback
from orchestrator.knowledge.embed import open_embedder, open_next_embedder
from orchestrator.knowledge.ingest import IngestEvent, IngestReport, ingest_documents
from orchestrator.knowledge.ingest import ingest as ingest_paths
from orchestrator.knowledge.records import VersionText
from orchestrator.knowledge.rerank import open_reranker
from orchestrator.knowledge.retrieve import Retriever
from orchestrator.knowledge.search import IndexRecall, RecallSample
from orchestrator.knowledge.sources.fetch import Fetcher
from orchestrator.knowledge.spread import open_indexer
from orchestrator.knowledge.store import PgStore
from orchestrator.launch import postgres
from orchestrator.ledger import Ledger
from orchestrator.migrate import migrate
from orchestrator.pipeline import Pipeline
from orchestrator.prompts import Catalogue, load_catalogue
from orchestrator.protocols import Embedder
from orchestrator.resources import folder
from orchestrator.router import find_learnt, open_router
from orchestrator.serving import EngineServing, open_tokens
from orchestrator.settings import Settings
from orchestrator.tenants import Keys
from orchestrator.types import Answer, Document, Event, Message, Plan, Query, SearchMode, SearchResult, end_of, start_of

logger = logging.getLogger(__name__)
T = TypeVar("T")
Progress = Callable[[str], None]
Moment = date | datetime | str | None
OPTIONS = frozenset(
    {
        "route", "collection", "adapter", "where", "k", "max_tokens", "temperature", "seed",
        "max_cost", "min_quality", "deadline_ms",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Orchestrator:
    """The whole system behind one value. Open it with ``async with Orchestrator.open() as o``."""

    settings: Settings
    catalogue: Catalogue
    pipeline: Pipeline
    embedder: Embedder
    database: Database
    store: PgStore
    registry: Registry
    serving: EngineServing
    keys: Keys | None = None  # API keys that tenants have in the database; None: only those of the settings count

    def of(self, tenant: str) -> Orchestrator:
        """The same system for another tenant: his documents and his ledger, the deployment's routes and adapters."""
        return replace(self, settings=replace(self.settings, tenant=tenant), store=self.store.of(tenant))

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings | None = None, *, progress: Progress | None = None, **overrides: Any
    ) -> AsyncIterator[Orchestrator]:
        """Settings from ``ORCHESTRATOR_*`` or arguments; what is not set runs embedded. The engine starts with the first question.

        Raises SettingsError, LaunchError, DatabaseError, MigrationError.
        """
        settings = settings.resolved() if settings else Settings.from_env(**overrides)
        prompts = settings.prompts_dir or folder("prompts")
        catalogue = load_catalogue(prompts)
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(open_database(settings))
            embedder = await asyncio.to_thread(open_embedder, settings, progress)
            if hasattr(embedder, "aclose"):
                stack.push_async_callback(embedder.aclose)
            sample = RecallSample(settings.recall_sample)
            stack.push_async_callback(sample.finish)
            store = PgStore(database, tenant=settings.tenant, space=embedder.space, sample=sample)
            registry = Registry(database, settings)
            await ensure_shipped(registry, settings)
            ledger = await stack.enter_async_context(Ledger.open(database))
            serving = await stack.enter_async_context(EngineServing.open(settings, catalogue, registry, progress))
            learnt = find_learnt(catalogue, prompts, settings.router_file, embedder.space)
            router = await open_router(catalogue, embedder, settings.collection, learnt)
            next_embedder = await asyncio.to_thread(open_next_embedder, settings, progress)
            reranker = await asyncio.to_thread(open_reranker, settings, embedder, progress)
            for opened in (next_embedder, reranker):
                if (close := getattr(opened, "aclose", None)) is not None:
                    stack.push_async_callback(close)
            retriever = Retriever(store, embedder, reranker, next_embedder, settings.rerank_budget_ms / 1000)
            pipeline = Pipeline(
                settings, catalogue, router, embedder, retriever, serving, ledger, open_tokens(settings, progress)
            )
            yield cls(settings, catalogue, pipeline, embedder, database, store, registry, serving, Keys(database))

    async def ask(self, question: str, **options: Any) -> Answer:
        """The checked answer.

        Options: route, collection, adapter, as_of, known_at, where, k, history, max_tokens, temperature, seed, max_cost,
        min_quality, deadline_ms.
        """
        return await self.answer(self.query(question, **options))

    async def answer(self, query: Query) -> Answer:
        """The checked answer to a query."""
        return await self.pipeline.ask(query)

    async def stream(self, question: str | Query, **options: Any) -> AsyncGenerator[Event]:
        """The plan, the answer's text as it comes, and the checked Answer."""
        query = question if isinstance(question, Query) else self.query(question, **options)
        async with aclosing(self.pipeline.stream(query)) as events:
            async for event in events:
                yield event

    async def search(
        self, text: str, *, k: int = 10, mode: SearchMode = "hybrid", excerpts: bool = False, **options: Any
    ) -> SearchResult:
        """The k best passages, and how likely they hold what is asked. Options: collection, as_of, known_at, where.

        ``excerpts``: only the sentences that bear on the text, joined where they stand close together.
        """
        return await self.pipeline.search(self.query(text, k=k, **options), mode=mode, excerpts=excerpts)

    async def plan(self, question: str, **options: Any) -> Plan:
        """What would be done with the question, and why, without doing it."""
        return await self.pipeline.plan(self.query(question, **options))

    async def ingest(
        self,
        *paths: str | Path,
        collection: str | None = None,
        valid_from: Moment = None,
        id_from: str | None = None,
        progress: Callable[[IngestEvent], None] | None = None,
        workers: int = 1,
    ) -> IngestReport:
        """Indexes files and folders; a second run does only what is new. ``workers``: processes that embed."""
        async with open_indexer(self.settings, self.embedder, workers) as embedder:
            return await ingest_paths(
                paths,
                store=self.store,
                embedder=embedder,
                collection=collection or self.settings.collection,
                valid_from=_moment(valid_from, start_of),
                id_from=id_from,
                progress=progress,
                max_bytes=self.settings.max_document_bytes,
                fetch=Fetcher(self.settings.max_document_bytes) if self.settings.allow_urls else None,
            )

    async def ingest_documents(
        self,
        documents: Iterable[Document],
        *,
        collection: str | None = None,
        valid_from: Moment = None,
        progress: Callable[[IngestEvent], None] | None = None,
        workers: int = 1,
    ) -> IngestReport:
        """Indexes documents that the caller has made, such as ``langchain.documents_from_langchain(loader.load())``."""
        async with open_indexer(self.settings, self.embedder, workers) as embedder:
            return await ingest_documents(
                documents,
                store=self.store,
                embedder=embedder,
                collection=collection or self.settings.collection,
                valid_from=_moment(valid_from, start_of),
                progress=progress,
            )

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector per text."""
        return await self.embedder.embed(texts)

    def index_recall(self) -> IndexRecall | None:
        """What the HNSW indexes find of the true nearest, measured on a share of this process's searches."""
        return self.store.recall()

    async def document_version(self, document_id: str, number: int) -> VersionText:
        """The text that a citation points into, by document id and version. Raises UnknownNameError."""
        return await self.store.version(document_id, number)

    async def feedback(
        self, answer_id: str, verdict: str, *, fix: Mapping[str, Any] | str | None = None, note: str = ""
    ) -> Feedback:
        """Records that an answer was ``good``, ``bad``, or how it should have been (``fix``): an example to train on.

        Raises UnknownNameError without such an answer, InputError for a fix that breaks the answer's contract.
        """
        return await give_feedback(self.database, answer_id, verdict, fix=fix, note=note, tenant=self.settings.tenant)

    @property
    def embedding_model(self) -> str:
        """Name of the embedding space."""
        return self.embedder.space

    async def model_names(self) -> list[str]:
        """What a client may name as model: routed, one per route, one per adapter of a route that is in service."""
        routes = [f"orchestrator/{name}" for name in self.catalogue.routes]
        routed = {route.adapter for route in self.catalogue.routes.values()}
        in_service = [adapter.name for adapter in await self.registry.list() if adapter.state == "active"]
        adapters = [name for name in in_service if name in routed]
        return ["orchestrator", *routes, *dict.fromkeys(adapters)]

    async def start(self) -> None:
        """Starts the engine now instead of with the first question, and proves the adapters of all routes."""
        await self.serving.start()

    async def readiness(self) -> list[str]:
        """Why a question could not be answered now; empty when it could."""
        reasons: list[str] = []
        checks: Iterable[Awaitable[list[str]]] = (self._database_reasons(), self.serving.reasons())
        for check in checks:
            try:
                reasons += await check
            except OrchestratorError as error:
                reasons.append(error.message)
        return reasons

    async def _database_reasons(self) -> list[str]:
        try:
            await self.database.fetch_one("select 1")
        except DatabaseError as error:
            return [error.message]
        return []

    def query(
        self,
        text: str,
        *,
        as_of: Moment = None,
        known_at: Moment = None,
        history: Sequence[Message] = (),
        **options: Any,
    ) -> Query:
        """A query for this system's tenant; moments may be a date, a time or ISO text. Raises InputError."""
        unknown = options.keys() - OPTIONS
        if unknown:
            raise InputError(f"unknown options {sorted(unknown)}")
        return Query(
            text,
            as_of=_moment(as_of, end_of),
            known_at=_moment(known_at, end_of),
            history=tuple(history),
            tenant=self.settings.tenant,
            **options,
        )


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """The database alone, started when it is embedded and brought to this code's schema."""
    url = settings.database_url
    if url is None:
        url = await asyncio.to_thread(postgres.start, settings.home_dir)
    async with Database.open(url, settings.pool_size, settings.owner_database_url) as database:
        await migrate(database)
        yield database


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[PgStore]:
    """The documents alone, without an embedder or an engine."""
    async with open_database(settings) as database:
        yield PgStore(database, tenant=settings.tenant)


def ask(question: str, *, settings: Settings | None = None, **options: Any) -> Answer:
    """Blocking ``Orchestrator.ask`` for scripts: opens, asks, closes."""

    async def run() -> Answer:
        async with Orchestrator.open(settings) as orchestrator:
            return await orchestrator.ask(question, **options)

    return _block(run())


def ingest(*paths: str | Path, settings: Settings | None = None, **options: Any) -> IngestReport:
    """Blocking ``Orchestrator.ingest`` for scripts."""

    async def run() -> IngestReport:
        async with Orchestrator.open(settings) as orchestrator:
            return await orchestrator.ingest(*paths, **options)

    return _block(run())


def search(text: str, *, settings: Settings | None = None, **options: Any) -> SearchResult:
    """Blocking ``Orchestrator.search`` for scripts."""

    async def run() -> SearchResult:
        async with Orchestrator.open(settings) as orchestrator:
            return await orchestrator.search(text, **options)

    return _block(run())


def _block(work: Coroutine[Any, Any, T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    work.close()
    raise InputError("this is the blocking facade; inside an event loop use `async with Orchestrator.open()`")


def _moment(value: Moment, read: Callable[[Moment], datetime | None]) -> datetime | None:
    try:
        return read(value)
    except ValueError as error:
        raise InputError(f"{value!r} is no date: write 2025-03-01 or 2025-03-01T12:00:00+00:00") from error
