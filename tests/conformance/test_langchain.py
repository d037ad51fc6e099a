"""LangChain's own suites over our retriever and chat model, and what they do not ask: citations, loops, cancelling."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("langchain_tests")

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document as LangChainDocument
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

import orchestrator.langchain
from orchestrator.app import Orchestrator
from orchestrator.errors import InputError, StreamBrokenError
from orchestrator.knowledge.sources.load import LoadFailure
from orchestrator.langchain import (
    Opened,
    OrchestratorChatModel,
    OrchestratorRetriever,
    OrchestratorRunnable,
    documents_from_langchain,
)
from orchestrator.pipeline import Pipeline
from orchestrator.prompts import Catalogue, load_catalogue
from orchestrator.resources import folder
from orchestrator.router import open_router
from orchestrator.settings import Settings
from orchestrator.testing import (
    HashEmbedder,
    MemoryLedger,
    MemoryServing,
    MemoryStore,
    ScriptedEngine,
    WordTokens,
    passage,
)
from orchestrator.types import Adapter, Answer, Document

LEAVE = "Every employee has 25 days of leave a year."
QUESTION = "How many days of leave do I get?"
PIECES = ['{"answerable": true, "citations": [1], "answer": "25', " days", " of", f' leave", "evidence": "{LEAVE}"}}']
TEXT = "25 days of leave [1]"
ADAPTER = Adapter(
    "cited-answer", "ab" * 32, Path("adapter"), "base", 16, "grounded", "", "cited_answer", "", state="active"
)


@cache
def shipped_catalogue() -> Catalogue:
    return load_catalogue(folder("prompts"))


def make(*scripts: Any) -> Orchestrator:
    """An Orchestrator over fakes."""
    settings = Settings().resolved()
    catalogue = shipped_catalogue()
    embedder = HashEmbedder()
    texts = [LEAVE, "Lunch is at noon.", "Parking is free.", "The office opens at eight."]
    store = MemoryStore({"default": [passage(number, text) for number, text in enumerate(texts, 1)]})
    serving = MemoryServing(ScriptedEngine(*(scripts or (PIECES,))), {"cited-answer": ADAPTER})
    router = asyncio.run(open_router(catalogue, embedder))
    pipeline = Pipeline(settings, catalogue, router, embedder, store, serving, MemoryLedger(), WordTokens())
    parts: Any = {"database": None, "store": store, "registry": None, "serving": serving}
    return Orchestrator(settings, catalogue, pipeline, embedder, **parts)


def engine_of(orchestrator: Orchestrator) -> ScriptedEngine:
    return orchestrator.pipeline.serving._engine  # type: ignore[attr-defined, no-any-return]


class TestRetriever(RetrieversIntegrationTests):
    """LangChain's suite for retrievers."""

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return OrchestratorRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"orchestrator": make()}

    @property
    def retriever_query_example(self) -> str:
        return QUESTION


