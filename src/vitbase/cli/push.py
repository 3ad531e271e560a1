"""`vitbase push`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any, TypedDict

import tyro

from vitbase.cli.arguments import parse_options, take_switch
from vitbase.cli.help import option
from vitbase.cli.naming import without_option
from vitbase.console import printable, say, say_json
from vitbase.errors import ConfigError

_USAGE = "vitbase push CHECKPOINT [--to FOLDER] [--repo OWNER/NAME] [--upload]"
_PUSH = """A model as a folder that timm, transformers or vitbase open by their own means: weights,
configuration with labels and preprocessing, and a card made of the run. --to FOLDER writes it;
without it, what would be uploaded is shown; --upload uploads it to --repo OWNER/NAME of the Hugging
Face hub, as whoever `hf auth login` or HF_TOKEN says. A repository that is made is private but with
--public; --update replaces files of one that holds some. --json prints a JSON object."""
_SWITCHES = ("json", "upload", "public", "update")


class PushOptions(TypedDict, total=False):
    checkpoint: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        option("a run folder, a checkpoint, or a weights file", metavar="CHECKPOINT"),
    ]
    to: Annotated[str, option("the folder that is written; none there yet")]
    repo: Annotated[str, option("OWNER/NAME on the hub")]
    dialect: Annotated[
        str,
        option(
            "whose names the weights get: timm, transformers or vitbase; none: the first of them "
            "that has such a network"
        ),
    ]
    title: Annotated[str, option("what the card calls it; none: as the repository, or the run")]
    license: Annotated[str, option("of the weights, such as apache-2.0; none: as their file says")]
    allow: Annotated[
        tuple[str, ...],
        option("what may be computed otherwise there: gelu, resnet_form, norm_eps"),
    ]
    num_heads: Annotated[int, option("where the weights do not tell")]


def run_push(words: list[str]) -> None:
    """Run `vitbase push CHECKPOINT`."""
    given: dict[str, bool] = {}
    for switch in _SWITCHES:
        words, given[switch] = take_switch(words, f"--{switch}")
    options = parse_options(PushOptions, words, "vitbase push", _PUSH, switches=_SWITCHES)
    places = options.pop("checkpoint", ())
    if len(places) != 1:
        raise ConfigError(f"Usage: {_USAGE}")
    to, repo = options.pop("to", None), options.get("repo")
    if given["upload"] and to is not None:
        raise ConfigError("Give --to FOLDER, which writes it here, or --upload, not both.")
    if given["upload"] and repo is None:
        raise ConfigError("Give --repo OWNER/NAME, where --upload uploads to.")
    from vitbase.shipping.publishing.hub import check_client, check_name, upload

    if repo is not None:
        check_name(repo)
    if given["upload"]:
        check_client()
    options["name"] = options.pop("title", None)
    if to is not None:
        _write(places[0], to, options, as_json=given["json"])
        return
    with tempfile.TemporaryDirectory(prefix="vitbase-") as temporary:
        folder = Path(temporary) / "folder"
        made = _make(places[0], folder, options)
        address = None
        if given["upload"] and repo is not None:
            if not given["json"]:
                for line in made.lines():
                    say(printable(line))
            address = upload(folder, repo, public=given["public"], update=given["update"])
    if given["json"]:
        say_json({**made.to_dict(), "repo": repo, "uploaded": address})
        return
    if address is not None:
        say(printable(f"Uploaded to {address}"))
        return
    for line in made.lines():
        say(printable(line))
    who = "everybody sees it" if given["public"] else "private, but with --public"
    where = repo or "OWNER/NAME (--repo)"
    say(f"Nothing was uploaded. --upload would put this into {where}, if it is new: {who}:")
    for line in made.sizes():
        say(printable(line))


def _write(checkpoint: str, to: str, options: dict[str, Any], *, as_json: bool) -> None:
    made = _make(checkpoint, to, options)
    if as_json:
        say_json({**made.to_dict(), "to": to})
        return
    for line in made.lines():
        say(printable(line))
    say(printable(f"Written to {to}:"))
    for line in made.sizes():
        say(printable(line))


def _make(checkpoint: str, to: str | Path, options: dict[str, Any]) -> Any:
    from vitbase.shipping.publishing.folder import write_folder

    with without_option("checkpoint_path"):
        return write_folder(checkpoint, to, **options)
