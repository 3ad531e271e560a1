"""Weights on the Hugging Face hub: `hf-hub:owner/name`, fetched once into its usual cache."""

from __future__ import annotations

import json
from pathlib import Path

from vitbase.errors import WeightsError

PREFIX = "hf-hub:"

# One model, whatever its files: what to look for, best first; an index names its shards.
MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_BESIDE = ("config.json", "preprocessor_config.json")


def fetch(name: str) -> Path:
    """Fetch a model of the hub, or find it in the cache; the network is asked only for the rest.

    Args:
      name: `hf-hub:owner/name`, with a branch, tag or commit after `@` where wanted.
    Returns: its weights file, or the index of its shards, in the cache.
    Raises: WeightsError if huggingface_hub is not installed, or nothing is found.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
    except ImportError:
        raise WeightsError(
            f"{name} needs the hub's client. Install it with: pip install 'vitbase[hub]'"
        ) from None
    repository, _, revision = name.removeprefix(PREFIX).partition("@")

    def get(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(repository, file, revision=revision or None))
        except EntryNotFoundError as error:
            if isinstance(error, FileNotFoundError):  # offline, and not in the cache
                absent.append(file)
            return None
        except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise WeightsError(f"Cannot fetch {name}: {first}") from None

    absent: list[str] = []
    for file in _BESIDE:
        get(file)
    for file in MODEL_FILES:
        found = get(file)
        if found is None:
            continue
        if file.endswith(".index.json"):
            for shard in _shards(found):
                if get(shard) is None:
                    raise WeightsError(f"Cannot fetch {name}: its shard {shard} is not there.")
        return found
    where = " in the local cache, and the hub cannot be reached" if absent else ""
    raise WeightsError(f"{name} holds none of {', '.join(MODEL_FILES)}{where}.")


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise WeightsError(f"{index} is no index of a sharded checkpoint.") from None
