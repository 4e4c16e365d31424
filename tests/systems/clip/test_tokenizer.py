"""Texts to tokens: the published numbers, vocabularies of one's own, and texts that nobody wants."""

import gzip
import importlib.util
import json
import pickle
import random
import unicodedata
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from mmflow.data.errors import BadSample
from mmflow.systems.clip import tokenizer as module
from mmflow.systems.clip.tokenizer import BytePairTokenizer, SentencePieceTokenizer

MERGES = [
    "t h",
    "th e</w>",
    "c a",
    "ca t</w>",
    "o f</w>",
    "a n",
    "an d</w>",
    "r e",
    "re d</w>",
    "b l",
    "bl u",
    "blu e</w>",
]
NASTY = [
    "a photo of a cat",
    "Don't stop, it's 2024!! I'LL we've they'd x'S",
    "caf\u00e9 cafe\u0301 na\u00efve \u00c5ngstr\u00f6m \u0130stanbul \u03a3\u0391\u03a3 \u1e9e",
    "&amp;amp; &lt;b&gt;bold&lt;/b&gt; &nbsp;x &#233; &notanentity;",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea ok \u2764\ufe0f",
    "\u65e5\u672c\u8a9e\u306e\u6587\u5b57 \u6f22\u5b57 \u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d",
    "\t tabs\nand\r\nlines \u2028 x\u3000y\u00a0z \x1f \x85",
    "\u00bd \u00b2 \u0663 \u2167 3.14159 1e-5",
    "#hash_tag http://x.y/z?q=1&r=2 </w> a</w>b <p>html</p>",
    "!!!???\u2026 -- ''' \" ` 's 't 'sa",
    "\ufeffbom a\u200bb \u00ad \x00\x01",
    "x" * 300,
    "word " * 100,
    "a " * 75,
    "a " * 76,
]
TYPOGRAPHIC = [
    "Don\u2019t \u201cquote\u201d me",
    "\u00c3\u00a9t\u00c3\u00a9 sch\u00c3\u00b6n",
    "\ufb01ne \ufb02ow \uff21\uff22",
]


