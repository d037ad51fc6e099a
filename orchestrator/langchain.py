"""LangChain at the edge: retriever, chat model and runnable over an open Orchestrator, and a door for its documents."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from itertools import groupby
from pathlib import PurePath
from typing import Any, TypeVar

from orchestrator.errors import InputError, MissingExtraError
from orchestrator.settings import Settings
from orchestrator.types import Answer, Delta, Document, Event, Message, Passage, Query

try:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForLLMRun,
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForLLMRun,
        CallbackManagerForRetrieverRun,
    )
    from langchain_core.document_loaders import BaseLoader as LangChainLoader
    from langchain_core.documents import Document as LangChainDocument
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import Runnable, RunnableConfig
    from pydantic import ConfigDict, Field, PrivateAttr, model_validator
except ImportError as error:
    raise MissingExtraError("langchain", "orchestrator.langchain") from error

from orchestrator.api.schema import own_fields, resolve_model
from orchestrator.knowledge.sources.document import make_document
from orchestrator.knowledge.sources.frames import paged
from orchestrator.knowledge.sources.load import LoadFailure
from orchestrator.langchain_store import OrchestratorEmbeddings, OrchestratorVectorStore

__all__ = [
    "Opened",
    "OrchestratorChatModel",
    "OrchestratorEmbeddings",
    "OrchestratorRetriever",
    "OrchestratorRunnable",
    "OrchestratorVectorStore",
    "documents_from_langchain",
    "open_blocking",
]

T = TypeVar("T")
Moment = date | datetime | str | None
_END = object()


@dataclass(frozen=True, slots=True)
class Opened:
    """An open Orchestrator and the event loop it was opened on (None: any), reachable from every thread."""

    orchestrator: Any
    loop: asyncio.AbstractEventLoop | None = None

    def block(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of the work, for callers without a loop. Raises InputError on the loop itself."""
        with self._stepper(work) as step:
            result: T = step(work)
        return result

    async def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of the work, from any loop."""
        if self.loop is None or self.loop is asyncio.get_running_loop():
            return await work
        return await asyncio.wrap_future(_submit(work, self.loop))

    def iterate(self, query: Query) -> Iterator[Event]:
        """The events of an answer, for callers without a loop; leaving early cancels the generation."""
        with self._stepper() as step:
            relay = _Relay(self.orchestrator, query)
            try:
                while (event := step(relay.next())) is not _END:
                    yield event
            finally:
                step(relay.close())

    async def aiterate(self, query: Query) -> AsyncIterator[Event]:
        """The events of an answer, from any loop; leaving early cancels the generation."""
        if self.loop is None or self.loop is asyncio.get_running_loop():
            async with aclosing(self.orchestrator.stream(query)) as events:
                async for event in events:
                    yield event
            return
        relay = _Relay(self.orchestrator, query)
        try:
            while (event := await self.wait(relay.next())) is not _END:
                yield event
        finally:
            await self.wait(relay.close())

    @contextmanager
    def _stepper(self, *pending: Coroutine[Any, Any, Any]) -> Iterator[Any]:
        """A function that runs one coroutine after the other on the right loop and blocks for its result."""
        if _running_loop() is not None and self.loop in (None, _running_loop()):
            for work in pending:
                work.close()
            raise InputError("a blocking call would stop the event loop it runs on; use ainvoke or astream")
        loop = self.loop
        if loop is not None:
            yield lambda work: _submit(work, loop).result()
            return
        with asyncio.Runner() as runner:
            yield runner.run


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a reply says of its call: the model that was named, and what was given and is not used."""

    model: str
    ignored: tuple[str, ...]


