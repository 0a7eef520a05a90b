"""Markdown to PDF: pandoc reads the Markdown and writes typst, typst sets it, both offline and in a box.

Between the two the document is a tree, in which everything is made harmless that either of them would act on:
raw code of any language becomes text, and images are only those that `Images` finds.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from cs_systems.report.document import HTML_COMMENT, Images, is_safe_link

_TEMPLATE = pathlib.Path(__file__).with_name("writeup.typ")
_READ = "commonmark+pipe_tables+tex_math_dollars+strikeout"
_OPTIONS = ("--sandbox", "--quiet", "--wrap=none")
_CUT = "// a formula\n"

Node = Any
"""A node of pandoc's tree: {"t": kind, "c": content}, a list of nodes, or a text."""


def render_pdf(text: str, title: str, images: Images) -> bytes:
    """The PDF of a Markdown text; a formula that cannot be set is shown as the code it is.

    Raises:
        ValueError: in one line, when a package is missing or the text cannot be set.
    """
    try:
        import pypandoc
        import typst
    except ImportError as error:
        raise ValueError(f"it needs {error.name or error}: pip install 'cs_systems[report]'") from None

    def to_typst(blocks: list[Node]) -> str:
        tree = {"pandoc-api-version": version, "meta": {}, "blocks": blocks}
        return pypandoc.convert_text(json.dumps(tree), "typst", format="json", extra_args=list(_OPTIONS))

    def to_pdf(source: str) -> bytes:
        return typst.compile(source.encode(), root=str(images.folder), format="pdf")  # pyright: ignore[reportArgumentType]

    def is_set(source: str) -> bool:
        try:
            to_pdf(source)
        except typst.TypstError:
            return False
        return True

    template = _TEMPLATE.read_text(encoding="utf-8").replace('"TITLE"', json.dumps(title, ensure_ascii=False))
    try:
        tree = json.loads(pypandoc.convert_text(text, "json", format=_READ, extra_args=list(_OPTIONS)))
        version, blocks = tree["pandoc-api-version"], _with_marks(_harmless(tree["blocks"], images))
        try:
            return to_pdf(template + to_typst(blocks))
        except typst.TypstError:  # most likely a formula: each is tried alone
            formulas = _formulas(blocks)
            paragraphs = [part for each in formulas for part in (_typst(_CUT), {"t": "Para", "c": [each]})]
            alone = to_typst(paragraphs).split(_CUT)[1:]
            bad = [each for each, made in zip(formulas, alone, strict=True) if not is_set(made)]
        return to_pdf(template + to_typst(_as_code(blocks, bad)))
    except OSError:
        raise ValueError("pandoc is not there: pip install 'cs_systems[report]'") from None
    except RuntimeError as error:  # pandoc's, typst's, and RecursionError
        raise ValueError(f"the text cannot be set ({' '.join(str(error).split())[:300]})") from None


def _formulas(node: Node) -> list[Node]:
    if isinstance(node, dict):
        return [node] if node.get("t") == "Math" else _formulas(node.get("c"))
    return [found for each in node for found in _formulas(each)] if isinstance(node, list) else []


def _as_code(node: Node, formulas: Sequence[Node]) -> Node:
    if isinstance(node, list):
        return [_as_code(each, formulas) for each in node]
    if not isinstance(node, dict):
        return node
    if node in formulas:
        return {"t": "Code", "c": [["", [], []], node["c"][1]]}
    return {key: _as_code(each, formulas) for key, each in node.items()}


def _harmless(node: Node, images: Images) -> Node:
    if isinstance(node, list):
        return [_harmless(each, images) for each in node if not _is_comment(each)]
    if not isinstance(node, dict):
        return node
    if "t" not in node:
        return {key: _harmless(each, images) for key, each in node.items()}
    if "c" not in node:
        return node
    kind, content = node["t"], node["c"]
    if kind in ("RawInline", "RawBlock"):
        code = "Code" if kind == "RawInline" else "CodeBlock"
        return {"t": code, "c": [["", [], []], HTML_COMMENT.sub("", content[1]).strip("\n")]}
    if kind == "CodeBlock":  # a language that typst does not know is only a name
        return {"t": kind, "c": [["", content[0][1][:1], []], content[1]]}
    if kind == "Image":
        return _image(content, images)
    if kind == "Link" and not is_safe_link(content[2][0]):
        return {"t": "Span", "c": [["", [], []], _harmless(content[1], images)]}
    return {"t": kind, "c": _harmless(content, images)}


def _is_comment(node: Node) -> bool:
    is_raw = isinstance(node, dict) and node.get("t") in ("RawInline", "RawBlock")
    return is_raw and not HTML_COMMENT.sub("", node["c"][1]).strip()


def _image(content: list[Any], images: Images) -> Node:
    _, alt, (source, _) = content
    path = images.find(source)
    if path is None:
        words = alt or [{"t": "Str", "c": source}]
        return {"t": "Emph", "c": [{"t": "Str", "c": "[image: "}, *words, {"t": "Str", "c": "]"}]}
    name = path.relative_to(images.folder.resolve()).as_posix()
    return {"t": "Image", "c": [["", [], []], alt, [f"/{name}", ""]]}


def _with_marks(blocks: Sequence[Node]) -> list[Node]:
    """Set the paragraph in bold above a table as its title, and the list below it as its notes."""
    marked: list[Node] = []
    for index, block in enumerate(blocks):
        before = blocks[index - 1]["t"] if index else ""
        after = blocks[index + 1]["t"] if index + 1 < len(blocks) else ""
        is_bold = block["t"] == "Para" and [each["t"] for each in block["c"]] == ["Strong"]
        if after == "Table" and is_bold:
            marked += [_typst("#tabletitle["), block, _typst("]")]
        elif before == "Table" and block["t"] == "BulletList":
            marked += [_typst("#notes["), block, _typst("]")]
        else:
            marked.append(block)
    return marked


def _typst(source: str) -> Node:
    return {"t": "RawBlock", "c": ["typst", source]}
