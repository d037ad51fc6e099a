"""The shapes of the HTTP surface: a request's bytes become our values, our values become a response's JSON. Pure."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self
from urllib.parse import quote

import orjson

from orchestrator.errors import InputError, OrchestratorError, UnknownNameError
from orchestrator.feedback import Feedback
from orchestrator.knowledge.records import VersionText
from orchestrator.ledger import plan_fields
from orchestrator.prompts import Catalogue
from orchestrator.settings import Settings
from orchestrator.types import Answer, Citation, Event, Message, Passage, Query, Usage, end_of

ROUTED = "orchestrator"
MAX_EMBEDDING_INPUTS = 256
MAX_K = 50
MAX_LIMIT = 1e12
Json = dict[str, Any]

# OpenAI's parameters that we do not have, with the values that mean "as if it were not there"; null is always one.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "service_tier": ("auto", "default"),
    "stop": ([],),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "top_p": (1,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_CHAT_KEYS = frozenset(
    {
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "model",
        "orchestrator",
        "response_format",
        "safety_identifier",
        "seed",
        "stream",
        "stream_options",
        "temperature",
        "user",
    }
)
_MESSAGE_KEYS = frozenset({"annotations", "audio", "content", "function_call", "name", "refusal", "role", "tool_calls"})
_OWN_KEYS = frozenset(
    {"as_of", "collection", "deadline_ms", "k", "known_at", "max_cost", "min_quality", "route", "where"}
)
_EMBEDDING_KEYS = frozenset({"dimensions", "encoding_format", "input", "model", "user"})
# A retry brings the same error: the official client is told so, else it would try each 5xx twice more (row F2).
_FINAL_CODES = frozenset(
    {"contract", "internal_error", "launch", "migration", "missing_extra", "settings", "storage_full"}
)


class TenantKeys(Protocol):
    """Finds the tenant of a key; ``orchestrator.tenants.Keys`` is the real one."""

    async def tenant_of(self, key: str) -> str | None:
        """The tenant's name; None when it is no key of anybody. Raises DatabaseError."""
        ...

    async def are_issued(self) -> bool:
        """Whether any tenant ever got a key: then nobody is let in without one. Raises DatabaseError."""
        ...


class Service(Protocol):
    """What the server asks of an open Orchestrator."""

    def of(self, tenant: str) -> Self:
        """The same for another tenant."""
        ...

    @property
    def keys(self) -> TenantKeys | None:
        """Keys that tenants have beside those of the settings."""
        ...

    @property
    def settings(self) -> Settings:
        """Limits, keys and the tenant."""
        ...

    @property
    def catalogue(self) -> Catalogue:
        """The routes that a model's name may pin."""
        ...

    @property
    def embedding_model(self) -> str:
        """Name of the embedding space."""
        ...

    def stream(self, query: Query, /) -> AsyncGenerator[Event]:
        """The plan, the answer's text as it comes, and the checked Answer once it is recorded."""
        ...

    async def answer(self, query: Query) -> Answer:
        """The checked answer."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text."""
        ...

    async def feedback(
        self, answer_id: str, verdict: str, *, fix: Mapping[str, Any] | str | None = None, note: str = ""
    ) -> Feedback:
        """What a person said of an answer, recorded. Raises UnknownNameError, InputError."""
        ...

    async def document_version(self, document_id: str, number: int) -> VersionText:
        """The stored text that a citation points into. Raises UnknownNameError."""
        ...

    async def model_names(self) -> list[str]:
        """What a client may name as model."""
        ...

    async def readiness(self) -> list[str]:
        """Why a question could not be answered now; empty when it could."""
        ...


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One call of ``/v1/chat/completions``. ``ignored`` names what was accepted and not used, for the caller to see."""

    query: Query
    model: str
    stream: bool = False
    include_usage: bool = False
    as_json: bool = False
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """One call of ``/v1/embeddings``."""

    texts: tuple[str, ...]
    model: str
    as_base64: bool
    dimensions: int | None


def parse_json(raw: bytes) -> Json:
    """The object in a body. Raises InputError for anything else: NaN, half a surrogate, 1,025 levels (row A8)."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InputError(f"the body is not JSON: {error}; send one JSON object in UTF-8") from error
    if not isinstance(body, dict):
        raise InputError("the body must be one JSON object")
    return body


def resolve_model(name: str, catalogue: Catalogue) -> tuple[str | None, str | None]:
    """Route and adapter that a model's name pins. Raises UnknownNameError."""
    if name == ROUTED:
        return None, None
    prefix, _, route = name.partition("/")
    if prefix == ROUTED and route in catalogue.routes:
        return route, None
    for candidate in catalogue.routes.values():
        if name and candidate.adapter == name:
            return candidate.name, name
    raise _no_model(name, "GET /v1/models lists what there is")


