import csv
import io
import json
from collections import Counter
from pathlib import Path

import pytest

from mmflow.data.make import build_source
from mmflow.data.sources.table import Table
from mmflow.data.spec import DataSpec
from tests.data.sources.made import made

SPECS = Path(__file__).parents[3] / "data_specs"
CLOTHES = "id,review,kind,price,liked\n1,too long,dress,10,0\n2,I love it,top,12.5,1\n3,,dress,-3e2,1\n"
COLUMNS = {"text": ["review"], "categorical": ["kind"], "numerical": ["price"], "label": "liked"}


def rows(root, **options):
    """Key -> (split, text, JSON)."""
    found = made(Table(**options), root)
    return {sample["__key__"]: (split, sample.get("txt"), sample["json"]) for split, sample in found}


def infos(root, **options):
    """The JSON of all rows in the order of their keys."""
    return [info for _, (_, _, info) in sorted(rows(root, **options).items())]


def csv_of(columns: dict[str, list[object]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()


def test_a_row_has_numbers_texts_and_nulls_and_its_text_names_the_columns(put):
    found = rows(put("clothes.csv", CLOTHES), **COLUMNS)
    assert {key: (text, info) for key, (_, text, info) in found.items()} == {
        "row-0000000": ("review: too long", {"row": {"review": "too long", "kind": "dress", "price": 10}, "label": 0}),
        "row-0000001": (
            "review: I love it",
            {"row": {"review": "I love it", "kind": "top", "price": 12.5}, "label": 1},
        ),
        "row-0000002": ("", {"row": {"review": None, "kind": "dress", "price": -300.0}, "label": 1}),
    }
    assert Counter(split for split, _, _ in found.values()) == {"train": 1, "validation": 1, "test": 1}
    assert isinstance(found["row-0000000"][2]["row"]["price"], int)


def test_several_texts_have_a_line_each_without_those_that_are_missing(put):
    table = put("a.csv", "title,body,label\nGood,Fits well,1\n,Too small,0\nnan, None ,0\n")
    found = rows(table, text=["title", "body"], label="label")
    assert [text for _, (_, text, _) in sorted(found.items())] == [
        "title: Good\nbody: Fits well",
        "body: Too small",
        "",
    ]


def test_quotes_line_breaks_byte_order_mark_and_windows_line_ends(put):
    content = '\ufeff"name","said"\r\n"a, b","one\ntwo"\r\n"c","say ""hi"""\r\n"d"," 日本 "\r\n'
    found = infos(put("a.csv", content), text=["said"], categorical=["name"])
    assert [info["row"] for info in found] == [
        {"said": "one\ntwo", "name": "a, b"},
        {"said": 'say "hi"', "name": "c"},
        {"said": "日本", "name": "d"},
    ]


@pytest.mark.parametrize("cell", ["", "  ", "nan", "NaN", "NA", "N/A", "null", "NULL", "None", " None "])
def test_what_stands_for_no_value_is_null_in_columns_of_every_kind(put, cell):
    table = put("a.csv", csv_of({"text": ["hi", cell], "kind": ["x", cell], "number": [1, cell], "label": [1, cell]}))
    found = rows(table, text=["text"], categorical=["kind"], numerical=["number"], label="label")
    assert found["row-0000001"][1:] == ("", {"row": {"text": None, "kind": None, "number": None}, "label": None})


def test_what_is_missing_can_be_set(put):
    table = put("a.csv", "country,age\nNA,?\nNO,3\n")
    found = rows(table, categorical=["country"], numerical=["age"], missing=["", "?"])
    assert [found[key][2]["row"] for key in sorted(found)] == [
        {"country": "NA", "age": None},
        {"country": "NO", "age": 3},
    ]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        ("007", 7),
        ("7.0", 7.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        (" 7 ", 7),
        ("inf", None),
        ("-Infinity", None),
        ("1e999", None),
        ("9007199254740993", 9007199254740992.0),
        ("9" * 5000, None),
    ],
)
def test_numbers_are_plain_json_numbers_and_what_is_not_finite_is_missing(put, cell, value):
    (info,) = infos(put("a.csv", f"n\n{cell}\n"), numerical=["n"])
    assert info["row"] == {"n": value}
    assert type(info["row"]["n"]) is type(value)
    json.dumps(info, allow_nan=False)


@pytest.mark.parametrize("cell", ["12,5", "$3", "1_000", "three", "0x10", "1 2"])
def test_a_numerical_column_with_something_else_is_an_error_that_says_where(put, cell):
    table = put("prices.csv", csv_of({"text": ["a\nb", "c"], "price": [1, cell]}))
    with pytest.raises(ValueError, match=r"prices\.csv line 4: .* in column 'price' is no number; .* `missing`"):
        rows(table, numerical=["price"])


def test_files_named_for_the_parts_make_them(put, tmp_path, caplog):
    for name, count in (("train", 5), ("val", 2), ("test", 3)):
        put(f"set/{name}.csv", "n\n" + "1\n" * count)
    put("set/states.csv", "other\nx\n")
    found = rows(tmp_path, numerical=["n"])
    assert Counter(split for split, _, _ in found.values()) == {"train": 5, "validation": 2, "test": 3}
    assert found["validation-0000001"][0] == "validation"
    assert "1 x CSV file that is not named for a part" in caplog.text


def test_a_missing_part_is_cut_out_of_train(put, tmp_path):
    put("train.csv", "n\n" + "1\n" * 18)
    put("test.csv", "n\n" + "1\n" * 5)
    found = rows(tmp_path, numerical=["n"])
    assert Counter(split for split, _, _ in found.values()) == {"train": 16, "validation": 2, "test": 5}


def test_several_files_without_a_name_of_a_part_are_an_error_and_one_can_be_named(put, tmp_path):
    put("a.csv", "n\n1\n")
    put("b.csv", "n\n1\n2\n")
    with pytest.raises(ValueError, match=r"holds several CSV files \(a\.csv, b\.csv\) and no train\.csv; name one"):
        rows(tmp_path, numerical=["n"])
    assert len(rows(tmp_path / "b.csv", numerical=["n"])) == 2


def test_two_files_for_one_part_are_an_error(put, tmp_path):
    put("val.csv", "n\n1\n")
    put("valid.csv", "n\n1\n")
    with pytest.raises(ValueError, match=r"valid\.csv and .*val\.csv are both validation; remove or rename one"):
        rows(tmp_path, numerical=["n"])


def test_links_are_not_followed(put, tmp_path):
    secret = put("secret.csv", "n\n1\n")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").symlink_to(secret)
    with pytest.raises(ValueError, match=r"set does not hold train\.csv.* \(links are not followed\)"):
        rows(tmp_path / "set", numerical=["n"])


def test_no_group_is_in_two_parts(put, tmp_path, caplog):
    for name in ("train", "val", "test"):
        put(f"{name}.csv", csv_of({"owner": [f"o{i % 15}" for i in range(50)], "age": range(50)}))
    found = rows(tmp_path, numerical=["age"], group="owner")
    places = {info["group"]: set() for _, _, info in found.values()}
    for split, _, info in found.values():
        places[info["group"]].add(split)
    assert len(places) == 15
    assert all(len(splits) == 1 for splits in places.values())
    assert Counter(split for split, _, _ in found.values()).keys() == {"train", "validation", "test"}
    assert "15 of 15 values of owner are in more than one file" in caplog.text


def test_files_that_share_no_group_stay_as_they_are(put, tmp_path, caplog):
    for name in ("train", "val", "test"):
        put(f"{name}.csv", f"owner,age\n{name},1\n{name},2\n")
    found = rows(tmp_path, numerical=["age"], group="owner")
    assert {split for split, _, info in found.values() if info["group"] == "val"} == {"validation"}
    assert not caplog.records


def test_a_label_with_names_of_classes_is_a_class(put):
    table = put("a.csv", "n,label\n1,0\n2,1.0\n3,bad\n4,\n")
    found = infos(table, numerical=["n"], label="label", classes=["bad", "good"])
    assert [{k: v for k, v in info.items() if k != "row"} for info in found] == [
        {"label": 0, "class": "bad"},
        {"label": 1, "class": "good"},
        {"label": 0, "class": "bad"},
        {"label": None},
    ]


def test_labels_that_are_words_are_classes_in_alphabetical_order(put, caplog):
    found = infos(put("a.csv", "n,label\n1,top\n2,dress\n3,top\n"), numerical=["n"], label="label")
    assert [info["label"] for info in found] == [1, 0, 1]
    assert found[0]["class"] == "top"
    assert "the labels in column 'label' are taken for the names of 2 classes" in caplog.text


@pytest.mark.parametrize("label", ["2", "-1", "0.5", "worse", "inf"])
def test_a_label_that_is_no_class_is_an_error(put, label):
    table = put("a.csv", f"n,label\n1,0\n2,{label}\n")
    with pytest.raises(ValueError, match=rf"a\.csv line 3: the label '{label}' in column 'label' is neither"):
        rows(table, numerical=["n"], label="label", classes=["bad", "good"])


def test_column_info_beside_the_files_is_used_and_can_be_overruled(put, tmp_path):
    put("train.csv", CLOTHES)
    info = {"text_cols": ["review"], "cat_cols": ["kind", "kind"], "num_cols": ["price"], "label_col": "liked"}
    put("column_info.json", json.dumps(info | {"label_list": ["no", "yes"]}))
    assert infos(tmp_path)[1] == {
        "row": {"review": "I love it", "kind": "top", "price": 12.5},
        "label": 1,
        "class": "yes",
    }
    assert infos(tmp_path, label="liked", numerical=["price"])[0]["class"] == "no"
    other = rows(tmp_path, numerical=["price"], label="kind")
    assert other["row-0000001"][1:] == (None, {"row": {"price": 12.5}, "label": 1, "class": "top"})


def test_a_column_named_twice_is_used_once(put, caplog):
    (info,) = infos(put("a.csv", "n\n1\n"), numerical=["n", "n"])
    assert info["row"] == {"n": 1}
    assert "numerical column 'n' is named 2 times; it is used once" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"numerical": ["cost"]},
            r"line 2: there is no column 'cost', only \['id', 'review', 'kind', 'price', 'l",
        ),
        ({"numerical": ["price"], "label": "lked"}, "there is no column 'lked'"),
        ({"numerical": ["price"], "group": "owner"}, "there is no column 'owner'"),
        ({"numerical": ["price"], "label": "price"}, "'price' is 2 of text, categorical, numerical and label"),
        ({"numerical": ["price"], "categorical": ["price"]}, "'price' is 2 of text, categorical, numerical and label"),
    ],
)
def test_wrong_columns_are_errors(put, options, message):
    with pytest.raises(ValueError, match=message):
        rows(put("a.csv", CLOTHES), **options)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "text_cols must be a list of names, not None"),
        ('{"cat_cols": "kind"}', "cat_cols must be a list of names, not 'kind'"),
        ('{"num_cols": [3]}', r"num_cols must be a list of names, not \[3\]"),
        ('{"label_col": ["liked"]}', "label_col must be the name of a column"),
    ],
)
def test_a_wrong_column_info_is_an_error(put, tmp_path, info, message):
    put("train.csv", CLOTHES)
    put("column_info.json", info)
    with pytest.raises(ValueError, match=message):
        rows(tmp_path)


