"""Read a local checkpoint in Hugging Face layout: config.json beside model.safetensors, whole or in shards.

Only the safetensors format is read. The older pytorch_model.bin is a pickle, and loading a pickle runs
whatever code its author put in it.
"""

import json
import pathlib
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cs_systems.model.config import ModelConfig
from cs_systems.model.hugging_face_config import config_from_hugging_face
from cs_systems.model.hugging_face_weights import state_from_hugging_face

_CONFIG, _WHOLE, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def load_pretrained(directory: pathlib.Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and state dict of the model in `directory`, in the dtype of the file.

    GPT-2, BLOOM, GPT-J, OPT and Llama are read; `hugging_face_weights` says what is permuted for each.
    Nothing is downloaded.

    Raises:
        ValueError: one line naming the file and what to do: no such directory, a file missing, cut off or of
            another format, an unknown family or variant, weights that do not fit the configuration.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory} is no directory; give a local one with {_CONFIG} and {_WHOLE}")
    settings = _read_json(directory / _CONFIG)
    try:
        config = config_from_hugging_face(settings)
    except ValueError as error:
        raise ValueError(f"{directory / _CONFIG}: {error}") from None
    tensors = _read_tensors(directory)
    try:
        return config, state_from_hugging_face(settings["model_type"], config, tensors)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None


def _read_tensors(directory: pathlib.Path) -> dict[str, Tensor]:
    """All tensors of the checkpoint by the names in its files."""
    if (directory / _WHOLE).exists():
        return _read_safetensors(directory / _WHOLE)
    if (directory / _INDEX).exists():
        return _read_shards(directory)
    if any(directory.glob("pytorch_model*.bin")):
        raise ValueError(
            f"{directory} holds only pytorch_model.bin, a pickle, which can run any code when read; if you "
            f"trust it, convert it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    raise ValueError(f"{directory} holds neither {_WHOLE} nor {_INDEX}; copy the weights there")


def _read_shards(directory: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of all shards that the index names."""
    shard_of = _read_json(directory / _INDEX).get("weight_map")
    if not isinstance(shard_of, dict):
        raise ValueError(f"{directory / _INDEX} has no weight_map; copy the file again")
    shards = sorted(set(shard_of.values()))
    missing = [shard for shard in shards if not (directory / shard).is_file()]
    if missing:
        raise ValueError(
            f"{directory}: {len(missing)} of {len(shards)} shards are missing, the first is {missing[0]}; "
            f"copy every shard that {_INDEX} names"
        )
    return {name: tensor for shard in shards for name, tensor in _read_safetensors(directory / shard).items()}


def _read_safetensors(path: pathlib.Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); it is cut off or no safetensors file, so copy it again"
        ) from None


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); copy it to the weights") from None
    except ValueError:  # not JSON, or not even text
        raise ValueError(f"{path} is not JSON; it is damaged, so copy it again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object; it is not the file that it should be")
    return values
