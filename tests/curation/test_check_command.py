"""`vitbase data check` as a user meets it: what it prints, and its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from made_images import FAULTS, bomb, encode, photo, write_folder, write_idx

from vitbase.curation.checking.classes import FIRST_VAL
from vitbase.curation.checking.report import KINDS
from vitbase.sources.imagenet.classes import challenge_synsets, imagenet_synsets, readable_name

SYNSETS = imagenet_synsets()
WORDS = [readable_name(synset) for synset in SYNSETS]
WORDS[517] = "crane, machine"  # another class is called crane, too
JPEG = encode(photo(16, 16))
SOUND = "Nothing here would make training wrong."


def write_splits(root: Path) -> Path:
    write_folder(root / "train", {"bag": 5, "boot": 4}, size=(20, 24))
    write_folder(root / "val", {"bag": 2, "boot": 2}, size=(20, 25))
    return root


def write_image(path: Path) -> None:
    """Write an image whose bytes are like no other's; what stands behind it is not looked at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(JPEG + str(path).encode())


def test_sound_folders_exit_with_0_and_a_table(vitbase_command, tmp_path):
    code, out, err = vitbase_command("data", "check", write_splits(tmp_path / "data"))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "layout: class folders in train and val"
    cells = {line[:26].strip(): line[26:].split() for line in lines if line.startswith("  ")}
    assert cells["images"] == ["9", "4"]
    assert cells["classes"] == ["2", "2"]
    assert cells["images in a class"] == ["4", "to", "5", "2"]
    assert cells["formats"] == ["JPEG", "9", "JPEG", "4"]
    assert cells["typical height x width"] == ["20", "x", "24", "20", "x", "25"]
    assert "  training: bag 5, boot 4" in lines
    assert "  no faults found" in lines
    assert lines[-1] == SOUND
    assert "\x1b" not in out


