"""What a CLIP is for: which of some sentences fits a picture, embeddings beside shards, and how good it is.

    clip = Clip.load("runs/clip/train")
    clip.which("picture.jpg", ["a red circle", "a blue square"])  # [("a red circle", 0.98), ("a blue square", 0.02)]

B pictures or texts, T tokens, C captions of a picture, I pictures and N texts of a split, E width of the common space,
k neighbours.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import LightningModule
from torch import Tensor

from mmflow.atomic import write_json
from mmflow.data.errors import BadSample
from mmflow.data.pictures import Picture
from mmflow.data.plan import Micro
from mmflow.data.sidecar import SidecarWriter
from mmflow.evaluation.galleries import Answer, Query, class_bars, retrieval_gallery, similarity_matrix
from mmflow.evaluation.retrieval import Ranks, ranks, recalls_of, require_finite
from mmflow.evaluation.search import Index
from mmflow.evaluation.zero_shot import TEMPLATES, class_prompts, class_ranks, zero_shot_weights
from mmflow.nn.published import weights_fingerprint
from mmflow.systems.clip.model import CLIP
from mmflow.systems.clip.tokenizer import BytePairTokenizer, SentencePieceTokenizer, TextTokenizer
from mmflow.systems.clip.training import Found as Pairs
from mmflow.systems.clip.training import accuracies, check_vocabulary, gather, mean_cosines
from mmflow.systems.clip.weights import load_clip
from mmflow.training.checkpoints import checkpoint_of

EMBEDDINGS = ("clip_image", "clip_text", "clip")
BATCH = 64  # pictures or texts that are encoded together when a model is called
TEXTS_ASKED, IMAGES_ASKED, ANSWERS = 6, 4, 5  # in the gallery
MATRIX = 8  # pictures in the matrix
TOKENIZERS = {kind.__name__: kind for kind in (BytePairTokenizer, SentencePieceTokenizer)}


class Fit(NamedTuple):
    """A sentence, and how likely it is the one that fits."""

    sentence: str
    probability: float


class Clip:
    """A CLIP with its tokenizer, to be called on files and sentences. It runs where its weights are.

    Raises ValueError for a tokenizer of another vocabulary than the model's.
    """

    def __init__(self, model: CLIP, tokenizer: TextTokenizer) -> None:
        check_vocabulary(tokenizer, model)
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, path: str | Path, tokenizer: TextTokenizer | None = None) -> "Clip":
        """The model in a file or folder.

        Args:
            path: the folder that a training left, a checkpoint of it, or published weights, as `load_clip` reads them.
            tokenizer: by default that of the training, or the one in the folder of published weights.

        Raises:
            ValueError: there is no such model, there is no tokenizer with it, or the two do not fit.
        """
        checkpoint = Path(checkpoint_of(str(path)))
        model = load_clip(checkpoint)
        return cls(model, tokenizer or tokenizer_of(Path(path), model))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def fingerprint(self) -> str:
        """Names the weights; sidecars of embeddings carry it as `weights`."""
        return fingerprint(self.model)

    def which(self, image: str | Path | Tensor, sentences: Sequence[str]) -> list[Fit]:
        """The sentences, the best fitting first, each with its probability.

        They are those of exactly one of the sentences being right, and add up to 1; a model that was trained pair by
        pair (SigLIP) says of each by itself how likely it is.

        Args:
            image: a file, or a picture (3, H, W) in [0, 1] of the size that the model takes.
            sentences: at least one.
        """
        if not sentences:
            raise ValueError("sentences=[] leaves nothing to choose from; give at least one")
        images = image[None] if isinstance(image, Tensor) else [image]
        with torch.no_grad():
            cosines = self.embed_images(images).to(self.device), self.embed_texts(sentences).to(self.device)
            logits = self.model.similarity(*cosines)[0]  # (sentences,)
        pair_by_pair = self.model.similarity.objective == "sigmoid"
        shares = (logits.sigmoid() if pair_by_pair else logits.softmax(0)).tolist()
        return sorted(map(Fit, sentences, shares), key=lambda fit: -fit.probability)

    @torch.no_grad()
    def embed_images(self, images: Sequence[str | Path] | Tensor) -> Tensor:
        """(B, E) of length 1, on the CPU.

        Args:
            images: files, of which the largest part in the middle is taken that has the model's shape, or pictures
                (B, 3, H, W) in [0, 1] of the model's size.

        Raises:
            BadSample: a file cannot be read as a picture.
            ValueError: the model makes numbers of them that are not finite.
        """
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        found = [
            self.model.encode_image((p if isinstance(p, Tensor) else self._pictures(p)).to(self.device)).cpu()
            for p in parts
        ]
        embeddings = torch.cat(found) if found else torch.empty(0, self.model.embed_dim)
        require_finite(embeddings, "pictures")
        return embeddings

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(B, E) of length 1, on the CPU. Texts that are too long lose their last words.

        Raises:
            BadSample: a text has no words.
            ValueError: the model makes numbers of them that are not finite.
        """
        found = [self.encode_text(list(texts[start : start + BATCH])).cpu() for start in range(0, len(texts), BATCH)]
        embeddings = torch.cat(found) if found else torch.empty(0, self.model.embed_dim)
        require_finite(embeddings, "texts")
        return embeddings

    def encode_text(self, texts: list[str]) -> Tensor:
        """(B, E) of length 1."""
        return self.model.encode_text(self.tokenizer.encode(texts).tokens.to(self.device))

    def _pictures(self, paths: Sequence[str | Path]) -> Tensor:
        vision: Any = self.model.vision
        height, width = vision.image_size
        found = []
        for path in paths:
            try:
                picture = Picture(Path(path).read_bytes())
                scale = min(picture.width / width, picture.height / height)
                left, top = (picture.width - width * scale) / 2, (picture.height - height * scale) / 2
                box = (left, top, picture.width - left, picture.height - top)
                found.append(picture.tensor((height, width), box))
            except BadSample as error:
                raise BadSample(f"{path}: {error}") from error
        return torch.stack(found) / 255


