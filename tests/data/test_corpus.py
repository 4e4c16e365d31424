import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmflow.data import corpus as corpus_module
from mmflow.data.corpus import Corpus, sidecar_path
from mmflow.data.decode import BadSample
from mmflow.data.index import ShardIndex
from mmflow.data.make import build_source, make
from mmflow.data.spec import DataSpec
from mmflow.data.writer import TarShard
from tests.shards import encoded, film, noise, write_data_set, write_spec

SPECS = Path(__file__).parents[2] / "data_specs"


def opened(path: Path, split: str = "train", fields: tuple[str, ...] = ("audio",), **sidecars: str) -> Corpus:
    return Corpus([DataSpec.read(path)], split, fields, sidecars)


def write_sidecar(folder: Path, shard: str, keys: list[str], field: str = "units") -> str:
    with TarShard(folder / "toy" / shard) as tar:
        for number, key in enumerate(keys):
            tar.write({"__key__": key, f"{field}.npy": np.array([number])})
    return str(folder)


def test_numbers_run_over_specs_shards_and_rows(tmp_path):
    one = DataSpec.read(write_data_set(tmp_path, {"train": [[0.1, 0.2], [0.3]]}, "one"))
    two = DataSpec.read(write_data_set(tmp_path, {"train": [[0.4]]}, "two"))
    corpus = Corpus([one, two], "train", ["audio", "text"])
    assert len(corpus) == 4
    assert corpus.num_samples.tolist() == [1600, 3200, 4800, 6400]
    assert corpus.seconds.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [corpus.place(number) for number in range(4)] == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert corpus.name(3) == (str(tmp_path / "two" / "train-000000.tar"), "train-0-0")
    sample = corpus.read(1)
    assert sample["__key__"] == "train-0-1"
    assert sample["__shard__"] == str(tmp_path / "one" / "train-000000.tar")
    assert (sample["__spec__"], corpus.read(3)["__spec__"]) == ("one", "two")
    assert sample["__seconds__"].keys() == {"audio", "text"}
    assert min(sample["__seconds__"].values()) > 0
    assert sample["text"] == "HELLO"
    assert torch.equal(sample["audio"], torch.from_numpy(noise(0.2, 2) / 32768).float())
    assert [part.tolist() for part in corpus.by_shard(np.array([0, 2, 3]))] == [[0], [2], [3]]
    sources = corpus.sources(np.array([0, 2, 3]), [2.0, 1.0])
    assert [(len(source), source.weight) for source in sources] == [(2, 2.0), (1, 1.0)]


def test_the_first_extension_of_a_field_that_a_sample_has_is_taken(tmp_path):
    flac, wav = encoded(noise(0.1)), encoded(noise(0.2), "wav")
    shard = [{"wav": wav, "flac": flac}, {"wav": wav}, {"txt": "HELLO"}]
    corpus = opened(write_data_set(tmp_path, {"train": [shard]}))
    assert corpus.num_samples.tolist() == [1600, 3200, 0]
    assert [len(corpus.read(number)["audio"]) for number in range(2)] == [1600, 3200]
    with pytest.raises(BadSample, match=r"no audio: none of \['flac', 'wav'\]"):
        corpus.read(2)
    other = opened(write_spec(tmp_path / "toy", tmp_path, fields={"audio": ["wav", "flac"]}))
    assert other.num_samples.tolist() == [3200, 3200, 0]


def test_lengths_are_those_after_resampling(tmp_path):
    audio = encoded(noise(0.1, rate=44_100), rate=44_100)
    corpus = opened(write_data_set(tmp_path, {"train": [[{"flac": audio}, {"wav": encoded(noise(0.1), "wav", 8000)}]]}))
    assert corpus.num_samples.tolist() == [1600, 3200]
    assert [len(corpus.read(number)["audio"]) for number in range(2)] == [1600, 3200]


def test_what_is_wrong_by_the_headers_is_known_before_reading(tmp_path):
    shards = [[0.1, "junk"], ["cut", {"txt": "no audio"}]]
    corpus = opened(write_data_set(tmp_path, {"train": shards}))
    assert corpus.problems() == {
        1: "not readable audio: Format not recognised.",
        3: "no audio: none of ['flac', 'wav']",
    }
    assert corpus.num_samples.tolist() == [1600, 0, 8000, 0]  # cut audio shows when it is decoded


