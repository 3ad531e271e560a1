"""`vitbase push`: the folder, its card, and the hub; what is refused, and what is never told."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import run_command
from huggingface_hub import ModelCard, close_session, constants
from made_hub import TOKEN, Hub, serving
from made_runs import TINY
from markdown_it import MarkdownIt
from PIL import Image

import vitbase
from vitbase.cli.main import main
from vitbase.config.preprocess import default_preprocess
from vitbase.console import printable
from vitbase.shipping.publishing.folder import write_folder
from vitbase.shipping.publishing.licence import find_licence
from vitbase.shipping.publishing.markdown import code, fenced, front_matter, table
from vitbase.shipping.publishing.told import describe_data

HOSTILE = (
    "</details><script>alert(1)</script>",
    "a`b``c | d",
    "```\n---\nlicense: mit\n# heading",
    "![x](http://evil/x.png) [y](javascript:alert(1)) @user :smile:",
    "\x1b[2J\u202e猫 \U0001f408",
    "bytes that are no UTF-8: \udcff",
    "",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that lies in no run."""
    torch.manual_seed(0)
    model = vitbase.create_model("testing", num_classes=7, image_size=32)
    torch.nn.init.normal_(model.head.weight)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    vitbase.save_weights(model, path, preprocess=default_preprocess(32, 32, 3), labels=HOSTILE)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_idx: Path) -> Path:
    """A run of a second, evaluated for its report."""
    folder = tmp_path_factory.mktemp("secret-home") / "tiny"
    options = {**TINY, "data_path": str(tiny_idx), "output_dir": str(folder), "name": "tiny"}
    vitbase.train(vitbase.load_config("fashion", **options))
    return folder


@pytest.fixture(scope="module")
def evaluated(run: Path) -> Path:
    newest = max((run / "checkpoints").glob("train_vit_tiny-*"))
    main(["eval", "--checkpoint_path", str(newest), "--out", str(run / "report"), "--debug"])
    return run


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / "README.md", ignore_metadata_errors=False)


# The card


def test_a_run_s_card_tells_what_was_measured(evaluated, tmp_path, capsys):
    code, out, err = run_command(
        capsys,
        "push",
        evaluated,
        "--to",
        tmp_path / "shared",
        "--license",
        "MIT",
        "--title",
        "Tiny",
    )
    assert (code, err) == (0, "")
    assert "Opens in: timm, transformers, vitbase" in out
    names = {"README.md", "config.json", "model.safetensors"}
    pictures = sorted((tmp_path / "shared" / "figures").iterdir())
    found = {path.name for path in (tmp_path / "shared").iterdir()}
    assert found == {*names, "figures"}
    for path in pictures:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300
        assert f"({path.parent.name}/{path.name})" in card_of(tmp_path / "shared").text
    assert len(pictures) >= 4  # loss, accuracy, recall, confusion, calibration
    card = card_of(tmp_path / "shared")
    data, text = card.data.to_dict(), card.text
    record = json.loads((evaluated / "report" / "evaluation.json").read_text())
    top1 = record["figures"]["top1"]
    assert data["license"] == "mit"
    assert data["library_name"] == "timm"
    assert data["pipeline_tag"] == "image-classification"
    first = card.data.eval_results[0]
    assert first.metric_type == "accuracy"
    assert first.metric_value == pytest.approx(top1["value"], abs=1e-6)
    between = f"{100 * top1['low']:.2f}% to {100 * top1['high']:.2f}%"
    assert between in first.metric_name
    assert f"{100 * top1['value']:.2f}% | {between} |" in text
    assert "Measured on 20 images" in text
    assert "| epoch size | `2` |" in text
    assert "after 12 updates, of epoch 2." in text
    assert "# Tiny\n" in text
    assert "`mit`" in text
    for label in record["classes"]:
        assert f"`{label}`" in text


def test_a_card_tells_nobody_where_things_are(evaluated, tmp_path):
    write_folder(evaluated, tmp_path / "shared")
    for path in (tmp_path / "shared").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"secret-home" not in content, path
            assert str(tmp_path).encode() not in content, path
            assert str(Path.home()).encode() + b"/" not in content, path


