import re
from pathlib import Path

import pytest
import yaml

from mmflow.data.make import build_source
from mmflow.data.spec import DataSpec

SPECS = sorted((Path(__file__).parents[2] / "data_specs").glob("*.yaml"))


def spec(**changes) -> DataSpec:
    values = {"name": "mine", "licence": "CC0", "root": "data/mine", "splits": {"train": "train-*.tar"}}
    return DataSpec(**(values | {"fields": {"audio": ["wav"]}} | changes))


@pytest.fixture
def folder(tmp_path):
    for name in ("train-000001.tar", "train-000000.tar", "test-000000.tar", "train-000000.tar.idx", ".train-9.tar"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_file_is_read_into_its_fields(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nlicence: CC0\nroot: data/mine\nsplits: {train: 'train-*.tar'}\n"
        "fields: {audio: [wav, flac], text: [txt]}\nmake: {class_path: a.B, init_args: {hours: 2}}\n"
    )
    assert DataSpec.read(path) == DataSpec(
        name="mine",
        licence="CC0",
        root="data/mine",
        splits={"train": "train-*.tar"},
        fields={"audio": ["wav", "flac"], "text": ["txt"]},
        make={"class_path": "a.B", "init_args": {"hours": 2}},
        path=path,
    )


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_spec_of_the_project_is_whole_and_its_header_says_what_it_is(path):
    found = DataSpec.read(path)
    assert found.name == path.stem
    assert found.fields
    assert {"train", "validation", "test"} == set(found.splits)
    header = path.read_text().split("\nname:")[0]
    for word in ("# Origin:", "# Licence:", "# Make:", "# Size:", "# Splits:"):
        assert word in header
    if found.make is not None:  # else the shards are made by others and read as they are
        build_source(found)
        assert f"data make --spec data_specs/{path.name}" in header


def test_a_glob_gives_sorted_visible_files(folder):
    assert spec(root=str(folder)).shards("train") == [f"{folder}/train-000000.tar", f"{folder}/train-000001.tar"]


def test_with_root_looks_elsewhere(folder):
    assert spec().with_root(folder).shards("train")[0] == f"{folder}/train-000000.tar"


def test_a_list_of_patterns_gives_each_shard_once(folder):
    patterns = ["train-*.tar", "train-000000.tar", f"{folder}/test-*.tar"]
    names = [Path(shard).name for shard in spec(root=str(folder), splits={"train": patterns}).shards("train")]
    assert names == ["test-000000.tar", "train-000000.tar", "train-000001.tar"]


def test_a_root_with_signs_of_patterns_in_its_name_is_taken_as_it_is(tmp_path):
    root = tmp_path / "a[1]{b,c}*"
    root.mkdir()
    (root / "train-0.tar").touch()
    assert spec(root=str(root)).shards("train") == [f"{root}/train-0.tar"]


def test_braces_expand_in_local_folders(folder):
    splits = {"train": "{train,test}-{000000..000000}.tar"}
    names = [Path(shard).name for shard in spec(root=str(folder), splits=splits).shards("train")]
    assert names == ["test-000000.tar", "train-000000.tar"]


def test_a_shard_absent_from_a_range_is_named(folder):
    with pytest.raises(ValueError, match=r"1 of 3 shards of split 'train' are absent, first .*train-000002\.tar"):
        spec(root=str(folder), splits={"train": "train-{000000..000002}.tar"}).shards("train")


def test_braces_expand_below_a_url():
    found = spec(root="https://example.org/set/", splits={"train": "train-{000008..000011}.tar"}).shards("train")
    assert found[0] == "https://example.org/set/train-000008.tar"
    assert found[3] == "https://example.org/set/train-000011.tar"
    assert len(found) == 4


def test_a_url_cannot_be_searched():
    with pytest.raises(ValueError, match=r"the URL 'https://e.org/train-\*.tar' cannot be searched with '\*'; write a"):
        spec(root="https://e.org").shards("train")


def test_a_brace_left_open_is_an_error():
    with pytest.raises(ValueError, match=r"split 'train': Unbalanced braces.*; close every brace"):
        spec(splits={"train": "train-{0..2.tar"}).shards("train")


def test_an_absent_split_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"has no split 'validation', only train; add it under splits"):
        spec().shards("validation")