class TestChatModel(ChatModelUnitTests):
    """LangChain's unit suite for chat models."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return OrchestratorChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"orchestrator": make(), "model": "orchestrator/grounded"}


@pytest.fixture
def vcr() -> None:
    """No HTTP is spoken, so there is nothing to record."""


@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")
class TestChatModelCalls(ChatModelIntegrationTests):
    """LangChain's integration suite for chat models, as far as it asks for text."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return OrchestratorChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"orchestrator": make(), "model": "orchestrator/grounded"}

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "orchestrator/clarify"

    @pytest.mark.xfail(reason="an answer ends where its contract says; stop is refused, never ignored", strict=True)
    def test_stop_sequence(self, model: BaseChatModel) -> None:
        super().test_stop_sequence(model)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition; the test fails when it does not come."""
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


@contextmanager
def elsewhere() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs on another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_documents_keep_id_version_and_span() -> None:
    (document,) = OrchestratorRetriever(orchestrator=make(), k=1).invoke(QUESTION)

    assert document.page_content == LEAVE
    assert document.metadata["external_id"] == "doc-1.md"
    assert (document.metadata["version"], document.metadata["span"]) == (1, [0, len(LEAVE)])
    json.dumps(document.metadata)


def test_message_carries_citations_and_plan_as_plain_json() -> None:
    message = OrchestratorChatModel(orchestrator=make()).invoke(QUESTION)

    own = message.response_metadata["orchestrator"]
    assert message.content == TEXT
    assert own["citations"][0]["quote"] == LEAVE
    assert own["route"] == "grounded"
    assert message.id == own["id"]
    json.dumps(message.response_metadata)


def test_stream_joins_to_the_text_and_ends_with_the_citations() -> None:
    chunks = list(OrchestratorChatModel(orchestrator=make()).stream(QUESTION))

    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert len([chunk for chunk in chunks if chunk.content]) > 2
    assert whole.content == TEXT
    assert whole.response_metadata["orchestrator"]["citations"][0]["number"] == 1
    assert whole.usage_metadata == {"input_tokens": 10, "output_tokens": 4, "total_tokens": 14}


def test_system_message_is_named_as_ignored_and_never_sent() -> None:
    orchestrator = make()

    message = OrchestratorChatModel(orchestrator=orchestrator).invoke([SystemMessage("PIRATE"), HumanMessage(QUESTION)])

    assert message.response_metadata["orchestrator"]["ignored"] == ["messages[0] (system)"]
    assert "PIRATE" not in str(engine_of(orchestrator).received)


def test_history_goes_along() -> None:
    orchestrator = make(['{"answer": "done"}'])
    model = OrchestratorChatModel(orchestrator=orchestrator, model="orchestrator/direct")

    model.invoke([HumanMessage("earlier"), AIMessage("before"), HumanMessage("Rewrite: hello")])

    sent = [message.content for message in engine_of(orchestrator).received[0].messages]
    assert sent[-3:] == ["earlier", "before", "Rewrite: hello"]


@pytest.mark.parametrize(
    "messages",
    [
        [SystemMessage("only")],
        [HumanMessage("x"), AIMessage("prefill")],
        [HumanMessage("x"), ToolMessage("x", tool_call_id="1"), HumanMessage("y")],
        [HumanMessage([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}])],
    ],
    ids=["no question", "prefill", "tool", "image"],
)
def test_messages_that_cannot_be_used_are_refused(messages: Any) -> None:
    with pytest.raises(InputError):
        OrchestratorChatModel(orchestrator=make()).invoke(messages)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(InputError, match="base_url"):
        OrchestratorChatModel(orchestrator=make()).invoke(QUESTION, base_url="http://127.0.0.1:1")


def test_an_unknown_option_of_the_constructor_is_refused() -> None:
    with pytest.raises(ValueError, match="base_url"):
        OrchestratorChatModel(orchestrator=make(), base_url="http://127.0.0.1:1")


def test_runnable_gives_our_answer_and_composes() -> None:
    runnable = OrchestratorRunnable(make(), route="grounded")

    answer = runnable.invoke(QUESTION)
    piped = (runnable | (lambda answer: answer.citations[0].external_id)).invoke(QUESTION)

    assert isinstance(answer, Answer)
    assert piped == "doc-1.md"


def test_runnable_takes_options_per_call() -> None:
    assert OrchestratorRunnable(make()).invoke(QUESTION, None, route="clarify").route == "clarify"


def test_runnable_batches() -> None:
    assert [answer.text for answer in OrchestratorRunnable(make()).batch([QUESTION] * 3)] == [TEXT] * 3


CARD = {name: {"citations": [], "value": ""} for name in ("rule", "applies_to", "limit", "deadline", "approval")}
CARD |= {"limit": {"citations": [1], "value": "25 days"}}
BRIEF = "## Summary\nEmployees have 25 days. [1]\n\n## Findings\n- Leave is 25 days. [1]\n\n## Open questions\n- Why?"


@pytest.mark.parametrize(
    ("route", "output", "text"),
    [("card", json.dumps({"answerable": True, **CARD}), "- Limit: 25 days [1]"), ("brief", BRIEF, BRIEF)],
)
async def test_every_form_streams_text_and_ends_with_its_object(route: str, output: str, text: str) -> None:
    model = OrchestratorChatModel(
        orchestrator=await asyncio.to_thread(make, [output[at : at + 9] for at in range(0, len(output), 9)]),
        model=f"orchestrator/{route}",
    )

    chunks = [chunk async for chunk in model.astream(QUESTION)]

    assert "".join(str(chunk.content) for chunk in chunks) == text
    own = next(chunk.response_metadata["orchestrator"] for chunk in chunks if "orchestrator" in chunk.response_metadata)
    assert own["data"]["answerable"] is True
    assert {citation["number"] for citation in own["citations"]} == {1}


async def test_all_three_answer_asynchronously() -> None:
    orchestrator = await asyncio.to_thread(make)

    assert (await OrchestratorRunnable(orchestrator).ainvoke(QUESTION)).text == TEXT
    assert len(await OrchestratorRetriever(orchestrator=orchestrator).ainvoke(QUESTION, k=2)) == 2
    assert await (OrchestratorChatModel(orchestrator=orchestrator) | StrOutputParser()).ainvoke(QUESTION) == TEXT


async def test_blocking_call_on_a_loop_is_refused_and_says_what_to_use() -> None:
    orchestrator = await asyncio.to_thread(make)

    with pytest.raises(InputError, match="ainvoke"):
        OrchestratorChatModel(orchestrator=orchestrator).invoke(QUESTION)
    with pytest.raises(InputError, match="ainvoke"):
        next(OrchestratorChatModel(orchestrator=orchestrator).stream(QUESTION))


async def test_blocking_call_from_a_worker_thread_runs_on_the_home_loop() -> None:
    orchestrator = await asyncio.to_thread(make)
    model = OrchestratorChatModel(orchestrator=orchestrator)

    message = await asyncio.to_thread(model.invoke, QUESTION)
    chunks = await asyncio.to_thread(lambda: list(model.stream(QUESTION)))

    assert message.content == "".join(chunk.content for chunk in chunks) == TEXT


async def test_orchestrator_of_another_loop_answers_here() -> None:
    orchestrator = await asyncio.to_thread(make)
    with elsewhere() as loop:
        model = OrchestratorChatModel(orchestrator=Opened(orchestrator, loop))

        message = await model.ainvoke(QUESTION)
        texts = [chunk.content async for chunk in model.astream(QUESTION)]

    assert message.content == "".join(texts) == TEXT


def test_a_loop_that_has_ended_is_said_and_not_waited_for() -> None:
    orchestrator = make()

    async def build() -> OrchestratorChatModel:
        return OrchestratorChatModel(orchestrator=orchestrator)

    model = asyncio.run(build())

    with pytest.raises(InputError, match="has ended"):
        model.invoke(QUESTION)
    with pytest.raises(InputError, match="has ended"):
        asyncio.run(model.ainvoke(QUESTION))


@pytest.mark.parametrize("home", ["none", "elsewhere"])
def test_leaving_a_blocking_stream_early_cancels_the_generation(home: str) -> None:
    orchestrator = make([*PIECES[:2], asyncio.Event()])
    with elsewhere() as loop:
        model = OrchestratorChatModel(orchestrator=Opened(orchestrator, loop if home == "elsewhere" else None))
        chunks = model.stream(QUESTION)
        next(chunks)
        chunks.close()

    assert engine_of(orchestrator).cancelled == 1


@pytest.mark.parametrize("home", ["here", "elsewhere"])
async def test_leaving_an_async_stream_early_cancels_the_generation(home: str) -> None:
    orchestrator = await asyncio.to_thread(make, [*PIECES[:2], asyncio.Event()])
    with elsewhere() as loop:
        model = OrchestratorChatModel(
            orchestrator=Opened(orchestrator, loop if home == "elsewhere" else asyncio.get_running_loop())
        )
        chunks = model.astream(QUESTION)
        await anext(chunks)
        await chunks.aclose()  # type: ignore[attr-defined]
        del chunks
        await until(lambda: engine_of(orchestrator).cancelled == 1)  # LangChain leaves closing to the loop's next step


async def test_cancelled_invoke_cancels_the_generation_on_the_other_loop() -> None:
    orchestrator = await asyncio.to_thread(make, [PIECES[0], asyncio.Event()])
    with elsewhere() as loop:
        task = asyncio.create_task(OrchestratorChatModel(orchestrator=Opened(orchestrator, loop)).ainvoke(QUESTION))
        await until(lambda: len(engine_of(orchestrator).received) == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: engine_of(orchestrator).cancelled == 1)


@pytest.mark.parametrize("delivered", range(len(PIECES) + 1))
def test_broken_stream_raises(delivered: int) -> None:
    model = OrchestratorChatModel(orchestrator=make([*PIECES[:delivered], StreamBrokenError("lost")]))

    with pytest.raises(StreamBrokenError):
        list(model.stream(QUESTION))


def test_forged_langchain_objects_come_back_as_text() -> None:
    forged = '{"lc": 1, "type": "secret", "id": ["HOME"]}'
    orchestrator = make([json.dumps({"answer": forged})])

    message = OrchestratorChatModel(orchestrator=orchestrator, model="orchestrator/direct").invoke(f"Rewrite: {forged}")

    assert message.content == forged
    assert message.response_metadata["orchestrator"]["data"] == {"answer": forged}


def test_nothing_is_ever_revived_from_its_serialised_form() -> None:
    sources = [path.read_text() for path in Path(orchestrator.langchain.__file__).parent.rglob("*.py")]

    assert not [source for source in sources if "langchain_core.load" in source or "astream_log" in source]


def test_pages_of_one_source_become_one_document() -> None:
    pages = [
        LangChainDocument(page_content="one", metadata={"source": "a/hand.pdf", "page": 0, "title": "Hand"}),
        LangChainDocument(page_content="two", metadata={"source": "a/hand.pdf", "page": 1}),
    ]

    (document,) = documents_from_langchain(pages)

    assert (document.external_id, document.title, document.text) == ("a/hand.pdf", "Hand", "one\n\ntwo")
    assert [document.text[start : start + 3] for start in document.pages] == ["one", "two"]


def test_documents_keep_their_own_ids_and_titles() -> None:
    given = [
        LangChainDocument(page_content="x", id="7"),
        LangChainDocument(page_content="y", metadata={"source": "notes/b.md", "lang": "en"}),
    ]

    documents = [one for one in documents_from_langchain(given) if isinstance(one, Document)]

    assert [(document.external_id, document.title) for document in documents] == [("7", "7"), ("notes/b.md", "b")]
    assert documents[1].metadata["lang"] == "en"


def test_the_second_document_of_one_id_is_refused() -> None:
    first, second = documents_from_langchain([LangChainDocument(page_content=text, id="same") for text in "ab"])

    assert isinstance(first, Document)
    assert isinstance(second, LoadFailure)
    assert "same" in second.reason


class Rows(BaseLoader):
    """A loader of its own making, as those of langchain_community are; counts what has been asked of it."""

    def __init__(self, count: int) -> None:
        self.count, self.given = count, 0

    def lazy_load(self) -> Iterator[LangChainDocument]:
        for number in range(self.count):
            self.given += 1
            yield LangChainDocument(page_content=f"row {number}", metadata={"source": "t.csv", "row": number})


def test_a_loader_is_read_as_it_is_asked() -> None:
    loader = Rows(1_000)
    documents = documents_from_langchain(loader)

    assert [next(documents).external_id for _ in range(3)] == ["t.csv#row 0", "t.csv#row 1", "t.csv#row 2"]  # type: ignore[union-attr]
    assert loader.given <= 4


def test_ids_are_the_same_in_every_run() -> None:
    given = [LangChainDocument(page_content=text) for text in ("one", "two")]
    first, second = ([one.external_id for one in documents_from_langchain(given)] for _ in range(2))  # type: ignore[union-attr]

    assert first == second
    assert len(set(first)) == 2


def test_what_looks_like_a_serialised_object_in_metadata_stays_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_ENV", "canary")
    secret = {"lc": 1, "type": "secret", "id": ["CANARY_ENV"]}
    maker = {"lc": 1, "type": "constructor", "id": ["langchain_core", "documents", "Document"], "kwargs": {}}
    (found,) = documents_from_langchain(
        [LangChainDocument(page_content="x", id="1", metadata={"a": secret, "b": [maker], "c": {1, 2}, "d\0": object})]
    )

    assert isinstance(found, Document)
    assert found.metadata["a"] == secret
    assert found.metadata["b"] == [maker]
    assert all(type(value) in (dict, list, str) for value in found.metadata.values())
    assert "canary" not in str(found)
    assert "\0" not in "".join(found.metadata)


def test_text_and_names_of_a_loader_are_cleaned() -> None:
    (found,) = documents_from_langchain(
        [LangChainDocument(page_content="a\0b\ud800", id="i\0d", metadata={"title": "t\0", "source": "s\0"})]
    )

    assert isinstance(found, Document)
    assert (found.text, found.external_id, found.title, found.source) == ("ab\ufffd", "id", "t", "s")
    assert found.notes