def test_figures_of_another_checkpoint_are_not_told(evaluated, tmp_path):
    first = sorted((evaluated / "checkpoints").glob("train_vit_tiny-1_*"))[0]
    made = write_folder(first, tmp_path / "shared")
    card = card_of(tmp_path / "shared")
    rows = [json.loads(line) for line in (evaluated / "metrics.jsonl").read_text().splitlines()]
    (of_first,) = [row for row in rows if row.get("epoch") == 1 and "eval_top1" in row]
    assert card.data.eval_results[0].metric_value == pytest.approx(of_first["eval_top1"], abs=1e-6)
    assert "in the run's own evaluation" in card.text
    assert any("--out" in note for note in made.notes)
    assert not any("Confusion" in line for line in card.text.splitlines())


def test_without_an_evaluation_the_card_says_so(weights, tmp_path, capsys):
    code, out, _ = run_command(capsys, "push", weights, "--to", tmp_path / "shared")
    assert code == 0
    card = card_of(tmp_path / "shared")
    assert card.data.eval_results is None
    assert card.data.get("metrics") is None
    assert "There is no evaluation of these weights." in card.text
    assert "Nobody has told: the weights came without the run" in card.text
    assert "No licence is known" in out
    assert card.data.license is None
    assert "Nobody has stated one." in card.text


