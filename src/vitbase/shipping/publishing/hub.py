"""A folder -> a model of the Hugging Face hub, in one commit; nothing else is sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vitbase._version import __version__
from vitbase.console import printable
from vitbase.errors import ConfigError, VitbaseError, first_few

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_LONGEST_NAME = 96
_ITS_OWN = frozenset({".gitattributes"})
"""What the hub puts into a new repository."""


class HubError(VitbaseError):
    """The hub refuses, does not answer, or holds something already."""


def check_name(repo: str) -> None:
    """Raises: ConfigError if it is no name of a repository with its owner."""
    if not _NAME.fullmatch(repo) or len(repo) > _LONGEST_NAME or repo.endswith((".", "-", ".git")):
        raise ConfigError(
            f"Option 'repo' is {printable(repo)[:100]}: a repository is called OWNER/NAME, of "
            f"letters, digits, '-', '_' and '.'."
        )


def check_client() -> None:
    """Raises: ConfigError if the hub's client is not installed."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise ConfigError(
            "Uploading needs the hub's client. Install it with: pip install 'vitbase[hub]'"
        ) from None


def upload(folder: Path, repo: str, *, public: bool = False, update: bool = False) -> str:
    """Upload a folder in one commit, with the token of `hf auth login` or HF_TOKEN.

    Args:
      repo: `owner/name`; it is made if it is not there.
      public: whether everybody may see it, if it is made.
      update: whether it may hold files already; those of the same names are replaced.
    Returns: the address of the model's page.
    Raises: HubError if the hub refuses, or the repository holds files; never with the token in it.
    """
    check_client()
    from huggingface_hub import HfApi

    api = HfApi(library_name="vitbase", library_version=__version__)
    there = _list(api, repo)
    if there and not update:
        files = "file" if len(there) == 1 else "files"
        raise HubError(
            f"{repo} holds {len(there)} {files} already ({first_few(sorted(there))}). Choose "
            f"another name, or give --update, which replaces those of the same names."
        )
    made = there is None
    try:
        if made:
            api.create_repo(repo, private=not public)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"Upload by vitbase {__version__}"
        )
    except Exception as error:  # the client raises many kinds, and those of its transport
        left = (
            f" The repository {repo} was made, and may be empty."
            if made and _is_there(api, repo)
            else ""
        )
        raise HubError(f"{repo} was not uploaded: {_explain(error, repo)}.{left}") from None
    return f"{api.endpoint}/{repo}"


def _list(api: HfApi, repo: str) -> list[str] | None:
    """Return the files of a repository; None if there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return [name for name in api.list_repo_files(repo) if name not in _ITS_OWN]
    except RepositoryNotFoundError as error:
        if _status(error) == 401 and api.token is None and not _has_token():
            raise HubError(f"{repo} cannot be looked at: {_LOG_IN}.") from None
        return None
    except Exception as error:  # as above
        raise HubError(f"{repo} cannot be looked at: {_explain(error, repo)}.") from None


def _is_there(api: HfApi, repo: str) -> bool:
    try:
        return api.repo_exists(repo)
    except Exception:  # the first error is the one to tell
        return False


_LOG_IN = (
    "nobody is logged in, or may do so. Log in with `hf auth login`, or set HF_TOKEN, with a token "
    "that may write"
)


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _status(error: Exception) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _explain(error: Exception, repo: str) -> str:
    """Say in a sentence what went wrong, without what might tell the token."""
    status = _status(error)
    if status in {401, 403}:
        return f"the hub refuses ({status}): {_LOG_IN} to {repo}"
    cause = error.__cause__
    said = [_first_line(each) for each in (error, cause) if each is not None]
    return ": ".join(dict.fromkeys(said))


def _first_line(error: BaseException) -> str:
    lines = [*_without_token(str(error))]
    return lines[0][:300].rstrip(".") if lines else type(error).__name__


def _without_token(text: str) -> Iterator[str]:
    """Yield the lines of a message; an answer may have put the token into it."""
    from huggingface_hub import get_token

    token = get_token()
    text = re.sub(r"hf_\w{8,}|(?i:bearer)\s+\S+", "(token)", text)
    if token:
        text = text.replace(token, "(token)")
    yield from (line.strip() for line in text.splitlines() if line.strip())
