import json
from collections import Counter

import pytest

from mmflow.data.sources.coco import CocoCaptions, CocoInstances
from tests.data.sources.made import made

JPEG = b"\xff\xd8\xff picture"
PHOTOS = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 60 + n, "height": 40, "license": 4} for n in (1, 2, 3)]
LICENCES = [{"id": 4, "url": "http://creativecommons.org/licenses/by/2.0/", "name": "Attribution License"}]


@pytest.fixture
def coco(put, tmp_path):
    for number in (1, 2, 3):
        put(f"coco/train2017/{number:012d}.jpg", JPEG)
    put("coco/val2017/000000000009.jpg", JPEG)
    texts = [(1, "A dog ."), (2, "Cats\n"), (1, "Two\ndogs"), (3, " ")]
    write(put, "captions_train2017", PHOTOS, [{"image_id": n, "caption": text} for n, text in texts])
    ninth = [{"id": 9, "file_name": "000000000009.jpg"}]
    write(put, "captions_val2017", ninth, [{"image_id": 9, "caption": "A bee"}])
    boxes = [(1, 18, [1.5, 2, 30, 20.25]), (1, 1, [0, 0, 10, 0.0]), (2, 18, [3, 4, 5, 6])]
    annotations = [{"image_id": n, "category_id": label, "bbox": box, "id": 7} for n, label, box in boxes]
    annotations[0] |= {"area": 400.5, "iscrowd": 0, "segmentation": [[1.5, 2, 31.5, 2, 31.5, 22.25]]}
    annotations[2] |= {"area": 9, "iscrowd": 1, "segmentation": {"counts": [2, 9, 1], "size": [3, 4]}}
    categories = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 18, "name": "dog"}]
    write(put, "instances_train2017", PHOTOS, annotations, categories=categories)
    return tmp_path / "coco"


def write(put, name, images, annotations, **more):
    content = {"licenses": LICENCES, "images": images, "annotations": annotations} | more
    put(f"coco/annotations/{name}.json", json.dumps(content))


def samples(source, root):
    return {sample["__key__"]: (split, sample) for split, sample in made(source, root)}


def test_captions_go_to_their_photo_with_its_size_and_licence(coco):
    _, sample = samples(CocoCaptions(), coco)["train2017-000000000001"]
    assert sample == {
        "__key__": "train2017-000000000001",
        "jpg": JPEG,
        "txt": "A dog .",
        "json": {
            "captions": ["A dog .", "Two dogs"],
            "id": 1,
            "width": 61,
            "height": 40,
            "licence": "http://creativecommons.org/licenses/by/2.0/",
        },
    }


@pytest.mark.parametrize("place", [".", "annotations", "train2017", ".."])
def test_val_is_validation_and_a_photo_without_a_caption_is_counted(coco, place, caplog):
    found = samples(CocoCaptions(), coco / place)
    assert found.keys() == {"train2017-000000000001", "train2017-000000000002", "val2017-000000000009"}
    assert found["val2017-000000000009"][0] == "validation"
    assert "1 x photo without a caption, first: " in caplog.text


def test_objects_are_as_in_the_file_with_the_names_of_their_classes(coco):
    found = samples(CocoInstances(), coco)
    _, sample = found["train2017-000000000001"]
    assert "txt" not in sample
    assert sample["json"]["objects"] == [
        {
            "class": "dog",
            "label": 18,
            "box": [1.5, 2, 30, 20.25],
            "area": 400.5,
            "iscrowd": 0,
            "segmentation": [[1.5, 2, 31.5, 2, 31.5, 22.25]],
        },
        {"class": "person", "label": 1, "box": [0, 0, 10, 0.0]},
    ]
    (crowd,) = found["train2017-000000000002"][1]["json"]["objects"]
    assert crowd["segmentation"] == {"counts": [2, 9, 1], "size": [3, 4]}


def test_a_photo_without_objects_is_kept_with_an_empty_list(coco):
    _, sample = samples(CocoInstances(), coco)["train2017-000000000003"]
    assert sample["json"]["objects"] == []
    assert sample["json"]["width"] == 63


def test_the_photos_may_be_in_a_folder_images(coco):
    (coco / "images").mkdir()
    for part in ("train2017", "val2017"):
        (coco / part).rename(coco / "images" / part)
    assert len(samples(CocoCaptions(), coco)) == 3


