import json
import os
import subprocess
import sys

import pytest
import torch

from nmstep.tasks.language.subwords import Subwords

pytest.importorskip("tokenizers")
LINES = ["low lower lowest low\n", "new newer newest\n", "wide wider widest — ümlaut\n"] * 3


def test_any_text_comes_back():
    words = Subwords.learn(LINES, vocabulary=280)
    text = ["never seen: 漢字 \x00 <tag>\n", "low newest\n"]
    tokens, counts = words.encode(text)
    assert tokens.dtype == torch.int32
    assert words.decode(tokens.tolist()) == "".join(text)
    assert words.decode(tokens[: counts[0]].tolist()) == text[0]
    assert int(counts.sum()) == len(tokens)


def test_merges_are_learned_by_count():
    words = Subwords.learn(["abab abab abab\n"] * 2, vocabulary=258)
    vocabulary = json.loads(words._tokenizer.to_str())["model"]["vocab"]
    # "ab" stands 12 times; "ba", and "ab" twice, 6 times.
    assert vocabulary["ab"] == 256
    assert words.size == 258


def test_special_tokens_come_first_and_are_never_read_from_text():
    words = Subwords.learn(LINES, vocabulary=280, special=["[PAD]", "[MASK]"])
    assert (words.id("[PAD]"), words.id("[MASK]"), words.id("[CLS]")) == (0, 1, None)
    tokens, _ = words.encode(["a [MASK] b\n"])
    assert 1 not in tokens.tolist()
    assert words.decode(tokens.tolist()) == "a [MASK] b\n"


def test_no_text_gives_no_tokens():
    tokens, counts = Subwords.learn(LINES, vocabulary=260).encode([])
    assert (tokens.shape, counts.shape) == ((0,), (0,))


def test_the_order_of_lines_and_the_process_do_not_matter(tmp_path):
    # Many pairs tie here, which a hash order would break differently from process to process.
    lines = [f"{a}{b}{c} {c}{a}\n" for a in "abcdefgh" for b in "ijklmnop" for c in "qrst"]
    Subwords.learn(lines[::-1], vocabulary=400).save(str(tmp_path / "here.json"))
    code = (
        "import sys; from nmstep.tasks.language.subwords import Subwords\n"
        "lines = [f'{a}{b}{c} {c}{a}\\n' for a in 'abcdefgh' for b in 'ijklmnop' for c in 'qrst']\n"
        "Subwords.learn(lines, vocabulary=400).save(sys.argv[1])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "there.json"], check=True, env=environment)
    assert (tmp_path / "here.json").read_bytes() == (tmp_path / "there.json").read_bytes()


def test_a_saved_tokenizer_is_loaded_from_file_or_folder(tmp_path):
    words = Subwords.learn(LINES, vocabulary=280)
    words.save(str(tmp_path / "tokenizer.json"))
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        again = Subwords.load(str(place))
        assert torch.equal(again.encode(LINES)[0], words.encode(LINES)[0])
        assert again.size == 280


def test_errors_say_what_to_give(tmp_path):
    with pytest.raises(
        ValueError, match="vocabulary=100 is too small: 256 bytes and 0 special tokens need 256"
    ):
        Subwords.learn(LINES, vocabulary=100)
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at '.*tokenizer.json' \(given as tokenizer="):
        Subwords.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json' is no tokenizer of the tokenizers package"):
        Subwords.load(str(tmp_path))
