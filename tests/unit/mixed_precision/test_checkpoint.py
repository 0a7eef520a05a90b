"""A run that was interrupted ends exactly where one that was not ends; other files are refused."""

import dataclasses
import os
import pathlib

import pytest
import torch

from cs_systems.mixed_precision.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from cs_systems.mixed_precision.settings import TrainingConfig
from cs_systems.mixed_precision.text import Text
from cs_systems.mixed_precision.training import TrainingRun

CPU = torch.device("cpu")
CONFIG = TrainingConfig(
    d_model=32,
    num_heads=2,
    num_layers=1,
    context_length=16,
    batch_size=2,
    steps=8,
    eval_every=3,
    growth_interval=2,
)


def make_run(sha256="0" * 64, **settings):
    data = torch.frombuffer(
        bytearray(b"the cat sat on the mat, and the dog on the log. " * 60), dtype=torch.uint8
    )
    return TrainingRun(
        dataclasses.replace(CONFIG, **settings), Text(data[:-300], data[-300:], 1, sha256), CPU
    )


def advance(run, steps):
    for _ in range(steps):
        run.advance()
    return run


def without_times(run):
    return {name: value for name, value in dataclasses.asdict(run.curves).items() if name != "step_s"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "pure-bf16"])
def test_a_run_continues_to_the_last_bit(tmp_path, precision):
    whole = advance(make_run(precision=precision), 8)
    path = tmp_path / "run.pt"
    save_checkpoint(path, advance(make_run(precision=precision), 3))
    second = make_run(precision=precision)
    assert load_checkpoint(path, second) == []
    save_checkpoint(path, advance(second, 2))  # interrupted twice
    resumed = make_run(precision=precision)
    load_checkpoint(path, resumed)
    assert resumed.num_steps == 5
    advance(resumed, 3)
    assert resumed.finished
    assert without_times(resumed) == without_times(whole)
    assert len(resumed.curves.step_s) == 8
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    assert whole.scaler.state_dict() == resumed.scaler.state_dict()
    if precision == "fp16":
        assert len(set(whole.curves.scale)) > 1  # there was something to restore
    assert os.listdir(tmp_path) == ["run.pt"]


def test_every_case_has_a_file_of_its_own_whatever_differs():
    changes = {"seed": 1, "precision": "bf16", "steps": 9, "text": "x", "learning_rate": 0.1}
    configs = [CONFIG, *(dataclasses.replace(CONFIG, **{name: changes[name]}) for name in changes)]
    folder = pathlib.Path("folder")
    paths = [checkpoint_path(folder, config) for config in configs]
    assert len(set(paths)) == len(configs)
    assert paths[0] == checkpoint_path(folder, dataclasses.replace(CONFIG))
    assert paths[2].name.startswith("bf16-seed0-")


class Dangerous:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def damage(path, how, folder):
    """Change or replace the checkpoint at `path`."""
    content = torch.load(path, weights_only=True)
    match how:
        case "cut off":
            path.write_bytes(path.read_bytes()[:-2000])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("not a checkpoint\n")
        case "junk":
            path.write_text("junk")
        case "weights":
            torch.save({"weight": torch.ones(3)}, path)
        case "tensor":
            torch.save(torch.ones(3), path)
        case "part missing":
            torch.save({name: value for name, value in content.items() if name != "state"}, path)
        case "code":
            torch.save(content | {"state": Dangerous(folder / "executed")}, path)
        case "folder":
            path.unlink()
            path.mkdir()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut off", "cut off or not a checkpoint; delete it to start again"),
        ("empty", "cut off or not a checkpoint"),
        ("text", "cut off or not a checkpoint"),
        ("junk", "cut off or not a checkpoint"),
        ("weights", "not a checkpoint of this program"),
        ("tensor", "not a checkpoint of this program"),
        ("part missing", "missing parts"),
        ("code", "cut off or not a checkpoint"),
        ("folder", "cannot read"),
    ],
)
def test_damaged_and_foreign_files_are_refused_and_nothing_in_them_is_run(tmp_path, how, said):
    path = tmp_path / "run.pt"
    save_checkpoint(path, make_run())
    damage(path, how, tmp_path)
    with pytest.raises(ValueError, match=said) as error:
        load_checkpoint(path, make_run())
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_other_settings_or_another_text_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    save_checkpoint(path, make_run())
    with pytest.raises(ValueError, match=r"is of a run with --steps 8, --learning-rate 0\.001; ask"):
        load_checkpoint(path, make_run(learning_rate=0.5, steps=9))
    with pytest.raises(ValueError, match="trained on another text: --text stdlib has changed"):
        load_checkpoint(path, make_run(sha256="1" * 64))


def test_another_torch_or_number_of_threads_is_allowed_and_told(tmp_path):
    path = tmp_path / "run.pt"
    save_checkpoint(path, make_run())
    content = torch.load(path, weights_only=True)
    content["written_by"] |= {"torch": "2.0.0", "threads": 99}
    torch.save(content, path)
    remarks = load_checkpoint(path, make_run())
    assert remarks == [
        "continued from a checkpoint of torch 2.0.0, threads 99: steps may differ in the last bits"
    ]


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path, run = tmp_path / "run.pt", advance(make_run(), 1)
    save_checkpoint(path, run)

    def fail(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(ValueError, match=r"cannot write run\.pt \(No space left on device\)"):
        save_checkpoint(path, advance(run, 1))
    restored = make_run()
    load_checkpoint(path, restored)
    assert restored.num_steps == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"--checkpoints .*file: cannot write run\.pt"):
        save_checkpoint(tmp_path / "file" / "run.pt", make_run())