class _Relay:
    """Events of one answer, made by one task (a generator must not change tasks), taken one at a time."""

    def __init__(self, orchestrator: Any, query: Query) -> None:
        self._orchestrator = orchestrator
        self._query = query
        self._queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=16)
        self._task: asyncio.Task[None] | None = None

    async def next(self) -> Any:
        """The next event, or the end. Raises what the answer raised."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        event = await self._queue.get()
        if event is _END:
            await self._task
        return event

    async def close(self) -> None:
        """Ends the answer if it still runs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            async with aclosing(self._orchestrator.stream(self._query)) as events:
                async for event in events:
                    await self._queue.put(event)
        finally:
            if not asyncio.current_task().cancelling():  # type: ignore[union-attr]
                await self._queue.put(_END)


@contextmanager
def open_blocking(settings: Settings | None = None, **overrides: Any) -> Iterator[Opened]:
    """An Orchestrator on a thread of its own, for programs without an event loop: pass it to the classes below."""
    from orchestrator.app import Orchestrator

    opened: Future[Opened] = Future()
    ended = threading.Event()

    async def hold() -> None:
        async with Orchestrator.open(settings, **overrides) as orchestrator:
            opened.set_result(Opened(orchestrator, asyncio.get_running_loop()))
            await asyncio.to_thread(ended.wait)

    def run() -> None:
        try:
            asyncio.run(hold())
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    thread = threading.Thread(target=run, name="orchestrator", daemon=True)
    thread.start()
    try:
        yield opened.result()
    finally:
        ended.set()
        thread.join()