def test_a_sample_without_one_of_the_fields_is_a_problem(tmp_path):
    shards = [[0.1, {"flac": encoded(noise(0.1))}]]
    assert opened(write_data_set(tmp_path, {"train": shards}), fields=("audio", "text")).problems() == {
        1: "no text: none of ['txt']"
    }


def test_shards_without_samples_are_no_trouble(tmp_path):
    corpus = opened(write_data_set(tmp_path, {"train": [[], [0.1], []], "test": [[]]}))
    assert len(corpus) == 1
    assert corpus.place(0) == (1, 0)
    empty = opened(tmp_path / "toy.yaml", "test")
    assert len(empty) == 0
    with pytest.raises(ValueError, match="split 'test' of 'toy' has no usable sample; run `data check` on its spec"):
        empty.sources(np.arange(0), None)


def test_shards_without_the_audio_that_the_spec_names_are_refused(tmp_path):
    path = write_data_set(tmp_path, {"train": [[0.1], [{"mp3": b"", "txt": "A"}]]})
    with pytest.raises(
        ValueError,
        match=r"train-000001\.tar has no audio: the spec 'toy' looks for \['flac', 'wav'\], the shard holds "
        r"\['mp3', 'txt'\]; correct `fields:` in .*toy\.yaml",
    ):
        opened(path)


def test_fields_that_the_spec_does_not_have_are_refused(tmp_path):
    path = write_data_set(tmp_path, {"train": [[0.1]]})
    with pytest.raises(ValueError, match=r"toy\.yaml has no field 'image', only \['audio', 'info', 'text'\]; add it"):
        opened(path, fields=("image",))


@pytest.mark.parametrize("extension", ["pickle", "pyd", "m4a", "x.pth"])
def test_extensions_without_a_decoder_are_refused_before_anything_is_read(tmp_path, extension):
    path = write_data_set(tmp_path, {"train": [[0.1]]}, fields={"audio": ["flac", extension]})
    with pytest.raises(
        ValueError, match=f"field 'audio' names .{extension}, for which there is no decoder; there are: fl"
    ):
        opened(path)


def test_two_specs_of_the_same_name_are_refused(tmp_path):
    spec = DataSpec.read(write_data_set(tmp_path, {"train": [[0.1]]}))
    with pytest.raises(ValueError, match=r"'toy' is the name of two specs; .* rename one of them"):
        Corpus([spec, spec], "train", ["audio"])


def test_a_sidecar_is_joined_by_shard_and_key(tmp_path):
    path = write_data_set(tmp_path, {"train": [[0.1, 0.1], [0.1]]})
    write_sidecar(tmp_path / "units", "train-000000.tar", ["train-0-0", "train-0-1"])
    folder = write_sidecar(tmp_path / "units", "train-000001.tar", ["train-1-0"])
    corpus = opened(path, fields=("audio", "units"), units=folder)
    assert [corpus.read(number)["units"].tolist() for number in range(3)] == [[0], [1], [0]]


def test_an_absent_sidecar_shard_names_the_stage_that_writes_it(tmp_path):
    path = write_data_set(tmp_path, {"train": [[0.1], [0.1]]})
    folder = write_sidecar(tmp_path / "units", "train-000000.tar", ["train-0-0"])
    with pytest.raises(
        ValueError,
        match=r"the sidecar 'units' lacks 1 of 2 shards, first .*units/toy/train-000001\.tar; "
        r"run the predict stage that writes .*units for split 'train'",
    ):
        opened(path, units=folder)


@pytest.mark.parametrize(
    ("keys", "difference"),
    [
        (["train-0-0", "other"], "'train-0-1' against 'other'"),
        (["train-0-1", "train-0-0"], "'train-0-0' against 'train-0-1'"),
        (["train-0-0"], "it has 1 keys, .* has 2, first difference one is longer"),
    ],
)
def test_a_sidecar_with_other_keys_is_refused(tmp_path, keys, difference):
    path = write_data_set(tmp_path, {"train": [[0.1, 0.1]]})
    folder = write_sidecar(tmp_path / "units", "train-000000.tar", keys)
    with pytest.raises(
        ValueError, match=rf"train-000000\.tar was made for other data: .*{difference}; run the predict"
    ):
        opened(path, units=folder)


