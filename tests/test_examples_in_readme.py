"""What the READMEs tell a user to type exists, in both languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vitbase
from vitbase import cli, cli_data
from vitbase.config import FIELDS, recipe_names

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README_CN.md")
DOCS = tuple(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
OPTIONS = {
    *FIELDS,
    *cli._ConvertOptions.__annotations__,
    *cli_data._CheckOptions.__annotations__,
    *cli_data._PackOptions.__annotations__,
    "json",
}


@pytest.mark.parametrize("name", [*READMES, *DOCS])
def test_options_recipes_links_and_targets_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    options = set(re.findall(r"--([a-z_]+)", text)) - {"option"}
    assert options <= OPTIONS, options - OPTIONS
    for recipe in recipe_names():
        assert f"`{recipe}`" in text or name in DOCS
    for recipe in re.findall(r"vitbase (?:train|explain) ([a-z_]+)\b(?!\.toml)", text):
        assert recipe in {*recipe_names(), "my", "runs"}
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / name).parent.joinpath(link).exists(), link
    for target in re.findall(r"(?:^|`)make ([\w-]+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("name", READMES)
def test_the_python_example_runs(name, tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.+?)```", (ROOT / name).read_text(), flags=re.DOTALL)
    load_config = vitbase.load_config

    def small(recipe, **options):  # the same lines, on a run of seconds instead of minutes
        tiny = {"model": "testing", "image_height": 16, "image_width": 16, "pool": "gap"}
        return load_config(recipe, **options, **tiny, batch_size=1000, warmup_epochs=0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vitbase, "load_config", small)
    exec(compile(block, name, "exec"), {})
    assert (tmp_path / "runs" / "short" / "config.toml").is_file()