def test_kinds_are_guessed_from_the_cells_of_train_and_logged(put, tmp_path, caplog):
    columns = {
        "": range(20),
        "Unnamed: 0": range(20),
        "name": [f"x{i:03d}" for i in range(20)],
        "review": [f"it is {i} cm too long" for i in range(20)],
        "note": [
            f"とても{'長' * i}いので返品しましたが、交換してもらえました。本当にありがとうございました。"
            for i in range(20)
        ],
        "kind": ["long evening dress", "top"] * 10,
        "owner": [f"o{i // 2}" for i in range(20)],
        "price": ["1.5", ""] * 10,
        "nothing": [""] * 20,
        "label": [0, 1] * 10,
    }
    put("train.csv", csv_of(columns))
    put("val.csv", csv_of({name: list(cells)[:1] for name, cells in columns.items()}))
    found = rows(tmp_path, label="label")
    assert list(found["train-0000000"][2]["row"]) == ["review", "note", "kind", "owner", "price"]
    assert found["train-0000000"][1].startswith("review: it is 0 cm too long\nnote: とても")
    assert "'left out': ['', 'Unnamed: 0', 'name', 'nothing']" in caplog.text


def test_a_table_of_identifiers_has_nothing_to_learn_from(put):
    with pytest.raises(ValueError, match="no column to learn from; name some under text, categorical or numerical"):
        rows(put("a.csv", "name\na\nb\n"))


