from collections import Counter

import pytest

from mmflow.data.sources.class_folders import ClassFolders
from tests.data.sources.made import made

JPEG = b"\xff\xd8\xff picture"
IMAGENET = ClassFolders(names="LOC_synset_mapping.txt", labels="LOC_val_solution.csv")


@pytest.fixture
def pictures(put, tmp_path):
    def write(*names):
        for name in names:
            put(f"data/{name}", JPEG)
        return tmp_path / "data"

    return write


@pytest.fixture
def imagenet(pictures, put):
    put("data/LOC_synset_mapping.txt", "n03 crane\nn01 tench, Tinca tinca\nn02 kite\n")
    put(
        "data/LOC_val_solution.csv", "ImageId,PredictionString\nval_1,n03 85 1 499 272\nval_2,n01 1 2 3 4 n01 5 6 7 8\n"
    )
    base = "ILSVRC/Data/CLS-LOC"
    return pictures(
        *(f"{base}/train/{name}/{name}_{number}.JPEG" for name in ("n03", "n01") for number in range(10)),
        *(f"{base}/val/val_{number}.JPEG" for number in (1, 2, 3)),
        f"{base}/test/test_1.JPEG",
    )


def found(root, source=None):
    return {sample["json"]["path"]: (split, sample) for split, sample in made(source or ClassFolders(), root)}


def classes(root, source=None):
    return {path: (split, sample["json"]["class"]) for path, (split, sample) in found(root, source).items()}


def test_folders_of_parts_hold_folders_of_classes(pictures, caplog):
    root = pictures("train/dog/1.jpg", "train/cat/1.JPG", "val/dog/1.jpeg", "test/emu/deep/1.jpg")
    samples = found(root)
    assert samples["train/dog/1.jpg"] == (
        "train",
        {
            "__key__": "train-dog-1",
            "jpg": JPEG,
            "json": {"label": 1, "class": "dog", "folder": "dog", "path": "train/dog/1.jpg"},
        },
    )
    assert {path: (split, sample["json"]["label"]) for path, (split, sample) in samples.items()} == {
        "train/dog/1.jpg": ("train", 1),
        "train/cat/1.JPG": ("train", 0),
        "val/dog/1.jpeg": ("validation", 1),
        "test/emu/deep/1.jpg": ("test", 2),
    }
    assert not caplog.records


def test_without_parts_the_first_folders_that_differ_are_the_classes(pictures):
    root = pictures(
        *(f"101_Categories/{name}/{number}.jpg" for name in ("ant", "train", "test") for number in range(10))
    )
    assert Counter(split for split, _ in classes(root).values()) == {"train": 24, "validation": 3, "test": 3}
    assert Counter(name for _, name in classes(root).values()) == {"ant": 10, "train": 10, "test": 10}


@pytest.mark.parametrize("folder", ["cat", "train/cat", "a/b/train/cat"])
def test_a_single_class_is_a_class(pictures, folder):
    root = pictures(*(f"{folder}/{number}.jpg" for number in range(3)))
    assert Counter(name for _, name in classes(root).values()) == {"cat": 3}


def test_pictures_without_a_class_and_other_files_are_counted(pictures, put, caplog):
    root = pictures("train/cat/1.jpg", "train/2.jpg", "3.jpg", "samples/4.jpg")
    put("data/train/cat/5.jpg", "")
    put("data/train/cat/6.gif", b"GIF89a")
    assert classes(root) == {"train/cat/1.jpg": ("train", "cat")}
    for reason in (
        "1 x picture in no folder of a class, first: ",
        "2 x picture outside the folders of the parts, first: ",
        "2 x file that is no JPEG, PNG or WebP, first: ",
    ):
        assert reason in caplog.text