def parse_chat(body: Json, catalogue: Catalogue, tenant: str) -> ChatRequest:
    """The request in a body. Raises InputError that names the parameter, UnknownNameError for the model."""
    for key in body.keys() - _CHAT_KEYS:
        _refuse_unless_harmless(key, body[key])
    model = _text(body, "model") or ""
    route, adapter = resolve_model(model, catalogue)
    own = _object(body, "orchestrator")
    _refuse_unknown(own, _OWN_KEYS, "orchestrator.")
    if route and own.get("route") not in (None, route):
        raise InputError(f"the model pins route {route!r}; leave orchestrator.route out", param="orchestrator.route")
    question, history, ignored = _parse_messages(body.get("messages"))
    deepest = max((route.history_turns for route in catalogue.routes.values()), default=0)
    query = Query(
        text=question,
        history=history[-deepest:] if deepest else (),
        route=route or _name(own, "route"),
        collection=_name(own, "collection"),
        adapter=adapter,
        as_of=_moment(own, "as_of"),
        known_at=_moment(own, "known_at"),
        where=_object(own, "where", "orchestrator.") or None,
        k=_integer(own, "k", 1, MAX_K, "orchestrator."),
        max_tokens=_integer(body, "max_completion_tokens", 1) or _integer(body, "max_tokens", 1),
        temperature=_number(body, "temperature", 0, 2),
        seed=_integer(body, "seed", -(2**63)),
        tenant=tenant,
        max_cost=_number(own, "max_cost", 0, MAX_LIMIT, "orchestrator."),
        min_quality=_number(own, "min_quality", 0, 1, "orchestrator."),
        deadline_ms=_number(own, "deadline_ms", 0, MAX_LIMIT, "orchestrator."),
        user=_text(body, "user") or _text(body, "safety_identifier") or (history[0].content if history else question),
    )
    _check_labels(body)
    options = _object(body, "stream_options")
    _refuse_unknown(options, {"include_usage", "include_obfuscation"}, "stream_options.")
    return ChatRequest(
        query=query,
        model=model,
        stream=_boolean(body, "stream"),
        include_usage=_boolean(options, "include_usage"),
        as_json=_wants_json(body),
        ignored=ignored,
    )


def parse_embedding(body: Json, model: str, max_chars: int) -> EmbeddingRequest:
    """The request in a body. Raises InputError, and UnknownNameError when another model is named."""
    _refuse_unknown(body, _EMBEDDING_KEYS)
    named = _text(body, "model") or ""
    if named != model:
        raise _no_model(named, f"the embedding model is {model!r}")
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise InputError(
            "input must be a text, or a list of texts, none of them empty; tokens are not taken", param="input"
        )
    if len(texts) > MAX_EMBEDDING_INPUTS:
        raise InputError(f"at most {MAX_EMBEDDING_INPUTS} texts a call, not {len(texts)}", param="input")
    if any(len(text) > max_chars for text in texts):
        raise InputError(
            f"a text may have {max_chars} characters; raise ORCHESTRATOR_MAX_QUESTION_CHARS", param="input"
        )
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise InputError("encoding_format must be float or base64", param="encoding_format")
    return EmbeddingRequest(tuple(texts), model, encoding == "base64", _integer(body, "dimensions", 1))


def completion_body(answer: Answer, request: ChatRequest, created: int, base_url: str) -> Json:
    """``chat.completion`` for an answer; what OpenAI has no place for is under ``orchestrator``."""
    content = answer_content(answer, request)
    message = {
        "role": "assistant",
        "content": content,
        "refusal": None,
        "annotations": url_citations(answer, content, base_url),
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(answer)}
    return {
        "id": answer.id,
        "object": "chat.completion",
        "created": created,
        "model": request.model,
        "choices": [choice],
        "usage": usage_fields(answer.usage),
        "orchestrator": own_fields(answer, request.ignored),
    }