@pytest.mark.parametrize("kind", [*FAULTS, "bomb"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_fault_in_either_split(vitbase_command, tmp_path, kind, split):
    name, content = {**FAULTS, "bomb": ("x.png", bomb())}[kind]
    place = write_splits(tmp_path / "data") / split / "bag" / name
    place.write_bytes(content)
    kind = "unreadable" if kind == "bomb" else kind
    error, outcome = KINDS[kind]
    code, out, _ = vitbase_command("data", "check", tmp_path / "data")
    assert code == (1 if error else 0)
    split = {"train": "training", "val": "evaluation"}[split]
    assert f"  {'ERROR' if error else 'note '} {split}: 1 {kind} ({outcome})" in out
    assert str(place) in out
    assert ("mend what is marked ERROR (1 error)" in out) == error
    assert ("1 finding worth knowing of" in out) == (not error)


def test_json_is_the_same_report_and_all_of_it(vitbase_command, tmp_path):
    root = write_splits(tmp_path / "data")
    for number in range(7):
        (root / "train" / "bag" / f"{number}.png").write_bytes(b"not an image %d" % number)
    code, out, err = vitbase_command("data", "check", root, "--json", "--num_workers", 2)
    assert (code, err) == (1, "")
    report = json.loads(out)
    assert report["wrong"] is True
    assert report["layout"] == "class folders in train and val"
    training, evaluation = report["splits"]
    assert training["classes"] == {"bag": 12, "boot": 4}
    assert (training["median_height"], training["median_width"]) == (20, 24)
    found = training["findings"]["unreadable"]
    assert (found["images"], found["error"], len(found["places"])) == (7, True, 7)
    assert evaluation["findings"] == {}
    assert evaluation["wrong"] is False


def test_copies_within_and_across_splits(vitbase_command, tmp_path):
    root = write_splits(tmp_path / "data")
    content = (root / "train" / "bag" / "0.JPEG").read_bytes()
    for place in ("train/bag/again.jpg", "train/boot/stray.jpg", "val/bag/leaked.jpg"):
        (root / place).write_bytes(content)
    code, out, _ = vitbase_command("data", "check", root)
    assert code == 1
    assert f"{root}/train/bag/again.jpg: as {root}/train/bag/0.JPEG" in out
    assert "training: 1 same image, other label" in out
    assert "evaluation: 1 also in training" in out
    assert f"{root}/val/bag/leaked.jpg: as {root}/train/bag/0.JPEG" in out


def test_images_held_out_of_a_single_folder_are_checked_as_training_does(
    vitbase_command, tmp_path, capsys
):
    root = write_folder(tmp_path / "photos", {"a": 20, "b": 20})
    code, out, _ = vitbase_command("data", "check", root, "--json", "--seed", 3)
    splits = json.loads(out)["splits"]
    assert [split["images"] for split in splits] == [36, 4]
    assert any("4 of 40 images are held out" in note for note in splits[0]["notes"])
    options = ["--seed", 3, "--model", "testing", "--image_height", 32, "--image_width", 32]
    options += ["--epoch_size", 1, "--warmup_epochs", 0, "--device_target", "CPU"]
    run = tmp_path / "run"
    code, *_ = vitbase_command(
        "train", "finetune", "--data_path", root, "--output_dir", run, *options
    )
    assert code == 0
    held_out = (run / "held_out.txt").read_text().split()
    (root / held_out[0]).write_bytes(b"no image")
    code, out, _ = vitbase_command("data", "check", root, "--json", "--seed", 3)
    assert code == 1
    training, evaluation = json.loads(out)["splits"]
    assert training["findings"] == {}
    (place,) = evaluation["findings"]["unreadable"]["places"]
    assert place["path"] == str(root / held_out[0])


def test_classes_that_cannot_be_trained_on(vitbase_command, tmp_path):
    write_folder(tmp_path / "one", {"only": 4})
    code, out, _ = vitbase_command("data", "check", tmp_path / "one")
    assert code == 1
    assert "ERROR training: 1 single class (there is nothing to tell apart)" in out
    write_folder(tmp_path / "few", {"a": 1, "b": 1})
    code, out, _ = vitbase_command("data", "check", tmp_path / "few")
    assert code == 1
    assert "ERROR training: 1 nothing to evaluate on" in out
    assert "give --val_data_path FOLDER" in out


def test_train_and_val_whose_class_folders_differ(vitbase_command, tmp_path):
    write_folder(tmp_path / "train", {"bag": 3, "boot": 3, "coat": 3})
    write_folder(tmp_path / "val", {"bag": 1, "Boot": 2}, size=(20, 25))
    words = ("--val_data_path", tmp_path / "val")
    code, out, _ = vitbase_command("data", "check", tmp_path / "train", *words)
    assert code == 1
    assert "evaluation: 1 unknown class (a model trained here has no output for it)" in out
    assert "Boot: 2 images" in out
    code, _, err = vitbase_command("train", "finetune", "--data_path", tmp_path / "train", *words)
    assert code == 2  # a run refuses the same
    assert "does not know: Boot" in err


def test_imbalance_and_classes_without_images(vitbase_command, tmp_path):
    write_folder(tmp_path / "data" / "images", {"many": 20, "few": 2})
    rows = [f"images/many/{number}.JPEG,many,train\n" for number in range(18)]
    rows += ["images/few/0.JPEG,few,train\n", "images/many/19.JPEG,rare,val\n"]
    rows += ["images/few/1.JPEG,few,val\n"]
    table = tmp_path / "data" / "x.csv"
    table.write_text("path,label,split\n" + "".join(rows))
    code, out, _ = vitbase_command("data", "check", table)
    assert code == 0
    assert out.startswith("layout: table of paths and labels")
    assert "  training: 1 of 3 classes have no images: rare" in out
    assert "  training: unbalanced: 'many' has 18 images, 'few' 1" in out


def test_images_of_several_classes(vitbase_command, tmp_path):
    write_folder(tmp_path / "images", {"a": 12})
    labels = ("cat;dog", "dog", "cat")
    rows = [f"images/a/{number}.JPEG,{labels[number % 3]}\n" for number in range(12)]
    (tmp_path / "x.csv").write_text("path,labels\n" + "".join(rows))
    code, out, _ = vitbase_command("data", "check", tmp_path / "x.csv", "--json")
    assert code == 0
    training, evaluation = json.loads(out)["splits"]
    total = training["images"] + evaluation["images"]
    assert total == 12
    counts = [training["classes"][name] + evaluation["classes"][name] for name in ("cat", "dog")]
    assert counts == [8, 8]


# The order of ImageNet's classes


@pytest.fixture(scope="module")
def thousand(tmp_path_factory) -> Path:
    """An image of every class, named as ImageNet's are, and its first ones for evaluation."""
    root = tmp_path_factory.mktemp("imagenet")
    for synset in SYNSETS:
        write_image(root / "images" / f"{synset}_1.JPEG")
    for number in range(1, 7):
        write_image(root / "val" / f"ILSVRC2012_val_{number:08}.JPEG")
    return root


def link_folders(root: Path, thousand: Path, names: dict[str, str]) -> Path:
    """Make class folders of the given names, each with the image of its synset."""
    for synset, name in names.items():
        (root / "train" / name).mkdir(parents=True)
        os.link(
            thousand / "images" / f"{synset}_1.JPEG", root / "train" / name / f"{synset}_1.JPEG"
        )
    os.symlink(thousand / "val", root / "val")
    return root


def write_truth(root: Path, numbers: tuple[int, ...] = FIRST_VAL) -> None:
    own = [challenge_synsets().index(SYNSETS[number]) + 1 for number in numbers]
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{n}\n" for n in own))


def class_order(out: str) -> list[list[str]]:
    return [
        [
            place["detail"]
            for place in split["findings"].get("class order", {"places": []})["places"]
        ]
        for split in json.loads(out)["splits"]
    ]


def test_imagenet_as_it_is_is_right(vitbase_command, tmp_path, thousand):
    root = link_folders(tmp_path / "data", thousand, {synset: synset for synset in SYNSETS})
    write_truth(root)
    code, out, _ = vitbase_command("data", "check", root)
    assert code == 0, out
    assert out.splitlines()[0] == (
        "layout: train: class folders, val: ImageNet's images side by side, labels in a file"
    )
    write_truth(root, FIRST_VAL[1:] + FIRST_VAL[:1])  # a wrong label file
    code, out, _ = vitbase_command("data", "check", root, "--json")
    assert code == 1
    training, (evaluation,) = class_order(out)
    assert training == []
    assert "ILSVRC2012_val_00000001.JPEG has class 970 (n09193705)" in evaluation
    assert "in ImageNet it is 65 (n01751748, sea snake)" in evaluation


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (dict(zip(SYNSETS, WORDS, strict=True)), "class 0 is Afghan hound, Afghan; in Ima"),
        (dict(zip(SYNSETS, map(str, range(1000)), strict=True)), "sorted as text, 10 before 2"),
        (
            dict(zip(challenge_synsets(), (f"{i:04}" for i in range(1, 1001)), strict=True)),
            "the development kit's numbering",
        ),
        ({synset: synset for synset in SYNSETS[:500] + SYNSETS[501:]}, "n03042490 (cliff dwelling"),
    ],
    ids=["words", "numbers as text", "development kit", "one missing"],
)
def test_class_folders_in_another_order_than_imagenets(
    vitbase_command, tmp_path, thousand, names, words
):
    root = link_folders(tmp_path / "data", thousand, dict(sorted(names.items())))
    write_truth(root)
    code, out, _ = vitbase_command("data", "check", root / "train", "--json")
    assert code == 1
    (problem,) = class_order(out)[0]
    assert words in problem


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("order", ["sorted", "development kit"])
def test_numbers_in_a_table(vitbase_command, thousand, first, order):
    numbered = SYNSETS if order == "sorted" else challenge_synsets()
    rows = [
        f"images/{synset}_1.JPEG,{number},train\n" for number, synset in enumerate(numbered, first)
    ]
    for image, number in enumerate(FIRST_VAL, 1):
        label = numbered.index(SYNSETS[number]) + first
        rows.append(f"val/ILSVRC2012_val_{image:08}.JPEG,{label},val\n")
    table = thousand / f"{order[0]}{first}.csv"
    table.write_text("path,label,split\n" + "".join(rows))
    code, out, _ = vitbase_command("data", "check", table, "--json")
    training, evaluation = class_order(out)
    assert code == (0 if order == "sorted" else 1)
    if order == "sorted":
        assert training == evaluation == []
    else:
        assert "development kit's numbering" in training[0]
        assert "in ImageNet it is 65 (n01751748, sea snake)" in evaluation[0]