def test_rows_with_too_few_or_too_many_cells_are_counted(put, caplog):
    found = infos(put("a.csv", "n,m\n1,2\n\n3\n4,5,6\n7,8\n"), numerical=["n", "m"])
    assert [info["row"] for info in found] == [{"n": 1, "m": 2}, {"n": 7, "m": 8}]
    assert "2 x row without 2 cells, first: " in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no row below the header"),
        ("n,m\n", "no row below the header"),
        ("n,n\n1,2\n", "has two columns named 'n'; rename one"),
        ('n,m\n1,"never closed\n2,3\n', r"not CSV after line 1: .*; a cell with commas, line breaks or quotation"),
        ('n,m\n1,2\n1,"a"b\n', "not CSV after line 2"),
        (f"n,m\n1,{'x' * 140_000}\n", "field larger than field limit"),
    ],
)
def test_files_that_are_no_table_are_errors(put, content, message):
    with pytest.raises(ValueError, match=message):
        rows(put("a.csv", content), numerical=["n"])


@pytest.mark.parametrize("content", ["n\ncafé\n".encode("latin1"), "n\ncafé\n".encode("utf-16")])
def test_other_encodings_than_utf8_are_errors_that_say_what_to_do(put, content):
    with pytest.raises(ValueError, match=r"a\.csv is not UTF-8 text; convert it, for example with `iconv -f latin1"):
        rows(put("a.csv", content), categorical=["n"])