def test_a_sidecar_of_another_field_is_refused(tmp_path):
    path = write_data_set(tmp_path, {"train": [[0.1]]})
    folder = write_sidecar(tmp_path / "tokens", "train-000000.tar", ["train-0-0"], field="tokens")
    with pytest.raises(
        ValueError, match=r"has no units\.npy, only \['tokens\.npy'\]; is .* the folder of another sidecar"
    ):
        opened(path, units=folder)


@pytest.mark.parametrize(
    ("root", "shard", "place"),
    [
        ("data/toy", "data/toy/train-0.tar", "toy/train-0.tar"),
        ("data/toy", "data/toy/a/0.tar", "toy/a/0.tar"),
        ("data/toy/", "/elsewhere/0.tar", "toy/0.tar"),
        ("data/toy", "data/toy/../other/0.tar", "toy/0.tar"),
        ("https://host/d", "https://host/d/a/0.tar?sig=x/y.z", "toy/a/0.tar"),
        ("data", "pipe:cat /x/0.tar", "toy/0.tar"),
    ],
)
def test_sidecars_have_the_place_of_their_shards_below_the_root(root, shard, place):
    spec = DataSpec("toy", "CC0", root, {"train": "x"}, {"audio": ["flac"]})
    assert sidecar_path(Path("out"), spec, shard) == Path("out") / place


def test_the_identity_tells_keys_lengths_and_shards_apart_but_not_places(tmp_path):
    def identity(folder: str, shards: list[list[Any]]) -> dict[str, Any]:
        return opened(write_data_set(tmp_path / folder, {"train": shards})).identity

    first = identity("a", [[0.1, 0.2], [0.3]])
    assert first["shards"] == ["toy/train-000000.tar", "toy/train-000001.tar"]
    assert first["samples"] == 3
    assert identity("b", [[0.1, 0.2], [0.3]]) == first
    assert identity("c", [[0.1, 0.25], [0.3]])["hash"] != first["hash"]
    assert identity("d", [[0.1, 0.2, 0.3]])["hash"] != first["hash"]


def test_every_odd_audio_file_is_decoded_or_is_a_named_problem(tmp_path, real_data):
    """The folder of odd files, made into shards by the converter for folders of audio."""
    spec = DataSpec.read(SPECS / "audio_folder.yaml").with_root(tmp_path / "out")
    counts = make(spec, real_data / "odd" / "audio")
    decoded, refused = {}, {}
    for split in counts:
        corpus = Corpus([spec], split, ["audio"])
        problems = corpus.problems()
        for number in range(len(corpus)):
            name = Path(Corpus([spec], split, ["info"]).read(number)["info"]["path"]).name
            try:
                audio = corpus.read(number)["audio"]
            except BadSample as error:
                refused[name] = str(error)
                continue
            assert number not in problems
            assert audio.dtype == torch.float32
            assert audio.shape == (corpus.num_samples[number],)
            assert audio.isfinite().all()
            decoded[name] = corpus.num_samples[number]
    files = {path.name for path in (real_data / "odd" / "audio").iterdir()}
    assert decoded.keys() | refused.keys() == files
    assert refused == {
        "empty.wav": "not readable audio: Format not recognised.",
        "float32_nan.wav": "audio with a peak of nan, where full scale is 1",
        "mono.m4a": "no audio: none of ['flac', 'wav', 'ogg', 'opus', 'mp3', 'aiff']",
        "no_samples.wav": "no audio samples",
        "truncated.flac": "not readable audio: Error : flac decoder lost sync.",
    }
    assert decoded["mono_96k.wav"] == 8000
    assert decoded["u8_mono_8k.wav"] == 42_960


def picture(width: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 4)).save(file, kind)
    return file.getvalue()


