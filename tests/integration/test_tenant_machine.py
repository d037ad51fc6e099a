"""Three tenants do everything that can be done, in any order; no word of one ever reaches another (row B1).

`TENANT_STEPS=10000` asks for that many steps; by default a few hundred.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections import defaultdict
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import hypothesis.strategies as st
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from orchestrator.behaviour.registry import Registry
from orchestrator.database import Database, Json, statement
from orchestrator.errors import OrchestratorError, UnknownNameError
from orchestrator.knowledge.ingest import ingest_documents
from orchestrator.knowledge.store import PgStore
from orchestrator.ledger import Ledger, intent_record, list_answers, outcome_record, show_answer, verify_ledger
from orchestrator.migrate import migrate
from orchestrator.settings import Settings
from orchestrator.tenants import Keys, add_tenant, create_key, list_keys
from orchestrator.testing import HashEmbedder, passage
from orchestrator.types import Citation, Document, Passage, Plan, Query, SearchRequest, Usage

STEPS = int(os.environ.get("TENANT_STEPS", "250"))
STEPS_OF_ONE = 50
TENANTS = (0, 1, 2)
who = st.sampled_from(TENANTS)
names = st.sampled_from(["d0", "d1", "d2"])  # the same for all: what one may mistake for his own
texts = st.sampled_from(
    ["Leave is thirty days.", "Leave is forty days.\n\nTravel is booked by the desk.", "Dogs may come."]
)
moments = st.one_of(st.none(), st.integers(0, 3).map(lambda years: datetime(2023 + years, 1, 1, tzinfo=UTC)))
modes = st.sampled_from(["hybrid", "lexical", "dense"])


class Tenants(RuleBasedStateMachine):
    """The whole of the knowledge layer and the ledger over one database. Canaries: one word for each tenant and example."""

    runner: ClassVar[asyncio.Runner]
    database: ClassVar[Database]
    url: ClassVar[str]
    logs: ClassVar[list[str]]
    steps: ClassVar[int] = 0
    found_own: ClassVar[int] = 0

    versions = Bundle("versions")
    answers = Bundle("answers")

    @initialize()
    def begin(self) -> None:
        """New tenants in the same database: whoever was there before is a stranger too."""
        self.embedder = HashEmbedder()
        self.names = [f"t{uuid.uuid4().hex[:8]}" for _ in TENANTS]
        self.canaries = [f"canary{name}zzz" for name in self.names]
        self.documents: dict[int, set[str]] = defaultdict(set)  # what each tenant's documents must be
        self.erased: dict[int, set[str]] = defaultdict(set)
        self.logs.clear()
        for name in self.names:
            self.wait(add_tenant(self.database, name))

    def wait(self, work: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await work

        return self.runner.run(run())

    def store(self, tenant: int) -> PgStore:
        return PgStore(self.database, self.names[tenant])

    def act(self, tenant: int, work: Awaitable[Any]) -> Any:
        """Does it as this tenant; a result, an error or a log line with a stranger's canary fails. None for an error."""
        type(self).steps += 1
        self.logs.clear()
        result: Any = None
        try:
            result = self.wait(work)
            said = repr(result)
        except OrchestratorError as error:
            said = f"{error.message} {error!r} {error.__cause__!r} {error.__context__!r}"
        seen = said + "\n".join(self.logs)
        strange = [canary for canary in self.canaries if canary != self.canaries[tenant] and canary in seen]
        assert strange == [], (tenant, seen)
        assert self.canaries[tenant] not in "\n".join(self.logs), (
            self.logs
        )  # no log holds a document's text, not the own
        type(self).found_own += self.canaries[tenant] in said
        return result

    @rule(tenant=who, name=names, text=texts, since=moments, tells=st.booleans(), target=versions)
    def ingest(self, tenant: int, name: str, text: str, since: datetime | None, tells: bool) -> Any:
        canary = self.canaries[tenant]
        metadata = {"m": canary, **({"tenant_id": 1, "tenant": self.names[0], "_acl": ["*"]} if tells else {})}
        document = Document(name, f"T {canary}", f"{text} {canary}.", canary, metadata=metadata, valid_from=since)
        self.act(tenant, ingest_documents([document], store=self.store(tenant), embedder=self.embedder, collection="c"))
        if name not in self.erased[tenant]:
            self.documents[tenant].add(name)
        history = self.act(tenant, self.store(tenant).history("c", name))
        listed = self.act(tenant, self.store(tenant).list_documents("c", deleted=True)) or []
        ids = [line.document_id for line in listed if line.external_id == name]
        return tenant, (ids or [str(uuid.uuid4())])[0], name, len(history or [1])

    @rule(tenant=who, other=who, text=texts, mode=modes, as_of=moments, known_at=moments, filtered=st.booleans())
    def search(self, tenant: int, other: int, text: str, mode: Any, as_of: Any, known_at: Any, filtered: bool) -> None:
        """Also for the stranger's own word, and with it as a filter."""
        question = f"{text} {self.canaries[other]}"
        (vector,) = self.wait(self.embedder.embed([question]))
        known_at = known_at and datetime.now(UTC) - timedelta(seconds=known_at.year - 2023)
        where = {"m": self.canaries[other]} if filtered else None
        request = SearchRequest(
            question, vector, "c", tenant=self.names[tenant], mode=mode, as_of=as_of, known_at=known_at, where=where
        )
        found = self.act(tenant, self.store(other).search(request))  # whichever store it is: the request says for whom
        assert filtered <= (other == tenant or not found)

    @rule(tenant=who, version=versions)
    def cite(self, tenant: int, version: tuple[int, str, str, int]) -> None:
        """Looks up what a citation of anybody names."""
        owner, document_id, external_id, number = version
        text = self.act(tenant, self.store(tenant).version(document_id, number))
        assert text is None or owner == tenant
        span = Passage(1, document_id, external_id, number, "", "", (0, 500), 0, 0.0)
        assert owner == tenant or self.act(tenant, self.store(tenant).read_spans([span], self.names[tenant])) == []
        citation = Citation(1, document_id, external_id, number, 0, (0, 5), "Leave", "")
        self.act(tenant, self.store(tenant).mark_changes([citation], self.names[tenant]))

    @rule(tenant=who, name=names, number=st.integers(1, 3), as_of=moments)
    def read(self, tenant: int, name: str, number: int, as_of: Any) -> None:
        store = self.store(tenant)
        for work in (
            store.history("c", name),
            store.get_version_text("c", name, number=number),
            store.get_version_text("c", name, as_of=as_of),
            store.diff("c", name),
            store.list_documents("c", as_of=as_of),
            store.stats("c"),
            store.collections(),
        ):
            self.act(tenant, work)

    @rule(
        tenant=who,
        name=names,
        number=st.integers(1, 3),
        how=st.sampled_from(["delete", "erase", "retire", "withdraw", "restore"]),
    )
    def change(self, tenant: int, name: str, number: int, how: str) -> None:
        store = self.store(tenant)
        works = {
            "delete": lambda: store.delete("c", name),
            "erase": lambda: store.erase("c", name),
            "retire": lambda: store.retire("c", name),
            "withdraw": lambda: store.withdraw("c", name, number),
            "restore": lambda: store.restore("c", name, number),
        }
        before = self.act(tenant, store.list_documents("c", deleted=True)) or []
        self.act(tenant, works[how]())
        if how == "erase" and any(line.external_id == name for line in before):
            self.documents[tenant].discard(name)
            self.erased[tenant].add(name)

    @rule(tenant=who, target=answers)
    def answer(self, tenant: int) -> tuple[int, str]:
        query = Query(f"what is {self.canaries[tenant]}", tenant=self.names[tenant])
        plan = Plan("answer", "grounded", self.canaries[tenant])
        records = [
            intent_record(query, plan, [passage(1, self.canaries[tenant])]),
            outcome_record(query, "complete", self.canaries[tenant], Usage(), {}),
        ]

        async def write() -> None:
            async with Ledger.open(self.database) as ledger:
                await asyncio.gather(*(ledger.write(record) for record in records))

        self.act(tenant, write())
        return tenant, query.id

    @rule(tenant=who, answer=answers)
    def audit(self, tenant: int, answer: tuple[int, str]) -> None:
        owner, answer_id = answer
        shown = self.act(tenant, show_answer(self.database, answer_id, self.names[tenant]))
        assert (shown is not None) == (owner == tenant)
        listed = self.act(tenant, list_answers(self.database, self.names[tenant], 100))
        assert (answer_id in [one["id"] for one in listed]) == (owner == tenant)
        assert self.act(tenant, verify_ledger(self.database, self.names[tenant])) == []

    @rule(tenant=who)
    def promote(self, tenant: int) -> None:
        """An adapter of one name for all of them."""
        fields = ("path", "base", "prompt", "prompt_digest", "contract", "contract_digest")
        values = {
            **dict.fromkeys(fields, self.canaries[tenant]),
            "name": "style",
            "digest": self.canaries[tenant],
            "rank": 8,
        }

        async def insert() -> None:
            async with self.database.of(self.names[tenant]).transaction() as connection:
                row = {"tenant": self.names[tenant], "manifest": Json({"m": self.canaries[tenant]}), **values}
                await connection.execute(statement("insert-adapter"), row)

        self.act(tenant, insert())
        registry = Registry(self.database, Settings(tenant=self.names[tenant]))
        self.act(tenant, registry.promote("style", override="test"))
        assert [one.digest for one in self.act(tenant, registry.list())] == [self.canaries[tenant]]

    @rule(tenant=who)
    def key(self, tenant: int) -> None:
        key, _ = self.act(tenant, create_key(self.database, self.names[tenant], self.canaries[tenant]))
        assert self.wait(Keys(self.database).tenant_of(key)) == self.names[tenant]
        assert {one.note for one in self.act(tenant, list_keys(self.database, self.names[tenant]))} == {
            self.canaries[tenant]
        }

    @rule(text=texts)
    def search_together(self, text: str) -> None:
        """All three at once on one pool."""
        (vector,) = self.wait(self.embedder.embed([text]))

        async def together() -> list[Any]:
            requests = [SearchRequest(text, vector, "c", tenant=self.names[tenant]) for tenant in TENANTS * 3]
            works = (self.store(0).search(request) for request in requests)
            return await asyncio.gather(*works, return_exceptions=True)

        for tenant, found in zip(TENANTS * 3, self.wait(together()), strict=True):
            assert isinstance(found, list | UnknownNameError)
            assert not [canary for canary in self.canaries if canary != self.canaries[tenant] and canary in repr(found)]

    @rule()
    def crash(self) -> None:
        """Every connection dies; the next ones work for nobody until they are told."""
        with psycopg.connect(self.url, autocommit=True) as dba:
            dba.execute("select pg_terminate_backend(pid) from pg_stat_activity "
                        "where application_name = 'orchestrator' and datname = current_database()")  # fmt: skip
        assert self.wait(self.database.fetch("select 1 from documents")) == []

    @rule()
    def migrate(self) -> None:
        assert self.wait(migrate(self.database)) == []

    @invariant()
    def everybody_has_his_own(self) -> None:
        """Nothing is lost and nothing is put under somebody else: each has the documents that he brought."""
        for tenant in TENANTS:
            if self.documents[tenant] or self.erased[tenant]:
                listed = self.wait(self.store(tenant).list_documents("c", deleted=True))
                assert {line.external_id for line in listed} == self.documents[tenant]


def test_no_word_of_a_tenant_reaches_another(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            Tenants.logs.append(self.format(record))

    caplog.set_level(logging.DEBUG)
    handler = Lines(logging.DEBUG)
    logging.getLogger().addHandler(handler)
    Tenants.logs, Tenants.url = [], database_url
    try:
        with asyncio.Runner() as Tenants.runner:
            opened = Database.open(database_url, 3)
            Tenants.database = Tenants.runner.run(opened.__aenter__())
            try:
                run_state_machine_as_test(
                    Tenants,
                    settings=settings(
                        max_examples=max(STEPS // STEPS_OF_ONE, 1),
                        stateful_step_count=STEPS_OF_ONE,
                        deadline=None,
                        derandomize=STEPS < 1000,
                        suppress_health_check=list(HealthCheck),
                    ),
                )
            finally:
                Tenants.runner.run(opened.__aexit__(None, None, None))
    finally:
        logging.getLogger().removeHandler(handler)
    assert Tenants.steps >= STEPS // 2  # a rule does several things, or none as a tenant
    assert Tenants.found_own > STEPS / 10  # it does not pass because nothing is ever found
