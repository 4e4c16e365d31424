"""HuBERT's objectives: masked prediction of units, and CTC fine-tuning (arXiv:2106.07447, sections 2.2 and 3.4).

B batch, S waveform samples, T frames, C units, V characters, L target characters.
"""

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.text import CharErrorRate, WordErrorRate

from mmflow.atomic import write_json
from mmflow.data.decode import SAMPLE_RATE
from mmflow.data.text import Characters
from mmflow.evaluation.transcripts import describe, error_report
from mmflow.nn.masking import span_mask
from mmflow.nn.transformer import FeedForward
from mmflow.systems.hubert.decoding import Decoder, Greedy
from mmflow.systems.hubert.model import CTCHead, Hubert, HubertPretrainingHead, PredictionSums, masked_prediction_loss
from mmflow.systems.hubert.weights import hubert_arguments, load_ctc, load_hubert
from mmflow.training.objective import StepMean
from mmflow.training.optimizers import adamw
from mmflow.training.schedules import linear_warmup_decay, tri_stage


class HubertPretraining(StepMean):
    """Predict the unit of every hidden frame.

    Args:
        hubert: the encoder.
        num_classes: units C of the clustering that made the labels.
        unit_dim: width of the space in which frames and units are compared.
        lr: peak learning rate.
        warmup: share of the steps that it rises over; then it falls to 0 at `max_steps`.
        weight_decay: of AdamW.
        penalty: weight of the mean square of the conv features.
        visible_share: share of the steps in which visible frames count too, with a weight that falls from 1 to 0. The
            paper has 0. A small model otherwise spends hundreds of steps at the entropy of the units before it learns.
    """

    def __init__(
        self,
        hubert: Hubert,
        num_classes: int = 100,
        unit_dim: int = 256,
        lr: float = 5e-4,
        warmup: float = 0.08,
        weight_decay: float = 0.01,
        penalty: float = 10.0,
        visible_share: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.hubert, self.head = hubert, HubertPretrainingHead(hubert.dim, [num_classes], unit_dim)
        self.num_classes, self.penalty, self.visible_share = num_classes, penalty, visible_share
        self.lr, self.warmup, self.weight_decay = lr, warmup, weight_decay
        self.val_loss, self.val_masked, self.val_unmasked = MeanMetric(), MeanMetric(), MeanMetric()
        self.label_counts: Tensor
        self.register_buffer("label_counts", torch.zeros(num_classes, dtype=torch.int64), persistent=False)

    def setup(self, stage: str) -> None:  # noqa: ARG002
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "clustering"):
            raise ValueError(
                f"HubertPretraining predicts units, which {type(data).__name__} does not have; "
                f"set data to mmflow.systems.hubert.data.SpeechUnits"
            )
        clustering = data.clustering
        if clustering["num_clusters"] != self.num_classes:
            raise ValueError(
                f"model.num_classes={self.num_classes}, but the units come from a clustering into "
                f"{clustering['num_clusters']} ({clustering['features']}); make them equal"
            )

    def forward(self, batch: dict[str, Tensor]) -> tuple[PredictionSums, Tensor]:
        """The sums of the loss and the feature penalty, summed over frames."""
        out = self.hubert(batch["audio"], mask=batch["mask"], normalized=True)
        (logits,) = self.head(out.last)  # (B, T, C)
        return masked_prediction_loss(logits, batch["units"], batch["mask"]), out.feature_penalty

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        sums, penalty = self(batch)
        mean_penalty = penalty / batch["units"].numel()
        self.log("train/loss", (sums.masked_nll / sums.masked_count).detach(), prog_bar=True)
        self.log("train/acc_masked", sums.masked_correct / sums.masked_count, prog_bar=True)
        self.log("train/acc_unmasked", sums.unmasked_correct / sums.unmasked_count)
        self.log("train/feature_penalty", mean_penalty.detach())
        self.log("train/label_perplexity", perplexity(batch["units"], self.num_classes))
        weight = self.visible_weight()
        total = sums.masked_nll + weight * sums.unmasked_nll
        count = sums.masked_count + weight * sums.unmasked_count
        return self.add(total + self.penalty * mean_penalty * count, count)

    def visible_weight(self) -> float:
        """Weight of visible frames at this step."""
        until = self.visible_share * self.trainer.max_steps
        return max(0.0, 1.0 - self.global_step / until) if until > 0 else 0.0

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        rows = batch["valid"]
        if not rows.any():
            return
        part = {name: batch[name][rows] for name in ("audio", "units", "mask")}
        sums, _ = self(part)
        self.val_loss.update(sums.masked_nll / sums.masked_count, sums.masked_count)
        self.val_masked.update(sums.masked_correct / sums.masked_count, sums.masked_count)
        self.val_unmasked.update(sums.unmasked_correct / sums.unmasked_count, sums.unmasked_count)
        self.label_counts += torch.bincount(part["units"].flatten(), minlength=self.num_classes)

    def on_validation_epoch_end(self) -> None:
        scores = {"loss": self.val_loss, "acc_masked": self.val_masked, "acc_unmasked": self.val_unmasked}
        for name, score in scores.items():
            self.log(f"val/{name}", score.compute(), prog_bar=name != "acc_unmasked")
            score.reset()
        counts = self.trainer.strategy.reduce(self.label_counts.clone(), reduce_op="sum")
        assert isinstance(counts, Tensor)
        self.log("val/majority", counts.max() / counts.sum().clamp(min=1))  # accuracy of the commonest unit
        self.label_counts.zero_()

    def configure_optimizers(self) -> Any:
        optimizer = adamw(self, self.lr, eps=1e-6, weight_decay=self.weight_decay)
        schedule = linear_warmup_decay(optimizer, self.trainer.max_steps, self.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def perplexity(units: Tensor, num_classes: int) -> Tensor:
    """exp of the entropy of the units in a batch: how many of them are in even use."""
    share = torch.bincount(units.flatten(), minlength=num_classes) / units.numel()
    return torch.special.entr(share).sum().exp()


class HubertCTC(StepMean):
    """Characters by CTC on a HuBERT encoder, pretrained or fresh.

    A pretrained conv encoder stays as it is; the Transformer joins after `freeze_steps`, once the new layer settled.

    `test` leaves `transcripts.json`, what was said and understood in each utterance, and `errors.json`: substitutions,
    deletions and insertions of words and characters, the commonest confusions, and the time it took. It logs the error
    rates of the best path as `test/wer` and `test/cer`, and those of a decoder as `decoder_wer` and `decoder_cer`;
    `test/empty` is the share of utterances in which nothing was understood, `test/real_time_factor` the seconds of
    encoding and decoding per second of audio. Utterances without words in their transcript are counted apart.

    Args:
        checkpoint: of a HubertPretraining stage, or published weights, whose encoder is fine-tuned.
        hubert: instead of a checkpoint, an encoder to train from scratch.
        keep_head: take the character layer of the checkpoint too, which then is one of CTC: to go on with a published
            recogniser, or to measure it.
        lr: peak learning rate.
        schedule: shares of the steps in which it rises, stays, and decays exponentially; see `tri_stage`.
        freeze_steps: steps in which only the new layer learns.
        freeze_conv: whether the conv encoder never learns; by default if it is pretrained.
        channel_mask_prob: masking of channels in training; 0 for none.
        channel_mask_span: channels per masked span.
        layer_drop: of the encoder while fine-tuning.
        ffn_dropout: inside the encoder's feed-forward layers while fine-tuning.
        dropout: before the new layer.
        decoder: what `test` uses beside the best path, such as a beam search with a language model.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        hubert: Hubert | None = None,
        keep_head: bool = False,
        lr: float = 5e-4,
        schedule: tuple[float, float, float] = (0.1, 0.4, 0.5),
        freeze_steps: int = 0,
        freeze_conv: bool | None = None,
        channel_mask_prob: float = 0.5,
        channel_mask_span: int = 64,
        layer_drop: float = 0.1,
        ffn_dropout: float = 0.1,
        dropout: float = 0.1,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if (checkpoint is None) == (hubert is None):
            raise ValueError("give either the checkpoint of a pretrained encoder or a fresh encoder `hubert`")
        if keep_head and checkpoint is None:
            raise ValueError(
                "keep_head takes the character layer out of a checkpoint; give one, or leave keep_head out"
            )
        head: CTCHead | None = None
        if keep_head:
            hubert, head, _ = load_ctc(str(checkpoint))
        elif hubert is None:
            hubert = load_hubert(str(checkpoint))
        self.hubert = hubert.train()
        self.hubert.layer_drop = layer_drop
        if freeze_conv if freeze_conv is not None else checkpoint is not None:
            self.hubert.feature_grad_mult = 0.0
            self.hubert.conv.requires_grad_(False)
        for module in self.hubert.modules():
            if isinstance(module, FeedForward):
                module.dropout.p = ffn_dropout
        self.characters, self.decoder = Characters(), decoder
        self.head = head.train() if head is not None else CTCHead(self.hubert.dim, len(self.characters), dropout)
        self.head.dropout.p = dropout
        self.lr, self.schedule, self.freeze_steps = lr, schedule, freeze_steps
        self.channel_mask_prob, self.channel_mask_span = channel_mask_prob, channel_mask_span
        self.cer, self.wer, self.loss = CharErrorRate(), WordErrorRate(), MeanMetric()
        self.decoder_cer, self.decoder_wer = CharErrorRate(), WordErrorRate()
        self.results: list[dict[str, str]] = []
        self.seconds = {"audio": 0.0, "encoding": 0.0, "decoding": 0.0}  # of the test

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["hubert"] = hubert_arguments(self.hubert)  # so that it can be loaded without the first checkpoint

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Log probabilities (B, T, V) and frame lengths (B,)."""
        channels = None
        if self.training and self.channel_mask_prob:
            sizes = torch.full((len(batch["audio"]),), self.hubert.dim)
            channels = span_mask(sizes, self.channel_mask_prob, self.channel_mask_span).to(self.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            out = self.hubert(batch["audio"], batch["lengths"], batch.get("mask"), channels, normalized=True)
        return self.head(out.last).float().log_softmax(-1), out.frame_lengths

    @property
    def frozen(self) -> bool:
        """Whether only the new layer learns at this step. Keyed on the step, so DDP and resuming agree on it."""
        return self.training and self.global_step < self.freeze_steps

    def loss_sum(self, log_probs: Tensor, frame_lengths: Tensor, batch: dict[str, Any]) -> Tensor:
        """CTC loss summed over utterances, nats; 0 for a transcript that does not fit into its frames."""
        return F.ctc_loss(
            log_probs.transpose(0, 1),
            batch["targets"],
            frame_lengths,
            batch["target_lengths"],
            blank=self.characters.blank,
            reduction="sum",
            zero_infinity=True,
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:  # noqa: ARG002
        log_probs, frame_lengths = self(batch)
        total = self.loss_sum(log_probs, frame_lengths, batch)
        count = torch.tensor(float(len(frame_lengths)), device=self.device)
        self.log("train/loss", (total / count).detach(), prog_bar=True)
        self.log("train/infeasible", infeasible(batch["targets"], batch["target_lengths"], frame_lengths).float().sum())
        # DDP waits for a gradient of every parameter; those of a frozen encoder are dropped before the optimiser step
        unused = self.hubert.parameters() if self.frozen else [self.hubert.mask_embedding]  # unused without masks
        total = total + 0.0 * sum(p.sum() for p in unused if p.requires_grad)
        return self.add(total, count)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        if self.frozen:
            for parameter in self.hubert.parameters():
                parameter.grad = None

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        self.evaluate(batch, *self(batch))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        started_at = time.perf_counter()
        log_probs, frame_lengths = self(batch)
        frames = [own[:length] for own, length in zip(log_probs.cpu(), frame_lengths.tolist(), strict=True)]
        encoded_at = time.perf_counter()
        decoder = self.decoder or Greedy()
        hypotheses = [decoder(own) for own, valid in zip(frames, batch["valid"].tolist(), strict=True) if valid]
        self.seconds["encoding"] += encoded_at - started_at
        self.seconds["decoding"] += time.perf_counter() - encoded_at
        self.seconds["audio"] += float(batch["lengths"][batch["valid"]].sum()) / SAMPLE_RATE
        for result, hypothesis in zip(self.evaluate(batch, log_probs, frame_lengths), hypotheses, strict=True):
            if self.decoder is not None:
                result |= {"hypothesis": hypothesis, "greedy": result["hypothesis"]}
                if result["text"]:
                    self.decoder_cer.update(hypothesis, result["text"])
                    self.decoder_wer.update(hypothesis, result["text"])
            self.results.append(result | {"errors": describe(result["text"], hypothesis)})

    def evaluate(self, batch: dict[str, Any], log_probs: Tensor, frame_lengths: Tensor) -> list[dict[str, str]]:
        """Greedy transcripts of the valid rows, which are counted in the error rates if something was said in them."""
        results, rows = [], []
        for row in batch["valid"].nonzero()[:, 0].tolist():
            hypothesis = Greedy()(log_probs[row, : frame_lengths[row]])
            results.append({"key": batch["__key__"][row], "text": batch["text"][row], "hypothesis": hypothesis})
            if batch["text"][row]:
                rows.append(row)
                self.cer.update(hypothesis, batch["text"][row])
                self.wer.update(hypothesis, batch["text"][row])
        if rows:
            part = {name: batch[name][rows] for name in ("targets", "target_lengths")}
            self.loss.update(self.loss_sum(log_probs[rows], frame_lengths[rows], part) / len(rows), len(rows))
        return results

    def on_validation_epoch_end(self) -> None:
        self._log_rates("val", {"loss": self.loss, "cer": self.cer, "wer": self.wer})

    def on_test_epoch_end(self) -> None:
        rates: dict[str, Metric] = {"loss": self.loss, "cer": self.cer, "wer": self.wer}
        if self.decoder is not None:
            rates |= {"decoder_cer": self.decoder_cer, "decoder_wer": self.decoder_wer}
        self._log_rates("test", rates)
        everywhere: list[Any] = [(self.results, self.seconds)]
        if self.trainer.world_size > 1:
            everywhere = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everywhere, (self.results, self.seconds))
        results = sorted((result for part, _ in everywhere for result in part), key=lambda result: result["key"])
        seconds = {name: sum(own[name] for _, own in everywhere) for name in self.seconds}
        report = error_report([(result["text"], result["hypothesis"]) for result in results])
        self.log("test/empty", report["empty_hypotheses"])
        self.log("test/real_time_factor", (seconds["encoding"] + seconds["decoding"]) / max(seconds["audio"], 1e-9))
        if self.trainer.is_global_zero:
            folder, decoder = Path(self.trainer.default_root_dir), type(self.decoder or Greedy()).__name__
            write_json(folder / "transcripts.json", results)
            write_json(folder / "errors.json", {"decoder": decoder, **report, "seconds": seconds})

    def _log_rates(self, stage: str, rates: dict[str, Metric]) -> None:
        for name, metric in rates.items():
            self.log(f"{stage}/{name}", metric.compute(), prog_bar=True)
            metric.reset()

    def configure_optimizers(self) -> Any:
        optimizer = adamw(self, self.lr, eps=1e-8, weight_decay=0.0)
        schedule = tri_stage(optimizer, self.trainer.max_steps, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def infeasible(targets: Tensor, target_lengths: Tensor, frame_lengths: Tensor) -> Tensor:
    """(B,) bool: CTC needs a frame per character and one more between equal neighbours."""
    inside = torch.arange(1, targets.shape[1], device=targets.device) < target_lengths[:, None]  # (B, L - 1)
    repeats = ((targets[:, 1:] == targets[:, :-1]) & inside).sum(1)
    return frame_lengths < target_lengths + repeats