def test_several_members_of_a_kind_are_a_list_in_the_order_of_their_numbers(tmp_path):
    twelve = {f"{i}.jpg": picture(i + 1) for i in (10, 2, 11, 0)}
    shard = [
        twelve | {"1.png": picture(2, "PNG"), "x.jpg": b"", "jpg": b""},
        {"0.png": picture(7, "PNG")},
        {"txt": "A"},
    ]
    path = write_data_set(tmp_path, {"train": [shard]}, fields={"images": ["*.jpg", "*.png"], "image": ["*.png"]})
    corpus = opened(path, fields=("images",))
    assert [[image.width for image in corpus.read(number)["images"]] for number in range(2)] == [[1, 2, 3, 11, 12], [7]]
    assert corpus.problems() == {2: "no images: none of ['*.jpg', '*.png']"}
    with pytest.raises(BadSample, match=r"no images: none of \['\*.jpg', '\*.png'\]"):
        corpus.read(2)
    assert opened(path, fields=("image",)).problems().keys() == {2}


def test_any_of_several_members_that_is_broken_is_a_problem(tmp_path):
    shard = [{"0.jpg": picture(1), "1.jpg": b"no picture"}, {"0.jpg": picture(1)}]
    corpus = opened(write_data_set(tmp_path, {"train": [shard]}, fields={"images": ["*.jpg"]}), fields=("images",))
    assert corpus.problems().keys() == {0}
    with pytest.raises(BadSample):
        corpus.read(0)


def test_several_texts_are_a_list_too(tmp_path):
    shard = [{"1.txt": "B", "0.txt": "A", "note.txt": "C", "1000.txt": "D"}]
    corpus = opened(write_data_set(tmp_path, {"train": [shard]}, fields={"captions": ["*.txt"]}), fields=("captions",))
    assert corpus.read(0)["captions"] == ["A", "B"]


def test_shards_without_any_numbered_member_are_refused(tmp_path):
    path = write_data_set(tmp_path, {"train": [[{"jpg": picture(1), "one.jpg": picture(1)}]]}, fields={"a": ["*.jpg"]})
    with pytest.raises(
        ValueError, match=r"has no a: the spec 'toy' looks for \['\*.jpg'\], the shard holds \['jpg', 'one"
    ):
        opened(path, fields=("a",))


def test_a_document_comes_with_the_members_that_it_names(tmp_path):
    parts = [{"text": "A"}, {"image": "1.jpg"}, {"audio": "0.flac"}, {"image": "1.jpg"}]
    good = {"doc.json": parts, "1.jpg": picture(3), "0.flac": encoded(noise(0.1)), "2.jpg": b"not named"}
    shard = [
        good,
        {"doc.json": [{"image": "1.jpg"}], "txt": "A"},
        {"doc.json": [{"image": "1.pickle"}], "1.pickle": b""},
    ]
    path = write_data_set(tmp_path, {"train": [shard]}, fields={"document": ["doc.json"]})
    corpus = opened(path, fields=("document",))
    text, first, sound, second = corpus.read(0)["document"]
    assert (text, first.width, sound.shape) == ("A", 3, (1600,))
    assert second is first
    with pytest.raises(BadSample, match=r"part 0 of the document: image '1\.jpg' is not in the sample, only"):
        corpus.read(1)
    with pytest.raises(BadSample, match=r"part 0 of the document: image '1\.pickle' must end in one of jpg"):
        corpus.read(2)


def test_documents_may_have_more_members_than_a_shard_may_have_extensions(tmp_path):
    names = [f"{i}.jpg" for i in range(100)]
    document = {"doc.json": [{"image": name} for name in names]} | dict.fromkeys(names, picture(1))
    path = write_data_set(tmp_path, {"train": [[document]]}, fields={"document": ["doc.json"]})
    assert len(opened(path, fields=("document",)).read(0)["document"]) == 100


