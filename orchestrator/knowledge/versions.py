"""Decides where a new version of a document goes in time: pure, so that every case can be tested without a database.

The versions of a document that count (are not superseded) follow each other without gap or overlap: each is valid until
the next one begins. A version that is an end has no text: while it is valid there is no such document. None stands for
"since ever" in ``valid_from`` and for "until further notice" in ``valid_to``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Version:
    """A version of one document that counts."""

    id: int
    number: int
    sha256: str
    title: str
    source: str
    valid_from: datetime | None
    valid_to: datetime | None
    is_end: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """When the new version is valid, which version it corrects (same ``valid_from``) and which one it ends."""

    valid_from: datetime | None
    valid_to: datetime | None
    corrects: int | None = None
    ends: int | None = None

    @property
    def is_latest(self) -> bool:
        """True when no other version follows it."""
        return self.valid_to is None


def place_version(
    versions: Sequence[Version], *, sha256: str, title: str, source: str, valid_from: datetime | None, now: datetime
) -> Placement | None:
    """Where the text goes among ``versions`` (oldest first); None when it is there already.

    Without ``valid_from``: the first version was true since ever, a later one is true from now on.
    """
    current = valid_at(versions, now)
    if valid_from is None and not (current and current.is_end):
        # The second comparison keeps two files that share an id from replacing each other whenever they are read again.
        same_source = [version for version in versions if version.source == source and not version.is_end]
        latest = max(same_source, key=lambda version: version.number, default=None)
        if any(_is_same(version, sha256, title) for version in (current, latest)):
            return None
    start = valid_from if valid_from is not None else now if versions else None
    if _is_same(next((version for version in versions if version.valid_from == start), None), sha256, title):
        return None
    return place_start(versions, start)


def place_end(versions: Sequence[Version], *, valid_from: datetime) -> Placement | None:
    """Where the end of the document goes among ``versions`` (oldest first); None when there is no such document then.

    It ends until the next version begins, if one does.
    """
    holding = valid_at(versions, valid_from)
    return None if holding is None or holding.is_end else place_start(versions, valid_from)


def valid_at(versions: Sequence[Version], moment: datetime) -> Version | None:
    """The version, or the end, that holds at this moment."""
    return next(
        (
            version
            for version in versions
            if (version.valid_from is None or version.valid_from <= moment)
            and (version.valid_to is None or moment < version.valid_to)
        ),
        None,
    )


def place_start(versions: Sequence[Version], start: datetime | None) -> Placement:
    """Where a version that begins at ``start`` goes among ``versions`` (oldest first), whatever its text."""
    corrects = next((version for version in versions if version.valid_from == start), None)
    earlier = [v for v in versions if v is not corrects and _is_before(v.valid_from, start)]
    later = [v for v in versions if _is_before(start, v.valid_from)]
    return Placement(
        valid_from=start,
        valid_to=later[0].valid_from if later else None,
        corrects=corrects.id if corrects else None,
        ends=earlier[-1].id if earlier else None,
    )


def _is_same(version: Version | None, sha256: str, title: str) -> bool:
    return version is not None and not version.is_end and (version.sha256, version.title) == (sha256, title)


def _is_before(left: datetime | None, right: datetime | None) -> bool:
    """Whether ``left`` begins before ``right``; None is before everything else."""
    return right is not None and (left is None or left < right)