@pytest.fixture(scope="module")
def published() -> Path:
    """The published vocabulary, which open_clip has in its package."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("open_clip is not installed, which has the published vocabulary in it")
    return Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture
def toy(tmp_path) -> Path:
    path = tmp_path / "merges.txt"
    path.write_text("\n".join(['"toy#version: 0.2', *MERGES]))
    return path


def words_of(tokenizer, text):
    """The tokens between start and end."""
    tokens = tokenizer.encode([text]).tokens[0].tolist()
    return tokens[1 : tokens.index(tokenizer.end_id)]


# the published vocabulary


def test_published_tokens_of_a_caption(published):
    tokenizer = BytePairTokenizer(published)
    assert tokenizer.vocab_size == 49_408
    encoded = tokenizer.encode(["A photo of a  CAT."])
    assert encoded.tokens.shape == (1, 77)
    assert encoded.tokens.dtype == torch.int64
    assert encoded.tokens[0, :9].tolist() == [49406, 320, 1125, 539, 320, 2368, 269, 49407, 0]
    assert not encoded.tokens[0, 8:].any()
    assert encoded.truncated == 0
    assert tokenizer.fingerprint == "bb1f878e51006f6d"


def test_tokens_are_those_of_open_clip(published):
    """Whatever the text: the listed ones, and random ones out of all characters that Unicode has."""
    peer = pytest.importorskip("open_clip").tokenizer.SimpleTokenizer(str(published))
    tokenizer = BytePairTokenizer(published, repair=True)
    draw = random.Random(0)
    ranges = [(32, 127)] * 8 + [(0xA0, 0x600), (0x900, 0xE80), (0x2000, 0x2C00), (0x3040, 0xA000), (0x1F300, 0x1FA00)]
    drawn = ["".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(20)) for _ in range(200)]
    known = [text for text in drawn if not any(unicodedata.category(letter) == "Cn" for letter in text)]
    assert len(known) > 80
    for text in [*NASTY, *TYPOGRAPHIC, *known]:
        assert torch.equal(tokenizer.encode([text]).tokens, peer([text])), text


def test_tokens_are_those_of_transformers(clip_of_transformers):
    """Which neither reads the names of HTML nor knows the sigma at the end of a word nor all white space."""
    peer, folder = clip_of_transformers
    tokenizer = BytePairTokenizer(folder)
    texts = [text for text in NASTY if not set("&\u03a3\x1f") & set(text)]
    assert len(texts) == len(NASTY) - 4
    texts += ["\u201cno\u201d repair", "caf\u00e9 cafe\u0301", "a start <|startoftext|> and an <|endoftext|> END"]
    for text in texts:
        expected = peer(text, padding="max_length", max_length=77, truncation=True)["input_ids"]
        tokens = tokenizer.encode([text]).tokens[0].tolist()
        length = 77 - tokens[::-1].index(tokenizer.end_id)  # peer fills up with ends, which nothing looks at
        assert tokens[:length] == expected[:length], text


@pytest.fixture(scope="module")
def clip_of_transformers(published, tmp_path_factory):
    """Its tokenizer of the published vocabulary, and a folder with vocab.json and merges.txt."""
    pytest.importorskip("mmflow.torchaudio_cpu", exc_type=ImportError)  # lets transformers see one that imports
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    tokens, merges = module._read(published)
    (folder / "vocab.json").write_text(json.dumps(tokens))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    return transformers.CLIPTokenizer.from_pretrained(folder), folder


def test_the_vocabulary_is_the_same_in_all_its_files(published, clip_of_transformers, tmp_path):
    peer, folder = clip_of_transformers
    peer.save_pretrained(tmp_path / "json")
    tokenizers = [BytePairTokenizer(path) for path in (published, folder, tmp_path / "json")]
    tokenizers[0].save(tmp_path / "ours.json")
    tokenizers.append(BytePairTokenizer(tmp_path / "ours.json"))
    (tmp_path / "plain.txt").write_bytes(gzip.decompress(published.read_bytes()))
    tokenizers.append(BytePairTokenizer(tmp_path / "plain.txt"))
    assert {tokenizer.fingerprint for tokenizer in tokenizers} == {"bb1f878e51006f6d"}
    texts = ["a photo of a cat", "hello, world 42"]
    assert all(torch.equal(t.encode(texts).tokens, tokenizers[0].encode(texts).tokens) for t in tokenizers)


def test_transformers_reads_what_is_saved(published, clip_of_transformers, tmp_path):
    peer, _ = clip_of_transformers
    BytePairTokenizer(published).save(tmp_path / "tokenizer.json")
    again = type(peer).from_pretrained(tmp_path)
    assert again("A photo of a cat!")["input_ids"] == peer("A photo of a cat!")["input_ids"]


# how texts are read


def test_numbers_are_bytes_then_bytes_that_end_words_then_merges_then_start_and_end(toy):
    tokenizer = BytePairTokenizer(toy, context=12)
    assert tokenizer.vocab_size == 512 + len(MERGES) + 2
    assert (tokenizer.before, tokenizer.end_id, tokenizer.pad_id) == ([524], 525, 0)
    assert words_of(tokenizer, "the cat") == [512 + 1, 512 + 3]
    assert words_of(tokenizer, "!") == [256]  # byte 33, which is the first letter, at the end of a word
    assert words_of(tokenizer, "!!") == [0, 256]
    assert words_of(tokenizer, "cab") == [512 + 2, 256 + ord("b") - 33]
    assert words_of(tokenizer, "\u00a1") == [126, 350]  # bytes 0xC2 and 0xA1


def test_tokens_of_a_toy_vocabulary_are_those_of_open_clip(toy, tmp_path):
    peer_module = pytest.importorskip("open_clip").tokenizer
    with gzip.open(tmp_path / "merges.txt.gz", "wb") as file:
        file.write(toy.read_bytes())
    peer = peer_module.SimpleTokenizer(str(tmp_path / "merges.txt.gz"), context_length=16)
    tokenizer = BytePairTokenizer(tmp_path / "merges.txt.gz", context=16, repair=True)
    assert tokenizer.vocab_size == peer.vocab_size
    for text in [*NASTY, *TYPOGRAPHIC]:
        assert torch.equal(tokenizer.encode([text]).tokens, peer([text])), text


def test_texts_are_cleaned(toy):
    tokenizer = BytePairTokenizer(toy)
    assert tokenizer.clean("  The &amp;amp; \n CAT\u3000&lt;3 cafe\u0301 ") == "the & cat <3 caf\u00e9"
    assert BytePairTokenizer(toy, repair=True).clean("\u201cDon\u2019t\u201d") == '"don\'t"'
    assert tokenizer.clean("\u201cDon\u2019t\u201d") == "\u201cdon\u2019t\u201d"


def test_repair_needs_its_package(toy, monkeypatch):
    monkeypatch.setattr(module, "ftfy", None)
    assert words_of(BytePairTokenizer(toy), "the") == [513]
    with pytest.raises(ValueError, match="repair=True needs the package ftfy; pip install ftfy"):
        BytePairTokenizer(toy, repair=True)


def test_long_texts_keep_their_first_words_and_their_end_and_are_counted(toy):
    tokenizer = BytePairTokenizer(toy, context=5)
    encoded = tokenizer.encode(["the cat the", "the cat the cat", "the " * 90, "the"])
    assert encoded.tokens.tolist() == [
        [524, 513, 515, 513, 525],
        [524, 513, 515, 513, 525],
        [524, 513, 513, 513, 525],
        [524, 513, 525, 0, 0],
    ]
    assert encoded.truncated == 2
    with pytest.raises(ValueError, match="context=2 has no room for words; take 3 or more"):
        BytePairTokenizer(toy, context=2)


@pytest.mark.parametrize("text", ["", "  \n\t", "&nbsp; &#32;", "\u3000"])
def test_texts_without_words_are_bad_samples(toy, text):
    with pytest.raises(BadSample, match="is empty or white space; leave such samples out, or give words"):
        BytePairTokenizer(toy).encode(["the cat", text])


def test_texts_that_are_no_unicode_are_bad_samples(toy):
    with pytest.raises(BadSample, match=r"the text 'a \\ud800' is no Unicode: surrogates not allowed"):
        BytePairTokenizer(toy).encode(["a \ud800"])


def test_one_text_is_a_list_of_one(toy):
    with pytest.raises(ValueError, match=r"texts is the text 'the cat'; give a list of texts, \['the cat'\]"):
        BytePairTokenizer(toy).encode("the cat")


def test_a_tokenizer_goes_to_other_processes(toy):
    tokenizer = BytePairTokenizer(toy, context=8)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert torch.equal(again.encode(["the cat"]).tokens, tokenizer.encode(["the cat"]).tokens)


# vocabularies


def test_a_vocabulary_is_trained_and_loads_again(tmp_path):
    texts = ["a red ball on the left", "a blue box on the right", "the red box", "THE &amp; ball"] * 3
    tokenizer = BytePairTokenizer.train(texts, 530, context=20)
    assert tokenizer.vocab_size == 530
    assert (tokenizer.before, tokenizer.end_id) == ([528], 529)
    assert len(words_of(tokenizer, "the red box")) < len("theredbox")
    tokenizer.save(tmp_path / "words.json")
    again = BytePairTokenizer(tmp_path / "words.json", context=20)
    assert torch.equal(again.encode(texts).tokens, tokenizer.encode(texts).tokens)
    assert again.fingerprint == tokenizer.fingerprint == BytePairTokenizer.train(texts, 530).fingerprint
    text = "never seen: \U0001f600 z\u00fcrich"
    assert words_of(tokenizer, text)  # all bytes are there


def test_a_whole_word_is_one_token_in_the_end():
    tokenizer = BytePairTokenizer.train(["red ball"] * 2, 514 + 5)
    assert [len(words_of(tokenizer, word)) for word in ("red", "ball")] == [1, 1]


def test_sizes_that_the_texts_do_not_give():
    with pytest.raises(ValueError, match="vocab_size=1000 is more than the texts give; take 519 or less"):
        BytePairTokenizer.train(["red ball"], 1000)
    with pytest.raises(ValueError, match="vocab_size=300 is too small; bytes, start and end alone are 514"):
        BytePairTokenizer.train(["red ball"], 300)


def test_a_tokenizer_of_another_vocabulary_is_refused(toy):
    tokenizer, other = BytePairTokenizer(toy), BytePairTokenizer.train(["red ball"], 516)
    tokenizer.check(BytePairTokenizer(toy, context=9).fingerprint)
    with pytest.raises(ValueError, match=r"a tokenizer of another vocabulary than the checkpoint's: .* of 526 tokens"):
        tokenizer.check(other.fingerprint)
    swapped = [*MERGES[2:4], *MERGES[:2], *MERGES[4:]]
    toy.write_text("\n".join(["#version: 0.2", *swapped]))
    assert BytePairTokenizer(toy).fingerprint != tokenizer.fingerprint


def test_files_that_are_no_vocabulary(tmp_path):
    def refused(name, content, what):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=what):
            BytePairTokenizer(path)

    with pytest.raises(ValueError, match=r"absent\.txt is not there; give the file bpe_simple_vocab_16e6\.txt\.gz"):
        BytePairTokenizer(tmp_path / "absent.txt")
    refused("plain.txt", "t h\nth e</w>", r"begins with 't h'; a file of merges begins with its #version")
    refused("three.txt", "#version: 0.2\nt h e", "'t h e' is no merge; each is two tokens")
    refused("twice.txt", "#version: 0.2\na b\na b", "the merges make the token 'ab' twice")
    refused("early.txt", "#version: 0.2\nth e", r"the vocabulary lacks \['th'\] \(1 in all\)")
    refused("cut.gz", gzip.compress(b"#version: 0.2\na b")[:-9], "cannot be read as text .* is it whole")
    refused("bytes.txt", b"\xff\xfe\x00", "cannot be read as text")
    refused("other.json", '{"a": 1}', "has no vocabulary under 'model'")
    refused("list.json", "[1]", r"holds a list; it should be an object")
    refused(
        "gpt.json",
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
        "words end in None; CLIP's byte pairs are a BPE with '</w>'",
    )


# SigLIP


@pytest.fixture
def pieces(tmp_path) -> Path:
    """A tokenizer.json of sentence pieces, with settings of its own for padding that must not matter."""
    scores = [
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -3.0),
        ("\u2581a", -2.0),
        ("\u2581cat", -2.5),
        ("\u2581red", -2.5),
    ]
    scores += [(letter, -5.0) for letter in "acdert"]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=1, byte_fallback=False))
    tokenizer.normalizer = normalizers.Nmt()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    tokenizer.enable_padding(length=3)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_sentence_pieces_fill_the_whole_context_with_ends(pieces):
    tokenizer = SentencePieceTokenizer(pieces, context=6)
    encoded = tokenizer.encode(["A red, red CAT!", "a_cat  ", "red red red red red red"])
    assert encoded.truncated == 1
    assert encoded.tokens[0].tolist() == [3, 5, 5, 4, 0, 0]
    assert encoded.tokens[2].tolist() == [5, 5, 5, 5, 5, 0]
    assert tokenizer.clean(" A_b, C-d!\n") == "ab cd"
    assert tokenizer.vocab_size == 12


def test_sentence_pieces_of_another_vocabulary_and_none(pieces, toy):
    tokenizer = SentencePieceTokenizer(pieces / "tokenizer.json")
    assert tokenizer.context == 64
    with pytest.raises(ValueError, match="another vocabulary than the checkpoint's"):
        tokenizer.check("0123456789abcdef")
    with pytest.raises(BadSample, match=r"the text '\?!' is empty"):
        tokenizer.encode(["?!"])
    BytePairTokenizer(toy).save(pieces / "bytes.json")
    with pytest.raises(ValueError, match="has a model of type 'BPE'; SigLIP's sentence pieces are a Unigram"):
        SentencePieceTokenizer(pieces / "bytes.json")
    with pytest.raises(ValueError, match=r"has a Unigram whose words end in None"):
        BytePairTokenizer(pieces)
    settings = json.loads((pieces / "tokenizer.json").read_text())
    settings["model"]["vocab"][0][0] = "<eos>"
    settings["added_tokens"] = []
    (pieces / "other.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="has no token '</s>', which ends and fills up the texts of SigLIP"):
        SentencePieceTokenizer(pieces / "other.json")


# real captions


@pytest.fixture(scope="module")
def captions(real_data) -> list[str]:
    lines = (real_data / "flickr8k" / "captions.txt").read_text().splitlines()[1:]
    return [line.partition(",")[2] for line in lines[:1500]]


def test_real_captions_have_the_tokens_of_open_clip(published, captions):
    peer = pytest.importorskip("open_clip").tokenizer.SimpleTokenizer(str(published))
    encoded = BytePairTokenizer(published, repair=True).encode(captions)
    assert torch.equal(encoded.tokens, peer(captions))
    assert encoded.truncated == 0


def test_a_vocabulary_of_real_captions_shortens_those_it_has_not_seen(captions):
    seen, others = captions[::2], captions[1::2]
    lengths = {}
    for size in (514, 1000, 2000):
        tokenizer = BytePairTokenizer.train(seen, size)
        lengths[size] = (tokenizer.encode(others).tokens != tokenizer.pad_id).sum().item() / len(others)
    assert lengths[514] > 2 * lengths[1000] > 2 * lengths[2000] > 20
    words = sum(len(text.split()) for text in others) / len(others)
    assert lengths[2000] < 1.6 * words + 2
