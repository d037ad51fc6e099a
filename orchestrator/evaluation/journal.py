"""The record of what improvements were tried and made, with the way back: a change survives a crash at any moment.

A change is written down before it is made (``intent``) and after (``kept``). Whoever finds an intent without an end, finishes it
or takes it back: a setting is exchanged only from the value that the record names, so both can be repeated.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from orchestrator.behaviour.audit import Entry, config_digest, find_actor, note, read_audit
from orchestrator.database import Database, Json, statement
from orchestrator.errors import InputError, UnknownNameError
from orchestrator.evaluation.improve import Try
from orchestrator.evaluation.tune import Setting
from orchestrator.failpoints import failpoint
from orchestrator.settings import Settings
from orchestrator.types import new_id

MOST = 10_000  # rows of the record that are read


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of what is kept, with the way back. ``before``, ``after``: a collection's weights, or the whole text of a file."""

    kind: Literal["collection", "file"]
    target: str
    before: Any
    after: Any

    @property
    def shown(self) -> str:
        """For a person: a diff of the file, or the weights before and after."""
        if self.kind == "file":
            lines = difflib.unified_diff(
                self.before.splitlines(), self.after.splitlines(), self.target, self.target, lineterm="", n=1
            )
            return "\n".join(lines)
        was, then = (Setting(each["dense"], each["second"]) for each in (self.before, self.after))
        return f"collection {self.target}: {was} -> {then}"


class Journal:
    """The record of what was tried and changed in one collection, and who did it: rows of the append-only audit."""

    def __init__(self, database: Database, settings: Settings, collection: str) -> None:
        self._database = database.of(settings.tenant)
        self._settings = settings
        self._name = f"improve:{collection}"
        self.collection = collection

    async def rows(self) -> list[Entry]:
        """The latest rows, newest first."""
        return await read_audit(self._database, self._settings.tenant, self._name, MOST)

    async def pending(self) -> Entry | None:
        """The change that was begun and neither finished nor taken back."""
        return _pending(await self.rows())

    async def put(self, action: str, id: str, details: Mapping[str, Any]) -> None:
        """Adds a row. An intent is refused while there is another that has no end."""
        actor = await find_actor(self._database, self._settings)
        async with self._database.transaction() as connection:
            names = {"tenant": self._settings.tenant, "name": self._name}
            await connection.execute(statement("lock-adapters"), names)
            if action == "intent":
                found = await connection.execute(statement("list-behaviour-audit"), names | {"limit": MOST})
                if (left := _pending([Entry(*row) for row in await found.fetchall()])) is not None:
                    raise unfinished(left)
            await note(
                connection, **names, actor=actor.name, action=f"improve {action}", digest=id,
                config=config_digest(self._settings), details=dict(details),
            )  # fmt: skip

    async def make(self, tried: Try, edit: Edit) -> str:
        """Records that the change is to be made, makes it, and records that it was. Gives its id."""
        id = new_id("imp")
        await self.put("intent", id, tried.record() | {"edit": asdict(edit)})
        failpoint("improve-intent")
        await self._exchange(edit, back=False)
        failpoint("improve-applied")
        await self.put("kept", id, {})
        failpoint("improve-kept")
        return id

    async def resume(self) -> Entry:
        """Finishes the change that has no end. Raises UnknownNameError when there is none, InputError as ``revert``."""
        left = await self.pending()
        if left is None:
            raise UnknownNameError(f"no change of {self.collection!r} waits to be finished", param="resume")
        await self._exchange(Edit(**left.details["edit"]), back=False)
        await self.put("kept", left.digest, {})
        return left

    async def revert(self, id: str | None = None) -> Entry:
        """Takes the change of that id back, or the latest one.

        Raises UnknownNameError, and InputError when somebody changed the same setting since.
        """
        rows = await self.rows()
        gone = {row.digest for row in rows if row.action == "improve reverted"}
        made = [row for row in rows if row.action == "improve intent" and row.digest not in gone]
        found = next((row for row in made if id in (None, row.digest)), None)
        if found is None:
            what = f"no change {id!r}" if id else "no change"
            raise UnknownNameError(f"{what} of {self.collection!r} can be taken back", param="revert")
        await self._exchange(Edit(**found.details["edit"]), back=True)
        failpoint("improve-undone")
        await self.put("reverted", found.digest, {})
        return found

    async def _exchange(self, edit: Edit, *, back: bool) -> None:
        """Puts one value in place of the other. Done already is done; another value than the two is not overruled."""
        was, then = (edit.after, edit.before) if back else (edit.before, edit.after)
        if edit.kind == "file":
            _exchange_file(Path(edit.target), was, then)
            return
        if await self.weights(edit.target) == then:
            return
        values = {
            "name": edit.target,
            **_columns(then),
            **{f"was_{name}": each for name, each in _columns(was).items()},
        }
        async with self._database.transaction() as connection:
            done = await (await connection.execute(statement("exchange-learned-weights"), values)).fetchone()
        if done is None:
            raise InputError(
                f"the weights of {edit.target!r} are neither those before the change nor those after it: somebody set them "
                "since. `orchestrator eval tune SET --reset` goes back to the default",
                param="collection",
            )

    async def weights(self, collection: str) -> dict[str, Any]:
        """The weights of a collection with what taught them. Raises UnknownNameError."""
        row = await self._database.fetch_one(statement("searched-with"), name=collection)
        if row is None:
            raise UnknownNameError(f"there is no collection {collection!r}", param="collection")
        return {"dense": row.dense_weight, "second": row.rerank_weight, "learned": row.learned}


def keep_copy(file: Path, text: str) -> Path:
    """Keeps a file's content beside it under the time of day, so that its owner finds it without us."""
    copy = file.with_name(f"{file.name}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}.bak")
    _write(copy, text)
    return copy


def _exchange_file(file: Path, was: str, then: str) -> None:
    try:
        found = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}", param="routes.toml") from error
    if found == then:
        return
    if found != was:
        raise InputError(
            f"{file} is neither what it was before the change nor what it was made: somebody edited it since. "
            "Edit it by hand; a copy from before lies beside it (.bak)",
            param="routes.toml",
        )
    _write(file, then)


def _write(file: Path, text: str) -> None:
    """The whole text or nothing: a reader never sees a half."""
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as made:
            made.write(text.encode())
            made.flush()
            os.fsync(made.fileno())
        if file.exists():
            os.chmod(made.name, file.stat().st_mode & 0o777)
        os.replace(made.name, file)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error}", param="routes.toml") from error


def _columns(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {**weights, "learned": Json(weights["learned"])}


def _pending(rows: Sequence[Entry]) -> Entry | None:
    """Of rows with the newest first."""
    ended: set[str] = set()
    for row in rows:
        if row.action == "improve intent" and row.digest not in ended:
            return row
        ended.add(row.digest)
    return None


def unfinished(left: Entry) -> InputError:
    """Why no other change may begin."""
    return InputError(
        f"a change of {left.at:%Y-%m-%d %H:%M} ({left.details['remedy']}) was begun and not finished. "
        "`orchestrator improve --resume` finishes it, `orchestrator improve --revert` takes it back",
        param="improve",
    )
