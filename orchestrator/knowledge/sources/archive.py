"""Opens a zip archive that holds a document: refused when it unpacks to far more than it is; nothing goes to disk."""

from __future__ import annotations

import io
import re
import zipfile
from typing import Final

from orchestrator.errors import LoadError

MAX_UNPACKED = 256_000_000  # bytes of all members
MAX_MEMBERS = 20_000
MAX_RATIO = 200  # unpacked size to packed size of one member over 1 MB
SMALL = 1_000_000

# A document type declares entities, which grow without end or name files of this machine; Office never writes one.
_DOCTYPE: Final = re.compile(
    b"<!DOCTYPE|<!ENTITY|" + b"|".join("<!DOCTYPE".encode(kind) for kind in ("utf-16-le", "utf-16-be"))
)


class Archive:
    """The members of a zip by name, read into memory only. Raises LoadError for what is no zip, or a bomb."""

    def __init__(self, data: bytes, kind: str) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
            members = self._zip.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise LoadError(f"the file is not {kind} (which is a zip archive, this is not)") from error
        if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_UNPACKED:
            raise LoadError("the file unpacks to far more than its size, as a zip bomb does")
        if any(m.file_size > SMALL and m.file_size > MAX_RATIO * max(m.compress_size, 1) for m in members):
            raise LoadError("the file unpacks to far more than its size, as a zip bomb does")
        if any(member.flag_bits & 1 for member in members):
            raise LoadError("the file is protected by a password; save it without one")
        self.names = {member.filename for member in members}

    def read(self, name: str) -> bytes:
        """The bytes of a member, never more than it declares. Raises LoadError when there is none, or it is damaged."""
        try:
            with self._zip.open(name) as member:
                declared = self._zip.getinfo(name).file_size
                return member.read(declared)
        except KeyError as error:
            raise LoadError(f"the file has no part {name!r}; it is damaged") from error
        except Exception as error:  # zlib, bz2 and lzma raise their own
            raise LoadError(f"the part {name!r} of the file is damaged ({type(error).__name__})") from error

    def refuse_entities(self, suffixes: tuple[str, ...] = (".xml", ".rels", ".vml")) -> None:
        """Raises LoadError when an XML part declares a document type, so that no XML library is ever shown one."""
        for name in sorted(self.names):
            if name.lower().endswith(suffixes) and _DOCTYPE.search(self.read(name)):
                raise LoadError(f"the part {name!r} declares XML entities, which documents of this kind never do")


def refuse_doctype(data: bytes, name: str) -> bytes:
    """The bytes of an XML file that declares no document type. Raises LoadError for one that does."""
    if _DOCTYPE.search(data):
        raise LoadError(f"the part {name!r} declares XML entities, which documents of this kind never do")
    return data
