"""CLIP's training: pictures, or spectrograms, and texts told from all others of a step (arXiv:2103.00020, section 2.3).

B pairs of a batch, C captions of a pair, T tokens, I pictures and N texts of a split, E width of the common space.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from mmflow.data.corpus import Corpus
from mmflow.data.errors import BadSample
from mmflow.data.transforms import entry
from mmflow.evaluation.retrieval import recalls
from mmflow.evaluation.zero_shot import TEMPLATES, class_prompts, class_ranks, zero_shot_weights
from mmflow.nn.contrastive import Similarity
from mmflow.systems.clip.model import CLIP
from mmflow.systems.clip.tokenizer import BytePairTokenizer, TextTokenizer
from mmflow.training.contrastive import Batch, Contrastive
from mmflow.training.optimizers import adamw, decay_groups
from mmflow.training.schedules import cosine

log = logging.getLogger(__name__)

KS = (1, 5, 10)
TOP = 5


class ClipTraining(Contrastive):
    """Pairs told from all others of the step, by cross entropy or, as SigLIP, pair by pair: `clip.similarity` says.

    Batches are those of `mmflow.systems.clip.data`. Validation takes each pair once, on any number of processes. It
    logs recalls over all pairs of the split, `image_to_text_r1`, `text_to_image_r1` and so on at 1, 5 and 10; `cosine`
    of pairs and `cosine_others`, of all else; and with `classes` the zero-shot accuracy `acc`, `acc5` for more than
    five classes and, where the data says `unseen` of what training never shows, `acc_seen` and `acc_unseen`. For the
    test split there is `mmflow.systems.clip.inference.ClipEvaluation`.

    A checkpoint holds how to build the model, whatever it was first read from, and what identifies the vocabulary,
    without which it does not go on.

    Args:
        clip: fresh, or read from a file by `mmflow.systems.clip.weights.load_clip`; a single tower may be read, too.
        resized: train at another size: arguments of the picture tower's `resized`, such as {image_size: 336}.
        lr: peak learning rate.
        warmup: share of the steps over which it rises; then it falls along a cosine to 0 at `max_steps`.
        weight_decay: of matrices.
        betas, eps: of AdamW.
        lock_image: the picture tower stays as it is, in evaluation mode, and only texts learn to fit to it (Zhai et al.
            2022, arXiv:2111.07991). Its projection learns.
        classes: names of what there may be in a picture, for validation.
        templates: sentences with {} for the name of a class, whose embeddings are averaged.
    """

    def __init__(
        self,
        clip: CLIP,
        resized: dict[str, Any] | None = None,
        lr: float = 5e-4,
        warmup: float = 0.02,
        weight_decay: float = 0.2,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        lock_image: bool = False,
        classes: Sequence[str] = (),
        templates: Sequence[str] = TEMPLATES,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lock_image = lock_image
        self.clip = clip
        if resized is not None:
            clip.vision = clip.vision.resized(**resized)
        self.lr, self.warmup, self.weight_decay, self.betas, self.eps = lr, warmup, weight_decay, betas, eps
        self.classes, self.templates = list(classes), list(templates)
        if self.classes:
            class_prompts(self.classes, self.templates)  # raises ValueError for what makes no prompts
        if lock_image:
            clip.vision.requires_grad_(False)
        self.train()
        self.found: list[Found] = []
        self.captions = {stage: torch.zeros(2, dtype=torch.int64) for stage in ("train", "val")}  # cut, all

    @property
    def similarity(self) -> Similarity:
        return self.clip.similarity

    @override
    def train(self, mode: bool = True) -> "ClipTraining":
        super().train(mode)
        if self.lock_image:
            self.clip.vision.eval()
        return self

    # -- the vocabulary ------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> TextTokenizer:
        """That of the data."""
        return self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(getattr(data, "tokenizer", None), TextTokenizer):
            raise ValueError(
                f"ClipTraining reads pairs with tokens, which {type(data).__name__} does not have; "
                f"set data to mmflow.systems.clip.data.PicturesAndTexts"
            )
        check_vocabulary(self.tokenizer, self.clip)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["clip"] = description(self.clip)
        checkpoint["tokenizer"] = {"fingerprint": self.tokenizer.fingerprint, "vocab_size": self.tokenizer.vocab_size}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "tokenizer" in checkpoint:
            self.tokenizer.check(checkpoint["tokenizer"]["fingerprint"])

    # -- training ------------------------------------------------------------------------------------------------------

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.clip.image_features(batch["image"]), self.clip.text_features(batch["tokens"])

    @override
    def training_step(self, batch: list[Batch], batch_idx: int) -> Tensor:
        for micro in batch:
            self._count_captions("train", micro)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        groups = decay_groups(self, self.lr, self.weight_decay)
        optimizer = adamw(self, self.lr, self.eps, self.weight_decay, self.betas, groups)
        schedule = cosine(optimizer, self.trainer.max_steps, self.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _count_captions(self, stage: str, batch: Batch) -> None:
        rows, one = batch["valid"], torch.ones_like(batch["truncated"])
        texts = batch["tokens_lengths"] if batch["tokens"].ndim == 3 else one
        counts = torch.stack([batch["truncated"], texts])[:, rows].sum(1)
        self.captions[stage] = self.captions[stage].to(self.device) + counts  # looked at later, for that waits

    def _tell_truncated(self, stage: str) -> None:
        """Log how many captions lost their last words, of all ranks, and count anew."""
        counts = self.trainer.strategy.reduce(self.captions[stage], reduce_op="sum")
        assert isinstance(counts, Tensor)
        self.captions[stage] = torch.zeros_like(counts)
        cut, told = counts.tolist()
        if cut and self.trainer.is_global_zero:
            text = "%s: %d of %d captions were longer than %d tokens and lost their last words"
            log.warning(text, stage, cut, told, self.tokenizer.context)

    def on_train_end(self) -> None:
        self._tell_truncated("train")

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        self._count_captions("val", batch)
        rows = batch["valid"].nonzero()[:, 0]
        if not len(rows):
            return
        counts = batch["tokens_lengths"][rows]  # (B,)
        own = torch.arange(batch["tokens"].shape[1], device=self.device) < counts[:, None]  # (B, C)
        names: list[tuple[Any, ...]] = list(zip(batch["__shard__"], batch["__key__"], strict=True))
        unseen = batch["unseen"] if "unseen" in batch else torch.zeros_like(batch["valid"])
        self.found.append(
            Found(
                names=[names[row] for row in rows.tolist()],
                images=self.clip.encode_image(batch["image"][rows]).cpu(),
                texts=self.clip.encode_text(batch["tokens"][rows][own]).cpu(),
                counts=counts.cpu(),
                classes=[batch["class"][row] if "class" in batch else "" for row in rows.tolist()],
                unseen=unseen[rows].cpu(),
            )
        )

    def on_validation_epoch_end(self) -> None:
        for part in ("train", "val"):
            self._tell_truncated(part)
        found = gather(self.found, self.trainer.world_size)
        self.found = []
        owners = torch.arange(len(found.images)).repeat_interleave(found.counts)
        figures = recalls(found.images, found.texts, owners, KS) | mean_cosines(found.images, found.texts, owners)
        if self.classes:
            weights = zero_shot_weights(self.clip.encode_text, self._tokens, self.classes, self.templates).cpu()
            ranks = class_ranks(found.images, weights, self._labels(found))  # (I,)
            figures |= accuracies(ranks, found.unseen, len(self.classes))
        for name, value in figures.items():
            self.log(f"val/{name}", value, prog_bar=name in ("acc", "acc_unseen", "image_to_text_r1"))

    def _tokens(self, texts: list[str]) -> Tensor:
        return self.tokenizer.encode(texts).tokens.to(self.device)

    def _labels(self, found: "Found") -> Tensor:
        """(I,) numbers of the pictures' classes."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        for name, where in zip(found.classes, found.names, strict=True):
            if name not in numbers:
                said = f"is {name!r}" if name else "is not told"
                raise ValueError(
                    f"the class of {where[1]} in {where[0]} {said}, and model.classes does not name it; "
                    f"give it a place there, and data.class_name where in the JSON it is told, or take no classes"
                )
        return torch.tensor([numbers[name] for name in found.classes])