def test_what_has_no_other_half_is_counted(coco, put, caplog):
    put("coco/train2017/77.jpg", JPEG)
    put("coco/train2017/000000000002.jpg", "<html>")
    outside = {"id": 5, "file_name": "../val2017/000000000009.jpg"}
    captions = [{"image_id": n, "caption": "x"} for n in (1, 2, 5, 88)]
    write(put, "captions_train2017", [*PHOTOS, outside, PHOTOS[0] | {"id": 6}], captions)
    assert samples(CocoCaptions(), coco).keys() == {"train2017-000000000001", "val2017-000000000009"}
    for reason in (
        "1 x listed photo that is not there, first: train2017/000000000009.jpg",  # the folder in its name is not used
        "1 x photo that is listed again, first: train2017/000000000001.jpg",
        "1 x annotated photo that the file does not list, first: ",
        "1 x photo that the annotations do not list, first: ",
        "1 x file that is no JPEG, PNG or WebP",
    ):
        assert reason in caplog.text


def test_several_years_are_an_error_unless_one_is_chosen(coco, put):
    put("coco/train2014/COCO_train2014_000000000001.jpg", JPEG)
    photo = {"id": 1, "file_name": "COCO_train2014_000000000001.jpg"}
    write(put, "captions_train2014", [photo], [{"image_id": 1, "caption": "A dog"}])
    with pytest.raises(ValueError, match=r"captions of 2014 and 2017, which share photos; .* \{year: 2017\}"):
        samples(CocoCaptions(), coco)
    assert len(samples(CocoCaptions(year=2017), coco)) == 3
    assert samples(CocoCaptions(year=2014), coco).keys() == {"train2014-COCO_train2014_000000000001"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "has no list 'images'"),
        ({"annotations": [{"image_id": 1, "category_id": 18}]}, "in 'annotations' has no right 'bbox'"),
        ({"annotations": ["dog"]}, "dog in 'annotations' has no right 'image_id'"),
        ({"annotations": [{"image_id": 1, "category_id": 5, "bbox": []}]}, "category_id 5 .* not among the categories"),
        ({"images": [{"id": 1, "file_name": 3}]}, "in 'images' has no right 'file_name'"),
        ({"categories": {}}, "has no list 'categories'"),
    ],
)
def test_annotations_of_another_form_are_errors_that_show_the_entry(coco, put, change, message):
    content = {"images": PHOTOS, "categories": [{"id": 18, "name": "dog"}], "annotations": []} | change
    put("coco/annotations/instances_train2017.json", json.dumps(content))
    with pytest.raises(ValueError, match=message):
        samples(CocoInstances(), coco)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no JSON"), ("[" * 100_000, "is no JSON"), ("[]", "holds a list"), (b"\xff\xfe", "is no JSON")],
)
def test_annotations_that_are_no_json_are_errors(coco, put, text, message):
    put("coco/annotations/captions_train2017.json", text)
    with pytest.raises(ValueError, match=message):
        samples(CocoCaptions(), coco)


def test_annotations_without_photos_are_an_error(coco, caplog):
    (coco / "train2017").rename(coco / "elsewhere")
    with pytest.raises(ValueError, match="none of the photos with instances is there"):
        samples(CocoInstances(), coco)
    assert "1 x missing folder of photos" in caplog.text


def test_a_folder_without_annotations_is_an_error(put, tmp_path):
    put("train2017/1.jpg", JPEG)
    with pytest.raises(ValueError, match=r"does not hold annotations/captions_train2017\.json"):
        samples(CocoCaptions(), tmp_path)


def test_the_real_copy_has_80_photos_400_captions_and_731_objects(real_data):
    found = samples(CocoCaptions(), real_data / "coco")
    assert Counter(split for split, _ in found.values()) == {"train": 64, "validation": 8, "test": 8}
    assert sum(len(sample["json"]["captions"]) for _, sample in found.values()) == 400
    boxes = samples(CocoInstances(), real_data / "coco")
    assert boxes.keys() == found.keys()
    assert sum(len(sample["json"]["objects"]) for _, sample in boxes.values()) == 731
    person = boxes["train2017-000000535506"][1]["json"]["objects"][0]
    assert (person["class"], person["box"], person["area"]) == ("person", [48.18, 53.33, 84.92, 199.43], 8421.5)
    info = found["train2017-000000493652"][1]["json"]
    assert (info["width"], info["height"], info["licence"]) == (
        256,
        160,
        "http://creativecommons.org/licenses/by-nc-nd/2.0/",
    )
