"""The file of measured configurations: found again, kept apart by device, never in the way of a launch."""

import json

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (Linux)")

from cs_systems.kernels import tuning

GPU, OTHER, CPU = torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cpu")
KEY = {"head_dim": 64, "dtype": "bf16", "is_causal": True}
CONFIG = {"block_m": 128, "block_n": 64, "num_warps": 8, "num_stages": 2}


@pytest.fixture(autouse=True)
def path(tmp_path, monkeypatch):
    """A file of this test's own, on a machine with two kinds of GPU."""
    path = tmp_path / "folder" / "tuning.json"
    monkeypatch.setenv("CS_SYSTEMS_TUNING", str(path))
    monkeypatch.setattr(tuning, "device_name", lambda device: f"GPU {device.index}")
    tuning._configs.cache_clear()
    yield path
    tuning._configs.cache_clear()


def forget():
    """What a new process knows: the file alone."""
    tuning._configs.cache_clear()


def test_a_stored_configuration_is_found_at_once_and_by_the_next_process():
    assert tuning.cached_config("forward", KEY, GPU) is None
    tuning.store_config("forward", KEY, GPU, CONFIG)
    for _ in range(2):
        assert tuning.cached_config("forward", KEY, GPU) == CONFIG
        assert tuning.cached_config("forward", dict(reversed(KEY.items())), GPU) == CONFIG
        forget()


def test_only_the_same_kernel_key_device_and_triton_find_it(monkeypatch):
    tuning.store_config("forward", KEY, GPU, CONFIG)
    assert tuning.cached_config("dq", KEY, GPU) is None
    assert tuning.cached_config("forward", KEY | {"is_causal": False}, GPU) is None
    assert tuning.cached_config("forward", KEY, OTHER) is None
    assert tuning.cached_config("forward", KEY, CPU) is None
    monkeypatch.setattr(tuning.triton, "__version__", "3.0.0")
    forget()
    assert tuning.cached_config("forward", KEY, GPU) is None


def test_a_second_measurement_replaces_the_first_and_nothing_else():
    others = [("dq", KEY, GPU), ("forward", KEY | {"head_dim": 80}, GPU), ("forward", KEY, OTHER)]
    for kernel, key, device in [*others, ("forward", KEY, GPU)]:
        tuning.store_config(kernel, key, device, CONFIG)
    better = CONFIG | {"num_stages": 3}
    tuning.store_config("forward", KEY, GPU, better)
    assert tuning.cached_config("forward", KEY, GPU) == better
    assert [tuning.cached_config(*other) for other in others] == [CONFIG] * 3
    assert len(json.loads(tuning.tuning_path().read_text())["entries"]) == 4


def test_a_launch_reads_no_file_after_the_first(path):
    tuning.store_config("forward", KEY, GPU, CONFIG)
    assert tuning.cached_config("forward", KEY, GPU) == CONFIG
    path.unlink()
    assert tuning.cached_config("forward", KEY, GPU) == CONFIG


ENTRY = {"device": "GPU 0", "triton": "3", "kernel": "forward", "key": KEY, "config": CONFIG}
UNUSABLE = {
    "cut off": '{"format": "cs_syst',
    "not UTF-8": b"\xff\xfe\x00",
    "foreign": '{"name": "package.json"}',
    "no object": "[1, 2]",
    "later version": json.dumps({"format": "cs_systems tuning 2", "entries": []}),
    "no entries": json.dumps({"format": tuning.FORMAT}),
    "key in doubt": json.dumps({"format": tuning.FORMAT, "entries": [ENTRY | {"key": {"a": [1]}}]}),
    "no kernel": json.dumps({"format": tuning.FORMAT, "entries": [ENTRY | {"kernel": None}]}),
    "half a warp": json.dumps({"format": tuning.FORMAT, "entries": [ENTRY | {"config": {"num_warps": 0.5}}]}),
    "empty": "",
}


@pytest.mark.parametrize("content", UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_file_is_one_warning_and_is_never_overwritten(path, caplog, content):
    path.parent.mkdir()
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(content)
    for _ in range(3):
        assert tuning.cached_config("forward", KEY, GPU) is None
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelname == "WARNING"
    assert str(path) in message
    assert "CS_SYSTEMS_TUNING" in message
    assert "default configurations" in message
    assert "\n" not in message
    for attempt in (tuning.check_storable, lambda: tuning.store_config("forward", KEY, GPU, CONFIG)):
        with pytest.raises(ValueError, match="CS_SYSTEMS_TUNING"):
            attempt()
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_said_before_measuring(path, monkeypatch):
    path.parent.write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"cannot .* the tuning file .*name another"):
        tuning.check_storable()


def test_a_failed_write_leaves_the_old_file_and_no_litter(path, monkeypatch):
    tuning.store_config("forward", KEY, GPU, CONFIG)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tuning.pathlib.Path, "replace", full)
    with pytest.raises(ValueError, match="No space left"):
        tuning.store_config("dq", KEY, GPU, CONFIG)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_file_is_found_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("CS_SYSTEMS_TUNING")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.tuning_path() == tmp_path / "cs_systems" / "tuning.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning.tuning_path() == tmp_path / ".cache" / "cs_systems" / "tuning.json"