def chunk_body(request: ChatRequest, created: int, delta: Json | None, finish: str | None = None) -> Json:
    """``chat.completion.chunk``; without a delta it is the chunk that carries the usage only."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    body: Json = {
        "id": request.query.id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": request.model,
        "choices": choices,
    }
    return {**body, "usage": None} if request.include_usage else body


def answer_content(answer: Answer, request: ChatRequest) -> str:
    """What the message says: the answer's text, or the contract's object when JSON was asked for."""
    if not request.as_json:
        return answer.text
    return orjson.dumps({"reply": answer.text} if answer.data is None else dict(answer.data)).decode()


def url_citations(answer: Answer, content: str, base_url: str) -> list[Json]:
    """One ``url_citation`` per citation: a link to document, version and span, and the place of its ``[n]``."""
    places = marker_places(content, answer.citations)
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "url": citation_url(base_url, citation),
                "title": citation.title,
                "start_index": start,
                "end_index": end,
            },
        }
        for citation, (start, end) in zip(answer.citations, places, strict=True)
    ]


def marker_places(content: str, citations: Sequence[Citation]) -> list[tuple[int, int]]:
    """Where each ``[n]`` stands, found from the end, so that a ``[1]`` of the answer's own text is never taken for one.

    A citation without a marker (the content is JSON) rests under the whole content. ``content[start:end] == "[n]"``.
    """
    places: list[tuple[int, int]] = []
    limit = len(content)
    for citation in reversed(citations):
        marker = f"[{citation.number}]"
        start = content.rfind(marker, 0, limit)
        places.append((start, start + len(marker)) if start >= 0 else (0, len(content)))
        limit = start if start >= 0 else limit
    return places[::-1]


def citation_url(base_url: str, citation: Citation) -> str:
    """Names document, version and character span (RFC 5147) under our own base, never under a Host header."""
    document, (start, end) = quote(citation.document_id, safe=""), citation.span
    return f"{base_url}/v1/documents/{document}/versions/{citation.version}#char={start},{end}"


def own_fields(answer: Answer, ignored: Sequence[str] = ()) -> Json:
    """What came about and why: the one key that is ours."""
    return {
        "id": answer.id,
        "route": answer.route,
        "plan": plan_fields(answer.plan),
        "data": None if answer.data is None else dict(answer.data),
        "citations": [asdict(citation) for citation in answer.citations],
        "passages": [_passage_fields(number, passage) for number, passage in enumerate(answer.passages, 1)],
        "flags": list(answer.flags),
        "sufficiency": answer.sufficiency,
        "degraded": answer.degraded,
        "adapter": answer.adapter,
        "model": answer.model,
        "ignored": list(ignored),
        "timings_ms": dict(answer.timings_ms),
    }


def usage_fields(usage: Usage) -> Json:
    """Tokens as the engine counted them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def finish_reason(answer: Answer) -> str:
    """``stop`` only when the engine said so; whatever else ended the answer reads as ``length`` (row F6)."""
    return "stop" if answer.finish_reason == "stop" else "length"


def models_body(names: Sequence[str], created: int) -> Json:
    """The list of models."""
    return {"object": "list", "data": [model_body(name, created) for name in names]}


