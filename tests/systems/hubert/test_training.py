"""HuBERT's objectives in training: rounds that begin anew, a frozen encoder, what counts in losses and error rates."""

import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch import Tensor
from torchmetrics.text import CharErrorRate, WordErrorRate

from mmflow.cli import main
from mmflow.data.index import open_shard
from mmflow.data.spec import DataSpec
from mmflow.data.writer import TarShard
from mmflow.evaluation.clustering import phone_frames
from mmflow.evaluation.pictures import read_curves
from mmflow.evaluation.transcripts import describe
from mmflow.systems.hubert.data import collate_transcripts, prepare_transcript
from mmflow.systems.hubert.language_model import estimate
from mmflow.systems.hubert.model import CTCHead, Hubert, masked_prediction_loss, num_frames
from mmflow.systems.hubert.training import HubertCTC, HubertPretraining, infeasible, perplexity
from mmflow.systems.hubert.weights import save_folder
from tests.command import Command
from tests.tiny_speech import hum

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers

SMALL: dict[str, Any] = {
    **{"dim": 32, "depth": 2, "num_heads": 2, "ffn_dim": 64, "conv_dim": 16},
    **{"position_kernel": 16, "position_groups": 4},
}
PHONES = ["A", "E", "I", "O", "S"]


def write_units(spec: Path, folder: Path, num_clusters: int) -> Path:
    """Sidecars with the phone of each frame as its unit, as a clustering into `num_clusters` could have made them."""
    meta = {"fingerprint": f"phones {num_clusters}", "num_clusters": num_clusters, "rate": 50, "features": "phones"}
    data = DataSpec.read(spec)
    for split in data.splits:
        for shard in data.shards(split):
            index = open_shard(shard)
            sidecar = TarShard(folder / data.name / Path(shard).name, meta)
            for row, (key, frames) in enumerate(zip(index.keys, index.frames["flac"], strict=True)):
                phones = json.loads(index.read(row, "json"))["phones"]
                units = phone_frames(phones, num_frames(int(frames)), PHONES).clamp(min=0)
                sidecar.write({"__key__": key, "units.npy": units.numpy().astype(np.uint16)})
            sidecar.close()
    return folder


