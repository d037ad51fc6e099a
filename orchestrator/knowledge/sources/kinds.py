"""Which files are read and how: suffix to media type, media type to reader, and what a web server's content type means."""

from __future__ import annotations

PDF = "application/pdf"
_OFFICE = "application/vnd.openxmlformats-officedocument."
DOCX = _OFFICE + "wordprocessingml.document"
PPTX = _OFFICE + "presentationml.presentation"
XLSX = _OFFICE + "spreadsheetml.sheet"
EPUB = "application/epub+zip"
HTML = "text/html"
MAIL = "message/rfc822"
MAILBOX = "application/mbox"
MARKDOWN = "text/markdown"
PLAIN = "text/plain"
RST = "text/x-rst"
JSON_LINES = "application/jsonl"

LANGUAGES = {
    "c": ".c .h",
    "c++": ".cc .cpp .cxx .hh .hpp",
    "csharp": ".cs",
    "css": ".css",
    "go": ".go",
    "ini": ".cfg .ini",
    "java": ".java",
    "javascript": ".cjs .js .jsx .mjs",
    "json": ".json",
    "kotlin": ".kt",
    "lua": ".lua",
    "perl": ".pl",
    "php": ".php",
    "powershell": ".ps1",
    "proto": ".proto",
    "python": ".py .pyi",
    "r": ".r",
    "ruby": ".rb",
    "rust": ".rs",
    "scala": ".scala",
    "shell": ".bash .sh",
    "sql": ".sql",
    "swift": ".swift",
    "toml": ".toml",
    "typescript": ".ts .tsx",
    "xml": ".xml",
    "yaml": ".yaml .yml",
}
CODE = {suffix: f"text/x-{name}" for name, suffixes in LANGUAGES.items() for suffix in suffixes.split()}
MEDIA_TYPES = {
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".txt": PLAIN,
    ".text": PLAIN,
    ".rst": RST,
    ".html": HTML,
    ".htm": HTML,
    ".xhtml": HTML,
    ".pdf": PDF,
    ".docx": DOCX,
    ".pptx": PPTX,
    ".xlsx": XLSX,
    ".xlsm": XLSX,
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".epub": EPUB,
    ".eml": MAIL,
    ".mbox": MAILBOX,
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    **CODE,
}

# What a child process reads; everything else is text that needs decoding only.
READERS = {
    HTML: "html",
    PDF: "pdf",
    DOCX: "docx",
    PPTX: "pptx",
    XLSX: "xlsx",
    "text/csv": "csv",
    "text/tab-separated-values": "csv",
    EPUB: "epub",
    MAIL: "mail",
}

_CONTENT_TYPES = {
    **{media_type: suffix for suffix, media_type in reversed(MEDIA_TYPES.items())},
    "application/xhtml+xml": ".html",
    "application/x-pdf": ".pdf",
    "application/json": ".json",
    "application/x-ndjson": ".jsonl",
    "application/xml": ".xml",
    "text/xml": ".xml",
    "text/javascript": ".js",
    "application/javascript": ".js",
    "application/x-yaml": ".yaml",
    "application/yaml": ".yaml",
}
_UNTOLD = ("", PLAIN, "application/octet-stream", "binary/octet-stream")  # servers say these of files they do not know


def suffix_of(content_type: str, path: str) -> str:
    """The suffix whose reader is right for a content type, or else for the name that the path ends in; may be empty."""
    kind = content_type.partition(";")[0].strip().lower()
    stem, dot, end = path.rpartition("/")[2].rpartition(".")
    named = f".{end.lower()}" if dot and stem and f".{end.lower()}" in MEDIA_TYPES else ""
    if kind in _UNTOLD:
        return named or (".txt" if kind == PLAIN else "")
    return _CONTENT_TYPES.get(kind, "")
