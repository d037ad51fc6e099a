"""Every error that Orchestrator raises on purpose. A message says what went wrong and what to do next.

OrchestratorError
├── SettingsError              a setting is unknown, malformed or contradicts another
├── MissingExtraError          an optional package is not installed; names the extra
├── InputError                 the caller's input cannot be used (HTTP 400)
│   ├── OtherSpaceError        the vectors of a collection are of another embedder
│   ├── UnknownNameError       route, collection, document, adapter, contract, answer (HTTP 404)
│   ├── TooLargeError          over a stated limit (HTTP 413)
│   ├── ConflictError          an idempotency key that another request has (HTTP 409)
│   └── LoadError              a file cannot become a document
├── ContractError              a contract is not usable, or an answer breaks it
├── DatabaseError              PostgreSQL is down, full or refuses (HTTP 503)
│   ├── StorageFullError       no space left (HTTP 507)
│   └── MigrationError         an applied migration was edited, or one failed
├── EngineError                the model server failed (HTTP 502)
│   ├── EngineUnavailableError not reachable or not ready (HTTP 503)
│   ├── AdapterUnavailableError the adapter asked for is not served or not proven active (HTTP 503)
│   └── StreamBrokenError      the stream ended before it was complete
├── LedgerError                the record of an answer cannot be written, or does not verify (HTTP 503)
├── LaunchError                an embedded service did not start
└── TrainingError              training data or a training run cannot be used
"""

from __future__ import annotations


class OrchestratorError(Exception):
    """Base of all our errors. ``code`` is stable for programs; ``http_status`` is what the server answers."""

    code = "internal_error"
    http_status = 500
    retry_after_s: int | None = None

    def __init__(self, message: str, *, answer_id: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.answer_id = answer_id
        self.param = param


class SettingsError(OrchestratorError):
    """A setting is unknown, malformed or contradicts another."""

    code = "settings"


class MissingExtraError(OrchestratorError):
    """A package of an optional extra is needed and not installed."""

    code = "missing_extra"

    def __init__(self, extra: str, what: str) -> None:
        super().__init__(f"{what} needs the extra {extra!r}. Install it: pip install 'hybrid-orchestrator[{extra}]'")
        self.extra = extra


class InputError(OrchestratorError):
    """The caller's input cannot be used."""

    code = "invalid_request"
    http_status = 400


class OtherSpaceError(InputError):
    """The collection holds vectors of another embedder; ``space`` names it."""

    code = "other_space"

    def __init__(self, message: str, *, space: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.space = space


class UnknownNameError(InputError):
    """A route, collection, document, adapter, contract or answer of that name does not exist."""

    code = "not_found"
    http_status = 404


class TooLargeError(InputError):
    """The input is larger than a stated limit."""

    code = "too_large"
    http_status = 413


class ConflictError(InputError):
    """The request contradicts one that was accepted before: its idempotency key has another body."""

    code = "conflict"
    http_status = 409


class LoadError(InputError):
    """A file cannot become a document; the rest of the batch goes on."""

    code = "unreadable_document"


class ContractError(OrchestratorError):
    """A contract cannot be used, or an answer does not keep it."""

    code = "contract"


class DatabaseError(OrchestratorError):
    """PostgreSQL is down or refused the statement."""

    code = "database_unavailable"
    http_status = 503
    retry_after_s: int | None = 5


class StorageFullError(DatabaseError):
    """The database has no space left; what was acknowledged is kept, what was not is not."""

    code = "storage_full"
    http_status = 507


class MigrationError(DatabaseError):
    """A migration failed, or an applied one was edited."""

    code = "migration"
    retry_after_s = None


class EngineError(OrchestratorError):
    """The model server failed."""

    code = "engine_error"
    http_status = 502


class EngineUnavailableError(EngineError):
    """The model server cannot be reached or is not ready yet."""

    code = "engine_unavailable"
    http_status = 503
    retry_after_s = 10


class AdapterUnavailableError(EngineError):
    """The adapter asked for is not served, or is not proven to be active. The base never answers in its place."""

    code = "adapter_unavailable"
    http_status = 503
    retry_after_s = 30


class StreamBrokenError(EngineError):
    """The model's stream ended before it was complete; what arrived is kept as partial."""

    code = "stream_broken"


class LedgerError(OrchestratorError):
    """An answer's record cannot be written or does not verify; without a record there is no answer."""

    code = "ledger"
    http_status = 503
    retry_after_s = 5


class LaunchError(OrchestratorError):
    """An embedded service did not start."""

    code = "launch"


class TrainingError(OrchestratorError):
    """Training data or a training run cannot be used."""

    code = "training"