def fingerprint(model: CLIP) -> str:
    """16 hexadecimal digits that name the weights of a model."""
    return weights_fingerprint(model.state_dict(), "clip")


def tokenizer_of(path: Path, model: CLIP) -> TextTokenizer:
    """The tokenizer of a training, as the config in the folder of its stage tells, or in a folder of published weights.

    Raises ValueError where there is none."""
    for folder in (path, *path.parents[:2]):  # a checkpoint lies in <stage>/checkpoints
        if (folder / "config.yaml").is_file():
            config = yaml.safe_load((folder / "config.yaml").read_text())
            told = config.get("data", {}).get("init_args", {}).get("tokenizer", {})
            kind = TOKENIZERS.get(str(told.get("class_path")).rpartition(".")[2])
            if kind is not None:
                return kind(**told["init_args"])
    if (path / "tokenizer.json").is_file() or (path / "merges.txt").is_file():
        kind = SentencePieceTokenizer if model.text.pool == "last" else BytePairTokenizer
        return kind(path, model.text.context)
    raise ValueError(
        f"{path} does not tell its tokenizer; give it, such as tokenizer=BytePairTokenizer('.../tokenizer.json')"
    )


# -- predict -----------------------------------------------------------------------------------------------------------


class Embeddings(LightningModule):
    """`predict` writes float16 embeddings (E,) of length 1 beside shards. A SidecarWriter names the field:

    - `clip_image`: of the picture;
    - `clip_text`: of its caption, or the mean of those of all captions that the data gives, brought to length 1;
    - `clip`: the mean of the two, brought to length 1, which stands for the pair (RA-CM3, arXiv:2211.12561).

    Batches are those of `mmflow.systems.clip.data`. What is not in a batch is not computed, so plain `FieldData` with
    a field `image` gives `clip_image`. The same command again goes on with the shards that are not there yet.

    Args:
        checkpoint: a training's, the folder of its stage, or published weights, as `load_clip` reads them.
    """

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        self.clip = load_clip(checkpoint_of(checkpoint))
        self.sidecar_meta: dict[str, Any] = {"model": "clip", "weights": fingerprint(self.clip)}

    def setup(self, stage: str) -> None:  # noqa: ARG002
        for writer in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(writer, SidecarWriter) and writer.field not in EMBEDDINGS:
                raise ValueError(f"there is no embedding {writer.field!r}; set field to {' or '.join(EMBEDDINGS)}")
        tokenizer = getattr(self.trainer.datamodule, "tokenizer", None)  # type: ignore[attr-defined]
        if tokenizer is not None:
            check_vocabulary(tokenizer, self.clip)
            self.sidecar_meta["tokenizer"] = tokenizer.fingerprint

    @torch.no_grad()
    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Field -> (B, E) of length 1."""
        found = {}
        if "image" in batch:
            found["clip_image"] = self.clip.encode_image(batch["image"])
        if "tokens" in batch:
            means = torch.stack([own.mean(0) for own in _by_picture(self.clip, batch)])
            found["clip_text"] = F.normalize(means, dim=-1)
        if len(found) == 2:
            found["clip"] = F.normalize(found["clip_image"] + found["clip_text"], dim=-1)
        for field, rows in found.items():
            require_finite(rows[batch["valid"]], field)
        return found

    def predict_step(
        self,
        batch: dict[str, Any],
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> dict[str, list[np.ndarray]]:
        found = self(batch)
        return {field: list(rows[batch["valid"]].half().cpu().numpy()) for field, rows in found.items()}


class Retrieved(LightningModule):
    """`predict` looks for the nearest of an index to each embedding of a sidecar, and writes their numbers.

    The field `retrieved` is int64 (k,), nearest first, as `mmflow.evaluation.search.Index` numbers them, and empty for
    a sample without an embedding; an embedding that is in the index finds itself, too. Each batch goes through the
    whole index once, so take large ones.

    Args:
        index: the folder of a sidecar of embeddings.
        field: of the embeddings in the index.
        queries: field of the embeddings that ask, a sidecar of the data, by `mmflow.data.transforms.Array`.
        k: neighbours.
        shards: which shards of the index are searched.
    """

    def __init__(
        self, index: str, field: str = "clip", queries: str = "clip", k: int = 32, shards: str = "**/train-*.tar"
    ) -> None:
        super().__init__()
        self.index, self.queries, self.k = Index.open(index, field, shards), queries, k
        self.sidecar_meta = {"index": self.index.meta, "field": field, "shards": shards, "of": len(self.index), "k": k}

    def setup(self, stage: str) -> None:  # noqa: ARG002
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.queries not in data.sidecars:
            raise ValueError(
                f"queries={self.queries!r} is no sidecar of the data, only {sorted(data.sidecars)}; add it under "
                f"data.sidecars, with the folder that the stage of the embeddings wrote"
            )
        for shard in (shard for corpus in data.corpora.values() for shard in corpus.joined[self.queries]):
            if shard.meta.get("weights") != self.index.meta.get("weights"):
                raise ValueError(
                    f"{shard.path} holds embeddings of {shard.meta}, but the index of {self.index.meta}; embed both "
                    f"with one model"
                )

    def predict_step(
        self,
        batch: dict[str, Any],
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> dict[str, list[np.ndarray]]:
        lengths = batch[f"{self.queries}_lengths"][batch["valid"]]  # 0 for a sample that was broken
        found: list[np.ndarray] = [np.empty(0, np.int64)] * len(lengths)
        asking = lengths.nonzero()[:, 0].tolist()
        if asking:
            numbers = self.index.search(batch[self.queries][batch["valid"]][asking], self.k).numbers
            for row, own in zip(asking, numbers.cpu().numpy(), strict=True):
                found[row] = own
        return {"retrieved": found}


# -- test --------------------------------------------------------------------------------------------------------------


class ClipEvaluation(LightningModule):
    """`test` measures a CLIP on a split: classes by prompts, and pictures and texts found by each other.

    Leaves `results.json` with

    - `zero_shot`: accuracy `acc`, `acc5` for more than five classes, `acc_seen` and `acc_unseen` where the data tells
      `unseen`, and under `classes` each class with its accuracy, the number of its pictures, and whether they are of a
      kind that training never shows; where there are classes;
    - `retrieval`: recalls both ways at 1, 5 and 10, over all pairs of the split, each a candidate for all others; and
      `unseen`, those of the unseen pictures and their texts, among the same candidates;
    - `cosine` of pairs and `cosine_others` of all else, and what the temperature and the bias are;

    and the pictures `gallery.png` (what is found for some texts and pictures, evenly over the split), `matrix.png` and,
    of classes, `classes.png`. Batches are those of `mmflow.systems.clip.data`; its tokenizer must be the model's.

    Args:
        checkpoint: a training's, the folder of its stage, or published weights, as `load_clip` reads them.
        classes: names of the classes; by default those that pictures of the split have.
        templates: sentences with {} for the name of a class, whose embeddings are averaged.
    """

    def __init__(
        self, checkpoint: str, classes: Sequence[str] | None = None, templates: Sequence[str] = TEMPLATES
    ) -> None:
        super().__init__()
        self.clip = load_clip(checkpoint_of(checkpoint))
        self.classes, self.templates = classes, list(templates)
        class_prompts(
            ["class"] if classes is None else classes, self.templates
        )  # raises ValueError for what makes none
        self.pairs: list[Pairs] = []
        self.captions: dict[tuple[Any, ...], list[str]] = {}  # by shard and key

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:  # noqa: ARG002
        if not isinstance(getattr(self._data, "tokenizer", None), TextTokenizer):
            raise ValueError(
                f"ClipEvaluation reads pairs with tokens, which {type(self._data).__name__} does not have; "
                f"set data to mmflow.systems.clip.data.PicturesAndTexts"
            )
        check_vocabulary(self._data.tokenizer, self.clip)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        rows = batch["valid"].nonzero()[:, 0].tolist()
        if not rows:
            return
        names: list[tuple[Any, ...]] = list(zip(batch["__shard__"], batch["__key__"], strict=True))
        texts = _by_picture(self.clip, batch)
        self.pairs.append(
            Pairs(
                names=[names[row] for row in rows],
                images=self.clip.encode_image(batch["image"])[rows].cpu(),
                texts=torch.cat([texts[row] for row in rows]).cpu(),
                counts=torch.tensor([len(texts[row]) for row in rows]),
                classes=[batch["class"][row] if "class" in batch else "" for row in rows],
                unseen=torch.tensor([bool(batch["unseen"][row]) if "unseen" in batch else False for row in rows]),
            )
        )
        self.captions |= {names[row]: batch["captions"][row] for row in rows}

    def on_test_epoch_end(self) -> None:
        pairs = gather(self.pairs, self.trainer.world_size)
        everywhere: list[Any] = [self.captions]
        if self.trainer.world_size > 1:
            everywhere = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everywhere, self.captions)
        captions = {name: texts for own in everywhere for name, texts in own.items()}
        owners = torch.arange(len(pairs.images)).repeat_interleave(pairs.counts)
        found = ranks(pairs.images, pairs.texts, owners)
        retrieval: dict[str, Any] = {"all": recalls_of(found)}
        if pairs.unseen.any() and not pairs.unseen.all():
            unseen = Ranks(found.of_texts[pairs.unseen], found.of_images[pairs.unseen[owners]])
            retrieval["unseen"] = recalls_of(unseen)
        zero_shot = self._zero_shot(pairs)
        cosines = mean_cosines(pairs.images, pairs.texts, owners)
        figures = retrieval["all"] | {name: v for name, v in zero_shot.items() if isinstance(v, float)} | cosines
        for name, value in figures.items():
            self.log(f"test/{name}", value)
        if not self.trainer.is_global_zero:
            return
        similarity = self.clip.similarity
        report = {
            "weights": fingerprint(self.clip),
            "images": len(pairs.images),
            "texts": len(pairs.texts),
            "zero_shot": zero_shot,
            "retrieval": retrieval,
            **cosines,
            "scale": float(similarity.log_scale.exp()),
            **({} if similarity.bias is None else {"bias": float(similarity.bias)}),
        }
        write_json(self.folder / "results.json", report)
        self._draw(pairs, [captions[name] for name in pairs.names], owners, found)
        if zero_shot:
            told = {name: own for name, own in zero_shot["classes"].items() if own["pictures"]}
            shares = {name: own["acc"] for name, own in told.items()}
            unseen_classes = [name for name, own in told.items() if own["unseen"]]
            title = f"zero-shot classification of {len(pairs.images):,} pictures"
            chance = 1 / len(zero_shot["classes"])
            class_bars(shares, unseen_classes, chance, title, self.folder / "classes.png")

    @property
    def folder(self) -> Path:
        return Path(self.trainer.default_root_dir)

    def _zero_shot(self, pairs: Pairs) -> dict[str, Any]:
        """Accuracies; nothing where pictures have no classes."""
        if not any(pairs.classes):
            if self.classes is not None:
                raise ValueError(
                    "classes are given, but the data does not tell those of pictures; say by data.class_name where in "
                    "the JSON they are, or leave out classes"
                )
            return {}
        classes = sorted(set(pairs.classes)) if self.classes is None else list(self.classes)
        if without := sorted(set(pairs.classes) - set(classes)):
            raise ValueError(
                f"{len(without)} classes of pictures have no prompt, first {without[0]!r}; name them in classes, or "
                f"leave out classes to take those of the pictures"
            )
        labels = torch.tensor([classes.index(name) for name in pairs.classes])
        weights = zero_shot_weights(self.clip.encode_text, self._tokens, classes, self.templates).cpu()
        places = class_ranks(pairs.images, weights, labels)
        by_class = {}
        for number, name in enumerate(classes):
            own = labels == number
            by_class[name] = {
                "acc": float((places[own] == 0).double().mean()) if own.any() else None,
                "pictures": int(own.sum()),
                "unseen": bool(own.any() and pairs.unseen[own].all()),
            }
        return accuracies(places, pairs.unseen, len(classes)) | {"templates": self.templates, "classes": by_class}

    def _tokens(self, texts: list[str]) -> Tensor:
        return self._data.tokenizer.encode(texts).tokens.to(self.device)

    # -- pictures

    def _draw(self, pairs: Pairs, captions: list[list[str]], owners: Tensor, found: Ranks) -> None:
        """The gallery and the matrix."""
        texts = [text for own in captions for text in own]
        asking_texts = spread(len(texts), TEXTS_ASKED)
        asking_images = spread(len(pairs.images), IMAGES_ASKED)
        compared = spread(len(pairs.images), MATRIX)
        best_images = nearest(pairs.texts[asking_texts], pairs.images)
        best_texts = nearest(pairs.images[asking_images], pairs.texts)
        right_images = owners[asking_texts].tolist()
        shown = {*(i for row in best_images for i, _ in row), *right_images, *asking_images, *compared}
        pixels = self._pixels({pairs.names[i]: i for i in shown})
        by_text = [
            Query(texts[q], [Answer(pixels[i], s, i == own) for i, s in row], int(found.of_images[q]), pixels[own])
            for q, own, row in zip(asking_texts, right_images, best_images, strict=True)
        ]
        firsts = (pairs.counts.cumsum(0) - pairs.counts).tolist()  # number of each picture's first text
        by_image = []
        for q, row in zip(asking_images, best_texts, strict=True):
            answers = [Answer(texts[i], score, int(owners[i]) == q) for i, score in row]
            own = pairs.texts[firsts[q] : firsts[q] + len(captions[q])]
            right = captions[q][int((own @ pairs.images[q]).argmax())]  # whose rank it is
            by_image.append(Query(pixels[q], answers, int(found.of_texts[q]), right))
        retrieval_gallery(by_text, by_image, self.folder / "gallery.png")
        cosines = pairs.images[compared] @ pairs.texts[[firsts[i] for i in compared]].T
        pictures, labels = [pixels[i] for i in compared], [captions[i][0] for i in compared]
        similarity_matrix(pictures, labels, cosines, self.folder / "matrix.png")

    def _pixels(self, wanted: dict[tuple[Any, ...], int]) -> dict[int, Tensor]:
        """Number -> picture (3, H, W), for shards and keys; they are read again."""
        corpus = self._data.corpus("test")
        ids = [int(i) for i in self._data.usable["test"] if corpus.name(int(i)) in wanted]
        order = [Micro(tuple(ids[start : start + BATCH])) for start in range(0, len(ids), BATCH)]
        found = {}
        for batch in self._data.loader("test", order, training=False):
            self._data.on_before_batch_transfer(batch, 0)
            images = self._data.on_after_batch_transfer(batch, 0)["image"]
            for name, image in zip(zip(batch["__shard__"], batch["__key__"], strict=True), images, strict=True):
                found[wanted[name]] = image
        return found


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(most, count))})


def nearest(queries: Tensor, candidates: Tensor) -> list[list[tuple[int, float]]]:
    """Number and cosine of the ANSWERS best candidates (N, E), for each of some queries (Q, E)."""
    scores = queries.double() @ candidates.double().T
    best = scores.sort(dim=1, descending=True, stable=True)
    rows = zip(best.indices[:, :ANSWERS].tolist(), best.values[:, :ANSWERS].tolist(), strict=True)
    return [list(zip(*row, strict=True)) for row in rows]


def _by_picture(clip: CLIP, batch: dict[str, Any]) -> list[Tensor]:
    """The embeddings (C, E) of each row's texts, of tokens (B, C, T)."""
    counts = batch["tokens_lengths"]  # (B,)
    own = torch.arange(batch["tokens"].shape[1], device=counts.device) < counts[:, None]  # (B, C)
    return list(clip.encode_text(batch["tokens"][own]).split(counts.tolist()))
