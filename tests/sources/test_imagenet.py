import numpy as np
import pytest

from vitbase.errors import DataError
from vitbase.sources.imagenet.classes import (
    challenge_synsets,
    imagenet_synsets,
    read_flat_images,
    readable_name,
)
from vitbase.sources.layouts import recognise
from vitbase.sources.open import open_source, open_train_val, open_val

# What the development kit says of the first images for evaluation, and what they show.
FIRST_IDS = (490, 361, 171, 822, 297, 482)
FIRST_SYNSETS = ("n01751748", "n09193705", "n02105855", "n04263257", "n03125729", "n01735189")
FIRST_NUMBERS = (65, 970, 230, 809, 516, 57)  # in sorted order, as Caffe's val.txt has them


def write_images(folder, count=6, suffix=".JPEG"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        (folder / f"ILSVRC2012_val_{number:08}{suffix}").write_bytes(b"%d" % number)
    return folder


def name(number, suffix=""):
    return f"ILSVRC2012_val_{number:08}{suffix}"


IDS = "".join(f"{number}\n" for number in FIRST_IDS)
SYNSETS = "".join(f"{synset}\n" for synset in FIRST_SYNSETS)
PAIRS = "".join(f"{name(i, '.JPEG')} {number}\n" for i, number in enumerate(FIRST_NUMBERS, 1))
KAGGLE = "ImageId,PredictionString\n" + "".join(
    f"{name(i)},{synset} 10 20 30 40 {synset} 5 6 7 8 \n"
    for i, synset in reversed(list(enumerate(FIRST_SYNSETS, 1)))
)
PLAIN = "filename,label\n" + "".join(
    f"{name(i, '.JPEG')},{synset}\n" for i, synset in enumerate(FIRST_SYNSETS, 1)
)


def test_classes_are_those_of_timm_in_its_order():
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    assert list(imagenet_synsets()) == info.label_names()
    assert list(imagenet_synsets()) == sorted(imagenet_synsets())
    assert all(readable_name(s) == info.label_name_to_description(s) for s in imagenet_synsets())


def test_the_challenge_numbers_the_same_classes_otherwise():
    assert sorted(challenge_synsets()) == list(imagenet_synsets())
    assert challenge_synsets()[:3] == ("n02119789", "n02100735", "n02110185")
    assert readable_name(challenge_synsets()[0]).startswith("kit fox")
    for number, synset, place in zip(FIRST_IDS, FIRST_SYNSETS, FIRST_NUMBERS, strict=True):
        assert challenge_synsets()[number - 1] == synset
        assert imagenet_synsets()[place] == synset


def test_readable_names():
    assert readable_name("n01440764") == "tench, Tinca tinca"
    assert readable_name("cat") == "cat"
    assert readable_name("n99999999") == "n99999999"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("ILSVRC2012_validation_ground_truth.txt", IDS),
        ("imagenet_2012_validation_synset_labels.txt", SYNSETS),
        ("val.txt", PAIRS),
        ("val_list.txt", PAIRS.replace("ILSVRC", "val/ILSVRC")),
        ("LOC_val_solution.csv", KAGGLE),
        ("val.csv", PLAIN),
    ],
)
@pytest.mark.parametrize("place", ["val", ".", "..", "devkit_t12/data", "val/ILSVRC2012_devkit"])
def test_labels_of_a_flat_folder(tmp_path, file, content, place):
    root = tmp_path / "data"
    folder = write_images(root / "val")
    (root / place).mkdir(parents=True, exist_ok=True)
    (root / place / file).write_text(content)
    source = open_source(str(folder), "val", "val_data_path")
    assert source.labels.tolist() == list(FIRST_NUMBERS)
    assert source.labels.dtype == np.int64
    assert source.class_names == imagenet_synsets()
    assert [source.read(i) for i in range(6)] == [b"%d" % i for i in range(1, 7)]
    assert source.describe(2) == str(folder / "ILSVRC2012_val_00000003.JPEG")
    assert file in source.notes[0]


def test_the_order_of_files_on_disk_does_not_matter(tmp_path):
    folder = tmp_path / "val"
    folder.mkdir()
    for number in (3, 12, 1, 2, *range(4, 12)):
        (folder / f"ILSVRC2012_val_{number}.JPEG").touch()  # sorted as text, 10 comes before 2
    (tmp_path / "imagenet_synset_labels.txt").write_text("\n".join(imagenet_synsets()[:12]))
    source = read_flat_images(folder, "val_data_path")
    numbers = [int(source.name(i)[15:-5]) - 1 for i in range(12)]
    assert source.labels.tolist() == numbers