def test_images_in_the_folder_of_another_class(vitbase_command, tmp_path):
    for synset in SYNSETS[:3]:
        for number in range(3):
            write_image(tmp_path / "train" / synset / f"{synset}_{number}.JPEG")
        write_image(tmp_path / "val" / synset / "x.JPEG")
    write_image(tmp_path / "train" / SYNSETS[1] / f"{SYNSETS[0]}_7.JPEG")
    write_image(tmp_path / "train" / SYNSETS[1] / f"{SYNSETS[9]}_7.JPEG")  # no class of this data
    code, out, _ = vitbase_command("data", "check", tmp_path)
    assert code == 1
    assert "training: 1 misfiled (the image's name says another class)" in out
    assert f"{SYNSETS[0]}_7.JPEG: its name says n01440764 (tench, Tinca tinca)" in out


# Sources, and ways to stop


def test_every_source_is_checked(vitbase_command, tmp_path):
    root = write_splits(tmp_path / "photos")
    assert vitbase_command("data", "pack", root, tmp_path / "shards")[0] == 0
    code, out, _ = vitbase_command("data", "check", tmp_path / "shards")
    assert (code, out.splitlines()[0]) == (0, "layout: tar shards")
    write_idx(tmp_path / "idx")
    code, out, _ = vitbase_command("data", "check", tmp_path / "idx", "--json")
    report = json.loads(out)
    assert report["layout"] == "IDX files"
    assert [split["images"] for split in report["splits"]] == [30, 10]
    code, out, _ = vitbase_command("data", "check", "embedded")
    assert (code, out.splitlines()[0]) == (0, "layout: IDX files inside the package")