def test_pictures_of_one_name_in_all_parts_have_keys_of_their_own(pictures):
    root = pictures("x/train/a b/1.jpg", "x/train/a_b/1.jpg", "x/test/a b/1.jpg", "x/val/a b/1.jpg")
    keys = {path: sample["__key__"] for path, (_, sample) in found(root).items()}
    assert keys["x/test/a b/1.jpg"] == "test-a_b-1"
    assert keys["x/val/a b/1.jpg"] == "val-a_b-1"
    assert len(set(keys.values())) == 4


def test_imagenet_has_names_and_the_classes_of_its_flat_validation_part(imagenet, caplog):
    samples = found(imagenet, IMAGENET)
    assert Counter(split for split, _ in samples.values()) == {"train": 18, "validation": 2, "test": 2}
    split, sample = samples["ILSVRC/Data/CLS-LOC/val/val_1.JPEG"]
    assert (split, sample["__key__"]) == ("validation", "val-val_1")
    assert sample["json"] | {"path": ""} == {"label": 2, "class": "crane", "folder": "n03", "path": ""}
    assert samples["ILSVRC/Data/CLS-LOC/val/val_2.JPEG"][1]["json"]["class"] == "tench, Tinca tinca"
    assert "2 x picture in no folder of a class" in caplog.text  # val_3 and test_1


def test_imagenet_without_its_text_files_has_the_classes_of_its_folders(imagenet, caplog):
    for name in ("LOC_synset_mapping.txt", "LOC_val_solution.csv"):
        (imagenet / name).unlink()
    samples = found(imagenet, IMAGENET)
    assert {(s["json"]["label"], s["json"]["class"]) for _, s in samples.values()} == {(0, "n01"), (1, "n03")}
    assert "2 x missing file of classes, done without it, first: " in caplog.text
    assert "4 x picture in no folder of a class" in caplog.text


def test_a_validation_part_alone_is_enough(imagenet):
    for part in ("train", "test"):
        (imagenet / f"ILSVRC/Data/CLS-LOC/{part}").rename(imagenet.parent / part)
    assert {path[-10:]: name for path, (_, name) in classes(imagenet, IMAGENET).items()} == {
        "val_1.JPEG": "crane",
        "val_2.JPEG": "tench, Tinca tinca",
    }


def test_a_label_that_is_no_class_is_counted(imagenet, put, caplog):
    put("data/LOC_val_solution.csv", "val_1 65\nval_2 n02\n")
    assert sum("/val/" in path for path in found(imagenet, IMAGENET)) == 1
    assert "1 x picture whose label is no class, first: " in caplog.text
    assert ": 65" in caplog.text


@pytest.mark.parametrize("name", ["1.jpg", "train/1.txt"])
def test_a_folder_without_classes_is_an_error(pictures, name):
    with pytest.raises(ValueError, match="no picture has a class; expected train/CLASS/PICTURE or CLASS/PICTURE"):
        found(pictures(name))


def test_a_root_that_is_no_folder_is_an_error(put):
    with pytest.raises(ValueError, match=r"a\.jpg is not a folder"):
        found(put("a.jpg"))


def test_the_real_cifar_10_has_its_own_numbers_and_parts(real_data):
    samples = found(real_data / "CIFAR-10-images")
    assert Counter(split for split, _ in samples.values()) == {"train": 1440, "validation": 160, "test": 400}
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert {(s["json"]["label"], s["json"]["class"]) for _, s in samples.values()} == set(enumerate(names))
    split, sample = samples["test/bird/0123.jpg"]
    assert (split, sample["json"]["label"]) == ("test", 2)
    assert sample["jpg"] == (real_data / "CIFAR-10-images/test/bird/0123.jpg").read_bytes()


def test_the_real_clothing_has_10_classes_and_lacks_a_test_part(real_data):
    samples = found(real_data / "clothing-dataset-small")
    assert Counter(split for split, _ in samples.values()) == {"train": 765, "validation": 120, "test": 85}
    assert samples["train/hat/a26fcf8f-e1a3-4607-9854-9afef6745c86.jpg"][1]["json"]["label"] == 1
    assert Counter(sample["json"]["class"] for _, sample in samples.values())["t-shirt"] == 97
