"""Which sentence fits, embeddings and what is found among them, and evaluation: by calls and by the command line."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

from mmflow.cli import main
from mmflow.data.decode import decode
from mmflow.data.errors import BadSample
from mmflow.data.index import open_shard
from mmflow.data.pictures import Picture
from mmflow.data.transforms import Crop
from mmflow.evaluation.retrieval import recalls
from mmflow.evaluation.search import Index
from mmflow.nn.contrastive import Similarity
from mmflow.systems.clip.inference import Clip, ClipEvaluation, fingerprint, nearest, spread
from mmflow.systems.clip.model import CLIP, TextTransformer
from mmflow.systems.clip.tokenizer import BytePairTokenizer
from mmflow.systems.clip.training import description
from mmflow.systems.clip.weights import save_folder
from mmflow.systems.vit.model import ViT
from mmflow.world.scene import COLOURS, SHAPES
from mmflow.world.stills import WorldPictures
from tests.shards import write_data_set

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

SIZE, CONTEXT, VOCABULARY = 32, 16, 560
CLASSES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
SENTENCES = ["a red circle", "a blue square on the left", "there is a green ring"]
CLASS_NAME = '"{objects.0.colour} {objects.0.class}"'  # YAML


@pytest.fixture(scope="module")
def world() -> dict[str, list[dict[str, Any]]]:
    """Samples of one thing each, two captions of which the second is another one's."""
    source = WorldPictures(14, 0, 10, size=SIZE, things=(1, 1))
    samples = {split: [source.sample(split, n) for n in range(source.counts[split])] for split in ("train", "test")}
    for split in samples.values():
        for sample in split:
            sample["json"]["captions"] = sample["json"]["captions"][:2]
    return samples


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    texts = [f"there is a big small {name} on the left right" for name in CLASSES]
    BytePairTokenizer.train(texts, VOCABULARY, CONTEXT).save(path)
    return path


def model_of(objective: Any = "info_nce", **text: Any) -> CLIP:
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 2, "num_heads": 2}
    vision = ViT(image_size=SIZE, patch_size=8, **sizes, ffn_dim=128, norm_before=True, patch_bias=False)  # type: ignore
    text = {"vocab_size": VOCABULARY, "context": CONTEXT, "end_id": VOCABULARY - 1} | sizes | text
    return CLIP(vision, TextTransformer(**text), 24, Similarity(objective)).eval()


