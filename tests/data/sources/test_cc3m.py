import zlib
from collections import Counter

import pytest

from mmflow.data.sources.cc3m import CC3M
from tests.data.sources.made import made

JPEG = b"\xff\xd8\xff picture"
URL = "http://example.org/{}.jpg"


@pytest.fixture
def cc(put, tmp_path):
    """A table of five lines, whose third and fourth could not be downloaded."""
    put("cc/Train_GCC-training.tsv", "".join(f"caption {n}\t{URL.format(n)}\n" for n in range(5)))
    for number in (0, 1, 4):
        put(f"cc/training/00000/{number:09d}.jpg", JPEG + bytes([number]))
    put("cc/training/00000/000000003.json", "{}")
    return tmp_path / "cc"


def texts(root):
    """Text and the last byte of each picture, by key."""
    return {s["__key__"]: (s["txt"], s["jpg"][-1]) for _, s in made(CC3M(), root)}


def test_a_line_finds_its_picture_by_its_number(cc, caplog):
    caplog.set_level("INFO")
    samples = {sample["__key__"]: sample for _, sample in made(CC3M(), cc)}
    assert samples["Train_GCC-training-000000004"] == {
        "__key__": "Train_GCC-training-000000004",
        "jpg": JPEG + b"\4",
        "txt": "caption 4",
        "json": {"url": "http://example.org/4.jpg"},
    }
    assert len(samples) == 3
    assert "2 x line whose picture is not there, first: " in caplog.text
    assert "Train_GCC-training.tsv are named by the number of the line: 3 of 5" in caplog.text


def test_the_url_may_come_first_and_captions_with_urls_are_captions(cc, put):
    put("cc/Train_GCC-training.tsv", f"{URL.format(0)}\tfirst\nhttp://a.b is down\t{URL.format(1)}\n")
    assert texts(cc) == {
        "Train_GCC-training-000000000": ("first", 0),
        "Train_GCC-training-000000001": ("http://a.b is down", 1),
    }


def test_names_of_columns_and_empty_lines_are_not_counted(cc, put, caplog):
    put(
        "cc/Train_GCC-training.tsv",
        f"\ufeffcaption\turl\r\nzero\t{URL.format(0)}\r\n\r\n no url\tx\r\n\t{URL.format(2)}\r\n",
    )
    assert texts(cc) == {"Train_GCC-training-000000000": ("zero", 0)}
    assert "2 x line without a caption and a URL, first: " in caplog.text


def test_a_third_column_names_the_picture(cc, put, caplog):
    lines = ["a\tURL\t00000/000000004.jpg", "b\tURL\t../elsewhere/abcdef", "c\tURL", "d\tURL\t3", "e\tURL\t4"]
    put("cc/Train_GCC-training.tsv", "\n".join(lines).replace("URL", URL.format(9)))
    put("cc/training/abcdef.jpg", JPEG + b"\7")
    assert texts(cc) == {"Train_GCC-training-000000000": ("a", 4), "Train_GCC-training-000000001": ("b", 7)}
    assert "2 x line whose picture is not there" in caplog.text
    assert "1 x second line for the same picture" in caplog.text


def test_five_columns_of_the_table_with_labels_name_nothing(cc, put):
    put("cc/Train_GCC-training.tsv", f"caption\t{URL.format(0)}\t1,4\t/m/01\t0.9,0.8\n")
    assert texts(cc) == {"Train_GCC-training-000000000": ("caption", 0)}


def test_pictures_named_by_the_crc_of_the_url_have_no_ending(put, tmp_path, caplog):
    caplog.set_level("INFO")
    put("Validation_GCC-1.1.0-Validation.tsv", "".join(f"caption {n}\t{URL.format(n)}\n" for n in range(5)))
    for number in (1, 3):
        put(f"validation/{zlib.crc32(URL.format(number).encode())}", JPEG + bytes([number]))
    put("validation/2", JPEG + b"\2")  # the CRC of another URL, and not the picture of line 2
    assert texts(tmp_path) == {
        "Validation_GCC-1_1_0-Validation-000000001": ("caption 1", 1),
        "Validation_GCC-1_1_0-Validation-000000003": ("caption 3", 3),
    }
    assert "named by the CRC-32 of the URL: 2 of 5" in caplog.text


@pytest.mark.parametrize(
    ("train", "validation"), [("training", "validation"), ("train", "VAL"), ("Train_GCC-training", "valid")]
)
def test_each_table_has_its_own_folder(put, tmp_path, train, validation):
    put("Train_GCC-training.tsv", "".join(f"train {n}\t{URL.format(n)}\n" for n in range(20)))
    put("Validation_GCC-1.1.0-Validation.tsv", f"validation 0\t{URL.format(0)}\n")
    for number in range(20):
        put(f"{train}/{number}.png", JPEG + b"\1")
    put(f"{validation}/0.jpg", JPEG + b"\2")
    found = made(CC3M(), tmp_path)
    assert Counter(split for split, _ in found) == {"train": 18, "validation": 1, "test": 2}
    assert {(sample["txt"][:5], sample["jpg"][-1]) for _, sample in found} == {("train", 1), ("valid", 2)}


def test_lines_with_the_same_url_are_in_the_same_part(put, tmp_path):
    put("train.tsv", "".join(f"caption {n}\t{URL.format(n % 10)}\n" for n in range(40)))
    for number in range(40):
        put(f"train/{number}.jpg", JPEG)
    found = made(CC3M(), tmp_path)
    assert Counter(split for split, _ in found) == {"train": 32, "validation": 4, "test": 4}
    assert len({(split, sample["json"]["url"]) for split, sample in found}) == 10


def test_two_tables_for_one_folder_are_an_error(cc, put):
    put("cc/more_train.tsv", f"a\t{URL.format(0)}")
    with pytest.raises(ValueError, match=r"which folder holds its pictures\? Name it Train_GCC-training"):
        texts(cc)


def test_a_single_table_may_have_its_pictures_anywhere_beside_it(put, tmp_path):
    put("cc12m.tsv", f"{URL.format(0)}\ta\n{URL.format(1)}\tb")
    put("pictures/x/0.jpg", JPEG + b"\5")
    put("1.webp", JPEG + b"\6")
    put("other/0001.jpg", JPEG)
    assert texts(tmp_path) == {"cc12m-000000000": ("a", 5), "cc12m-000000001": ("b", 6)}


def test_web_pages_instead_of_pictures_are_counted(cc, put, caplog):
    put("cc/training/00000/000000000.jpg", "<html>gone</html>")
    assert len(texts(cc)) == 2
    assert "1 x file that is no JPEG, PNG or WebP" in caplog.text


def test_a_table_without_any_of_its_pictures_is_an_error(put, tmp_path):
    put("train.tsv", f"a\t{URL.format(0)}")
    with pytest.raises(ValueError, match="no line of a table has its picture; see how they are named"):
        texts(tmp_path)


def test_a_folder_without_a_table_and_one_that_is_not_utf8_are_errors(put, tmp_path):
    put("0.jpg", JPEG)
    with pytest.raises(ValueError, match=r"does not hold a table such as Train_GCC-training\.tsv"):
        texts(tmp_path)
    put("train.tsv", f"caf\xe9\t{URL.format(0)}".encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.tsv is not UTF-8 text"):
        texts(tmp_path)