class Found(NamedTuple):
    """What came out of some pictures and their texts.

    Attributes:
        names: shard and key of each picture.
        images: (I, E).
        texts: (N, E), in the order of their pictures.
        counts: (I,) texts of each picture.
        classes: name of each picture's class.
        unseen: (I,) bool.
    """

    names: list[tuple[Any, ...]]
    images: Tensor
    texts: Tensor
    counts: Tensor
    classes: list[str]
    unseen: Tensor


def gather(parts: list[Found], world_size: int) -> Found:
    """The parts of all ranks as one, in the order of names, so that it is the same for any number of ranks."""
    if world_size > 1:
        everywhere: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(everywhere, parts)
        parts = [part for own in everywhere for part in own]
    if not parts:
        raise ValueError("there is no pair to evaluate; look at the split in the data spec")
    names = [name for part in parts for name in part.names]
    order = sorted(range(len(names)), key=names.__getitem__)
    counts = torch.cat([part.counts for part in parts])
    starts = counts.cumsum(0) - counts
    rows = torch.cat([torch.arange(int(starts[i]), int(starts[i] + counts[i])) for i in order])
    classes = [name for part in parts for name in part.classes]
    return Found(
        names=[names[i] for i in order],
        images=torch.cat([part.images for part in parts])[order],
        texts=torch.cat([part.texts for part in parts])[rows],
        counts=counts[order],
        classes=[classes[i] for i in order],
        unseen=torch.cat([part.unseen for part in parts])[order],
    )


