"""Writes HTML in which text is always text: values in, markup out that holds no character a browser would act on. Pure."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

# What is not seen and changes what is read: controls, overrides of the writing direction, tags (they carry hidden orders),
# halves of surrogates. A report shows them by their number. Marks that scripts need (U+200C to U+200F) stay.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_LINE_ENDS = re.compile("\r\n?|[\u2028\u2029]")


class Html(str):
    """Text that is markup already; only this module and the plots make it."""

    __slots__ = ()


def shown(text: str) -> str:
    """The text with its hidden characters made visible: U+202E is read as ⟨U+202E⟩."""
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", _LINE_ENDS.sub("\n", text))


def element(name: str, *children: str, **attributes: str) -> Html:
    """An element. Children that are no ``Html`` are text; ``aria_label`` is written aria-label, ``class_`` class."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(shown(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Parts in a row; what is no ``Html`` is escaped."""
    return Html("".join(part if isinstance(part, Html) else html.escape(shown(part)) for part in parts))


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 99) -> Html:
    """A table whose first column names its rows. Columns from ``numbers`` on are set as numbers."""
    head = join(
        element("th", text, scope="col", **({"class_": "number"} if at >= numbers else {}))
        for at, text in enumerate(heads)
    )
    body = join(
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(
                element("td", text, **({"class_": "number"} if at >= numbers else {}))
                for at, text in enumerate(row[1:], 1)
            ),
        )
        for row in rows
    )
    inner = element("table", element("caption", caption), element("thead", element("tr", head)), element("tbody", body))
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)