@pytest.mark.parametrize("split", ["train", "val"])
def test_packed_shards_are_compared_with_their_checksums(vitbase_command, tmp_path, split):
    root = write_splits(tmp_path / "photos")
    assert vitbase_command("data", "pack", root, tmp_path / "out")[0] == 0
    shard = tmp_path / "out" / f"{split}-000000.tar"
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        place = next(member for member in tar if member.name.endswith(".cls")).offset_data
    content[place + 300] ^= 1  # behind a label, where no image notices
    shard.write_bytes(content)
    code, out, _ = vitbase_command("data", "check", tmp_path / "out")
    assert code == 1
    assert "1 damaged shard (it is not what was packed: fetch or pack it again)" in out
    assert f"{shard}: does not match its checksum" in out


def test_damaged_shards_of_which_some_images_are_held_out_are_told_once(vitbase_command, tmp_path):
    root = write_folder(tmp_path / "photos", {"a": 5, "b": 5})
    assert vitbase_command("data", "pack", root, tmp_path / "out")[0] == 0
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sha256": "', '"sha256": "x'))
    code, out, _ = vitbase_command("data", "check", tmp_path / "out")
    assert code == 1
    assert out.count("damaged shard") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data"], "Usage: vitbase data check PATH"),
        (["data", "chekc"], "Unknown action 'chekc'"),
        (["data", "check"], "check PATH; got nothing"),
        (["data", "check", "a", "b"], "got a b"),
        (["data", "check", "/no/such"], " /no/such: there is no such folder"),
        (["data", "check", "embedded", "--num_workers", "0"], "--num_workers 0: expected at leas"),
        (["data", "check", "embedded", "--seed", "-1"], "seed"),
        (["data", "check", "embedded", "--holdout_fraction", "1"], "holdout_fraction"),
        (["data", "check", "embedded", "--jsn"], "Unknown option '--jsn'"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(vitbase_command, words, message):
    code, _, err = vitbase_command(*words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_help_says_what_it_is_for(vitbase_command):
    assert "vitbase data pack PATH OUT" in vitbase_command("data", "--help")[1]
    code, out, _ = vitbase_command("data", "check", "--help")
    assert code == 0
    assert "Exit code 0: nothing makes training wrong; 1:" in " ".join(out.split())
    assert "(default: one per core)" in " ".join(out.replace("│", "").split())


def test_interrupted_it_stops_at_once(tmp_path):
    write_folder(tmp_path / "photos", {"a": 1, "b": 1})
    big = encode(photo(600, 800))
    for number in range(200):
        (tmp_path / "photos" / "a" / f"{number}.jpg").write_bytes(big + b"%d" % number)
    words = [sys.executable, "-c", INTERRUPTIBLE, str(tmp_path / "photos")]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout.readline() == b"image\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)  # closes its input: images are looked at
    assert process.returncode == 130, (out, err)
    assert (
        err == b"\nvitbase: interrupted; the same command continues training, packing, or --out\n"
    )
    assert out.count(b"\n") < 100  # of 200 images, hardly any more were looked at


INTERRUPTIBLE = r"""
import os
import signal
import sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs are born deaf to it
from vitbase.curation.checking import check
from vitbase.cli.main import main

look_at = check.look_at

def watched(source, index):
    os.write(1, b"image\n")
    os.read(0, 1)  # until the signal was sent: not all can be done before
    return look_at(source, index)

check.look_at = watched
main(["data", "check", sys.argv[1], "--num_workers", "2"])
"""
