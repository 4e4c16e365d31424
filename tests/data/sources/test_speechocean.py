from collections import Counter

import pytest

from mmflow.data.sources.speechocean import SpeechOcean762
from tests.data.sources.made import made


@pytest.fixture
def ocean(put, tmp_path):
    phones = []
    for part, speakers in [("train", ("0001", "0002", "0003")), ("test", ("0009",))]:
        names = [f"{speaker}000{i}" for speaker in speakers for i in range(2)]
        for name in names:
            put(f"so/WAVE/SPEAKER{name[:4]}/{name}.WAV", f"audio {name}")
            phones += [f"{name}.1\tW_B ER1_I L_I D_E", f"{name}.0\tHH_B AH0_I L_I OW1_E"]
        put(f"so/{part}/wav.scp", "\n".join(f"{name}\tWAVE/SPEAKER{name[:4]}/{name}.WAV" for name in names))
        put(f"so/{part}/text", "\r\n".join(f"{name}\tHELLO WORLD" for name in names))
        put(f"so/{part}/utt2spk", "\n".join(f"{name}\t{name[:4]}" for name in names) + "\n")
    put("so/resource/text-phone", "\n".join(phones))
    return tmp_path / "so"


def test_text_and_phones_in_the_order_of_the_words(ocean):
    found = made(SpeechOcean762(), ocean)
    assert Counter(split for split, _ in found) == {"train": 4, "validation": 2, "test": 2}
    assert found[-1] == (
        "test",
        {
            "__key__": "00090001",
            "wav": b"audio 00090001",
            "txt": "HELLO WORLD",
            "json": {"speaker": "0009", "phone_sequence": ["HH", "AH0", "L", "OW1", "W", "ER1", "L", "D"]},
        },
    )


@pytest.mark.parametrize("inside", [".", "..", "train", "WAVE", "resource"])
def test_any_folder_of_it_may_be_named(ocean, inside):
    assert len(made(SpeechOcean762(), ocean / inside)) == 8


def test_a_part_without_its_tables_is_not_there(ocean):
    (ocean / "train" / "text").unlink()
    assert Counter(split for split, _ in made(SpeechOcean762(), ocean)) == {"train": 1, "test": 1}


def test_commands_and_paths_elsewhere_in_wav_scp_are_never_followed(ocean, put, tmp_path, caplog):
    put("secret.wav", "secret")
    put("so/test/wav.scp", f"00090000 {tmp_path}/secret.wav\n00090001 touch {tmp_path}/ran |\nx WAVE/../../secret.wav")
    found = made(SpeechOcean762(), ocean)
    assert not any(b"secret" in sample["wav"] for _, sample in found)
    assert not (tmp_path / "ran").exists()
    assert "3 x line of wav.scp without an audio file" in caplog.text
    assert "2 x audio file that no wav.scp names" in caplog.text


def test_utterances_without_text_or_speaker_are_counted(ocean, put, caplog):
    put("so/test/text", "00090000 HELLO\n00097777 NOBODY")
    put("so/test/utt2spk", "00090001 0009")
    assert len(made(SpeechOcean762(), ocean)) == 6
    assert "2 x audio file without text or speaker" in caplog.text
    assert "1 x line of text without one in wav.scp, first: test: 00097777" in caplog.text


def test_without_the_table_of_phones_there_is_no_phone_sequence(ocean, caplog):
    (ocean / "resource" / "text-phone").unlink()
    assert all(sample["json"].keys() == {"speaker"} for _, sample in made(SpeechOcean762(), ocean))
    assert "missing table of phones" in caplog.text


def test_a_folder_with_another_layout_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"does not hold a folder train or test with wav\.scp, text, utt2spk"):
        made(SpeechOcean762(), tmp_path)


def test_tables_that_name_no_file_are_an_error(ocean, put):
    for part in ("train", "test"):
        put(f"so/{part}/wav.scp", "a b.wav")
    with pytest.raises(ValueError, match="no utterance has audio, text and speaker"):
        made(SpeechOcean762(), ocean)


def test_the_real_copy_has_1480_160_200(real_data):
    found = made(SpeechOcean762(), real_data / "speechocean762")
    assert Counter(split for split, _ in found) == {"train": 1480, "validation": 160, "test": 200}
    samples = {sample["__key__"]: sample for _, sample in found}
    sample = samples["000360013"]
    assert sample["ogg"] == (real_data / "speechocean762/WAVE/SPEAKER0036/000360013.ogg").read_bytes()
    assert sample["txt"] == "IT'S JUST SO HARD TO PICTURE"
    assert sample["json"]["speaker"] == "0036"
    assert " ".join(sample["json"]["phone_sequence"]) == "IH0 T S JH AH0 S T S OW0 HH AA0 R D T UW0 P IH1 K CH ER0"
    assert all("phone_sequence" in sample["json"] for _, sample in found)
