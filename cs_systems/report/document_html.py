"""Markdown to one self-contained page: mathematics as MathML, images inside, no script, nothing loaded."""

import base64
import html
import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from cs_systems.report.document import HTML_COMMENT, Images, is_safe_link

_STYLE = pathlib.Path(__file__).with_name("writeup.css")
_UNSAFE_IN_MATHS = ("href", "style", "class", "id", "src", "actiontype")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}</main>
</body>
</html>
"""


def render_html(text: str, title: str, images: Images) -> bytes:
    """The page of a Markdown text; the same text and images give the same bytes.

    Raises:
        ValueError: when a package is missing; the message says how to get it.
    """
    try:
        from markdown_it import MarkdownIt
        from mdit_py_plugins.dollarmath import dollarmath_plugin
    except ImportError as error:
        raise ValueError(f"it needs {error.name or error}: pip install 'cs_systems[report]'") from None

    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    markdown.use(
        dollarmath_plugin, allow_labels=False, allow_space=False, allow_digits=False,
        renderer=lambda latex, options: render_maths(latex, options["display_mode"]),
    )  # fmt: skip
    for name in ("html_block", "html_inline"):
        markdown.add_render_rule(name, _render_raw_html)
    markdown.add_render_rule("table_open", lambda *_: '<div class="scroll"><table>\n')
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    markdown.add_render_rule("image", lambda _, tokens, index, *__: _render_image(tokens[index], images))
    markdown.validateLink = _may_be_linked
    tokens = markdown.parse(text)
    contents = _add_anchors(tokens)
    _mark_titles_and_notes(tokens)
    body = markdown.renderer.render(tokens, markdown.options, {})
    head, tag, rest = body.partition("</h1>\n")
    body = head + tag + contents + rest if tag else contents + body
    style = _STYLE.read_text(encoding="utf-8")
    page = _PAGE.format(title=html.escape(title), style=style, body=body)
    return page.encode("utf-8", "replace")


def render_maths(latex: str, display: bool) -> str:
    """LaTeX as MathML, or as the code it is where it cannot be read.

    latex2mathml leaves what it was given unescaped, so its tree is written out here, without the attributes
    that could lead or reach anywhere.
    """
    try:
        from latex2mathml import converter, exceptions
    except ImportError as error:
        raise ValueError(f"it needs {error.name or error}: pip install 'cs_systems[report]'") from None
    unreadable: tuple[type[Exception], ...] = tuple(
        kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)
    )
    try:
        tree = converter.convert_to_element(latex, display="block" if display else "inline")
        for element in tree.iter():
            element.text = html.unescape(element.text) if element.text else None
            element.tail = html.unescape(element.tail) if element.tail else None
            for name in [name for name in element.attrib if _is_unsafe(name)]:
                del element.attrib[name]
        return ElementTree.tostring(tree, encoding="unicode")
    except (*unreadable, StopIteration, LookupError, ValueError, RecursionError):
        return f"<code>{html.escape(latex)}</code>"


def _may_be_linked(url: str) -> bool:
    """A safe address, or a place in this document or beside it."""
    return is_safe_link(url) or not re.match(r"[\s\w+.-]*:", url)


def _is_unsafe(name: str) -> bool:
    plain = name.rpartition("}")[2].rpartition(":")[2].lower()
    return plain in _UNSAFE_IN_MATHS or plain.startswith(("on", "data-"))


def _render_raw_html(_: Any, tokens: Sequence[Any], index: int, *__: Any) -> str:
    token = tokens[index]
    rest = HTML_COMMENT.sub("", token.content)
    if token.type == "html_inline":
        return f"<code>{html.escape(rest)}</code>" if rest else ""
    return f"<pre><code>{html.escape(rest.strip())}</code></pre>\n" if rest.strip() else ""


def _render_image(token: Any, images: Images) -> str:
    path = images.find(str(token.attrs["src"]))
    alt = html.escape(token.content)
    if path is None:
        return f'<span class="absent">[image: {alt or html.escape(str(token.attrs["src"]))}]</span>'
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{alt}" src="data:{images.media_type(path)};base64,{data}">'


def _add_anchors(tokens: Sequence[Any]) -> str:
    """Give every heading an id, and return the table of contents: the headings of level two."""
    used: set[str] = set()
    entries = []
    for opening, inline in itertools.pairwise(tokens):
        if opening.type != "heading_open":
            continue
        words = re.sub(r"[^\w]+", "-", inline.content.lower()).strip("-") or "section"
        name, number = words, 2
        while name in used:
            name, number = f"{words}-{number}", number + 1
        used.add(name)
        opening.attrSet("id", name)
        if opening.tag == "h2":
            entries.append(f'<li><a href="#{html.escape(name)}">{html.escape(_plain(inline))}</a></li>')
    if len(entries) < 2:
        return ""
    return '<nav aria-label="Contents">\n<ul>\n' + "\n".join(entries) + "\n</ul>\n</nav>\n"


def _plain(inline: Any) -> str:
    """The text of a heading, without its marks."""
    return "".join(" " if child.type == "softbreak" else child.content for child in inline.children)


def _mark_titles_and_notes(tokens: Sequence[Any]) -> None:
    """Name the paragraph in bold above a table, and the list below it, for the style sheet."""
    for index, token in enumerate(tokens):
        if token.type == "table_open" and index >= 3 and tokens[index - 1].type == "paragraph_close":
            marks = [child.type for child in tokens[index - 2].children if child.content or child.nesting]
            if marks[:1] == ["strong_open"] and marks[-1:] == ["strong_close"]:
                tokens[index - 3].attrSet("class", "title")
        follows = tokens[index + 1] if index + 1 < len(tokens) else None
        if token.type == "table_close" and follows is not None and follows.type == "bullet_list_open":
            follows.attrSet("class", "notes")