def test_the_same_table_gives_the_same_samples(put, tmp_path):
    table = put("a.csv", csv_of({"n": range(100)}))
    source = Table(numerical=["n"])
    assert made(source, table) == made(source, table)
    put("b/a.csv", "m,l\nx y,z\n")
    guessing = Table(label="l")
    made(guessing, tmp_path / "b")
    assert not any(guessing.columns.kinds.values())


def test_the_real_clothing_reviews(real_data):
    source = build_source(DataSpec.read(SPECS / "womens_clothing.yaml"))
    folder = real_data / "tabular_text" / "Womens_Clothing_E-Commerce_Reviews"
    found = [(split, sample["txt"], sample["json"]) for split, sample in made(source, folder)]
    assert Counter(split for split, _, _ in found) == {"train": 1879, "validation": 235, "test": 235}
    assert 0.80 < sum(info["label"] for _, _, info in found) / len(found) < 0.84
    assert {info["class"] for _, _, info in found} == {"Not Recommended", "Recommended"}
    assert sum(info["row"]["Title"] is None for _, _, info in found) == 323 + 38 + 34
    assert "nan" not in {str(value) for _, _, info in found for value in info["row"].values()}
    split, text, info = found[0]
    assert text.startswith("Title: Dress it up of down\nReview Text: This top is easy")
    assert info["row"] == {
        "Title": "Dress it up of down",
        "Review Text": "This top is easy with nice hem detail.",
        "Division Name": "General",
        "Department Name": "Tops",
        "Class Name": "Knits",
        "Rating": 5,
        "Age": 57,
        "Positive Feedback Count": 0,
    }
    assert (split, info["label"]) == ("train", 1)


def test_the_real_pets_are_cut_by_their_rescuers(real_data):
    source = build_source(DataSpec.read(SPECS / "petfinder.yaml"))
    folder = real_data / "tabular_text" / "PetFindermy_Adoption_Prediction"
    found = [(split, sample["json"]) for split, sample in made(source, folder)]
    assert len(found) == 1500
    splits = {info["group"]: split for split, info in found}
    assert all(splits[info["group"]] == split for split, info in found)
    counts = Counter(split for split, _ in found)
    assert counts["train"] > 1100
    assert min(counts.values()) > 100
    assert Counter(info["label"] for _, info in found).keys() == {0, 1, 2, 3, 4}
    assert all(isinstance(info["row"]["Type"], str) and isinstance(info["row"]["Age"], int) for _, info in found)


def test_kinds_guessed_for_the_real_clothing_reviews_are_those_of_their_column_info(real_data, put, tmp_path):
    folder = real_data / "tabular_text" / "Womens_Clothing_E-Commerce_Reviews"
    put("train.csv", (folder / "train.csv").read_bytes())
    info = made(Table(label="Recommended IND"), tmp_path)[0][1]["json"]
    stated = json.loads((folder / "column_info.json").read_text())
    assert set(info["row"]) == {*stated["text_cols"], *stated["cat_cols"], *stated["num_cols"], "Clothing ID"}


@pytest.mark.parametrize("name", ["captions_bom_crlf.csv", "captions_quotes_newlines.csv"])
def test_odd_tables_are_read_like_python_reads_them(real_data, name):
    path = real_data / "odd" / "text" / name
    with path.open(encoding="utf-8-sig", newline="") as file:
        expected = [row["caption"].strip() or None for row in csv.DictReader(file)]
    found = infos(path, text=["caption"])
    assert [info["row"]["caption"] for info in found] == expected


def test_an_odd_latin1_table_is_refused(real_data):
    with pytest.raises(ValueError, match=r"captions_latin1\.csv is not UTF-8 text"):
        rows(real_data / "odd" / "text" / "captions_latin1.csv", text=["caption"])
