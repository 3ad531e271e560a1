"""Weights on the Hugging Face hub: `hf-hub:owner/name`, fetched once into its usual cache."""

from __future__ import annotations

from pathlib import Path

from vitbase.errors import WeightsError
from vitbase.weights.files.open import INDEX_SUFFIX, read_index

PREFIX = "hf-hub:"

# One model, whatever its files: what to look for, best first; an index names its shards.
MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_BESIDE = ("config.json", "preprocessor_config.json")
_SECONDS = 10.0  # to wait for an answer, before the cache has to do


def fetch(name: str) -> Path:
    """Fetch a model of the hub, or find it in the cache.

    The hub is asked which commit a branch or tag is, and for the files of that commit that are not
    in the cache; without an answer, the commit that the cache knows has to do. All files are of
    one commit.

    Args:
      name: `hf-hub:owner/name`, with a branch, tag or commit after `@` where wanted.
    Returns: its weights file, or the index of its shards, in the cache.
    Raises: WeightsError if huggingface_hub is not installed, or nothing is found.
    """
    try:
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise WeightsError(
            f"{name} needs the hub's client. Install it with: pip install 'vitbase[hub]'"
        ) from None
    repository, _, asked = name.removeprefix(PREFIX).partition("@")
    revision = asked or None
    offered: set[str] | None = None  # the names of the commit's files, if the hub has answered
    silence = ""
    try:
        answer = HfApi().model_info(repository, revision=revision, timeout=_SECONDS)
        offered = {file.rfilename for file in answer.siblings or ()}
    except HFValidationError as error:
        raise WeightsError(f"{name} is no name of a model, such as owner/name: {error}") from None
    except Exception as error:  # its clients, of which there are several, raise many kinds
        silence = _explain(error, repository, asked)

    def get(file: str) -> Path | None:
        nonlocal revision
        if offered is not None and file not in offered:
            return None
        try:
            found = hf_hub_download(
                repository, file, revision=revision, local_files_only=offered is None
            )
        except LocalEntryNotFoundError as error:
            if offered is None:
                return None
            raise WeightsError(f"Cannot fetch {file} of {name}: {_first_line(error)}") from None
        except Exception as error:  # as above, and of the disk
            cause = _explain(error, repository, asked)
            raise WeightsError(f"Cannot fetch {file} of {name}: {cause}") from None
        # The first file by the branch, which the cache notes down; the others by the commit that it
        # was, for a branch may move meanwhile. The folder of a file is called by its commit.
        revision = Path(found).parent.name
        return Path(found)

    for file in _BESIDE:
        get(file)
    for file in MODEL_FILES:
        found = get(file)
        if found is None:
            continue
        shards = sorted(set(read_index(found).values())) if file.endswith(INDEX_SUFFIX) else []
        absent = [shard for shard in shards if get(shard) is None]
        if absent:
            raise WeightsError(
                f"{name} is not whole: {len(absent)} of its {len(shards)} shards "
                f"({_few(absent)}) are not "
                + (f"in the local cache, and {silence}" if offered is None else "there.")
            )
        return found
    if offered is None:
        raise WeightsError(
            f"Cannot fetch {name}: {silence} Nor is it in the local cache, {HF_HUB_CACHE}."
        )
    raise WeightsError(
        f"{name} holds none of {', '.join(MODEL_FILES)}. It holds: {_few(sorted(offered))}."
    )


def _explain(error: Exception, repository: str, revision: str) -> str:
    """Say in a sentence why the hub gave nothing."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if HF_HUB_OFFLINE:
        return "the hub is not asked, because HF_HUB_OFFLINE is set."
    if isinstance(error, GatedRepoError):  # a kind of the next one
        return f"{repository} is gated. Accept its terms on its page, and log in: `hf auth login`."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"the hub knows no model '{repository}'. If it is a private one, log in: "
            f"`hf auth login`."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no branch, tag or commit '{revision}'."
    return f"the hub does not answer ({_first_line(error)})."


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _few(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