def test_nothing_that_matches_names_spec_split_folder_and_command(tmp_path):
    made = spec(root=str(tmp_path / "none"), make={"class_path": "a.B"}, path=Path("my.yaml"))
    says = (
        f"my.yaml: no shards of split 'train' match train-*.tar in {tmp_path}/none (the folder {tmp_path}/none does "
        f"not exist); make them with `python cli.py data make --spec my.yaml --root ORIGINAL --out {tmp_path}/none`"
    )
    with pytest.raises(ValueError, match=re.escape(says)):
        made.shards("train")


def test_without_a_converter_the_fix_is_in_the_spec(tmp_path):
    with pytest.raises(ValueError, match=r"; correct root and splits in the spec$"):
        spec(root=str(tmp_path)).shards("train")


@pytest.mark.parametrize("entry", ["pipe:cat a.tar", "pipe://x; touch ran", "PIPE://x; touch ran", " pipe://touch ran"])
@pytest.mark.parametrize("where", ["root", "splits"])
def test_commands_are_refused_unless_allowed(entry, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"root": entry} if where == "root" else {"splits": {"train": [entry]}}
    with pytest.raises(ValueError, match=r"(would run a shell command; set allow_pipe: true)|(no shards of split)"):
        spec(**changes).shards("train")
    assert not (tmp_path / "ran").exists()


def test_commands_are_passed_on_when_allowed():
    allowed = spec(splits={"train": "pipe:cat train-{0..1}.tar"}, allow_pipe=True)
    assert allowed.shards("train") == ["pipe:cat train-0.tar", "pipe:cat train-1.tar"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("licences: x", "unknown key 'licences'; did you mean 'licence'"),
        ("alow_pipe: true", "unknown key 'alow_pipe'; did you mean 'allow_pipe'"),
        ("path: x", "unknown key 'path'"),
        ("make: {classpath: a.B}", "make has an unknown key 'classpath'; did you mean 'class_path'"),
        ("make: {init_args: {}}", "make.class_path is None, must be the import path of a class"),
        ("make: {class_path: a.B, init_args: [1]}", r"make.init_args is \[1\], must be a mapping"),
        ("make: LibriSpeech", "make is 'LibriSpeech', must be a mapping"),
        ("make: {class_path: a.B, samples_per_shard: 0}", "make.samples_per_shard is 0, must be a number from 1 up"),
        ("make: {class_path: a.B, samples_per_shard: true}", "make.samples_per_shard is True, must be"),
        ("name: 5", "name is 5, must be text"),
        ("root:", "root is None, must be text"),
        ("splits: {}", "splits is {}, must be"),
        ("splits: {train: []}", r"splits.train is \[\], must be a pattern or a list of patterns"),
        ("splits: {train: [1]}", r"splits.train is \[1\], must be"),
        ("fields: [audio]", r"fields is \['audio'\], must be"),
        ("fields: {audio: wav}", "fields.audio is 'wav', must be extensions such as"),
        ("fields: {audio: [.wav]}", r"fields.audio is \['.wav'\], must be"),
        ("allow_pipe: 1", "allow_pipe is 1, must be true or false"),
    ],
)
def test_wrong_values_are_named(content, message, tmp_path):
    values = {"name": "a", "licence": "b", "root": "c", "splits": {"train": "d"}, "fields": {"audio": ["wav"]}}
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(values | yaml.safe_load(content)))
    with pytest.raises(ValueError, match=rf"wrong\.yaml.*{message}"):
        DataSpec.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not YAML"),
        ("!!python/object/apply:os.system ['touch ran']", "is not YAML"),
        ("- a", "must be a mapping with the keys name, licence"),
        ("", "must be a mapping"),
        ("name: a", "lacks licence, root, splits, fields"),
    ],
)
def test_files_that_are_no_spec(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        DataSpec.read(path)
    assert not (tmp_path / "ran").exists()


def test_a_misspelt_file_name_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"no data spec .*librispech\.yaml; did you mean .*librispeech\.yaml\?"):
        DataSpec.read(SPECS[0].parent / "librispech.yaml")