def test_the_nearest_file_is_taken_and_lists_of_classes_are_not(tmp_path):
    folder = write_images(tmp_path / "val")
    (folder / "synsets.txt").write_text("\n".join(imagenet_synsets()))
    (folder / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\n")
    (tmp_path / "val.txt").write_text(PAIRS)
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n" * 6)
    assert read_flat_images(folder, "o").labels.tolist() == list(FIRST_NUMBERS)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("449\n" * 6)
    assert read_flat_images(folder, "o").labels.tolist() == [0] * 6


def test_a_list_of_a_thousand_classes_is_no_list_of_images(tmp_path):
    folder = write_images(tmp_path / "val", 1000)
    (tmp_path / "synsets.txt").write_text("\n".join(imagenet_synsets()))
    with pytest.raises(DataError, match="no class folders"):
        read_flat_images(folder, "o")


def test_without_labels_the_message_lists_what_is_accepted(tmp_path):
    folder = write_images(tmp_path / "a" / "b" / "val")
    with pytest.raises(DataError) as caught:
        open_source(str(folder), "val", "val_data_path")
    message = str(caught.value)
    assert f"--val_data_path {folder}: 6 images directly in it" in message
    for file in (
        "ILSVRC2012_validation_ground_truth.txt",
        "imagenet_2012_validation_synset_labels.txt",
        "val.txt",
        "LOC_val_solution.csv",
    ):
        assert file in message


GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (GROUND_TRUTH, IDS + "5\n", "has 7 labels, but .* 6 images: there is no image with num"),
        (GROUND_TRUTH, IDS[4:], r"has 5 labels, but .* 6 images: .* no line for .*00000006\.JPEG"),
        (GROUND_TRUTH, IDS.replace("171", "1001"), r"ground_truth.txt:3: '1001' is no class numb"),
        (GROUND_TRUTH, IDS.replace("361", "0"), r"ground_truth.txt:2: '0' is no class number"),
        (GROUND_TRUTH, "", "has 0 labels"),
        ("val.txt", PAIRS.replace(" 970", " 1000"), r"val.txt:2: class 1000 is out of range"),
        ("val.txt", PAIRS.replace(" 970", " x"), r"val.txt:2: 'x' is not a synset"),
        ("val.txt", PAIRS.replace(" 970", ""), r"val.txt:2: .* is not an image and a class"),
        ("val.txt", PAIRS + PAIRS[:32], r"val.txt:7: 'ILSVRC2012_val_00000001.JPEG' stands in l"),
        ("val.txt", PAIRS[32:], r"no line for 1 of the 6 images .*00000001.JPEG"),
        ("val.txt", PAIRS + "x.JPEG 3\n", r"val.txt:7: there is no image 'x.JPEG' .*\(1 of 7 l"),
        ("my_synsets.txt", SYNSETS.replace("n09193705", "n00000001"), r"my_synsets.txt:2: 'n0000"),
        ("LOC_val_solution.csv", KAGGLE.replace("n09193705", "n1"), r"solution.csv:6: 'n1' is not"),
        ("LOC_val_solution.csv", KAGGLE.replace(",", ";"), r"csv:1: expected a header of two"),
        ("val.csv", PLAIN.replace(",n09193705", ","), r"val.csv:3: expected an image and its lab"),
    ],
)
def test_faults_name_file_and_line(tmp_path, file, content, message):
    folder = write_images(tmp_path / "val")
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        read_flat_images(folder, "val_data_path")


@pytest.mark.parametrize(
    ("file", "content"), [(GROUND_TRUTH, IDS), ("val.txt", PAIRS), ("LOC_val_solution.csv", KAGGLE)]
)
def test_missing_and_repeated_images(tmp_path, file, content):
    folder = write_images(tmp_path / "val")
    (tmp_path / file).write_text(content)
    (folder / "ILSVRC2012_val_00000004.png").touch()
    with pytest.raises(DataError, match=r"00000004.JPEG and ILSVRC2012_val_00000004.png"):
        read_flat_images(folder, "o")
    (folder / "ILSVRC2012_val_00000004.png").unlink()
    (folder / "ILSVRC2012_val_00000004.JPEG").unlink()
    with pytest.raises(DataError, match=r"no image (with number 4|'ILSVRC2012_val_00000004)"):
        read_flat_images(folder, "o")


def test_lines_need_numbers_in_the_images_names(tmp_path):
    folder = write_images(tmp_path / "val", 1)
    (folder / "kitten.JPEG").touch()
    (tmp_path / GROUND_TRUTH).write_text("1\n2\n")
    with pytest.raises(DataError, match=r"kitten\.JPEG has no number at its end"):
        read_flat_images(folder, "o")


