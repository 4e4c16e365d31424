import shutil
from collections import Counter

import pytest

from mmflow.data.sources.flickr8k import Flickr8k
from tests.data.sources.made import made

JPEG = b"\xff\xd8\xff picture"


@pytest.fixture
def kaggle(put, tmp_path):
    for name in ("10_a.jpg", "11_b.jpg", "12_c.jpg"):
        put(f"flickr8k/Images/{name}", JPEG)
    put("flickr8k/captions.txt", "image,caption\n10_a.jpg,A dog\n10_a.jpg,Dogs\n11_b.jpg,A cat\n12_c.jpg,A cow\n")
    return tmp_path / "flickr8k"


@pytest.fixture
def original(put, tmp_path):
    lists = {"train": "10_a.jpg", "dev": "11_b.jpg", "test": "12_c.jpg"}
    for number, (part, name) in enumerate(lists.items()):
        put(f"f8k/Flicker8k_Dataset/{name}", JPEG)
        put(f"f8k/Flickr8k_text/Flickr_8k.{part}Images.txt", f"{name}\nnot_there_{number}.jpg\n")
    put("f8k/Flicker8k_Dataset/13_d.jpg", JPEG)
    lines = "10_a.jpg#0\tA dog .\n10_a.jpg#1\tTwo\tdogs\n11_b.jpg#0\tA cat\n12_c.jpg#0\tA cow\n13_d.jpg#0\tA bee\n"
    put("f8k/Flickr8k_text/Flickr8k.token.txt", lines)
    return tmp_path / "f8k"


def captions(root):
    return {sample["__key__"]: sample["json"]["captions"] for _, sample in made(Flickr8k(), root)}


def test_a_photo_has_all_its_captions_and_the_first_as_text(kaggle):
    samples = {sample["__key__"]: sample for _, sample in made(Flickr8k(), kaggle)}
    assert samples["10_a"] == {"__key__": "10_a", "jpg": JPEG, "txt": "A dog", "json": {"captions": ["A dog", "Dogs"]}}
    assert samples.keys() == {"10_a", "11_b", "12_c"}


@pytest.mark.parametrize("place", [".", "Images", ".."])
def test_without_lists_the_parts_are_cut(kaggle, place):
    found = Counter(split for split, _ in made(Flickr8k(), kaggle / place))
    assert found == {"train": 1, "validation": 1, "test": 1}


@pytest.mark.parametrize("place", [".", "Flicker8k_Dataset", ".."])
def test_the_original_lists_make_the_splits(original, place, caplog):
    found = {sample["__key__"]: (split, sample["txt"]) for split, sample in made(Flickr8k(), original / place)}
    assert found == {"10_a": ("train", "A dog ."), "11_b": ("validation", "A cat"), "12_c": ("test", "A cow")}
    assert "1 x photo on none of the lists of the parts" in caplog.text
    assert "3 x listed photo that is not there, first: not_there_0.jpg" in caplog.text


def test_the_text_files_may_lie_beside_the_photos(original):
    for path in (original / "Flickr8k_text").iterdir():
        path.rename(original / path.name)
    assert captions(original)["10_a"] == ["A dog .", "Two\tdogs"]


def test_lines_that_are_no_use_are_counted(original, put, caplog):
    lines = (
        "10_a.jpg#0\tA dog\n10_a.jpg#1\tA dog\n2258277193_586949ec62.jpg.1#0\tA man\n11_b.jpg#0\t \nhello\n12_c.jpg#0\n"
    )
    put("f8k/Flickr8k_text/Flickr8k.token.txt", lines)
    assert captions(original) == {"10_a": ["A dog"]}
    for reason in (
        "1 x caption that its photo already has, first: 10_a.jpg: A dog",
        "1 x caption of a photo that is not there, first: 2258277193_586949ec62.jpg.1",
        "2 x line without a caption, first: 11_b.jpg",
        "1 x line that does not begin with `photo#number`",
        "3 x photo without a caption",
    ):
        assert reason in caplog.text


def test_a_file_that_is_no_picture_is_counted(kaggle, put, caplog):
    put("flickr8k/Images/10_a.jpg", "<html>not found</html>")
    assert captions(kaggle).keys() == {"11_b", "12_c"}
    assert "1 x file that is no JPEG, PNG or WebP" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10_a.jpg,A dog", r"begins with '10_a\.jpg,A dog\\n'; its first line must be `image,caption`"),
        ("", r"begins with ''; its first line must be `image,caption`"),
        (
            'image,caption\n10_a.jpg,"A dog\n11_b.jpg,A cat',
            r"a caption of 10_a\.jpg opens .* '11_b\.jpg,A cat'; close it",
        ),
        (f'image,caption\n10_a.jpg,"{"x" * 200_000}', r"captions\.txt is no CSV: field larger than"),
        ("image,caption\n10_a.jpg,caf\xe9".encode("latin-1"), "is not UTF-8 text .* `iconv -f latin1"),
        ("image,caption\n99.jpg,A dog", "no photo has a caption"),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error(kaggle, put, text, message):
    put("flickr8k/captions.txt", text)
    with pytest.raises(ValueError, match=message):
        made(Flickr8k(), kaggle)


