"""HTML and PDF of a Markdown text: what is shown, and that nothing in it is run, loaded or read."""

import html.parser
import json
import pathlib
import re
from xml.etree import ElementTree

import pytest

from cs_systems.report import document_pdf
from cs_systems.report.document import Images, is_safe_link, read_title, write_atomically
from cs_systems.report.document_html import render_html, render_maths
from cs_systems.report.document_pdf import render_pdf

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10"><rect width="20" height="10"/></svg>'
SECRET = "the content of a file that nobody gave"
ACTIVE = ("script", "iframe", "object", "embed", "form", "link", "base", "style")


@pytest.fixture
def images(tmp_path):
    for name in ("build", "beside"):
        (tmp_path / name).mkdir()
    return Images(tmp_path / "build", tmp_path / "beside")


class Page(html.parser.HTMLParser):
    """All elements with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page.decode().partition("<body>")[2])
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def tags(self):
        return {tag for tag, _ in self.elements}


def page_of(text, images):
    return Page(render_html(text, "T", images))


def words_of(pdf_typst):
    return " ".join(re.sub(r"[\\#]", "", pdf_typst).split())


def typst_of(text, images, monkeypatch):
    """What typst is given for a text, without the template."""
    import typst

    given = []
    monkeypatch.setattr(typst, "compile", lambda source, **options: given.append(source.decode()) or b"%PDF-")
    render_pdf(text, "T", images)
    return given[0].removeprefix(document_pdf._TEMPLATE.read_text().replace('"TITLE"', '"T"'))


def test_headings_have_anchors_and_a_table_of_contents(images):
    page = page_of("# T\n\n## 1 a_b: x < y\n\n### (a)\n\n## 1 a_b: x < y\n\n## Zwei *Ü*\n", images)
    ids = [attrs["id"] for tag, attrs in page.elements if tag in ("h1", "h2", "h3")]
    links = [attrs["href"] for tag, attrs in page.elements if tag == "a"]
    assert ids == ["t", "1-a_b-x-y", "a", "1-a_b-x-y-2", "zwei-ü"]
    assert links == ["#1-a_b-x-y", "#1-a_b-x-y-2", "#zwei-ü"]
    assert "nav" not in page_of("# T\n\n## One\n", images).tags()


def test_tables_scroll_and_have_a_title_and_notes(images):
    text = "**Title**\n\n| a | b |\n|:--|--:|\n| 1 | 2 |\n\n- note\n\nText\n\n- no note\n"
    found = page_of(text, images).elements
    assert ("p", {"class": "title"}) in found
    assert ("div", {"class": "scroll"}) in found
    assert [attrs for tag, attrs in found if tag == "ul"] == [{"class": "notes"}, {}]


@pytest.mark.parametrize(
    ("latex", "tags", "text"),
    [
        (r"\hat{s}_{fp16}", {"msub", "mover", "mi"}, "s^fp16"),
        (r"\frac{a}{b} \le B^2", {"mfrac", "msup", "mo"}, "ab≤B2"),
        ("x < y", {"mo"}, "x<y"),
        (r"\text{<script>alert(1)</script>}", {"mtext"}, "<script>alert(1)</script>"),
        (r"\input{/etc/passwd}", {"mi"}, r"\input/etc/passwd"),
        (r"\href{javascript:alert(1)}{x}", {"mi"}, "x"),
        (r"\style{background:url(//x)}{x}", {"mi"}, "x"),
    ],
)
def test_maths_become_well_formed_mathml_that_can_do_nothing(latex, tags, text):
    tree = ElementTree.fromstring(render_maths(latex, False))
    names = {element.tag.rpartition("}")[2] for element in tree.iter()}
    assert names >= tags
    assert "script" not in names
    assert "".join(tree.itertext()).replace(" ", "") == text
    attributes = {name for element in tree.iter() for name in element.attrib}
    assert attributes <= {"display", "accent", "stretchy", "mathvariant"}


@pytest.mark.parametrize(
    "latex", ["{", "_", r"\frac", r"\begin{matrix}a", r"\left(", "{" * 3000, r"\unicode"]
)
def test_maths_that_cannot_be_read_stay_code(latex):
    assert render_maths(latex, True).startswith("<code>")


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>", "a <img src=x onerror=alert(1)> b", "<div onclick='x'>\n**b**\n</div>",
        "[a](javascript:alert(1))", "[a](JaVaScRiPt&colon;alert(1))", "![a](javascript:alert(1))",
        "[a](data:text/html,x)", "<javascript:alert(1)>", "[a](vbscript:x)", "[a](file:///etc/passwd)",
        '[a](https://x.org "t\\" onload=alert(1)")', "`<script>`", "```\n<script>\n```",
        "| <b> |\n|---|\n| <i> |",
        r"$\text{<script>x</script>}$", "![a](https://x.org/a.png)", "<style>x</style>", "<!-- a --><script>",
        "&lt;script&gt;", '```"><script>\nx\n```', "# <script>x</script>", "## a\n\n## <img src=x onerror=y>",
    ],
)  # fmt: skip
def test_nothing_in_the_text_becomes_active(text, images):
    page = page_of(text, images)
    assert not page.tags() & {*ACTIVE, "img"}
    for _, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on")]
        assert attrs.get("href", "#").startswith(("#", "https://x.org"))
        assert "src" not in attrs


def test_html_is_shown_as_text_and_comments_are_not_shown(images):
    page = page_of("a <b>c</b> <!-- hidden --> d\n\n<!-- hidden\n\ntoo -->\n\n<div>\ne\n</div>\n", images)
    assert page.text.split() == ["a", "<b>c</b>", "d", "<div>", "e", "</div>"]


def test_the_page_may_load_nothing(images):
    page = render_html("# a & b", "a & <b>", images).decode()
    assert "<title>a &amp; &lt;b&gt;</title>" in page
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "://" not in page.partition("<body>")[0]


def test_images_are_inside_the_page_and_come_only_from_the_two_folders(images, tmp_path):
    (images.folder / "plot.svg").write_text(SVG)
    (images.beside / "sub").mkdir()
    (images.beside / "sub" / "mine one.svg").write_text(SVG)
    (images.beside / "notes.txt").write_text(SECRET)
    (tmp_path / "secret.png").write_text(SECRET)
    (images.beside / "link.png").symlink_to(tmp_path / "secret.png")
    (images.beside / "loop.png").symlink_to("loop.png")
    page = page_of("![p](plot.svg) ![m](sub/mine%20one.svg)", images)
    assert [attrs["src"].partition(",")[0] for tag, attrs in page.elements if tag == "img"] == [
        "data:image/svg+xml;base64"
    ] * 2
    assert (images.folder / "sub" / "mine one.svg").read_text() == SVG, "the Markdown links to it there"
    assert images.problems == []
    outside = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "loop.png", "https://x.org/a.png"]
    for source in (*outside, "notes.txt", "none.png", "a" * 5000 + ".png", "a%00.png", "~/a.png"):
        found = page_of(f"![alt]({source})", images)
        assert "img" not in found.tags(), source
        assert "[image: alt]" in found.text
    assert len(images.problems) == 10
    assert not any("\n" in problem for problem in images.problems)


def test_a_pdf_holds_maths_tables_and_images(images):
    (images.folder / "plot.svg").write_text(SVG)
    table = "**T**\n\n| a | b |\n|:--|--:|\n| $x^2$ | 2 |\n\n- note\n\n"
    text = f"# T\n\n$$\\sum_{{i=1}}^n \\hat{{s}}_i$$\n\n{table}![p](plot.svg)\n"
    assert render_pdf(text, 'A "title" \\ #x', images).startswith(b"%PDF-")


@pytest.mark.parametrize(
    "bad", [r"\frac{a}", r"\underset{}{}", r"\dfrac{}{}", r"\sp", r"\over", r"\overline"]
)
def test_a_formula_that_cannot_be_set_costs_the_pdf_nothing(bad, images):
    assert render_pdf(f"a $x$ ${bad}$ b", "T", images).startswith(b"%PDF-")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('#read("/etc/passwd")', 'read("/etc/passwd")'),
        ('```{=typst}\n#read("x")\n```', '```{=typst} read("x") ```'),
        ('`#read("x")`{=typst}', '`read("x")`{=typst}'),
        ('a <b>#read("x")</b>', 'a `<b>`read("x")`</b>`'),
        ("<!-- #read --> <!-- -->", ""),
        ("[a](#nowhere) @b", "a @b"),
        ("[a](javascript:x)", "a"),
        ("![a](/etc/passwd)", "emph[[image: a]]"),
        ("![](../x.svg)", "emph[[image: ../x.svg]]"),
    ],
)
def test_what_typst_would_act_on_reaches_it_as_text(text, shown, images, monkeypatch):
    source = typst_of(text, images, monkeypatch)
    assert words_of(source) == shown
    assert not re.search(r"(?<!\\)#(read|import|include|eval|image|plugin)", re.sub(r"`+[^`]*`+", "", source))


def test_maths_cannot_call_typst(images, tmp_path, monkeypatch):
    source = typst_of(r'$\text{#read("/x")}$ $\mathrm{")#read("x}$', images, monkeypatch)
    for formula in re.findall(r"(?<!\\)\$(.*?)(?<!\\)\$", source):
        assert "#" not in re.sub(r'"(\\.|[^"\\])*"', "", formula)


def test_typst_reads_nothing_outside_its_folder(images, tmp_path):
    import typst

    (tmp_path / "secret.txt").write_text(SECRET)
    with pytest.raises(typst.TypstError):
        typst.compile(b'#read("../secret.txt")', root=str(images.folder), format="pdf")


def test_every_column_is_as_wide_as_it_needs(images, monkeypatch):
    wide = "| a | b |\n|---|---|\n" + f"| {'x ' * 200} | 2 |\n"
    assert "columns: 2," in typst_of(wide, images, monkeypatch)


@pytest.mark.parametrize(
    ("link", "safe"),
    [("https://a.org", True), ("HTTP://a.org", True), ("mailto:a@b", True), ("javascript:x", False),
     ("file:///x", False), ("data:x", False), ("x.md", False), (" https://a", False)],
)  # fmt: skip
def test_safe_links(link, safe):
    assert is_safe_link(link) is safe


def test_the_title_is_the_first_heading():
    assert read_title("x\n\n# A\x1b title #\n\n# B\n") == "A title"
    assert read_title("## no\n") == "Write-up"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomically(path, b"old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "replace", full)
    with pytest.raises(ValueError, match=r"a\.txt: cannot write \(No space left on device") as error:
        write_atomically(path, b"new")
    assert "\n" not in str(error.value)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(ValueError, match="cannot write"):
        write_atomically(tmp_path / "none" / "a.txt", b"")


def test_pandoc_that_is_gone_is_one_line(images, monkeypatch):
    import pypandoc

    def gone(*args, **options):
        raise OSError("No pandoc was found: either install pandoc and add it\nto your PATH or or call ...")

    monkeypatch.setattr(pypandoc, "convert_text", gone)
    with pytest.raises(ValueError, match=r"pandoc is not there: pip install 'cs_systems\[report\]'"):
        render_pdf("a", "T", images)


def test_a_title_with_quotes_is_data(images, monkeypatch):
    import typst

    given = []
    monkeypatch.setattr(typst, "compile", lambda source, **options: given.append(source.decode()) or b"%PDF-")
    title = 'a" + read("/x") + "'
    render_pdf("a", title, images)
    (line,) = [line for line in given[0].splitlines() if line.startswith("#let title")]
    assert json.loads(line.partition("= ")[2]) == title