def save(path: Path, model: CLIP) -> Path:
    """A checkpoint as a training leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"clip.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {}, "clip": description(model)}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer) -> Path:
    """In the folder of a stage that is done."""
    stage = tmp_path_factory.mktemp("train")
    save(stage / "checkpoints" / "last.ckpt", model_of())
    (stage / "done.json").write_text(json.dumps({"checkpoint": "checkpoints/last.ckpt"}))
    kind = "mmflow.systems.clip.tokenizer.BytePairTokenizer"
    told = {"class_path": kind, "init_args": {"path": str(tokenizer), "context": CONTEXT, "repair": False}}
    (stage / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"tokenizer": told}}}))
    return stage


@pytest.fixture(scope="module")
def clip(checkpoint) -> Clip:
    return Clip.load(checkpoint)


@pytest.fixture
def picture(world, tmp_path) -> Path:
    path = tmp_path / "picture.jpg"
    path.write_bytes(world["test"][0]["jpg"])
    return path


@pytest.fixture
def spec(world, tmp_path) -> Path:
    """Train: two shards, in the second of which one picture is broken and one caption empty. Test: one shard."""
    second = [dict(sample) for sample in world["train"][6:]]
    second[1]["jpg"] = b"no picture"
    second[2]["txt"] = " "
    splits = {"train": [world["train"][:6], second], "validation": [[]], "test": [world["test"]]}
    return write_data_set(tmp_path, splits, fields={"image": ["jpg"], "text": ["txt"], "info": ["json"]})


@pytest.fixture(autouse=True)
def arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py"])


def run(what: str, spec: Path, checkpoint: Path, tokenizer: Path, work: Path, *more: str) -> int:
    kind = "test" if what == "evaluation" else "predict"
    words = [kind, "--config", f"pipelines/predict/clip_{what}.yaml", "--data.spec", str(spec), "--workdir", str(work)]
    words += ["--model.checkpoint", str(checkpoint), "--data.tokenizer.path", str(tokenizer)]
    words += ["--data.tokenizer.context", str(CONTEXT), "--data.size", str(SIZE), "--data.max_broken", "0.5"]
    return main([*words, "--data.num_workers", "0", "--data.batch_size", "4", "--trainer.accelerator", "cpu", *more])


def read(path: Path, field: str) -> dict[str, np.ndarray]:
    index = open_shard(str(path))
    return {key: decode(index.read(row, f"{field}.npy"), "npy") for row, key in enumerate(index.keys)}


def pixels(sample: dict[str, Any]) -> Tensor:
    return Crop(SIZE, crop_ratio=1.0)(Picture(sample["jpg"]), None) / 255


# -- by a call ---------------------------------------------------------------------------------------------------------


def test_which_sentence_fits(clip, picture, world):
    fits = clip.which(picture, SENTENCES)
    image, texts = pixels(world["test"][0])[None], clip.tokenizer.encode(SENTENCES).tokens
    shares = clip.model(image, texts)[0].softmax(0).tolist()
    assert sorted(fit.sentence for fit in fits) == sorted(SENTENCES)
    assert [fit.probability for fit in fits] == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert dict(fits)[SENTENCES[1]] == pytest.approx(shares[1], abs=1e-6)
    assert clip.which(image[0], SENTENCES) == fits


def test_pair_by_pair_each_sentence_has_a_probability_of_its_own(tokenizer, picture):
    model = model_of("sigmoid")
    with torch.no_grad():
        model.similarity.bias.fill_(0.5)  # type: ignore[union-attr]
    clip = Clip(model, BytePairTokenizer(tokenizer, CONTEXT))
    fits = clip.which(picture, SENTENCES)
    cosines = clip.embed_images([picture]) @ clip.embed_texts(SENTENCES).T
    shares = (10 * cosines[0] + 0.5).sigmoid()
    assert [fit.probability for fit in fits] == pytest.approx(sorted(shares.tolist(), reverse=True), abs=1e-5)


def test_embeddings_have_length_1_and_do_not_depend_on_the_batch(clip, picture, world):
    images = torch.stack([pixels(sample) for sample in world["train"]]).repeat(6, 1, 1, 1)  # more than a batch
    found = clip.embed_images(images)
    assert (found.shape, found.dtype) == ((84, 24), torch.float32)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(84))
    torch.testing.assert_close(found[:14], found[70:])
    torch.testing.assert_close(clip.embed_images([picture])[0], clip.embed_images(pixels(world["test"][0])[None])[0])
    assert clip.embed_texts([]).shape == clip.embed_images([]).shape == (0, 24)


def test_a_picture_of_another_shape_is_cropped_in_the_middle(clip, tmp_path):
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = np.random.default_rng(0).integers(0, 255, (40, 40, 3))
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide[:, 20:60]).save(tmp_path / "middle.png")
    a, b = clip.embed_images([tmp_path / "wide.png", tmp_path / "middle.png"])
    torch.testing.assert_close(a, b)


def test_photos_of_any_shape(clip, real_data):
    photos = sorted((real_data / "flickr8k").rglob("*.jpg"))[:3]
    found = clip.embed_images(photos)
    assert len(photos) == 3
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert (found @ found.T)[0, 1] < 0.999999
    fits = clip.which(photos[0], SENTENCES)
    assert sum(fit.probability for fit in fits) == pytest.approx(1)


def test_the_model_and_its_tokenizer_are_found(checkpoint, clip, tokenizer, tmp_path):
    ours = Clip.load(checkpoint / "checkpoints" / "last.ckpt")
    assert ours.tokenizer.fingerprint == clip.tokenizer.fingerprint == BytePairTokenizer(tokenizer).fingerprint
    assert ours.tokenizer.context == CONTEXT
    save_folder(clip.model, tmp_path / "published", clip.tokenizer)
    published = Clip.load(tmp_path / "published")
    torch.testing.assert_close(published.embed_texts(SENTENCES), clip.embed_texts(SENTENCES))
    assert published.fingerprint == clip.fingerprint != fingerprint(model_of("sigmoid"))


def test_a_model_without_its_tokenizer_is_refused(tokenizer, tmp_path):
    alone = save(tmp_path / "a" / "b" / "alone.ckpt", model_of())
    with pytest.raises(ValueError, match=r"alone\.ckpt does not tell its tokenizer; give it, such as tokenizer="):
        Clip.load(alone)
    other = BytePairTokenizer.train(["a red circle on the left " * 9], 520, CONTEXT)
    with pytest.raises(ValueError, match="the tokenizer has vocab_size=520, but the text tower of the model 560"):
        Clip.load(alone, other)
    assert Clip.load(alone, BytePairTokenizer(tokenizer, CONTEXT)).embed_texts(["a ring"]).shape == (1, 24)


def test_bad_input_is_refused(clip, picture, tmp_path):
    with pytest.raises(ValueError, match=r"sentences=\[\] leaves nothing to choose from"):
        clip.which(picture, [])
    with pytest.raises(BadSample, match="' ' is empty or white space"):
        clip.which(picture, ["a ring", " "])
    (tmp_path / "torn.jpg").write_bytes(picture.read_bytes()[:300])
    with pytest.raises(BadSample, match=r"torn\.jpg: "):
        clip.embed_images([picture, tmp_path / "torn.jpg"])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        clip.which(tmp_path / "nowhere.jpg", ["a ring"])


def test_a_broken_model_is_refused(tokenizer, picture):
    clip = Clip(model_of(), BytePairTokenizer(tokenizer, CONTEXT))
    with torch.no_grad():
        clip.model.image_projection.weight[3] = torch.nan  # type: ignore
    with pytest.raises(ValueError, match="1 of 1 embeddings of pictures are not finite"):
        clip.which(picture, ["a ring"])
    with torch.no_grad():
        clip.model.text.positions[0] = torch.inf
    with pytest.raises(ValueError, match="2 of 2 embeddings of texts are not finite"):
        clip.embed_texts(["a ring", "a circle"])


# -- predict -----------------------------------------------------------------------------------------------------------


def test_embeddings_beside_shards(spec, checkpoint, tokenizer, clip, world, tmp_path):
    assert run("embeddings", spec, checkpoint, tokenizer, tmp_path / "out") == 0
    shards = tmp_path / "out" / "embeddings" / "shards" / "toy"
    meta = {"model": "clip", "weights": clip.fingerprint, "tokenizer": clip.tokenizer.fingerprint}
    assert open_shard(str(shards / "train-000001.tar")).meta == meta
    found = read(shards / "train-000001.tar", "clip")
    assert {key: len(row) for key, row in found.items()} == {
        f"train-1-{n}": 0 if n in (1, 2) else 24 for n in range(8)
    }  # a broken picture, an empty caption
    images = clip.embed_images(torch.stack([pixels(sample) for sample in world["train"]]))
    texts = clip.embed_texts([sample["txt"] for sample in world["train"]])
    both = F.normalize(images + texts, dim=1)
    assert found["train-1-3"].dtype == np.float16
    for n in (0, 3, 7):
        torch.testing.assert_close(torch.from_numpy(found[f"train-1-{n}"]).float(), both[6 + n], atol=1e-3, rtol=0)
    # the same command goes on where it was interrupted
    kept, absent = shards / "train-000001.tar", shards / "train-000000.tar"
    before = kept.stat().st_mtime_ns, absent.read_bytes()
    absent.unlink()
    (tmp_path / "out" / "embeddings" / "done.json").unlink()
    assert run("embeddings", spec, checkpoint, tokenizer, tmp_path / "out") == 0
    assert (kept.stat().st_mtime_ns, absent.read_bytes()) == before
    # and it can be searched
    index = Index.open(shards.parent, "clip", "**/train-*.tar", weights=clip.fingerprint)
    assert len(index) == 12
    nearest_pair = index.search(clip.embed_texts([world["train"][9]["txt"]]), 12).numbers[0, 0]
    best = int((clip.embed_texts([world["train"][9]["txt"]]) @ index.embeddings(torch.arange(12)).float().T).argmax())
    assert int(nearest_pair) == best


@pytest.mark.parametrize("field", ["clip_image", "clip_text"])
def test_embeddings_of_one_side(spec, checkpoint, tokenizer, clip, world, tmp_path, field):
    writer = f"[{{class_path: mmflow.data.sidecar.SidecarWriter, init_args: {{field: {field}}}}}]"
    more = ("--trainer.callbacks", writer, "--data.predict_splits", "[test]")
    assert run("embeddings", spec, checkpoint, tokenizer, tmp_path / "out", *more) == 0
    found = read(tmp_path / "out" / "embeddings" / "shards" / "toy" / "test-000000.tar", field)
    images = torch.stack([pixels(sample) for sample in world["test"]])
    texts = [sample["txt"] for sample in world["test"]]
    expected = clip.embed_images(images) if field == "clip_image" else clip.embed_texts(texts)
    rows = torch.from_numpy(np.stack(list(found.values()))).float()
    torch.testing.assert_close(rows, expected, atol=1e-3, rtol=0)


def test_an_embedding_that_there_is_not_and_a_broken_model_are_refused(spec, tokenizer, tmp_path, capsys):
    broken = model_of()
    with torch.no_grad():
        broken.text_projection.weight.fill_(torch.nan)
    path = save(tmp_path / "broken.ckpt", broken)
    writer = "[{class_path: mmflow.data.sidecar.SidecarWriter, init_args: {field: vision}}]"
    assert run("embeddings", spec, path, tokenizer, tmp_path / "a", "--trainer.callbacks", writer) == 2
    assert "there is no embedding 'vision'; set field to clip_image or clip_text or clip" in capsys.readouterr().err
    assert run("embeddings", spec, path, tokenizer, tmp_path / "b") == 2
    assert "4 of 4 embeddings of clip_text are not finite, first number 0; the checkpoint" in capsys.readouterr().err
    assert not list((tmp_path / "b").rglob("*.tar"))
    assert run("evaluation", spec, path, tokenizer, tmp_path / "c") == 2
    assert "10 of 10 embeddings of texts are not finite, first number 0; the checkpoint" in capsys.readouterr().err


def test_the_nearest_pairs_of_each_sample(spec, checkpoint, tokenizer, tmp_path, capsys):
    assert run("embeddings", spec, checkpoint, tokenizer, tmp_path / "out") == 0
    shards = tmp_path / "out" / "embeddings" / "shards"
    words = ["predict", "--config", "pipelines/predict/clip_retrieved.yaml", "--data.spec", str(spec)]
    words += ["--model.index", str(shards), "--model.k", "3", "--data.num_workers", "0", "--data.max_broken", "0.5"]
    words += ["--trainer.accelerator", "cpu", "--workdir", str(tmp_path / "out")]
    assert main([*words, "--data.sidecars", f"{{clip: {shards}}}"]) == 0
    index = Index.open(shards, "clip", "**/train-*.tar")
    found = read(tmp_path / "out" / "retrieved" / "shards" / "toy" / "train-000000.tar", "retrieved")
    assert found["train-0-4"].dtype == np.int64
    for number, row in enumerate(found.values()):
        assert row[0] == number  # itself
        rows = index.embeddings(torch.arange(12)).double()
        assert row.tolist() == (rows @ rows[number]).sort(descending=True, stable=True).indices[:3].tolist()
    second = read(tmp_path / "out" / "retrieved" / "shards" / "toy" / "train-000001.tar", "retrieved")
    assert [len(row) for row in second.values()] == [3, 0, 0, 3, 3, 3, 3, 3]  # two are broken
    embedded = read(shards / "toy" / "test-000000.tar", "clip")
    tested = read(tmp_path / "out" / "retrieved" / "shards" / "toy" / "test-000000.tar", "retrieved")
    queries = torch.from_numpy(np.stack(list(embedded.values())))
    assert np.stack(list(tested.values())).tolist() == index.search(queries, 3).numbers.tolist()
    assert main([*words[:-1], str(tmp_path / "b"), "--data.transforms", TEXTS]) == 2
    assert "queries='clip' is no sidecar of the data, only []; add it under data.sidecars" in capsys.readouterr().err


def test_neighbours_among_embeddings_of_another_model_are_refused(spec, checkpoint, tokenizer, tmp_path, capsys):
    other = save(tmp_path / "other.ckpt", model_of("sigmoid"))
    for name, path in (("a", checkpoint), ("b", other)):
        assert run("embeddings", spec, path, tokenizer, tmp_path / name, "--data.predict_splits", "[train]") == 0
    a, b = (tmp_path / name / "embeddings" / "shards" for name in "ab")
    words = ["predict", "--config", "pipelines/predict/clip_retrieved.yaml", "--data.spec", str(spec)]
    words += ["--data.predict_splits", "[train]", "--data.sidecars", f"{{clip: {a}}}", "--model.index", str(b)]
    assert main([*words, "--data.num_workers", "0", "--workdir", str(tmp_path), "--trainer.accelerator", "cpu"]) == 2
    assert "but the index of {'model': 'clip', 'weights': " in capsys.readouterr().err


TEXTS = "{text: {class_path: mmflow.data.transforms.Text}}"


# -- test --------------------------------------------------------------------------------------------------------------


def test_evaluation_by_classes_and_retrieval(spec, checkpoint, tokenizer, clip, world, tmp_path):
    more = ["--data.captions", "captions", "--data.class_name", CLASS_NAME]
    more += ["--model.classes", json.dumps(CLASSES), "--model.templates", json.dumps(["a {}", "there is a {}"])]
    assert run("evaluation", spec, checkpoint, tokenizer, tmp_path / "out", *more) == 0
    folder = tmp_path / "out" / "evaluation"
    report = json.loads((folder / "results.json").read_text())
    samples = world["test"]
    images = clip.embed_images(torch.stack([pixels(sample) for sample in samples]))
    captions = [sample["json"]["captions"] for sample in samples]
    texts, owners = clip.embed_texts([text for own in captions for text in own]), torch.arange(10).repeat_interleave(2)
    assert (report["images"], report["texts"], report["weights"]) == (10, 20, clip.fingerprint)
    assert report["retrieval"]["all"] == recalls(images, texts, owners)
    unseen = torch.tensor([sample["json"]["unseen"] for sample in samples])
    assert 0 < unseen.sum() < 10
    right = (texts @ images.T).argmax(1) == owners
    assert report["retrieval"]["unseen"]["text_to_image_r1"] == float(right[unseen[owners]].double().mean())
    prompts = [F.normalize(clip.embed_texts([f"a {name}", f"there is a {name}"]).sum(0), dim=0) for name in CLASSES]
    names = [f"{s['json']['objects'][0]['colour']} {s['json']['objects'][0]['class']}" for s in samples]
    hits = (images @ torch.stack(prompts).T).argmax(1) == torch.tensor([CLASSES.index(name) for name in names])
    zero_shot = report["zero_shot"]
    assert zero_shot["acc"] == float(hits.double().mean())
    assert zero_shot["acc_unseen"] == float(hits[unseen].double().mean())
    assert len(zero_shot["classes"]) == 48
    for name in set(names):
        own = [n for n, other in enumerate(names) if other == name]
        told = zero_shot["classes"][name]
        assert told["pictures"] == len(own)
        assert told["acc"] == float(hits[own].double().mean())
        assert told["unseen"] == bool(unseen[own].all())
    assert report["scale"] == pytest.approx(1 / 0.07, rel=1e-5)
    for name in ("gallery", "matrix", "classes"):
        with Image.open(folder / f"{name}.png") as drawn:
            assert min(drawn.size) > 200


def test_evaluation_without_classes(spec, checkpoint, tokenizer, tmp_path, capsys):
    assert run("evaluation", spec, checkpoint, tokenizer, tmp_path / "out") == 0
    folder = tmp_path / "out" / "evaluation"
    report = json.loads((folder / "results.json").read_text())
    assert (report["texts"], report["zero_shot"], list(report["retrieval"])) == (10, {}, ["all"])
    assert not (folder / "classes.png").exists()
    assert run("evaluation", spec, checkpoint, tokenizer, tmp_path / "b", "--model.classes", '["red ring"]') == 2
    assert "classes are given, but the data does not tell those of pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.classes", "[]"], "classes=[] leaves nothing to choose from"),
        (["--model.classes", '["ring", "ring"]'], "classes[0] and classes[1] are both 'ring'"),
        (["--model.templates", '["a thing"]'], "templates[0]='a thing' has no {} for the class"),
        (["--model.classes", '["red ring", "ring"]'], "classes of pictures have no prompt, first '"),
    ],
)
def test_classes_without_a_prompt_are_refused(spec, checkpoint, tokenizer, tmp_path, capsys, options, message):
    more = ["--data.class_name", CLASS_NAME, *options]
    assert run("evaluation", spec, checkpoint, tokenizer, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err


def test_it_evaluates_pairs_only(checkpoint):
    evaluation = ClipEvaluation(str(checkpoint))
    evaluation._trainer = type("Trainer", (), {"datamodule": object()})()  # type: ignore
    with pytest.raises(ValueError, match="ClipEvaluation reads pairs with tokens, which object does not have"):
        evaluation.setup("test")


def test_numbers_are_spread_and_the_nearest_stand_first():
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 8) == [0, 1, 2]
    assert spread(1, 8) == [0]
    rows = nearest(torch.tensor([[1.0]]), torch.tensor([[0.5], [1.0], [0.5]]))
    assert rows == [[(1, 1.0), (0, 0.5), (2, 0.5)]]