def test_a_folder_without_captions_is_an_error(put, tmp_path):
    put("Images/1.jpg", JPEG)
    with pytest.raises(ValueError, match=r"does not hold Flickr8k\.token\.txt.* or captions\.txt"):
        made(Flickr8k(), tmp_path)


def test_the_real_copy_has_700_photos_with_five_captions_each(real_data, caplog):
    found = made(Flickr8k(), real_data / "flickr8k")
    assert Counter(split for split, _ in found) == {"train": 560, "validation": 70, "test": 70}
    assert Counter(len(sample["json"]["captions"]) for _, sample in found) == {5: 700}
    samples = {sample["__key__"]: sample for _, sample in found}
    dog = samples["1012212859_01547e3f17"]
    assert "A dog shakes its head near the shore , a red ball next to it ." in dog["json"]["captions"]
    assert dog["jpg"] == (real_data / "flickr8k/Images/1012212859_01547e3f17.jpg").read_bytes()
    assert [record.message.split(" x ")[0] for record in caplog.records] == [caplog.records[0].message]  # only the cut


@pytest.mark.parametrize(
    ("name", "captions_of", "counts"),
    [
        ("captions_bom_crlf.csv", {"1001773457_577c3a7d70": 5, "1002674143_1b742ab4b8": 5}, []),
        ("captions_unquoted_commas.txt", {"1001773457_577c3a7d70": 5}, []),
        (
            "captions_missing_and_duplicate.txt",
            {"1001773457_577c3a7d70": 1},
            [
                "1 x caption that its photo already has",
                "1 x caption of a photo that is not there, first: not_there_0001.jpg",
                "1 x line without a caption, first: 1002674143_1b742ab4b8.jpg",
            ],
        ),
        (
            "captions_quotes_newlines.csv",
            {"1001773457_577c3a7d70": 1, "1002674143_1b742ab4b8": 1, "1009434119_febe49276a": 1},
            ["2 x line without a caption, first: 1003163366_44323f5815.jpg"],
        ),
    ],
)
def test_odd_tables_have_their_outcome(real_data, odd_photos, name, captions_of, counts, caplog):
    shutil.copy(real_data / "odd" / "text" / name, odd_photos / "captions.txt")
    found = captions(odd_photos)
    assert {key: len(texts) for key, texts in found.items()} == captions_of
    for count in counts:
        assert count in caplog.text


def test_odd_captions_are_read_as_they_are(real_data, odd_photos):
    shutil.copy(real_data / "odd" / "text" / "captions_quotes_newlines.csv", odd_photos / "captions.txt")
    found = captions(odd_photos)
    assert found["1001773457_577c3a7d70"] == ['A child says "hello", then climbs.']
    assert found["1002674143_1b742ab4b8"] == ["Two dogs on a road"]
    assert found["1009434119_febe49276a"] == ["Ein Mädchen 👧 läuft — schnell…  日本語 नमस्ते"]
    shutil.copy(real_data / "odd" / "text" / "captions_unquoted_commas.txt", odd_photos / "captions.txt")
    assert captions(odd_photos)["1001773457_577c3a7d70"][0] == (
        "A black dog and a spotted dog are fighti , outside , in daylight ."
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("captions_latin1.csv", "is not UTF-8 text"),
        ("binary_named.txt", "is not UTF-8 text"),
        ("empty.txt", "its first line must be"),
        ("no_final_newline.trans.txt", "its first line must be"),
    ],
)
def test_odd_texts_that_are_no_tables_are_errors(real_data, odd_photos, name, message):
    shutil.copy(real_data / "odd" / "text" / name, odd_photos / "captions.txt")
    with pytest.raises(ValueError, match=message):
        captions(odd_photos)


@pytest.fixture
def odd_photos(put, tmp_path):
    names = (
        "1001773457_577c3a7d70 1002674143_1b742ab4b8 1003163366_44323f5815 1007320043_627395c3d8 1009434119_febe49276a"
    )
    for name in names.split():
        put(f"odd/Images/{name}.jpg", JPEG)
    return tmp_path / "odd"