def mean_cosines(images: Tensor, texts: Tensor, owners: Tensor) -> dict[str, float]:
    """Mean cosine of pairs, `cosine`, and of all else, `cosine_others`, which is left out where there is nothing else.

    images (I, E), texts (N, E), of length 1; owners (N,) the number of each text's picture."""
    own = (images[owners] * texts).sum().double()
    others = len(images) * len(texts) - len(texts)
    found = {"cosine": float(own / len(texts))}
    if others:
        total = images.double().sum(0) @ texts.double().sum(0)
        found["cosine_others"] = float((total - own) / others)
    return found


def accuracies(ranks: Tensor, unseen: Tensor, num_classes: int) -> dict[str, float]:
    """Shares of pictures whose class is the first and among the first five; of seen and unseen ones, if there are both.

    ranks (I,) of the right class, from 0; unseen (I,) bool."""
    found = {"acc": float((ranks == 0).double().mean())}
    if num_classes > TOP:
        found["acc5"] = float((ranks < TOP).double().mean())
    if unseen.any() and not unseen.all():
        found |= {f"acc_{name}": float((ranks[rows] == 0).double().mean())
                  for name, rows in (("seen", ~unseen), ("unseen", unseen))}  # fmt: skip
    return found


def check_vocabulary(tokenizer: TextTokenizer, clip: CLIP) -> None:
    """Raise ValueError where a tokenizer's tokens are not those that a text tower takes."""
    text = clip.text
    for name, given, wanted in (
        ("vocab_size", tokenizer.vocab_size, text.vocab_size),
        ("end_id", tokenizer.end_id, text.end_id),
    ):
        if given != wanted:
            raise ValueError(
                f"the tokenizer has {name}={given}, but the text tower of the model {wanted}; give the vocabulary that "
                f"the model is for, or make a new model with {name}={given}"
            )
    if tokenizer.context > text.context:
        raise ValueError(
            f"the tokenizer makes texts of context={tokenizer.context} tokens, but the text tower takes no more than "
            f"{text.context}; set the tokenizer's context to {text.context}"
        )