class OrchestratorRetriever(BaseRetriever):
    """Passages as LangChain documents; id, version and character span are in their metadata."""

    model_config = ConfigDict(extra="forbid")
    orchestrator: Any = Field(exclude=True, repr=False)
    k: int = 10
    collection: str | None = None
    as_of: Moment = None
    known_at: Moment = None
    where: dict[str, Any] | None = None
    _opened: Opened = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Remembers the loop that the retriever was made on."""
        super().model_post_init(context)
        self._opened = _opened(self.orchestrator)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **options: Any
    ) -> list[LangChainDocument]:
        return self._opened.block(self._search(query, options))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[LangChainDocument]:
        return await self._opened.wait(self._search(query, options))

    async def _search(self, query: str, options: dict[str, Any]) -> list[LangChainDocument]:
        names = ("k", "collection", "as_of", "known_at", "where")
        wanted = {**{name: getattr(self, name) for name in names}, **options}
        passages = await self._opened.orchestrator.search(query, **wanted)
        return [_to_langchain(passage) for passage in passages]


class OrchestratorChatModel(BaseChatModel):
    """Answers as LangChain messages. ``response_metadata["orchestrator"]`` holds citations, passages, plan and flags.

    ``model`` reads as over HTTP: ``orchestrator``, ``orchestrator/<route>`` or an adapter. System messages are not
    obeyed (they are named under ``ignored``): a route's prompt belongs to its adapter.
    """

    model_config = ConfigDict(extra="forbid")
    orchestrator: Any = Field(exclude=True, repr=False)
    model: str = "orchestrator"
    collection: str | None = None
    as_of: Moment = None
    known_at: Moment = None
    where: dict[str, Any] | None = None
    k: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: list[str] | None = None
    _opened: Opened = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _drop_transport_options(cls, values: Any) -> Any:
        """LangChain hands these to every chat model; there is no transport here that they could be about."""
        unused = ("api_key", "max_retries", "streaming", "timeout")
        return {name: value for name, value in values.items() if name not in unused}

    def model_post_init(self, context: Any) -> None:
        """Remembers the loop that the model was made on."""
        super().model_post_init(context)
        self._opened = _opened(self.orchestrator)

    @property
    def _llm_type(self) -> str:
        return "orchestrator"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model, "collection": self.collection, "as_of": str(self.as_of), "k": self.k}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {**super()._get_ls_params(stop, **kwargs), "ls_provider": "orchestrator"}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        query, facts = self._query(messages, stop, kwargs)
        return _result(self._opened.block(self._opened.orchestrator.answer(query)), facts)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        query, facts = self._query(messages, stop, kwargs)
        return _result(await self._opened.wait(self._opened.orchestrator.answer(query)), facts)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        query, facts = self._query(messages, stop, kwargs)
        for event in self._opened.iterate(query):
            for chunk in _chunks(event, query.id, facts):
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        query, facts = self._query(messages, stop, kwargs)
        async with aclosing(self._opened.aiterate(query)) as events:  # type: ignore[type-var]
            async for event in events:
                for chunk in _chunks(event, query.id, facts):
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    def _query(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, options: dict[str, Any]
    ) -> tuple[Query, _Facts]:
        """The question with its options, and what the reply is to say of the call."""
        if stop or self.stop:
            raise InputError("stop is not supported: an answer ends where its contract says; cut its text yourself")
        names = ("collection", "as_of", "known_at", "where", "k", "temperature", "max_tokens", "seed")
        unknown = sorted(options.keys() - {*names, "model"})
        if unknown:
            raise InputError(f"unknown options {unknown}; known are {sorted((*names, 'model'))}")
        question, history, ignored = _read(messages)
        wanted = {name: options.get(name, getattr(self, name)) for name in names}
        orchestrator = self._opened.orchestrator
        model = str(options.get("model", self.model))
        route, adapter = resolve_model(model, orchestrator.catalogue)
        query: Query = orchestrator.query(question, history=history, route=route, adapter=adapter, **wanted)
        return query, _Facts(model, ignored)


class OrchestratorRunnable(Runnable[str, Answer]):
    """A question in, our own Answer out; options as of ``Orchestrator.ask``, fixed here or given per call."""

    def __init__(self, orchestrator: Any, **options: Any) -> None:
        self._opened = _opened(orchestrator)
        self._options = options

    def invoke(self, input: str, config: RunnableConfig | None = None, **options: Any) -> Answer:
        """The checked answer, for callers without an event loop."""
        return self._call_with_config(lambda question: self._opened.block(self._ask(question, options)), input, config)

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **options: Any) -> Answer:
        """The checked answer."""

        async def call(question: str) -> Answer:
            return await self._opened.wait(self._ask(question, options))

        return await self._acall_with_config(call, input, config)

    async def _ask(self, question: str, options: dict[str, Any]) -> Answer:
        answer: Answer = await self._opened.orchestrator.ask(question, **{**self._options, **options})
        return answer


def documents_from_langchain(source: LangChainLoader | Iterable[LangChainDocument]) -> Iterator[Document | LoadFailure]:
    """Our documents from a loader, or from documents, one by one as they come; nothing is read ahead.

    Neighbouring pages of one source become one document that knows its pages. One that cannot be used, or whose id came
    before, is a LoadFailure in its place; what the loader itself raises is raised.
    """
    parts = source.lazy_load() if isinstance(source, LangChainLoader) else source
    seen: set[int] = set()  # hashes of ids
    for external_id, group in groupby(parts, _external_id):
        pages: list[LangChainDocument] = []
        for part in group:
            if pages and "page" not in part.metadata:  # another document, not another page of it
                yield _checked(external_id, pages, seen)
                pages = []
            pages.append(part)
        yield _checked(external_id, pages, seen)


def _checked(external_id: str, parts: Sequence[LangChainDocument], seen: set[int]) -> Document | LoadFailure:
    if hash(external_id) in seen:
        return LoadFailure(external_id, f"two documents have the id {external_id!r}; set metadata['id']")
    seen.add(hash(external_id))
    try:
        return _to_ours(external_id, parts)
    except InputError as error:
        return LoadFailure(external_id, error.message)


def _to_ours(external_id: str, parts: Sequence[LangChainDocument]) -> Document:
    """One document. Metadata are plain data, whatever they look like: nothing in them is ever brought to life (A15)."""
    values = {name: value for name, value in parts[0].metadata.items() if name not in ("page", "page_label")}
    source = str(values.get("source") or external_id)
    text = paged([part.page_content for part in parts])
    return make_document(
        values,
        external_id=external_id,
        title=PurePath(source).stem or external_id,
        text=text.text,
        source=source,
        media_type="text/plain",
        pages=text.pages if "page" in parts[0].metadata else (),
        notes=text.notes,
    )


def _external_id(document: LangChainDocument) -> str:
    """Stable from run to run: what the loader says it is, where it came from, or else what it holds."""
    metadata = document.metadata
    given = metadata.get("id") or document.id or metadata.get("source")
    if given and given == metadata.get("source"):  # loaders of tables and lists give every row the source of all
        given = next((f"{given}#{name} {metadata[name]}" for name in ("row", "seq_num") if name in metadata), given)
    return str(given or hashlib.sha256(document.page_content.encode("utf-8", "replace")).hexdigest()[:16])


def _to_langchain(passage: Passage) -> LangChainDocument:
    return LangChainDocument(
        id=f"{passage.document_id}/{passage.version}/{passage.chunk_id}",
        page_content=passage.text,
        metadata={
            "document_id": passage.document_id,
            "external_id": passage.external_id,
            "version": passage.version,
            "chunk_id": passage.chunk_id,
            "title": passage.title,
            "source": passage.source,
            "span": list(passage.span),
            "paragraph": passage.paragraph,
            "page": passage.page,
            "heading_path": list(passage.heading_path),
            "score": passage.score,
            "scores": dict(passage.scores),
        },
    )


def _read(messages: Sequence[BaseMessage]) -> tuple[str, tuple[Message, ...], tuple[str, ...]]:
    turns: list[Message] = []
    ignored: list[str] = []
    for index, message in enumerate(messages):
        if message.type == "system":
            ignored.append(f"messages[{index}] (system)")
        elif message.type in ("human", "HumanMessageChunk"):
            turns.append(Message("user", _text(message)))
        elif message.type in ("ai", "AIMessageChunk") and not getattr(message, "tool_calls", None):
            turns.append(Message("assistant", _text(message)))
        else:
            raise InputError(
                f"messages[{index}]: a message of type {message.type!r} is not read; tools are not supported"
            )
    if not turns or turns[-1].role != "user":
        raise InputError("the last message must be the human's: it is the question")
    return turns[-1].content, tuple(turns[:-1]), tuple(ignored)


def _text(message: BaseMessage) -> str:
    parts = [message.content] if isinstance(message.content, str) else message.content
    texts = [part if isinstance(part, str) else part.get("text") for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise InputError("only text is read; leave images and files out")
    return "\n".join(str(text) for text in texts)


def _result(answer: Answer, facts: _Facts) -> ChatResult:
    message = AIMessage(
        content=answer.text, id=answer.id, usage_metadata=_usage(answer), response_metadata=_metadata(answer, facts)
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def _chunks(event: Event, answer_id: str, facts: _Facts) -> Iterator[ChatGenerationChunk]:
    if isinstance(event, Delta):
        yield ChatGenerationChunk(message=AIMessageChunk(content=event.text, id=answer_id))
    elif isinstance(event, Answer):
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                id=answer_id,
                usage_metadata=_usage(event),
                response_metadata=_metadata(event, facts),
                chunk_position="last",
            )
        )


def _usage(answer: Answer) -> UsageMetadata:
    given, made = answer.usage.prompt_tokens, answer.usage.completion_tokens
    return UsageMetadata(input_tokens=given, output_tokens=made, total_tokens=given + made)


def _metadata(answer: Answer, facts: _Facts) -> dict[str, Any]:
    return {
        "model_name": facts.model,
        "model_provider": "orchestrator",
        "finish_reason": answer.finish_reason,
        "orchestrator": own_fields(answer, facts.ignored),
    }


def _opened(orchestrator: Any) -> Opened:
    return orchestrator if isinstance(orchestrator, Opened) else Opened(orchestrator, _running_loop())


def _submit(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> Future[T]:
    if not loop.is_running():  # its queue is read by nobody: waiting for it would never end
        work.close()
        raise InputError("the event loop that the Orchestrator was opened on has ended; open it with open_blocking()")
    return asyncio.run_coroutine_threadsafe(work, loop)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