def test_names_are_no_markup(weights, tmp_path):
    write_folder(weights, tmp_path / "shared", name="<b>x</b> `y` | [z](q)\n# n")
    text = (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")
    assert text.isascii() or "\u202e" not in text
    assert "\x1b" not in text
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert set(yaml.safe_load(front)) == {"library_name", "pipeline_tag", "tags"}
    parsed = MarkdownIt("commonmark").enable("table").parse(body)
    assert [token.tag for token in parsed if token.type == "heading_open"].count("h1") == 1
    assert "b x b y z q n" in body.split("\n")[1]
    inside = [child for token in parsed for child in token.children or ()]
    assert not {"html_block"} & {token.type for token in parsed}
    assert {child.type for child in inside} <= {"text", "code_inline", "softbreak"}
    left = "".join(child.content for child in inside if child.type == "text")
    assert not re.search(r"script|evil|smile|user|license:", left), left
    names = [child.content for child in inside if child.type == "code_inline"]
    assert [name for name in names if "evil" in name] == [printable(HOSTILE[3])]
    assert vitbase.load_model(tmp_path / "shared").labels == HOSTILE


@pytest.mark.parametrize("name", HOSTILE)
def test_code_spans_hold_any_name(name):
    span = code(name)
    fence = re.match(r"`+", span)[0]
    inside = span[len(fence) : -len(fence)]
    assert fence not in re.findall(r"`+", inside)
    assert span.isprintable()
    assert fenced(name).split("\n")[0] not in fenced(name).split("\n")[1:-1]
    assert len(re.findall(r"(?<!\\)\|", table(["a"], [[span]]).split("\n")[2])) == 2


@pytest.mark.parametrize("name", [*HOSTILE, "yes", "null", "1e3", "- x", "a: b", "#", "'", '"\\'])
def test_yaml_reads_texts_and_numbers_back(name):
    text = front_matter({"a": name, "b": [name, 1], "c": [{"d": name, "e": 0.1}], "f": 1e-5})
    found = yaml.safe_load(text.removeprefix("---").removesuffix("---"))
    seen = name if name.isprintable() else found["a"]
    assert seen.isprintable()
    assert found == {"a": seen, "b": [seen, 1], "c": [{"d": seen, "e": 0.1}], "f": 1e-5}


def test_data_is_named_without_the_way_to_it():
    assert describe_data("embedded").id == "zalando-datasets/fashion_mnist"
    assert describe_data("hf:me/birds@v1") == describe_data("hf:me/birds")
    assert describe_data("hf:me/birds").id == "me/birds"
    for place in (
        "/home/me/birds/",
        "C:\\me\\birds",
        "s3://user:key@bucket/birds?token=1",
        "birds",
    ):
        assert (describe_data(place).name, describe_data(place).id) == ("birds", "")


@pytest.mark.parametrize(
    ("given", "metadata", "expected"),
    [
        ("Apache-2.0", {"license": "mit"}, {"license": "apache-2.0"}),
        (None, {"license": "mit"}, {"license": "mit"}),
        (None, {"modelspec.license": "cc-by-4.0"}, {"license": "cc-by-4.0"}),
        ("My Own 1.0", {}, {"license": "other", "license_name": "my-own-1.0"}),
        (None, {"license": '"\n- x: '}, {"license": "other", "license_name": "x"}),
    ],
)
def test_licences_are_those_that_somebody_states(given, metadata, expected):
    found = find_licence(given, metadata)
    assert found is not None
    assert found.front_matter == expected


# Our own folders


def write_conv(folder: Path) -> Path:
    """Weights of a network that neither timm nor transformers has."""
    torch.manual_seed(0)
    layers = ((8, 3, 2), (16, 3, 2))
    stem = {"stem": "conv", "conv_layers": layers, "patch_size": 8, "image_size": 32}
    model = vitbase.create_model("testing", num_classes=7, **stem)
    torch.nn.init.normal_(model.head.weight)
    vitbase.save_weights(model, folder / "w.safetensors", labels=HOSTILE)
    return folder / "w.safetensors"


def test_what_others_have_no_network_for_is_shared_with_a_program(tmp_path, capsys):
    code, out, err = run_command(
        capsys, "push", write_conv(tmp_path), "--to", tmp_path / "shared", "--license", "mit"
    )
    assert (code, err) == (0, "")
    assert "Opened again in transformers 5" in out
    assert "Opens in: transformers, vitbase" in out
    assert "--dialect vitbase: timm cannot express testing with stem 'conv'" in out
    assert "runs that file where trust_remote_code=True says so" in out
    card = card_of(tmp_path / "shared")
    assert card.data.library_name == "transformers"
    assert 'from_pretrained("shared", trust_remote_code=True)' in card.text
    assert (
        "`modeling_vitbase.py`, which lies beside the weights: read it before you do" in card.text
    )
    assert "revision" not in card.text
    config = (tmp_path / "shared" / "config.json").read_text(encoding="utf-8")
    assert config.isprintable() or config.replace("\n", "").isprintable()
    labels = json.loads(config)["id2label"]
    assert tuple(labels[str(number)] for number in range(7)) == HOSTILE
    write_folder(tmp_path / "w.safetensors", tmp_path / "hub", repo="me/vit")
    assert 'With `revision="…"`, the commit that you have read' in card_of(tmp_path / "hub").text


def test_without_transformers_it_says_that_nobody_has_tried(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, out, err = run_command(capsys, "push", write_conv(tmp_path), "--to", tmp_path / "shared")
    assert (code, err) == (0, "")
    assert "Opened again as vitbase computes: " in out
    assert "(equal bit for bit)" in out
    assert "transformers is not installed here: nobody has tried whether it opens" in out
    assert (tmp_path / "shared" / "modeling_vitbase.py").is_file()


# What is refused


def refused(capsys: Any, *words: object) -> str:
    code, out, err = run_command(capsys, "push", *words)
    assert (code, out) == (2, "")
    assert err.startswith("vitbase: error: ")
    return err


def test_mistakes_are_said_in_a_line(weights, tmp_path, capsys, monkeypatch):
    assert "Usage: vitbase push" in refused(capsys)
    taken = tmp_path / "taken"
    taken.mkdir()
    assert "exists already" in refused(capsys, weights, "--to", taken)
    assert list(taken.iterdir()) == []
    to = tmp_path / "new"
    assert "not both" in refused(capsys, weights, "--to", to, "--upload", "--repo", "a/b")
    assert "--repo OWNER/NAME" in refused(capsys, weights, "--upload")
    for name in ("vit", "a/b/c", "a/..b", "a/b--c", "a/b c", "a/" + "b" * 100, "a/b.git"):
        assert "is called OWNER/NAME" in refused(capsys, weights, "--repo", name)
    assert "there are timm, transformers, hf, vitbase" in refused(
        capsys, weights, "--to", to, "--dialect", "jax"
    )
    said = refused(capsys, weights, "--to", to, "--dialect", "google")
    assert "`vitbase weights convert` writes its files" in said
    assert "should be a name" in refused(capsys, weights, "--to", to, "--license", " ")
    assert "does not exist" in refused(capsys, tmp_path / "none", "--to", to)
    headless = tmp_path / "headless.safetensors"
    vitbase.save_weights(vitbase.create_model("testing", num_classes=0, image_size=32), headless)
    assert "has no head" in refused(capsys, headless, "--to", to)
    assert not to.exists()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    said = refused(capsys, weights, "--upload", "--repo", "a/b")
    assert "pip install 'vitbase[hub]'" in said


def test_a_place_that_cannot_be_written_is_named(weights, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "Cannot write" in refused(capsys, weights, "--to", tmp_path / "file" / "shared")
    assert (tmp_path / "file").read_text() == ""


# The hub

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content:DeprecationWarning"  # of the hub's client to its own transport
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hub here, for a client that knows of no other."""
    with serving() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        close_session()
        yield made
        close_session()


def test_without_upload_nothing_is_asked(hub: Hub, weights, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_command(capsys, "push", weights, "--repo", "me/vit")
    assert code == 0
    assert "Nothing was uploaded. --upload would put this into me/vit" in out
    assert re.search(r"model\.safetensors +3\d\.\d kB", out)
    assert hub.asked == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("public", [False, True])
def test_upload_makes_a_repository_in_one_commit(hub: Hub, weights, capsys, tmp_path, public):
    words = ["push", weights, "--repo", "me/vit", "--upload", *(["--public"] if public else [])]
    code, out, err = run_command(capsys, *words)
    assert code == 0, err
    assert f"Uploaded to {hub.address}/me/vit" in out
    assert hub.private == (set() if public else {"me/vit"})
    write_folder(weights, tmp_path / "here", repo="me/vit")
    files = hub.repos["me/vit"]
    expected = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert {name: files[name] for name in expected} == expected
    assert len(hub.commits) == 1
    assert 'create_model("hf-hub:me/vit"' in files["README.md"].decode()
    assert TOKEN not in out + err
    assert hub.tokens <= {f"Bearer {TOKEN}", None}


def test_what_is_there_is_replaced_where_somebody_says_so(hub: Hub, weights, capsys):
    hub.repos["me/vit"] = {"README.md": b"mine", "other.txt": b"kept"}
    said = refused_upload(capsys, weights)
    assert "me/vit holds 2 files already (README.md, other.txt)" in said
    assert hub.repos["me/vit"]["README.md"] == b"mine"
    code, _, err = run_command(capsys, *upload_words(weights), "--update")
    assert code == 0, err
    assert hub.repos["me/vit"]["other.txt"] == b"kept"
    assert hub.repos["me/vit"]["README.md"] != b"mine"


def upload_words(weights: Path) -> list[object]:
    return ["push", weights, "--repo", "me/vit", "--upload", "--license", "mit"]


def refused_upload(capsys: Any, weights: Path) -> str:
    code, out, err = run_command(capsys, *upload_words(weights))
    assert code == 2, err
    assert "Uploaded" not in out
    assert TOKEN not in out + err
    return err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("pattern", "answer", "said"),
    [
        ("repos/create", (403, "You ({token}) may not"), "the hub refuses (403)"),
        ("commit/main", (500, "failed with {token}\nand more"), "was made, and may be empty"),
        ("validate-yaml", (400, "not with {token}"), "me/vit was not uploaded"),
        ("GET /api/models", (503, "{token} is down"), "me/vit cannot be looked at"),
    ],
)
def test_a_hub_that_refuses_is_told_without_the_token(
    hub: Hub, weights, capsys, pattern, answer, said, monkeypatch
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries again
    hub.refuses[pattern] = answer
    assert said in refused_upload(capsys, weights)
    assert hub.commits == []


def test_nobody_logged_in_is_told_how(hub: Hub, weights, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert "hf auth login" in refused_upload(capsys, weights)
    assert hub.commits == []