def training(units: Path, num_classes: int, steps: int) -> dict[str, Any]:
    hubert = {"class_path": "mmflow.systems.hubert.model.Hubert", "init_args": SMALL}
    options = {"hubert": hubert, "num_classes": num_classes, "unit_dim": 16, "lr": 2e-3, "warmup": 0.5}
    data = {"sidecars": {"units": str(units)}, "batch_seconds": 4.0, "max_seconds": 1.0, "num_workers": 0}
    return {
        "run": "fit",
        "model": {"class_path": "mmflow.systems.hubert.training.HubertPretraining", "init_args": options},
        "data": {"class_path": "mmflow.systems.hubert.data.SpeechUnits", "init_args": data},
        "trainer": {"max_steps": steps, "val_check_interval": steps},
        "checkpoints": {"every_steps": 1, "keep": 99},
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_speech) -> Path:
    """Two rounds, fine-tuning whose encoder joins at its step 4, and a test."""
    folder = tmp_path_factory.mktemp("config")
    tuning = {"checkpoint": "${stages.round_2.checkpoint}", "freeze_steps": 4, "channel_mask_span": 8, "lr": 1e-3}
    text = {"batch_seconds": 8.0, "num_workers": 0}
    tree = {
        "trainer": {"accelerator": "cpu", "log_every_n_steps": 1, "gradient_clip_val": 1.0},
        "data": {"init_args": {"spec": str(tiny_speech)}},
        "stages": {
            "round_1": training(write_units(tiny_speech, folder / "five", 5), 5, 8),
            "round_2": training(write_units(tiny_speech, folder / "seven", 7), 7, 4),
            "ctc": {
                "run": "fit",
                "model": {"class_path": "mmflow.systems.hubert.training.HubertCTC", "init_args": tuning},
                "data": {"class_path": "mmflow.systems.hubert.data.TranscribedSpeech", "init_args": text},
                "trainer": {"max_steps": 6, "val_check_interval": 3},
                "checkpoints": {"every_steps": 1, "keep": 99},
            },
            "test": {
                "run": "test",
                "ckpt_path": "${stages.ctc.checkpoint}",
                "model": "${stages.ctc.model}",
                "data": "${stages.ctc.data}",
            },
        },
    }
    (folder / "rounds.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder / "rounds.yaml"


def run(config: Path, work: Path, *more: str) -> int:
    return main(["fit", "--config", str(config), "--workdir", str(work), *more])


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli.py"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, config) -> Path:
    """The work folder of all four stages. Only to be copied and read."""
    work = tmp_path_factory.mktemp("trained")
    assert run(config, work) == 0
    return work


def load(work: Path, stage: str, step: int) -> dict[str, Any]:
    return torch.load(work / stage / "checkpoints" / f"step-{step:08d}.ckpt", weights_only=True)


def part(checkpoint: dict[str, Any], prefix: str) -> Tensor:
    """All weights whose names start so, as one vector."""
    return torch.cat([w.flatten() for name, w in checkpoint["state_dict"].items() if name.startswith(prefix)])


# -- rounds ------------------------------------------------------------------------------------------------------------


def test_a_second_round_begins_with_fresh_weights_and_its_own_units(trained):
    first, second = load(trained, "round_1", 8), load(trained, "round_2", 1)
    assert first["state_dict"]["head.units.0"].shape == (5, 16)
    assert second["state_dict"]["head.units.0"].shape == (7, 16)
    for name in ("hubert.conv.convs.1.weight", "hubert.blocks.0", "hubert.blocks.1", "hubert.mask_embedding"):
        assert (part(first, name) - part(second, name)).abs().max() > 1e-3
    fresh = load(trained, "round_1", 1)  # both rounds start from the seed, one step with other units apart
    assert (part(fresh, "hubert.conv") - part(second, "hubert.conv")).abs().max() < 1e-2


def test_a_second_round_has_its_own_steps_schedule_and_optimiser(trained):
    assert json.loads((trained / "round_2" / "done.json").read_text())["step"] == 4
    for stage, warmup in (("round_1", 4), ("round_2", 2)):
        rates = read_curves([trained / stage / "logs" / "version_0" / "metrics.csv"])["train/lr"]
        assert rates[0] == (0, pytest.approx(2e-3 / warmup))
    state = load(trained, "round_2", 1)["optimizer_states"][0]["state"]
    assert {float(moments["step"]) for moments in state.values()} == {1.0}


def test_rounds_keep_their_checkpoints_apart(trained):
    notes = {name: json.loads((trained / name / "done.json").read_text()) for name in ("round_1", "round_2")}
    assert {name: note["checkpoint"] for name, note in notes.items()} == {
        "round_1": "checkpoints/step-00000008.ckpt",
        "round_2": "checkpoints/step-00000004.ckpt",
    }


def test_units_of_another_number_of_clusters_are_refused(config, trained, tmp_path, capsys):
    work = tmp_path / "work"
    assert run(config, work, "--stages.round_1.model.num_classes", "6") == 2
    said = capsys.readouterr().err
    assert "model.num_classes=6, but the units come from a clustering into 5 (phones); make them equal" in said


def test_data_without_units_are_refused(config, tmp_path, capsys):
    spec = yaml.safe_load(config.read_text())["data"]["init_args"]["spec"]
    data = f"{{class_path: mmflow.systems.hubert.data.Utterances, init_args: {{spec: {spec}}}}}"
    assert run(config, tmp_path / "work", "--stages.round_1.data", data) == 2
    assert "HubertPretraining predicts units, which Utterances does not have" in capsys.readouterr().err


def test_it_trains_under_bf16_with_clipped_gradients(config, tmp_path):
    work = tmp_path / "work"
    assert run(config, work, "--trainer.precision", "bf16-mixed", "--trainer.max_steps", "2") == 0
    assert part(load(work, "round_1", 2), "hubert").isfinite().all()


def test_a_round_can_be_validated_by_its_saved_config(trained, tmp_path):
    saved = ["--config", str(trained / "round_1" / "config.yaml"), "--workdir", str(tmp_path / "again")]
    checkpoint = trained / "round_1" / "checkpoints" / "step-00000008.ckpt"
    assert main(["validate", *saved, "--ckpt_path", str(checkpoint)]) == 0
    again = json.loads((tmp_path / "again" / "config" / "done.json").read_text())["metrics"]
    first = json.loads((trained / "round_1" / "done.json").read_text())["metrics"]
    assert again == {name: pytest.approx(value) for name, value in first.items() if name.startswith("val/")}


# -- the objective -----------------------------------------------------------------------------------------------------


def alone(module: Any, step: int = 0, **trainer: Any) -> Any:
    """The module with as much of a Trainer as a single step needs."""
    usual = {"accumulate_grad_batches": 1, "world_size": 1, "max_steps": 10, "precision": "32-true"}
    module._trainer = SimpleNamespace(**usual | {"global_step": step} | trainer)
    module.log = lambda *_, **__: None
    return module


def crops(rows: int, seed: int = 0) -> dict[str, Any]:
    """A batch as SpeechUnits makes it: 1 s, 49 frames."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "audio": torch.randn(rows, 15_760, generator=draw),
        "units": torch.randint(5, (rows, 49), generator=draw),
        "mask": torch.rand(rows, 49, generator=draw) < 0.5,
        "valid": torch.ones(rows, dtype=torch.bool),
    }


def pretraining(**options: Any) -> HubertPretraining:
    torch.manual_seed(0)
    return HubertPretraining(Hubert(**SMALL), num_classes=5, unit_dim=16, **options).eval()


def test_the_loss_is_summed_over_hidden_frames_with_the_penalty_for_each_of_them():
    module, batch = alone(pretraining(penalty=10.0), accumulate_grad_batches=2, world_size=3), crops(2)
    loss = module.training_step(batch, 0)
    features = module.hubert.conv(batch["audio"])  # (B, T, K)
    out = module.hubert(batch["audio"], mask=batch["mask"], normalized=True)
    sums = masked_prediction_loss(module.head(out.last)[0], batch["units"], batch["mask"])
    hidden = int(batch["mask"].sum())
    expected = sums.masked_nll + 10.0 * features.square().mean() * hidden
    assert float(loss) == pytest.approx(float(expected) * 6, rel=1e-5)
    assert float(module._items) == hidden


def test_visible_frames_count_less_and_less():
    module, batch = alone(pretraining(visible_share=0.5, penalty=0.0), step=2), crops(2)
    assert module.visible_weight() == pytest.approx(0.6)
    loss = module.training_step(batch, 0)
    (sums, _) = module(batch)
    assert float(loss) == pytest.approx(float(sums.masked_nll + 0.6 * sums.unmasked_nll), rel=1e-5)
    assert float(module._items) == pytest.approx(float(sums.masked_count + 0.6 * sums.unmasked_count))
    assert [alone(module, step).visible_weight() for step in (0, 5, 9)] == [1.0, 0.0, 0.0]
    assert alone(pretraining()).visible_weight() == 0.0


def test_padding_rows_do_not_count_in_validation():
    with_padding, without = pretraining(), pretraining()
    batch, other = crops(3), crops(3, seed=1)
    padded = {name: torch.cat([batch[name], other[name]]) for name in batch}
    padded["valid"][3:] = False
    nothing = {name: other[name] for name in other} | {"valid": torch.zeros(3, dtype=torch.bool)}
    for part_of_batch in (padded, nothing):
        with_padding.validation_step(part_of_batch, 0)
    without.validation_step(batch, 0)
    for name in ("val_loss", "val_masked", "val_unmasked"):
        assert float(getattr(with_padding, name).compute()) == pytest.approx(float(getattr(without, name).compute()))
    assert torch.equal(with_padding.label_counts, torch.bincount(batch["units"].flatten(), minlength=5))


def test_validation_weighs_batches_by_their_hidden_frames():
    module = pretraining()
    first, second = crops(1), crops(2, seed=1)
    for batch in (first, second):
        module.validation_step(batch, 0)
    both = {name: torch.cat([first[name], second[name]]) for name in first}
    (sums, _) = module(both)
    assert float(module.val_loss.compute()) == pytest.approx(float(sums.masked_nll / sums.masked_count), rel=1e-5)


def test_perplexity_is_the_number_of_units_in_even_use():
    assert float(perplexity(torch.tensor([[0, 1], [2, 3]]), 9)) == pytest.approx(4.0)
    assert float(perplexity(torch.tensor([[5, 5]]), 9)) == pytest.approx(1.0)


def test_a_conv_encoder_that_gets_no_gradients_is_not_waited_for():
    """DDP ends with an error where a parameter that wants a gradient gets none."""
    hubert = Hubert(**SMALL, feature_grad_mult=0.0)
    module = alone(HubertPretraining(hubert, num_classes=5, unit_dim=16))
    module.training_step(crops(2), 0).backward()
    assert (
        {name for name, p in module.named_parameters() if p.grad is None}
        == {name for name, p in module.named_parameters() if not p.requires_grad}
        == {f"hubert.conv.{name}" for name, _ in hubert.conv.named_parameters()}
    )


def test_the_conv_encoder_is_the_same_in_training_and_evaluation():
    hubert, audio = Hubert(**SMALL), torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hubert.train().conv(audio), hubert.eval().conv(audio))


# -- CTC ---------------------------------------------------------------------------------------------------------------


def tuning(**options: Any) -> HubertCTC:
    torch.manual_seed(0)
    return HubertCTC(hubert=Hubert(**SMALL), channel_mask_span=8, **options)


def transcribed(texts: list[str], seconds: float = 1.0) -> dict[str, Any]:
    """A batch as TranscribedSpeech makes it."""
    draw = np.random.default_rng(0)
    size = round(16_000 * seconds)
    samples = [{"audio": torch.from_numpy(draw.standard_normal(size).astype(np.float32)), "text": t} for t in texts]
    prepared = [prepare_transcript(sample, draw, normalize=False) for sample in samples]
    batch = collate_transcripts(prepared, draw, mask_prob=0.75, mask_span=10, train=False)
    return batch | {"valid": torch.ones(len(texts), dtype=torch.bool), "__key__": [f"k{i}" for i in range(len(texts))]}


def test_ctc_needs_a_frame_per_character_and_one_between_equal_ones():
    targets = torch.tensor([[5, 6, 7, 0], [5, 5, 5, 0], [5, 5, 6, 6], [5, 6, 0, 0]])
    lengths = torch.tensor([3, 3, 4, 2])
    needed = torch.tensor([3, 5, 6, 2])
    assert infeasible(targets, lengths, needed).tolist() == [False] * 4
    assert infeasible(targets, lengths, needed - 1).tolist() == [True] * 4


def test_a_transcript_that_does_not_fit_adds_nothing_and_is_counted():
    module = alone(tuning()).eval()
    batch, logged = transcribed(["A", "EEEEEEEEEE" * 3]), {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})
    loss = module.training_step(batch, 0)
    assert logged["train/infeasible"] == 1.0
    assert torch.isfinite(loss)
    log_probs, frames = module(batch)
    first = {name: batch[name][:1] for name in ("targets", "target_lengths")}
    assert float(loss.detach()) == pytest.approx(float(module.loss_sum(log_probs[:1], frames[:1], first)), rel=1e-5)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in module.head.parameters())
    assert float(module._items) == 2  # it counts as an utterance


def test_padding_rows_do_not_count_in_error_rates():
    with_padding, without = tuning().eval(), tuning().eval()
    texts = ["AEI", "OSA"]
    padded = transcribed([*texts, "EEE"])
    padded["valid"][2] = False
    said = with_padding.evaluate(padded, *with_padding(padded))
    assert [result["key"] for result in said] == ["k0", "k1"]
    alone_in_batch = transcribed(texts)
    assert said == without.evaluate(alone_in_batch, *without(alone_in_batch))
    for name in ("loss", "cer", "wer"):
        assert float(getattr(with_padding, name).compute()) == float(getattr(without, name).compute())
    padded["valid"][:] = False
    assert with_padding.evaluate(padded, *with_padding(padded)) == []


def test_a_pretrained_encoder_or_a_fresh_one_not_both():
    with pytest.raises(ValueError, match="give either the checkpoint of a pretrained encoder or a fresh encoder"):
        HubertCTC()
    with pytest.raises(ValueError, match="give either the checkpoint"):
        HubertCTC(checkpoint="x.ckpt", hubert=Hubert(**SMALL))


def test_a_recogniser_is_taken_over_with_its_character_layer_ready_to_learn(tmp_path):
    hubert, head = Hubert(**SMALL), CTCHead(SMALL["dim"], 32)
    save_folder(hubert, tmp_path, head)
    kept = HubertCTC(checkpoint=str(tmp_path), keep_head=True, dropout=0.3)
    fresh = HubertCTC(checkpoint=str(tmp_path))
    assert torch.equal(kept.head.projection.weight, head.projection.weight)
    assert not torch.equal(fresh.head.projection.weight, head.projection.weight)
    for module in (kept, fresh):  # weights are read in evaluation mode, which a Trainer leaves as it is
        assert module.hubert.training
        assert module.head.training
    assert kept.head.dropout.p == 0.3
    with pytest.raises(ValueError, match="keep_head takes the character layer out of a checkpoint; give one"):
        HubertCTC(hubert=Hubert(**SMALL), keep_head=True)


def test_transcripts_without_words_have_no_error_rate():
    """torchmetrics has inf for them alone, and their insertions would count for nothing."""
    module, other = tuning().eval(), tuning().eval()
    batch = transcribed(["AEI", "OSA"])
    batch["text"][1] = ""
    said = module.evaluate(batch, *module(batch))
    assert [result["text"] for result in said] == ["AEI", ""]
    batch["valid"][1] = False
    other.evaluate(batch, *other(batch))
    for name in ("loss", "cer", "wer"):
        assert float(getattr(module, name).compute()) == float(getattr(other, name).compute())


@pytest.mark.parametrize(("freeze_conv", "frozen"), [(None, False), (True, True), (False, False)])
def test_a_fresh_conv_encoder_learns_unless_it_is_told_not_to(freeze_conv, frozen):
    module = alone(tuning(freeze_conv=freeze_conv)).train()
    module.training_step(transcribed(["AEI"]), 0).backward()
    gradients = [p.grad for p in module.hubert.conv.parameters()]
    assert all((gradient is None) == frozen for gradient in gradients)
    assert module.hubert.input_projection.weight.grad.any()


@pytest.mark.parametrize(("freeze_conv", "frozen"), [(None, True), (True, True), (False, False)])
def test_a_pretrained_conv_encoder_is_frozen_unless_it_is_told_to_learn(trained, freeze_conv, frozen):
    checkpoint = trained / "round_2" / "checkpoints" / "step-00000004.ckpt"
    module = alone(HubertCTC(str(checkpoint), channel_mask_span=8, freeze_conv=freeze_conv)).train()
    module.training_step(transcribed(["AEI"]), 0).backward()
    assert all((p.grad is None) == frozen for p in module.hubert.conv.parameters())


def test_the_schedule_is_that_of_its_three_shares():
    module = alone(tuning(schedule=(0.2, 0.0, 0.8), lr=2.0), max_steps=10)
    schedule = module.configure_optimizers()["lr_scheduler"]["scheduler"]
    assert [schedule.lr_lambdas[0](step) for step in (0, 2, 10)] == pytest.approx([0.01, 1.0, 0.05])


def test_fine_tuning_sets_the_dropout_of_the_encoder():
    module = tuning(layer_drop=0.25, ffn_dropout=0.3)
    assert module.hubert.layer_drop == 0.25
    assert [block.ffn.dropout.p for block in module.hubert.blocks] == [0.3, 0.3]


def check_freezing(work: Path) -> None:
    """Until step 4 only the new layer learns; then the Transformer too; the conv encoder never."""
    before, last = load(work, "round_2", 4), load(work, "ctc", 6)
    frozen, joined = load(work, "ctc", 4), load(work, "ctc", 5)
    for name in ("hubert.blocks", "hubert.input_projection", "hubert.positions", "hubert.norm"):
        assert torch.equal(part(frozen, name), part(before, name)), name
        assert not torch.equal(part(joined, name), part(before, name)), name
    assert torch.equal(part(last, "hubert.conv"), part(before, "hubert.conv"))
    assert not torch.equal(part(load(work, "ctc", 1), "head"), part(load(work, "ctc", 2), "head"))
    assert len(frozen["optimizer_states"][0]["state"]) == 2  # weight and bias of the new layer
    assert len(last["optimizer_states"][0]["state"]) > 20


def test_the_encoder_is_frozen_until_its_step(trained):
    check_freezing(trained)


def test_a_frozen_encoder_computes_no_gradients():
    module = alone(tuning(freeze_steps=3), step=2).train()
    loss = module.training_step(transcribed(["AEI"]), 0)
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in module.hubert.parameters())
    module.on_before_optimizer_step(torch.optim.SGD(module.parameters(), lr=0.1))
    assert all(p.grad is None for p in module.hubert.parameters())
    alone(module, step=3).training_step(transcribed(["AEI"]), 0).backward()
    assert module.hubert.input_projection.weight.grad.any()


@pytest.mark.slow
def test_two_processes_freeze_the_encoder_together_without_masks(config, trained, tmp_path):
    """DDP waits for a gradient of each parameter: of those of a frozen encoder, and of a mask vector without masks."""
    work = Path(shutil.copytree(trained, tmp_path / "work"))
    for stage in ("ctc", "test"):
        shutil.rmtree(work / stage)
    command = Command(
        *("fit", "--config", config, "--workdir", work, "--trainer.devices", "2", "--trainer.strategy", "ddp"),
        *("--stages.ctc.data.mask_prob", "0.0"),
    )
    assert command.end() == 0, command.output
    check_freezing(work)
    keys = [result["key"] for result in json.loads((work / "test" / "transcripts.json").read_text())]
    assert keys == [f"test{number:02d}" for number in range(12)]


def test_a_test_leaves_the_transcripts_of_all_utterances(trained):
    results = json.loads((trained / "test" / "transcripts.json").read_text())
    assert [result["key"] for result in results] == [f"test{number:02d}" for number in range(12)]
    assert results[3]["text"] == hum("test03")["txt"]
    assert all(result.keys() == {"key", "text", "hypothesis", "errors"} for result in results)
    assert results[3]["errors"] == describe(results[3]["text"], results[3]["hypothesis"])
    metrics = json.loads((trained / "test" / "done.json").read_text())["metrics"]
    assert metrics.keys() == {f"test/{name}" for name in ("loss", "cer", "wer", "empty", "real_time_factor")}
    report = json.loads((trained / "test" / "errors.json").read_text())
    assert report["decoder"] == "Greedy"
    assert report["words"]["error_rate"] == pytest.approx(metrics["test/wer"], rel=1e-5)
    assert report["characters"]["error_rate"] == pytest.approx(metrics["test/cer"], rel=1e-5)
    assert report["empty_hypotheses"] == pytest.approx(metrics["test/empty"])
    assert report["seconds"]["audio"] == pytest.approx(sum(duration(f"test{number:02d}") for number in range(12)))


def duration(key: str) -> float:
    return soundfile.info(io.BytesIO(hum(key)["flac"])).duration


def test_a_decoder_is_scored_beside_the_best_path(config, trained, tmp_path, monkeypatch):
    """In a test stage of its own, with the language model that another stage left."""
    estimate([hum(f"train{number:02d}")["txt"] for number in range(36)], 2).write(tmp_path / "lm.arpa")
    tree = yaml.safe_load(config.read_text())
    beam = {"width": 8, "language_model": str(tmp_path / "lm.arpa"), "word_bonus": 2.0}
    options = {
        "checkpoint": str(trained / "round_2" / "checkpoints" / "step-00000004.ckpt"),
        "decoder": {"class_path": "mmflow.systems.hubert.decoding.BeamSearch", "init_args": beam},
    }
    tree["stages"] = {
        "test": {
            "run": "test",
            "ckpt_path": str(trained / "ctc" / "checkpoints" / "step-00000006.ckpt"),
            "model": {"class_path": "mmflow.systems.hubert.training.HubertCTC", "init_args": options},
            "data": tree["stages"]["ctc"]["data"],
        }
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(tree))
    assert run(tmp_path / "test.yaml", tmp_path / "work") == 0
    left = tmp_path / "work" / "test"
    metrics = json.loads((left / "done.json").read_text())["metrics"]
    results, report = (json.loads((left / name).read_text()) for name in ("transcripts.json", "errors.json"))
    greedy = json.loads((trained / "test" / "transcripts.json").read_text())
    assert [result["greedy"] for result in results] == [result["hypothesis"] for result in greedy]
    assert [result["hypothesis"] for result in results] != [result["hypothesis"] for result in greedy]
    assert metrics["test/cer"] == json.loads((trained / "test" / "done.json").read_text())["metrics"]["test/cer"]
    meant, said = [result["text"] for result in results], [result["hypothesis"] for result in results]
    assert metrics["test/decoder_wer"] == pytest.approx(float(WordErrorRate()(said, meant)))
    assert metrics["test/decoder_cer"] == pytest.approx(float(CharErrorRate()(said, meant)))
    assert report["decoder"] == "BeamSearch"
    assert report["words"]["error_rate"] == pytest.approx(metrics["test/decoder_wer"], rel=1e-5)
