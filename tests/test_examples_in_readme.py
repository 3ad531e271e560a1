"""What the READMEs tell a user to type exists, in both languages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import vitbase
from vitbase.cli import (
    bench,
    compare,
    data,
    demo,
    doubts,
    evaluate,
    explain,
    export,
    inspect,
    predict,
    probe,
    push,
    report,
    serve,
    weights,
)
from vitbase.cli.arguments import LaunchOptions, TableOptions
from vitbase.cli.verify import VerifyOptions
from vitbase.config.config import FIELDS
from vitbase.config.shipped import recipe_names
from vitbase.launch.ranktable import read_rank_table

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README_CN.md")
DOCS = tuple(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
OPTIONS = {
    *FIELDS,
    *weights._ConvertOptions.__annotations__,
    *data._CheckOptions.__annotations__,
    *data._PackOptions.__annotations__,
    *compare.CompareOptions.__annotations__,
    *doubts.DoubtsOptions.__annotations__,
    *evaluate._Results.__annotations__,
    *explain._Device.__annotations__,
    *("json", "calibrate", "save_features"),
    *report._ReportOptions.__annotations__,
    *inspect.InspectOptions.__annotations__,
    *predict.PredictOptions.__annotations__,
    *("recursive", "link"),
    *export.ExportOptions.__annotations__,
    *push.PushOptions.__annotations__,
    *push._SWITCHES,
    *demo.DemoOptions.__annotations__,
    *bench.BenchOptions.__annotations__,
    *serve.ServeOptions.__annotations__,
    "overwrite",
    *probe.ProbeOptions.__annotations__,
}
OPTIONS |= {*LaunchOptions.__annotations__, *TableOptions.__annotations__}
OPTIONS |= {*VerifyOptions.__annotations__}
OPTIONS |= {"print", "make_rank_table", "image_size"}
# What docs/cluster.md tells to type to others.
OPTIONS |= {
    "nnodes",
    "nproc_per_node",
    "rdzv_backend",
    "rdzv_endpoint",
    "rdzv_id",
    "gpus",
    "requeue",
    "signal",
}


@pytest.mark.parametrize("name", [*READMES, *DOCS])
def test_options_recipes_links_and_targets_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    options = set(re.findall(r"--([a-z0-9_]+)", text)) - {"option"}
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


def test_the_slurm_script_makes_a_rank_table(tmp_path):
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"python3 -c '\n(.+?)' > ", text, flags=re.DOTALL)
    made = subprocess.run(
        [sys.executable, "-c", program],
        input="node1\nnode2\n",
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / "table.json").write_text(made.stdout)
    servers = read_rank_table(tmp_path / "table.json").servers
    assert [server.address for server in servers] == ["node1", "node2"]
    assert all(server.device_ids == tuple(range(8)) for server in servers)


def test_the_rank_table_of_the_docs_is_valid(tmp_path):
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"```json\n(.+?)```", text, flags=re.DOTALL)
    (tmp_path / "table.json").write_text(table)
    assert len(read_rank_table(tmp_path / "table.json").servers) == 2
