"""Poison files (rows E2 to E4, A16): they break at most a child process, are named, and their neighbours are stored."""

from __future__ import annotations

import io
import json
import random
import socket
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from orchestrator.errors import LoadError
from orchestrator.knowledge.ingest import ingest
from orchestrator.knowledge.sources import parse, worker
from orchestrator.knowledge.sources.frames import Parsed, Trouble
from orchestrator.knowledge.sources.kinds import MEDIA_TYPES
from orchestrator.knowledge.sources.load import Loader, LoadFailure, load_path
from orchestrator.knowledge.sources.worker import Worker
from orchestrator.knowledge.store import PgStore
from orchestrator.testing import HashEmbedder
from orchestrator.types import Document

ROOT = str(Path(parse.__file__).parents[3])
OPF = '<package xmlns="http://www.idpf.org/2007/opf"><manifest/><spine/></package>'
CONTAINER = '<container><rootfiles><rootfile full-path="c.opf"/></rootfiles></container>'
LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a0 "lol">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    + "]><lolz>&a9;</lolz>"
)
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>'


def pdf(*objects: bytes, root: int = 1, trailer: bytes = b"") -> bytes:
    """A PDF of numbered objects with a right table of their places."""
    out = bytearray(b"%PDF-1.5\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Size %d /Root %d 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (
        len(objects) + 1,
        root,
        trailer,
        table,
    )
    return bytes(out)


def stream(data: bytes, filters: bytes = b"", more: bytes = b"") -> bytes:
    return b"<< /Length %d %s %s >>\nstream\n%s\nendstream" % (len(data), filters, more, data)


def flated(data: bytes, times: int = 1) -> bytes:
    for _ in range(times):
        data = zlib.compress(data, 9)
    return stream(data, b"/Filter [" + b"/FlateDecode " * times + b"]")


def page_of(content: bytes, *more: bytes, font: bytes = b"") -> bytes:
    """A PDF of one page with this content stream."""
    font = font or b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    return pdf(
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        content,
        font,
        *more,
    )


def circular() -> bytes:
    """A table of places whose predecessor is itself."""
    objects = b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>"
    own = pdf(*objects, trailer=b"/Prev 0000000000").rpartition(b"startxref\n")[2].partition(b"\n")[0]
    return pdf(*objects, trailer=b"/Prev %010d" % int(own))


def many_pages(count: int) -> bytes:
    kids = b" ".join(b"%d 0 R" % (n + 5) for n in range(count))
    return pdf(
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count),
        stream(b"BT /F1 1 Tf (One line of text.) Tj ET"),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        *[b"<< /Type /Page /Parent 2 0 R /Contents 3 0 R /Resources << /Font << /F1 4 0 R >> >> >>"] * count,
    )


