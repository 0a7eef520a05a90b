"""Counts the sentences of a few lines of Markdown, for questions that ask for one to three of them."""

import re

_STOP = re.compile(r"[.!?]+[)\]'\"*_]*(?=\s|$)")
_SHORT = ("e.g.", "i.e.", "cf.", "vs.", "approx.", "fig.", "figs.", "eq.", "sec.", "tab.", "resp.", "ca.")
_SHORT_AT_END = ("etc.", "al.", "w.r.t.")
_MARKDOWN = (
    (re.compile(r"^ {0,3}(`{3,}|~{3,}).*?^ {0,3}\1[`~]*[ \t]*$", re.DOTALL | re.MULTILINE), "\n"),
    (re.compile(r"^\s*(\||#{1,6}\s|[-=*_ ]+$).*$", re.MULTILINE), ""),  # tables, headings, rules
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),
    (re.compile(r"\s*\$\$.*?\$\$\s*", re.DOTALL), " x "),
    (re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)|\$[^$\n]+\$|https?://[^\s)>]*[^\s)>.,;]", re.DOTALL), "x"),
    (re.compile(r"\[([^\]]*)\]\([^)]*\)"), r"\1"),
    (re.compile(r"\s*^\s*([-*+]|\d+[.)])\s+", re.MULTILINE), " "),
    (re.compile(r"\n\s*\n"), "\n\n"),
)
"""What is no sentence, and what stands for it, in the order in which it is replaced."""


def count_sentences(prose: str) -> int:
    """Number of sentences in Markdown.

    Tables, pictures and blocks of code have none; code, formulas and links in a line are words. A list goes
    on with the sentence before it, and a paragraph without a full stop ends its sentence all the same.
    """
    for pattern, replacement in _MARKDOWN:
        prose = pattern.sub(replacement, prose)
    return sum(_sentences_in(" ".join(paragraph.split())) for paragraph in prose.split("\n\n"))


def _sentences_in(text: str) -> int:
    num, start = 0, 0
    for found in _STOP.finditer(text):
        word = text[: found.end()].rpartition(" ")[2].lstrip("(['\"*_").casefold()
        goes_on = text[found.end() :].lstrip()[:1].islower()
        is_short = word in _SHORT or (goes_on and (word in _SHORT_AT_END or word.endswith("...")))
        if not is_short and re.search(r"\w", text[start : found.end()]):
            num, start = num + 1, found.end()
    return num + bool(re.search(r"\w", text[start:]))