def test_another_numbering_beside_the_ground_truth_is_refused(tmp_path):
    folder = write_images(tmp_path / "val")
    (tmp_path / GROUND_TRUTH).write_text(IDS)
    lines = [f"{synset} {number} x\n" for number, synset in enumerate(challenge_synsets(), 1)]
    (tmp_path / "map_clsloc.txt").write_text("".join(lines))
    assert read_flat_images(folder, "o").labels.tolist() == list(FIRST_NUMBERS)
    (tmp_path / "map_clsloc.txt").write_text("".join(lines).replace("n02100735 2", "n02100735 1"))
    with pytest.raises(DataError, match=r"map_clsloc.txt:2: .*\(number 1 is n02119789\)"):
        read_flat_images(folder, "o")


def write_classes(root, names, count=2):
    for synset in names:
        (root / synset).mkdir(parents=True)
        for number in range(count):
            (root / synset / f"{synset}_{number}.JPEG").write_bytes(f"{synset} {number}".encode())


@pytest.mark.parametrize("train", ["train", "ILSVRC2012_train", "ILSVRC2012_img_train"])
@pytest.mark.parametrize("val", ["val", "ILSVRC2012_val", "ILSVRC2012_img_val"])
def test_the_folder_above(config, tmp_path, train, val):
    write_classes(tmp_path / train, FIRST_SYNSETS)
    write_images(tmp_path / val)
    (tmp_path / "ILSVRC2012_devkit_t12" / "data").mkdir(parents=True)
    (tmp_path / "ILSVRC2012_devkit_t12" / "data" / GROUND_TRUTH).write_text(IDS)
    data = open_train_val(config(data_path=str(tmp_path)))
    assert data.train.class_names == data.val.class_names == tuple(sorted(FIRST_SYNSETS))
    assert [data.val.class_names[label] for label in data.val.labels] == list(FIRST_SYNSETS)
    assert (len(data.train), len(data.val)) == (12, 6)
    assert recognise(str(tmp_path), "data_path").has_val()


def test_tars_and_other_folders_beside_the_extracted_ones(tmp_path):
    write_classes(tmp_path / "ILSVRC2012_img_train", FIRST_SYNSETS)
    write_images(tmp_path / "ILSVRC2012_img_val")
    write_images(tmp_path / "ILSVRC2012_img_test")
    (tmp_path / "ILSVRC2012_img_train.tar").touch()
    (tmp_path / "notes").mkdir()
    (tmp_path / "val.txt").write_text(PAIRS)
    assert len(open_source(str(tmp_path), "train", "data_path")) == 12
    assert open_source(str(tmp_path), "val", "data_path").labels.tolist() == list(FIRST_NUMBERS)


@pytest.mark.parametrize("given", ["", "ILSVRC", "ILSVRC/Data/CLS-LOC", "both"])
def test_the_tree_of_kaggle(config, tmp_path, given):
    tree = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    write_classes(tree / "train", FIRST_SYNSETS)
    write_images(tree / "val")
    write_images(tree / "test")
    (tmp_path / "LOC_val_solution.csv").write_text(KAGGLE)
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\n")
    options = {"data_path": str(tmp_path / given)}
    if given == "both":
        options = {"data_path": str(tree / "train"), "val_data_path": str(tree / "val")}
    data = open_train_val(config(**options))
    assert (len(data.train), len(data.val)) == (12, 6)
    assert [data.val.class_names[label] for label in data.val.labels] == list(FIRST_SYNSETS)


def test_evaluation_with_a_models_class_names(config, tmp_path):
    folder = write_images(tmp_path / "val")
    (tmp_path / "val.txt").write_text(PAIRS)
    words = [readable_name(synset) for synset in imagenet_synsets()]
    val = open_val(config(val_data_path=str(folder)), words)
    assert val.labels.tolist() == list(FIRST_NUMBERS)
    assert "n01440764 is 'tench, Tinca tinca'" in val.notes[-1]
    known = open_val(config(val_data_path=str(folder)), sorted(FIRST_SYNSETS))
    assert [known.class_names[label] for label in known.labels] == list(FIRST_SYNSETS)
    with pytest.raises(DataError, match="does not know: n01751748"):
        open_val(config(val_data_path=str(folder)), [s for s in FIRST_SYNSETS if "751748" not in s])


def test_a_few_synset_folders_find_their_outputs_in_a_model_of_words(config, tmp_path):
    write_classes(tmp_path, FIRST_SYNSETS)
    words = [readable_name(synset) for synset in imagenet_synsets()]
    words[999] = "spelled otherwise"
    val = open_val(config(val_data_path=str(tmp_path)), words)
    assert sorted(set(val.labels.tolist())) == sorted(FIRST_NUMBERS)
    with pytest.raises(DataError, match="does not know"):
        open_val(config(val_data_path=str(tmp_path)), [*words[:500], *map(str, range(500))])
