"""The bytes that are trained on: which files, in which order, how many, and what is said without any."""

import hashlib
import pathlib
import sysconfig

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_systems.mixed_precision.text import read_text, sample_windows, spread_windows


def all_bytes(text):
    return bytes(torch.cat([text.train, text.held_out]).tolist())


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_a_file_is_read_as_it_is_and_its_last_tenth_is_held_out(tmp_path):
    content = bytes(range(1, 201)) * 5
    write(tmp_path, {"a.bin": content})
    text = read_text(str(tmp_path / "a.bin"), 16)
    assert all_bytes(text) == content
    assert (len(text.train), len(text.held_out), text.num_bytes, text.num_files) == (900, 100, 1000, 1)
    assert text.sha256 == hashlib.sha256(content).hexdigest()


def test_a_folder_is_read_in_an_order_that_depends_on_the_names_alone(tmp_path):
    files = {f"{name}/{i}.txt": f"{name}{i}".encode() * 50 for name in "zya" for i in range(4)}
    write(tmp_path / "one", files)
    write(tmp_path / "two", dict(reversed(files.items())))
    one, two = (all_bytes(read_text(str(tmp_path / name), 8)) for name in ("one", "two"))
    assert one == two
    place = {content: hashlib.sha256(name.encode()).hexdigest() for name, content in files.items()}
    assert one == b"".join(sorted(place, key=place.__getitem__))


def test_binary_hidden_and_installed_files_are_passed_over(tmp_path):
    kept = {"read.md": b"words " * 100, "deep/er/code.c": b"int x; " * 100}
    passed_over = {
        "a.out": b"\x7fELF\0" * 100, ".git/config": b"hidden" * 9, "site-packages/x.py": b"theirs" * 9,
        "__pycache__/x.py": b"made" * 9, ".hidden": b"h" * 99, "empty": b"",
    }  # fmt: skip
    write(tmp_path, kept | passed_over)
    (tmp_path / "loop").symlink_to(tmp_path)
    text = read_text(str(tmp_path), 8)
    assert text.num_files == 2
    assert sorted(all_bytes(text)) == sorted(b"".join(kept.values()))


def test_the_limit_cuts_the_last_file_that_fits_in_part(tmp_path):
    write(tmp_path, {f"{i}.txt": bytes([65 + i]) * 20_000 for i in range(4)})
    whole = all_bytes(read_text(str(tmp_path), 8))
    for limit in (20_000, 20_001, 49_999):
        assert all_bytes(read_text(str(tmp_path), 8, max_bytes=limit)) == whole[:limit]


def test_the_default_is_the_source_of_the_standard_library():
    text = read_text("stdlib", 64, max_bytes=300_000)
    data = all_bytes(text)
    assert len(data) == 300_000
    assert b"import " in data
    assert b"def " in data
    folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
    names = (path.relative_to(folder) for path in folder.rglob("*.py") if path.stat().st_size)
    passed_over = {"site-packages", "dist-packages"}
    own = [name for name in names if not passed_over & set(name.parts) and "/." not in f"/{name.as_posix()}"]
    first = folder / min(own, key=lambda name: hashlib.sha256(name.as_posix().encode()).hexdigest())
    assert data.startswith(first.read_bytes()[:300_000])


@pytest.mark.parametrize(
    ("files", "name", "said"),
    [
        ({}, "gone.txt", "gone.txt: no such file or folder; --text stdlib is always there"),
        ({"folder/.hidden": b"x" * 999}, "folder", "folder holds no text file; name a file or folder"),
        ({"image.png": b"\x89PNG\0" * 999}, "image.png", "image.png is empty or binary"),
        ({"empty": b""}, "empty", "empty is empty or binary"),
        ({"short.txt": b"too short"}, "short.txt", "has 9 bytes, too few: a tenth is held out"),
        ({"short.txt": b"x" * 640}, "short.txt", "has 640 bytes, too few"),
    ],
)
def test_what_cannot_be_trained_on_is_said_in_one_line(tmp_path, files, name, said):
    write(tmp_path, files)
    with pytest.raises(ValueError, match=said) as error:
        read_text(str(tmp_path / name), 64)
    assert "\n" not in str(error.value)


def test_the_number_of_bytes_that_an_error_asks_for_is_enough(tmp_path):
    write(tmp_path, {"short.txt": b"x" * 100})
    with pytest.raises(ValueError, match=r"give it [0-9,]+ bytes") as error:
        read_text(str(tmp_path / "short.txt"), 64)
    least = int(str(error.value).split("give it ")[1].split(" ")[0].replace(",", ""))
    write(tmp_path, {"short.txt": b"x" * least})
    assert len(read_text(str(tmp_path / "short.txt"), 64).held_out) > 64


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path, *mode):
        raise PermissionError(13, "Permission denied")

    write(tmp_path, {"secret.txt": b"x" * 999})
    monkeypatch.setattr(pathlib.Path, "open", refuse)
    with pytest.raises(ValueError, match=r"cannot read .*secret\.txt \(Permission denied\)"):
        read_text(str(tmp_path), 8)


def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
    with pytest.raises(ValueError, match=r"cannot read folder .* \(Permission denied\)"):
        read_text(str(tmp_path), 8)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(5, 60), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31))
def test_windows_are_pieces_of_the_text_and_a_seed_gives_them_again(size, length, num, seed):
    data = torch.arange(size, dtype=torch.uint8)  # each byte says where it stands
    sampled = sample_windows(data, num, length, torch.Generator().manual_seed(seed))
    for windows in (sampled, spread_windows(data, num, length)):
        assert windows.shape == (num, length)
        assert torch.equal(windows, windows[:, :1] + torch.arange(length))
        assert int(windows.max()) < size
    assert torch.equal(sampled, sample_windows(data, num, length, torch.Generator().manual_seed(seed)))


def test_every_start_is_drawn_and_both_ends_are_evaluated():
    data = torch.arange(10, dtype=torch.uint8)
    starts = sample_windows(data, 500, 4, torch.Generator().manual_seed(0))[:, 0]
    assert set(starts.tolist()) == set(range(7))
    assert spread_windows(data, 3, 4).tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