def model_body(name: str, created: int) -> Json:
    """One model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "orchestrator"}


def embeddings_body(request: EmbeddingRequest, vectors: Sequence[Sequence[float]]) -> Json:
    """The vectors; base64 holds little-endian float32. Tokens are not counted here: usage says 0."""
    if request.dimensions not in (None, len(vectors[0])):
        raise InputError(f"vectors of {request.model} have {len(vectors[0])} dimensions", param="dimensions")
    data = [
        {"object": "embedding", "index": index, "embedding": _encode(vector) if request.as_base64 else list(vector)}
        for index, vector in enumerate(vectors)
    ]
    return {
        "object": "list",
        "data": data,
        "model": request.model,
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }


def error_body(error: OrchestratorError) -> Json:
    """An error in OpenAI's shape, with the answer's id when there is one."""
    kind = "invalid_request_error" if error.http_status < 500 else "server_error"
    fields: Json = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    if error.answer_id:
        fields["orchestrator"] = {"answer_id": error.answer_id}
    return {"error": fields}


def error_headers(error: OrchestratorError) -> dict[str, str]:
    """When to come back, or that it is no use (row F2)."""
    headers = {"x-request-id": error.answer_id} if error.answer_id else {}
    if error.retry_after_s is not None:
        return {**headers, "retry-after": str(error.retry_after_s)}
    if error.http_status < 500 or error.code in _FINAL_CODES:
        return {**headers, "x-should-retry": "false"}
    return headers


def _no_model(name: str, hint: str) -> UnknownNameError:
    error = UnknownNameError(f"The model {_short(name)!r} does not exist: {hint}", param="model")
    error.code = "model_not_found"
    return error


def _parse_messages(messages: Any) -> tuple[str, tuple[Message, ...], tuple[str, ...]]:
    """The question, the turns before it, and what was not used.

    The caller's system messages are not obeyed: a route's prompt belongs to its adapter, byte for byte, and one
    caller must not rewrite it. They are named in ``ignored``.
    """
    if not isinstance(messages, list) or not messages:
        raise InputError("messages must be a list with at least one message", param="messages")
    turns: list[Message] = []
    ignored: list[str] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InputError(f"{where} must be an object", param=where)
        for key in message.keys() - _MESSAGE_KEYS:
            if message[key] is not None:
                raise InputError(f"{where} has an unknown key {_short(key)!r}", param=where)
        role = message.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise InputError(f"{where}.role must be system, developer, user or assistant", param=f"{where}.role")
        if message.get("tool_calls") or message.get("function_call") or message.get("audio"):
            raise InputError(f"{where}: tools and audio are not supported", param=where)
        text = _content(message.get("content"), where)
        if role in ("system", "developer"):
            ignored.append(f"{where} ({role})")
        else:
            turns.append(Message(role, text))
    if not turns or turns[-1].role != "user":
        raise InputError("the last message must be the user's: it is the question", param="messages")
    return turns[-1].content, tuple(turns[:-1]), tuple(ignored)


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise InputError(f"{where}.content must be a text or a list of text parts", param=f"{where}.content")
    texts: list[str] = []
    for index, part in enumerate(content):
        place = f"{where}.content[{index}]"
        if not isinstance(part, dict) or part.keys() != {"type", "text"} or part["type"] != "text":
            raise InputError(
                f'{place} must be {{"type": "text", "text": ...}}; images and files are not read', param=place
            )
        if not isinstance(part["text"], str):
            raise InputError(f"{place}.text must be a text", param=f"{place}.text")
        texts.append(part["text"])
    return "\n".join(texts)


def _wants_json(body: Json) -> bool:
    wanted = _object(body, "response_format")
    kind = wanted.get("type", "text")
    if kind == "text" and wanted.keys() <= {"type"}:
        return False
    if kind == "json_object" and wanted.keys() <= {"type"}:
        return True
    raise InputError(
        "response_format must be text or json_object: the schema is the contract of the route, "
        "and json_object gives its object",
        param="response_format",
    )


def _check_labels(body: Json) -> None:
    """What a caller may attach for himself: it is neither kept nor sent on."""
    for key in ("user", "safety_identifier"):
        _text(body, key)
    metadata = _object(body, "metadata")
    if len(metadata) > 16 or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError("metadata must hold at most 16 texts", param="metadata")


def _refuse_unless_harmless(key: str, value: Any) -> None:
    if key not in _HARMLESS:
        raise InputError(f"unknown parameter {_short(key)!r}", param=_short(key))
    neutral = _HARMLESS[key]
    if value is not None and not any(_is_same(value, allowed) for allowed in neutral):
        allowed = " or ".join(orjson.dumps(one).decode() for one in (*neutral, None))
        raise InputError(f"{key} is not supported here: leave it out, or send {allowed}", param=key)


def _is_same(value: Any, allowed: Any) -> bool:
    return isinstance(value, bool) == isinstance(allowed, bool) and bool(value == allowed)


def _refuse_unknown(body: Json, known: frozenset[str] | set[str], prefix: str = "") -> None:
    for key in body.keys() - known:
        raise InputError(f"unknown parameter {prefix + _short(key)!r}", param=prefix + _short(key))


def _object(body: Json, key: str, prefix: str = "") -> Json:
    value = body.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{prefix}{key} must be an object", param=prefix + key)
    return value


def _text(body: Json, key: str) -> str | None:
    value = body.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{key} must be a text", param=key)
    return value


def _name(own: Json, key: str) -> str | None:
    value = _text(own, key)
    if value is not None and (not value or len(value) > 200 or not value.isprintable()):
        raise InputError(
            f"orchestrator.{key} must be a name of 1 to 200 printable characters", param=f"orchestrator.{key}"
        )
    return value


def _boolean(body: Json, key: str) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"{key} must be true or false", param=key)
    return bool(value)


def _integer(body: Json, key: str, low: int, high: int = 2**63 - 1, prefix: str = "") -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{prefix}{key} must be an integer from {low} to {high}", param=prefix + key)
    return value


def _number(body: Json, key: str, low: float, high: float, prefix: str = "") -> float | None:
    value = body.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{prefix}{key} must be a number from {low:g} to {high:g}", param=prefix + key)
    return float(value)


def _moment(own: Json, key: str) -> Any:
    value, name = own.get(key), f"orchestrator.{key}"
    if value is not None and not isinstance(value, str):
        raise InputError(f"{name} must be an ISO date or time", param=name)
    try:
        return end_of(value)
    except ValueError as error:
        raise InputError(f"{name} must be an ISO date or time, such as 2025-03-01", param=name) from error


def _passage_fields(number: int, passage: Passage) -> Json:
    return {
        "number": number,
        "document_id": passage.document_id,
        "external_id": passage.external_id,
        "version": passage.version,
        "span": passage.span,
        "score": passage.score,
        "title": passage.title,
    }


def _encode(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