def description(clip: CLIP) -> dict[str, Any]:
    """How to build a CLIP, as the command line would write it."""
    similarity = {
        "class_path": "mmflow.nn.contrastive.Similarity",
        "init_args": {"objective": clip.similarity.objective},
    }
    projected = isinstance(clip.image_projection, nn.Linear)
    return {
        "class_path": "mmflow.systems.clip.model.CLIP",
        "init_args": {
            "vision": _built(clip.vision),
            "text": _built(clip.text),
            "embed_dim": clip.embed_dim if projected else None,
            "similarity": similarity,
        },
    }


def _built(tower: Any) -> dict[str, Any]:
    kind = type(tower)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": tower.arguments}


class TokenizerTraining(LightningModule):
    """`fit` learns byte pairs from the captions of the training split and leaves them as `tokenizer.json`.

    Takes one step, so `trainer.max_steps` is 1. Logs `val/tokens`, the mean tokens of a caption of the validation split
    with start and end, and `val/truncated`, the share of captions that are longer than `context`. The same captions
    give the same vocabulary. Every rank does the same work; the first one writes.

    Args:
        vocab_size: tokens, of which 514 are bytes, start and end.
        captions: where in the field `info` the caption or the list of captions lies; None takes the field `text`.
        context: tokens of a text, to tell how many are longer.
        most: captions are read of so many samples, evenly over the split.
    """

    def __init__(
        self, vocab_size: int = 1024, captions: str | None = None, context: int = 77, most: int = 1_000_000
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.vocab_size, self.path, self.context, self.most = vocab_size, captions, context, most
        self.nothing = nn.Parameter(torch.zeros(()))  # Lightning counts the steps of an optimiser

    def setup(self, stage: str) -> None:
        if stage != "fit":
            raise ValueError(f"a tokenizer is only fitted; the stage has run: {stage}")
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        data.train_dataloader = self.train_dataloader  # where there is a datamodule Lightning asks only that

    def train_dataloader(self) -> DataLoader[Any]:
        empty: Any = [{}]
        return DataLoader(empty, batch_size=None)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: ARG002 the batch holds nothing
        tokenizer = BytePairTokenizer.train(self._texts("train"), self.vocab_size, self.context)
        if self.trainer.is_global_zero:
            tokenizer.save(Path(self.trainer.default_root_dir) / "tokenizer.json")
        tokens, truncated = tokenizer.encode(self._texts("validation"))
        lengths = (tokens == tokenizer.end_id).int().argmax(1) + 1
        figures = {"tokens": float(lengths.double().mean()), "truncated": truncated / len(tokens)}
        self.log_dict({f"val/{name}": figure for name, figure in figures.items()}, batch_size=1)
        self.optimizers().step()  # type: ignore[union-attr]

    def _texts(self, split: str) -> list[str]:
        """The captions of a split, without empty ones."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        field = "text" if self.path is None else "info"
        corpus, texts = Corpus(data.specs, split, (field,)), list[str]()
        broken = corpus.problems()
        for number in np.unique(np.linspace(0, len(corpus) - 1, min(self.most, len(corpus))).astype(int)).tolist():
            if number in broken:
                continue
            try:
                value: Any = corpus.read(number)[field]
                found = value if self.path is None else entry(value, self.path)
            except BadSample:  # is counted when it is read with its picture
                continue
            texts += [text for text in (found if isinstance(found, list) else [found]) if _is_caption(text)]
        if not texts:
            raise ValueError(
                f"no caption of split {split!r} can be read from the field {field!r}; look at the data spec"
            )
        return texts


def _is_caption(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())