# ---- what is read when


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts of stored indexes that are read from now on."""
    parts: list[str] = []
    read = ShardIndex._bytes

    def watching(self: ShardIndex, part: str, start: int, size: int) -> bytes:
        parts.append(part)
        return read(self, part, start, size)

    monkeypatch.setattr(ShardIndex, "_bytes", watching)
    return parts


def test_opening_and_telling_apart_reads_no_key_and_no_table(tmp_path, monkeypatch):
    path = write_data_set(tmp_path, {"train": [[0.1, 0.2], [0.3]]})
    write_sidecar(tmp_path / "units", "train-000000.tar", ["train-0-0", "train-0-1"])
    folder = write_sidecar(tmp_path / "units", "train-000001.tar", ["train-1-0"])
    parts = watched(monkeypatch)
    corpus = opened(path, fields=("audio", "text", "units"), units=folder)
    assert (len(corpus), corpus.problems(), corpus.identity["samples"]) == (3, {}, 3)
    assert corpus.timed.all()
    corpus.sources(np.arange(3), None)
    assert parts == []
    assert corpus.seconds.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert set(parts) == {"measured"}


def test_samples_without_a_length_take_no_memory_for_it(tmp_path):
    corpus = opened(write_data_set(tmp_path, {"train": [[0.1, 0.2]]}), fields=("text",))
    assert corpus.seconds.tolist() == [0.0, 0.0]
    assert corpus.seconds.strides == (0,)
    assert not corpus.timed.any()
    assert corpus.num_samples.tolist() == [1600, 3200]


def test_the_identity_knows_the_order_in_which_the_members_of_a_field_are_taken(tmp_path):
    shard = [{"flac": encoded(noise(0.1)), "wav": encoded(noise(0.2), "wav")}]
    one = opened(write_data_set(tmp_path, {"train": [shard]}))
    other = opened(write_spec(tmp_path / "toy", tmp_path, fields={"audio": ["wav", "flac"]}))
    assert one.seconds.tolist() != other.seconds.tolist()
    assert one.identity["hash"] != other.identity["hash"]


def test_a_sample_in_which_another_member_is_broken_can_be_used(tmp_path):
    shard = [{"flac": encoded(noise(0.1)), "wav": b"junk"}, {"wav": b"junk"}, {"wav": encoded(noise(0.2), "wav")}]
    corpus = opened(write_data_set(tmp_path, {"train": [shard]}))
    assert corpus.problems() == {1: "not readable audio: Format not recognised."}
    assert corpus.num_samples.tolist() == [1600, 0, 3200]


# ---- videos


def test_seconds_are_those_of_the_audio_or_else_of_the_video(tmp_path):
    shard = [{"mp4": film(0.5), "flac": encoded(noise(0.1))}, {"mp4": b"junk", "flac": encoded(noise(0.2))}]
    path = write_data_set(tmp_path, {"train": [shard]}, fields={"video": ["webm", "mp4"], "audio": ["flac"]})
    assert opened(path, fields=("video",)).seconds.tolist() == [0.5, 0.0]
    assert opened(path, fields=("video",)).problems().keys() == {1}
    assert opened(path, fields=("video", "audio")).seconds.tolist() == pytest.approx([0.1, 0.2])
    assert opened(path, fields=("video",)).identity != opened(path, fields=("audio",)).identity


def test_several_sounds_of_a_sample_have_no_length(tmp_path):
    path = write_data_set(tmp_path, {"train": [[{"0.flac": encoded(noise(0.1))}]]}, fields={"audio": ["*.flac"]})
    corpus = opened(path)
    assert (corpus.seconds.tolist(), corpus.num_samples.tolist(), corpus.timed.tolist()) == ([0], [0], [False])


# ---- specs that hold only some of the fields


def two_kinds(folder: Path) -> list[DataSpec]:
    spoken = write_data_set(folder, {"train": [[0.1]]}, "spoken", fields={"audio": ["flac"], "text": ["txt"]})
    shard = [{"jpg": picture(3), "txt": "A"}, {"jpg": picture(4)}]
    return [
        DataSpec.read(spoken),
        DataSpec.read(write_data_set(folder, {"train": [shard]}, "shown", fields={"image": ["jpg"], "text": ["txt"]})),
    ]


def test_a_field_may_be_absent_from_a_spec_of_a_partial_corpus(tmp_path):
    specs = two_kinds(tmp_path)
    corpus = Corpus(specs, "train", ["audio", "image", "text"], partial=True)
    assert corpus.problems() == {2: "no text: none of ['txt']"}
    assert [corpus.read(number).keys() - {"__key__", "__shard__", "__spec__", "__seconds__"} for number in (0, 1)] == [
        {"audio", "text"}, {"image", "text"}
    ]  # fmt: skip
    assert corpus.seconds.tolist() == pytest.approx([0.1, 0, 0])
    assert corpus.timed.tolist() == [True, False, False]
    with pytest.raises(ValueError, match=r"shown\.yaml has no field 'audio', only \['image', 'text'\]; add it"):
        Corpus(specs, "train", ["audio", "text"])


def test_a_field_that_no_spec_has_or_a_spec_without_any_is_refused_in_a_partial_corpus(tmp_path):
    specs = two_kinds(tmp_path)
    with pytest.raises(ValueError, match=r"spoken\.yaml has no field 'vidoe', only \['audio', 'text'\]; add it"):
        Corpus(specs, "train", ["text", "vidoe"], partial=True)
    with pytest.raises(
        ValueError, match=r"shown\.yaml has none of the fields \['audio'\], only \['image', 'text'\]; leave the spec"
    ):
        Corpus(specs, "train", ["audio"], partial=True)


# ---- names


def test_names_show_no_credentials(tmp_path, monkeypatch):
    path = write_data_set(tmp_path, {"train": [[0.1], [0.2], [{"txt": "no audio"}]]})
    local = opened(path, fields=("text",)).shards
    urls = ["https://me:secret@host/0.tar?sig=secret", "https://host/get?file=1&sig=secret", "https://host/get?file=2"]
    for index, url in zip(local, urls, strict=True):
        index.path = url
    monkeypatch.setattr(corpus_module, "open_shards", lambda *_: local)
    corpus = opened(path, fields=("text",))
    assert corpus.names == list(corpus.paths) == ["https://host/0.tar?", "https://host/get?", "https://host/get?#2"]
    assert corpus.name(2) == ("https://host/get?#2", "train-2-0")
    assert "secret" not in str(corpus.identity)
    with pytest.raises(ValueError, match=r"^https://host/get\?#2 has no audio: ") as caught:
        opened(path)
    assert "secret" not in str(caught.value)


# ---- shards as img2dataset downloads them


def write_downloaded(folder: Path, number: int, count: int) -> None:
    """A shard of pictures and captions as img2dataset downloads them, and the files that it puts beside it."""
    with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
        for place in range(count):
            key = f"{number:05d}{place:04d}"
            file = io.BytesIO()
            Image.new("RGB", (6, 4), (number, place, 0)).save(file, "JPEG")
            info = {"caption": f"caption {key}", "url": "http://x/y.jpg", "key": key, "status": "success", "exif": "{}"}
            for extension, data in (
                ("jpg", file.getvalue()),
                ("json", json.dumps(info, indent=4).encode()),
                ("txt", f"caption {key}".encode()),
            ):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (folder / f"{number:05d}.parquet").write_bytes(b"PAR1")
    (folder / f"{number:05d}_stats.json").write_text("{}")


@pytest.fixture
def downloaded(tmp_path):
    for number, count in ((0, 2), (17, 1), (97, 1), (98, 2), (99, 1), (199, 1)):
        write_downloaded(tmp_path, number, count)
    return tmp_path


@pytest.mark.parametrize("name", ["cc12m_shards", "laion_shards"])
def test_every_shard_is_in_one_split_by_its_number(downloaded, name):
    spec = DataSpec.read(SPECS / f"{name}.yaml").with_root(downloaded)
    names = {split: [Path(path).stem for path in spec.shards(split)] for split in ("train", "validation", "test")}
    assert names == {"train": ["00000", "00017", "00097"], "validation": ["00098"], "test": ["00099", "00199"]}


@pytest.mark.parametrize("name", ["cc12m_shards", "laion_shards"])
def test_captions_pictures_and_what_is_known_are_read(downloaded, name):
    spec = DataSpec.read(SPECS / f"{name}.yaml").with_root(downloaded)
    corpus = Corpus([spec], "train", ["image", "text", "info"])
    assert (len(corpus), corpus.problems()) == (4, {})
    samples = [corpus.read(number) for number in range(4)]
    assert [sample["text"] for sample in samples] == [
        f"caption {key}" for key in ("000000000", "000000001", "000170000", "000970000")
    ]
    assert samples[1]["info"]["key"] == samples[1]["__key__"] == "000000001"
    assert {(sample["image"].width, sample["image"].height) for sample in samples} == {(6, 4)}


def test_there_is_nothing_to_make():
    with pytest.raises(ValueError, match=r"cc12m_shards\.yaml says nothing under make"):
        build_source(DataSpec.read(SPECS / "cc12m_shards.yaml"))