def zipped(members: dict[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def lying(data: bytes, size: int) -> bytes:
    """A zip whose members say that they unpack to only so many bytes."""
    out = bytearray(data)
    for mark, place in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = out.find(mark)
        while at >= 0:
            out[at + place : at + place + 4] = size.to_bytes(4, "little")
            at = out.find(mark, at + 4)
    return bytes(out)


def nested_zip(depth: int) -> bytes:
    data = b"x"
    for _ in range(depth):
        data = zipped({"inner.docx": data})
    return data


def nested_mail(depth: int) -> bytes:
    head = b"From: a@b\nMIME-Version: 1.0\n"
    parts = [b'Content-Type: multipart/mixed; boundary="b%d"\n\n--b%d\n' % (n, n) for n in range(depth)]
    return head + b"".join(parts) + b"Content-Type: text/plain\n\ndeep\n"


@cache
def poison() -> dict[str, bytes]:
    """Name to bytes. None of these may become a document, take the process along, or take long."""
    bomb = b"\0" * 100_000_000
    office = {"docx": "word/document.xml", "xlsx": "xl/workbook.xml", "pptx": "ppt/presentation.xml", "epub": "c.opf"}
    files = {
        "flate.pdf": page_of(flated(b" " * 100_000_000)),
        "flate-twice.pdf": page_of(flated(bomb, 2)),
        "circular.pdf": circular(),
        "self-kids.pdf": pdf(b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 9 >>"),
        "nested-array.pdf": page_of(b"[" * 200_000),
        "unicode.pdf": page_of(
            flated(b"BT /F1 1 Tf <0000> Tj ET"),
            flated(b"1 beginbfrange\n" + b"<0000> <FFFF> <0000>\n" * 400_000 + b"endbfrange"),
            font=b"<< /Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-H /ToUnicode 6 0 R >>",
        ),
        "xmp.pdf": page_of(stream(b""), stream(LAUGHS.encode(), b"/Type /Metadata /Subtype /XML")),
        "deep.zip.docx": nested_zip(50),
        "deep.eml": nested_mail(5_000),
        "binary.txt": random.Random(1).randbytes(9_000),
        "deep-elements.html": b"<b>" * 500_000,
        "empty-cells.csv": b",\n" * 500_000,
    }
    for kind, member in office.items():
        base = {"META-INF/container.xml": CONTAINER}
        files[f"bomb.{kind}"] = zipped({**base, member: bomb})
        files[f"lying.{kind}"] = lying(zipped({**base, member: bomb}), 1_000)
        files[f"laughs.{kind}"] = zipped({**base, member: LAUGHS})
        files[f"laughs-16.{kind}"] = zipped({**base, member: LAUGHS.encode("utf-16")})
        files[f"entity.{kind}"] = zipped({**base, member: OUTSIDE})
        files[f"members.{kind}"] = zipped({f"m{n}": "" for n in range(30_000)}, zipfile.ZIP_STORED)
        files[f"bzip.{kind}"] = zipped({**base, member: bomb}, zipfile.ZIP_BZIP2)
        files[f"cut.{kind}"] = zipped({**base, member: OPF})[:-30]
    return files


# Which guard refuses a kind of file, so that one that is gone is not hidden by the next one.
EXPECTED = {
    "flate": "Limit reached while decompressing",
    "flate-twice": "Limit reached while decompressing",
    "self-kids": "cyclic page references",
    "unicode": "size limit reached",
    "nested-array": "nested deeper",
    "deep-elements": "nested deeper than 5,000",
    "bomb": "as a zip bomb does",
    "bzip": "as a zip bomb does",
    "members": "as a zip bomb does",
    "lying": "is damaged",
    "laughs": "declares XML entities",
    "laughs-16": "declares XML entities",
    "entity": "declares XML entities",
    "line": "MAX_DOCUMENT_BYTES",
}

REPORT = """
import json, sys
from orchestrator.knowledge.sources.load import Loader, LoadFailure
def peak():  # not ru_maxrss, which begins at what the parent once had
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
found = list(Loader(sys.argv[1:]))
failures = {one.source.rpartition("/")[2]: one.reason for one in found if isinstance(one, LoadFailure)}
documents = [one.external_id for one in found if not isinstance(one, LoadFailure)]
print(json.dumps({"failures": failures, "documents": documents, "grown_mb": peak() - before}))
"""


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of poison files, with a good neighbour before and after."""
    folder = tmp_path_factory.mktemp("poison")
    for name, data in poison().items():
        (folder / name).write_bytes(data)
    with (folder / "line.txt").open("wb") as line:
        line.truncate(1 << 30)  # one line of a gigabyte, which takes no place on the disk
    with (folder / "line.jsonl").open("wb") as line:
        line.write(b'{"id": "')
        line.truncate(1 << 30)
    (folder / "aaa.md").write_text("The first neighbour is a heron.")
    (folder / "zzz.html").write_text("<p>The last neighbour is a bittern.</p>")
    return folder


async def test_poison_is_named_and_its_neighbours_are_stored(
    poisoned: Path, store: PgStore, embedder: HashEmbedder
) -> None:
    report = await ingest([poisoned], store=store, embedder=embedder, collection="c")

    assert report.added == 2
    reasons = {Path(failure.source).name: failure.reason for failure in report.failures}
    assert reasons.keys() == {*poison(), "line.txt", "line.jsonl"}
    assert {name for name, reason in reasons.items() if EXPECTED.get(name.partition(".")[0], "") not in reason} == set()


def test_more_text_than_a_file_can_hold_is_refused() -> None:
    few, many = Parsed("x" * 900_000), Parsed("x" * 9_000_000)

    assert list(parse.bounded(iter([few]), 1_000)) == [few]
    assert list(parse.bounded(iter([many]), 1_000_000)) == [many]
    with pytest.raises(LoadError, match="as a bomb does"):
        list(parse.bounded(iter([few, few]), 1_000))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_poison_does_not_grow_the_parent(poisoned: Path) -> None:
    done = subprocess.run([sys.executable, "-c", REPORT, str(poisoned)], capture_output=True, check=True, cwd=ROOT)
    report = json.loads(done.stdout)

    assert sorted(report["documents"]) == ["aaa.md", "zzz.html"]
    assert report["grown_mb"] < 50


def test_a_file_that_takes_too_long_is_given_up() -> None:
    data = page_of(flated(b"BT /F1 1 Tf " + b"(AAAAAAAAAAAAAAAAAAAAAAAA) Tj " * 500_000 + b"ET"))
    with Worker(cpu_s=2) as reader:
        (found,) = reader.parse("pdf", io.BytesIO(data), len(data))

    assert isinstance(found, Trouble)
    assert found.poisoned
    assert "2 s of processor time" in found.reason


def test_ten_thousand_pages_end_within_the_limits() -> None:
    data = many_pages(10_000)
    with Worker() as reader:
        (found,) = reader.parse("pdf", io.BytesIO(data), len(data))

    assert isinstance(found, Trouble) or len(found.pages) == 10_000


def test_random_bytes_with_every_suffix(tmp_path: Path) -> None:
    chance = random.Random(7)
    heads = (b"", b"PK\x03\x04", b"%PDF-1.7\n", b"<html>", b"From a\nFrom: x\n", b"\xff\xfe", b"{")
    suffixes = sorted(MEDIA_TYPES)
    for number in range(1_000):
        data = chance.choice(heads) + chance.randbytes(chance.randrange(3_000))
        (tmp_path / f"{number:04}{suffixes[number % len(suffixes)]}").write_bytes(data)
    (tmp_path / "zzz.md").write_text("A good neighbour.")

    found = list(load_path(tmp_path))

    assert isinstance(found[-1], Document)
    assert not [one for one in found if isinstance(one, LoadFailure) and one.poisoned]


# --- The child itself: a parser that was taken over, played by a package of the same name as a real one.

Play = Callable[[str], Trouble | Parsed]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """Reads a file with code in place of pypdf's and gives the outcome."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PGPASSWORD", "canary-secret")
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", "postgresql://u:canary-secret@h/d")
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(code: str) -> Trouble | Parsed:
        (folder / "pypdf.py").write_text(code)
        with Worker(wall_s=20, cpu_s=2) as reader:
            (found,) = reader.parse("pdf", io.BytesIO(b"%PDF-"), 5)
        return found

    return run


def says(code: str) -> str:
    """A parser that runs the code and gives the text ``result``."""
    return f"""
class errors:
    class PyPdfError(Exception): pass
{code}
class PdfReader:
    is_encrypted, metadata = False, None
    def __init__(self, stream): pass
    @property
    def pages(self): return [self]
    def extract_text(self): return str(result)
"""


def test_a_parser_that_only_reads_is_let_be(play: Play) -> None:
    found = play(says("result = 'fine'"))

    assert isinstance(found, Parsed)
    assert found.text == "fine"


def test_the_environment_of_a_parser_has_no_secrets(play: Play) -> None:
    found = play(says("import os; result = dict(os.environ)"))

    assert isinstance(found, Parsed)
    assert "PATH" in found.text
    assert "canary" not in found.text


ATTACKS = {
    "write beside": "open(r'{beside}', 'w')",
    "create beside": "import os; os.open(r'{beside}', os.O_CREAT | os.O_RDWR)",
    "write": "open(r'{place}', 'w')",
    "append": "open(r'{place}', 'ab')",
    "create": "import os; os.open(r'{place}', os.O_CREAT | os.O_WRONLY)",
    "mkdir": "import os; os.mkdir(r'{place}')",
    "remove": "import os; os.remove(r'{victim}')",
    "rename": "import os; os.rename(r'{victim}', r'{place}')",
    "link": "import os; os.symlink(r'{victim}', r'{place}')",
    "read": "open(r'{victim}').read()",
    "shell": "import os; os.system('touch {place}')",
    "program": "import subprocess; subprocess.run(['touch', r'{place}'])",
    "spawn": "import os; os.posix_spawn('/usr/bin/touch', ['touch', r'{place}'], {{}})",
    "fork": "import os; os.fork()",
    "connect": "import socket; socket.create_connection(('127.0.0.1', {port}), 2)",
    "send": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', {port}))",
    "resolve": "import socket; socket.getaddrinfo('canary.example', 80)",
    "fetch": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}')",
    "native": "import ctypes; ctypes.CDLL(None)",
    "pickle": "import pickle; pickle.loads(b\"cos\\nsystem\\n(S'touch {place}'\\ntR.\")",
    "kill": "import os; os.kill(os.getppid(), 9)",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_parser_that_was_taken_over_reaches_nothing(attack: str, play: Play, tmp_path: Path) -> None:
    place, victim = tmp_path / "placed", tmp_path / "victim"
    victim.write_text("canary-content")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        beside = tmp_path / "packages" / "placed"  # where it may read
        values = {"place": place, "beside": beside, "victim": victim, "port": listener.getsockname()[1]}
        code = ATTACKS[attack].format(**values)
        found = play(says(f"try:\n    result = {'None'}\n    {code}\nexcept Exception: pass"))
        with pytest.raises(TimeoutError):
            listener.accept()

    assert isinstance(found, Trouble)
    assert found.poisoned
    assert "tried what no reader does" in found.reason
    assert not place.exists()
    assert not beside.exists()
    assert victim.read_text() == "canary-content"


KERNEL = """
import os, sys
sys.path.append({root!r})
from orchestrator.knowledge.sources import sandbox
import socket
walls = sandbox._ask_the_kernel()  # no audit hook: native code does not meet it
def tries(what):
    try:
        what()
    except OSError:
        return False
    return True
done = {{
    "create": tries(lambda: open({place!r}, "w")),
    "remove": tries(lambda: os.remove({victim!r})),
    "connect": tries(lambda: socket.create_connection(("127.0.0.1", {port}), 2)),
    "send": tries(lambda: socket.socket(2, 2).sendto(b"x", ("127.0.0.1", {port}))),
    "run": tries(lambda: os.execv("/bin/true", ["true"])),
}}
print(walls, [name for name, succeeded in done.items() if succeeded])
"""


PROBE = """
import ctypes
libc = ctypes.CDLL(None)
alone = libc.unshare(0x40000000) == 0 or libc.unshare(0x50000000) == 0
print(alone and libc.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1)) >= 4)
"""


def test_the_kernel_holds_native_code_too(tmp_path: Path) -> None:
    """What Linux grants: on a kernel without Landlock or namespaces this wall is lower, and the test does not apply."""
    if subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False).stdout != "True\n":
        pytest.skip("this kernel has no Landlock for networks, or refuses network namespaces")
    place, victim = tmp_path / "placed", tmp_path / "victim"
    victim.write_text("here")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = KERNEL.format(root=ROOT, place=str(place), victim=str(victim), port=listener.getsockname()[1])
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "(True, True) []\n"
    assert victim.exists()
    assert not place.exists()


def test_a_parser_that_writes_through_an_open_file_writes_nothing(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.append({ROOT!r})\nfrom orchestrator.knowledge.sources import sandbox\n"
        f"f = open({str(tmp_path / 'f')!r}, 'wb', 0)\nsandbox.confine()\ntry: f.write(b'x')\nexcept OSError: print('no')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "no\n"
    assert (tmp_path / "f").read_bytes() == b""


BREAKDOWNS = {
    "crash": ("import os; os.abort()", "SIGABRT"),
    "exit": ("import os; os._exit(3)", "exit 3"),
    "spin": ("while True: pass", "processor time"),
    "memory": ("result = 'x' * (1 << 30)", "memory"),
    "recursion": ("def f(): f()\nf()", "nested"),
    "print": ("print('x' * 100_000_000); result = ''; raise OSError('no')", "damaged"),
    "flood": ("import os\nwhile True: os.write(3, b'x' * 100_000)", "no reply"),
}


@pytest.mark.parametrize("breakdown", BREAKDOWNS)
def test_a_parser_that_breaks_down_is_given_up(breakdown: str, play: Play) -> None:
    code, reason = BREAKDOWNS[breakdown]
    found = play(says(code))

    assert isinstance(found, Trouble)
    assert any(part in found.reason for part in reason.split("|")), found.reason


def test_a_parser_that_sleeps_is_given_up_by_the_clock(play: Play, tmp_path: Path) -> None:
    (tmp_path / "packages" / "pypdf.py").write_text(says("import time; time.sleep(1_000)"))
    with Worker(wall_s=1) as reader:
        (found,) = reader.parse("pdf", io.BytesIO(b"%PDF-"), 5)

    assert isinstance(found, Trouble)
    assert found.poisoned
    assert "took more than 1 s" in found.reason


def test_time_without_a_processor_does_not_count(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    monkeypatch.setattr(
        worker, "_waited_s", lambda pid: 10 * (time.monotonic() - began)
    )  # as on a machine that is too busy
    (tmp_path / "packages" / "pypdf.py").write_text(says("import time; time.sleep(1); result = 'fine'"))
    with Worker(wall_s=0.2) as reader:
        (found,) = reader.parse("pdf", io.BytesIO(b"%PDF-"), 5)

    assert isinstance(found, Parsed)


def test_what_broke_in_a_used_child_gets_a_second_chance_in_a_new_one(play: Play, tmp_path: Path) -> None:
    code = "import os\nclass Once:\n    left = ['fine']\n    def __str__(self): return self.left.pop() if self.left else os.abort()"
    (tmp_path / "packages" / "pypdf.py").write_text(says(f"{code}\nresult = Once()"))
    with Worker() as reader:
        first, second = (reader.parse("pdf", io.BytesIO(b"%PDF-"), 5) for _ in range(2))

    assert [type(one) for one in (*first, *second)] == [Parsed, Parsed]


def test_a_child_that_cannot_start_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "encodings").mkdir()  # breaks Python before its first line
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "encodings" / "__init__.py").write_text("raise SystemExit(9)")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    (found,) = load_path(tmp_path / "x.csv")

    assert isinstance(found, LoadFailure)
    assert not found.poisoned
    assert "does not start" in found.reason


def test_the_child_ends_with_the_loader(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "b.csv").write_text("a,b\n1,2\n")
    with Worker() as reader:
        reader.parse("csv", io.BytesIO(b"a,b\n1,2\n"), 8)
        child = reader._child
        assert child is not None
        assert child.poll() is None

    assert child.poll() is not None


# --- Names that lead elsewhere (rows E4, A16).


@pytest.mark.parametrize("kind", ["docx", "xlsx", "pptx", "epub"])
@pytest.mark.parametrize("name", ["../../canary.txt", "/tmp/canary-of-orchestrator.txt", "..\\canary.txt"])
def test_an_archive_puts_nothing_on_the_disk(kind: str, name: str, tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    opf = f'<package><manifest><item id="a" href="{name}"/></manifest><spine><itemref idref="a"/></spine></package>'
    (inside / f"x.{kind}").write_bytes(zipped({"META-INF/container.xml": CONTAINER, "c.opf": opf, name: "canary"}))
    found = list(load_path(inside))

    assert not [one for one in found if isinstance(one, LoadFailure) and one.poisoned]  # it did not even try
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [inside / f"x.{kind}"]
    assert not Path("/tmp/canary-of-orchestrator.txt").exists()


def test_an_e_book_names_files_of_its_own_only(tmp_path: Path) -> None:
    (tmp_path / "secret.xhtml").write_text("<p>canary</p>")
    hrefs = ["../secret.xhtml", str(tmp_path / "secret.xhtml"), "good.xhtml", "link.xhtml"]
    items = "".join(f'<item id="i{n}" href="{href}"/>' for n, href in enumerate(hrefs))
    spine = "".join(f'<itemref idref="i{n}"/>' for n in range(len(hrefs)))
    link = zipfile.ZipInfo("link.xhtml")
    link.external_attr = 0o120777 << 16  # a symbolic link, which an unpacker would make
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("META-INF/container.xml", CONTAINER)
        archive.writestr("c.opf", f"<package><manifest>{items}</manifest><spine>{spine}</spine></package>")
        archive.writestr("good.xhtml", "<p>good</p>")
        archive.writestr(link, str(tmp_path / "secret.xhtml"))
    (tmp_path / "x.epub").write_bytes(out.getvalue())
    (found,) = load_path(tmp_path / "x.epub")

    assert isinstance(found, Document)
    assert "good" in found.text
    assert "canary" not in found.text


def test_links_that_lead_out_of_the_folder_are_named_and_not_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "secret.txt").write_text("canary")
    (folder / "good.txt").write_text("good")
    (folder / "file.txt").symlink_to(outside / "secret.txt")
    (folder / "folder").symlink_to(outside)
    (folder / "passwd.txt").symlink_to("/etc/passwd")
    (folder / "inner.txt").symlink_to(folder / "good.txt")
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    found = list(Loader([folder]))

    assert [one.external_id for one in found if isinstance(one, Document)] == ["good.txt", "inner.txt"]
    assert {Path(one.source).name for one in found if isinstance(one, LoadFailure) and one.skipped} == {
        "file.txt",
        "folder",
        "passwd.txt",
        "loop.txt",
    }
