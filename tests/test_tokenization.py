"""The tokenizer: what it learns from captions, and that ids and text go both ways without loss."""

import copy
import csv
import pickle
import random
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nic_hf.languages import is_unspaced
from nic_hf.tokenization import train_tokenizer, vocabulary_coverage

PAD, BOS, EOS, UNK = range(4)
CAPTIONS = [
    "A man's dog runs on the beach .",
    "A dog (wet) runs , then sleeps !",
    "Two dogs in a t-shirt at 5 o'clock : do not laugh .",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(CAPTIONS, min_frequency=1)


@pytest.fixture(scope="module")
def punctuating() -> PreTrainedTokenizerFast:
    return train_tokenizer(CAPTIONS, min_frequency=1, keep_punctuation=True)


@pytest.fixture(scope="module")
def flickr_captions(flickr8k: Path) -> list[tuple[str, str]]:
    with (flickr8k / "captions.txt").open(encoding="utf-8", newline="") as file:
        return [(row["image"], row["caption"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def train_captions(flickr8k: Path, flickr_captions: list[tuple[str, str]]) -> list[str]:
    names = set((flickr8k / "Flickr_8k.trainImages.txt").read_text().split())
    return [caption for name, caption in flickr_captions if name in names]


@pytest.fixture(scope="module")
def flickr_tokenizer(train_captions: list[str]) -> PreTrainedTokenizerFast:
    return train_tokenizer(train_captions)


def words_by_hand(text: str) -> list[str]:
    """The words of a caption, found letter by letter instead of by a regular expression."""
    text = unicodedata.normalize("NFKC", text).lower().translate(dict.fromkeys(map(ord, "`’‘"), "'"))
    words, start = [], 0
    while start < len(text):
        if text[start:].startswith("'s") and not text[start + 2 : start + 3].isalnum():
            words.append("'s")
            start += 2
        elif text[start].isalnum():
            end = start
            while text[end : end + 1].isalnum() or (
                text[end : end + 1] in set("-'&./")
                and text[end + 1 : end + 2].isalnum()
                and not (text[end:].startswith("'s") and not text[end + 2 : end + 3].isalnum())
            ):
                end += 1
            words.append(text[start:end])
            start = end
        else:
            start += 1
    return words


def test_special_tokens_have_the_first_four_ids(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(4)) == ["<pad>", "<bos>", "<eos>", "<unk>"]
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (PAD, BOS, EOS, UNK)
    assert sorted(tokenizer.all_special_ids) == [PAD, BOS, EOS, UNK]


def test_the_vocabulary_of_flickr8k_has_the_known_size(train_captions):
    assert len(train_captions) == 30_000
    start = time.perf_counter()
    five_times = train_tokenizer(train_captions)
    seconds = time.perf_counter() - start
    assert len(five_times) == 2_536 + 4
    assert len(train_tokenizer(train_captions, min_frequency=4)) == 2_919 + 4
    assert seconds < 30  # about 1 s on an idle machine; the bound only catches quadratic behaviour


def test_words_are_ordered_by_frequency_and_then_alphabetically():
    tokenizer = train_tokenizer(["c b b a", "a d d d"], min_frequency=1)
    assert tokenizer.convert_ids_to_tokens(range(4, 8)) == ["d", "a", "b", "c"]


def test_the_order_of_the_captions_does_not_matter(train_captions, flickr_tokenizer):
    shuffled = random.Random(1).sample(train_captions, len(train_captions))
    assert train_tokenizer(iter(shuffled)).backend_tokenizer.to_str() == flickr_tokenizer.backend_tokenizer.to_str()


def test_rarer_words_are_unknown():
    tokenizer = train_tokenizer(["dog dog cat"], min_frequency=2)
    assert tokenizer("dog cat").input_ids == [4, UNK, EOS]


def test_coverage_is_the_share_of_running_words():
    tokenizer = train_tokenizer(["dog runs"], min_frequency=1)
    assert vocabulary_coverage(tokenizer, ["Dog, dog!", "a cat runs"]) == 3 / 5
    with pytest.raises(ValueError, match="no words"):
        vocabulary_coverage(tokenizer, ["..."])


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A Dog runs .", ["a", "dog", "runs"]),
        ("a man's dog", ["a", "man", "'s", "dog"]),
        ("a man ’s dog", ["a", "man", "'s", "dog"]),
        ("a man´s, a man`s, a manʼs", ["a", "man", "'s"] * 3),
        ("the dogs' toys", ["the", "dogs", "toys"]),
        ("t-shirt, O'Sullivan, AT&T, S.C.U.B.A., and/or", ["t-shirt", "o'sullivan", "at&t", "s.c.u.b.a", "and/or"]),
        ("slip 'n 'slide -- ok...", ["slip", "n", "slide", "ok"]),
        ("ﬁsh ＡＢＣ １２", ["fish", "abc", "12"]),
        ("a dog 🐕 ❤️ 👨‍👩‍👧", ["a", "dog"]),
        ("cafe\u0301 ÉTÉ", ["café", "été"]),
        ("हिन्दी שָׁלוֹם", ["हिन्दी", "שָׁלוֹם"]),
        ("snake_case $5 50%", ["snake", "case", "5", "50"]),
        ("", []),
        (" .,! ", []),
    ],
)
def test_a_caption_is_cut_into_words(caption, words):
    tokenizer = train_tokenizer([" ".join(words), "filler"], min_frequency=1)
    assert tokenizer.convert_ids_to_tokens(tokenizer(caption).input_ids) == [*words, "<eos>"]


def test_ids_end_with_eos_and_start_without_bos(tokenizer):
    ids = tokenizer("A dog runs .").input_ids
    assert ids[-1] == EOS and BOS not in ids
    assert tokenizer("A dog runs .", add_special_tokens=False).input_ids == ids[:-1]


def test_a_batch_is_padded_on_the_right_with_zeros(tokenizer):
    batch = tokenizer(["a dog runs", "a dog"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch.input_ids[1].tolist() == [*tokenizer("a dog").input_ids, PAD]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_truncation_keeps_eos():
    tokenizer = train_tokenizer(["a"], min_frequency=1, max_length=5)
    assert tokenizer("a " * 9, truncation=True).input_ids == [4, 4, 4, 4, EOS]


@pytest.mark.parametrize("text", ["<pad>", "<bos>", "<eos>", "<unk>", "a <unk> dog <eos> runs", "<<eos>>", "<eos"])
@pytest.mark.parametrize("reload", [lambda t: t, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_a_caption_cannot_inject_control_tokens(tmp_path, tokenizer, punctuating, text, reload):
    for trained in (tokenizer, punctuating):
        trained.save_pretrained(tmp_path)
        for tested in (reload(trained), AutoTokenizer.from_pretrained(tmp_path)):
            plain = text.translate(dict.fromkeys(map(ord, "<>"), " < " if trained is punctuating else " "))
            ids = tested(text).input_ids
            assert not {PAD, BOS, EOS} & set(ids[:-1])
            assert len(ids) == len(tested(plain).input_ids)
    with_names = train_tokenizer(["pad bos eos unk"], min_frequency=1)
    assert UNK not in with_names("<pad> <bos> <eos> <unk>").input_ids


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["a", "man", "'s", "dog"], "a man's dog"),
        (["'s", "dog"], "'s dog"),
        (["do", "not", "laugh"], "do not laugh"),
        (["a", "t-shirt", "at", "5", "o'clock"], "a t-shirt at 5 o'clock"),
        ([], ""),
    ],
)
def test_decoding_gives_plain_text(tokenizer, tokens, text):
    ids = [BOS, *tokenizer.convert_tokens_to_ids(tokens), EOS, PAD, PAD]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.batch_decode([ids], skip_special_tokens=True) == [text]


def test_special_tokens_are_decoded_when_asked_for(tokenizer):
    ids = [BOS, *tokenizer("a zebra 's dog").input_ids, PAD]
    assert tokenizer.decode(ids) == "<bos> a <unk>'s dog <eos> <pad>"


def test_decoding_glues_kept_punctuation(punctuating):
    ids = punctuating("A DOG ( wet ) runs , then sleeps ! Do not laugh : the man 's dog .").input_ids
    text = punctuating.decode(ids, skip_special_tokens=True)
    assert text == "a dog (wet) runs, then sleeps! do not laugh: the man's dog."
    assert punctuating(text).input_ids == ids


def test_flickr8k_captions_survive_the_round_trip(flickr_captions, flickr_tokenizer):
    captions = [caption for _, caption in flickr_captions]
    encoded = flickr_tokenizer(captions).input_ids
    known = [(caption, ids) for caption, ids in zip(captions, encoded, strict=True) if UNK not in ids]
    assert len(known) > 29_000
    decoded = flickr_tokenizer.batch_decode([ids for _, ids in known], skip_special_tokens=True)
    assert decoded == [" ".join(words_by_hand(caption)).replace(" 's", "'s") for caption, _ in known]
    assert flickr_tokenizer(decoded).input_ids == [ids for _, ids in known]


def test_flickr8k_captions_survive_the_round_trip_with_punctuation(flickr_captions, train_captions):
    tokenizer = train_tokenizer(train_captions, keep_punctuation=True)
    encoded = tokenizer([caption for _, caption in flickr_captions]).input_ids
    known = [ids for ids in encoded if UNK not in ids]
    assert len(known) > 29_000
    assert tokenizer(tokenizer.batch_decode(known, skip_special_tokens=True)).input_ids == known


def test_a_saved_tokenizer_needs_nothing_but_transformers(tmp_path, flickr_tokenizer, train_captions):
    flickr_tokenizer.save_pretrained(tmp_path)
    program = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "from transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "assert 'nic_hf' not in sys.modules\n"
        "print(tokenizer('A man’s dog <eos> runs .').input_ids)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout.strip() == str(flickr_tokenizer("A man’s dog <eos> runs .").input_ids)
    assert not result.stderr


@pytest.mark.parametrize("loader", [AutoTokenizer, PreTrainedTokenizerFast])
def test_a_saved_tokenizer_loads_identical(tmp_path, flickr_tokenizer, train_captions, loader):
    flickr_tokenizer.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert loaded.backend_tokenizer.to_str() == flickr_tokenizer.backend_tokenizer.to_str()
    for name in (
        "padding_side",
        "model_max_length",
        "model_input_names",
        "special_tokens_map",
        "split_special_tokens",
    ):
        assert getattr(loaded, name) == getattr(flickr_tokenizer, name), name
    sample = train_captions[:2_000]
    assert loaded(sample).data == flickr_tokenizer(sample).data
    ids = loaded(sample).input_ids
    assert loaded.batch_decode(ids) == flickr_tokenizer.batch_decode(ids)


def test_tokenizer_json_alone_encodes_and_decodes(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = backend.encode("A man's dog runs !").ids
    assert ids == tokenizer("A man's dog runs !").input_ids
    assert backend.decode(ids) == "a man's dog runs"


EVIL_TEXT = st.text(st.characters(codec="utf-8"), max_size=200) | st.text(
    "aAsS'’`´.-&/ ()#$\"!<>\u0301\u200d\ufe0f🐕ßİſŉﬁ½ΣςאשÀ\x00\u2028\U0010ffff", max_size=40
)


@given(text=EVIL_TEXT)
@settings(max_examples=500, deadline=None)
def test_any_unicode_gives_ids_in_range_that_end_with_eos(tokenizer, punctuating, text):
    for tested in (tokenizer, punctuating):
        ids = tested(text).input_ids
        assert ids[-1] == EOS
        assert all(index == UNK or 4 <= index < len(tested) for index in ids[:-1])


@given(text=EVIL_TEXT, keep_punctuation=st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_text_survives_the_round_trip_once_its_words_are_known(text, keep_punctuation):
    tokenizer = train_tokenizer([text, "filler"], min_frequency=1, keep_punctuation=keep_punctuation)
    ids = tokenizer(text).input_ids
    assert UNK not in ids
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    again = tokenizer(decoded).input_ids
    # Without spaces, words that punctuation stood between may be cut at other places.
    assert again == ids or (is_unspaced(text) and tokenizer.decode(again, skip_special_tokens=True) == decoded)


@pytest.mark.parametrize("piece", ["a", "a-", "'s", "-a", "a\u0301", "'", "a's-", "\x00", "🐕", "ש", "a "])
def test_a_100_kb_caption_is_encoded(tokenizer, piece):
    ids = tokenizer(piece * (100_000 // len(piece.encode()))).input_ids
    assert ids[-1] == EOS and max(ids) < len(tokenizer)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ([], "no captions"),
        (iter(()), "no captions"),
        ("a dog runs", "got str"),
        (b"a dog runs", "got bytes"),
        ({"dog.jpg": ["a dog runs"]}, "got dict"),
        (["a dog", None], "caption 1 is a NoneType, not a string: None"),
        (["a dog", "a cat", ["a dog", "a cow"]], "caption 2 is a list, not a string: .*cow"),
        (["a dog", float("nan")], "caption 1 is a float, not a string: nan"),
        (["a dog", "a \ud83d"], "caption 1 is not valid Unicode"),
        (
            ["a dog", "a cat", "..."],
            "no word occurs 5 times: .* 3 distinct words, .* most 2 times; lower min_frequency",
        ),
        (["...", "!"], "0 distinct words"),
    ],
)
def test_captions_that_teach_nothing_are_refused(captions, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(captions)


@pytest.mark.parametrize("name", ["min_frequency", "max_length"])
def test_limits_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        train_tokenizer(["a dog"], **{name: 0})


def test_few_captions_keep_rarer_words(caplog: pytest.LogCaptureFixture) -> None:
    """The number is the largest up to 5 at which at most a tenth of the running words is unknown."""
    few = ["a dog runs on grass", "a cat sleeps", "a dog barks"]
    many = few * 5
    rare = [*many, "an unheard-of word"]  # three of 58 words
    assert train_tokenizer(many, None).get_vocab() == train_tokenizer(many, 5).get_vocab()
    assert train_tokenizer(rare, None).get_vocab() == train_tokenizer(rare, 5).get_vocab()
    assert not caplog.text
    with caplog.at_level("INFO"):
        assert train_tokenizer(few, None).get_vocab() == train_tokenizer(few, 1).get_vocab()
    assert "words that occur 1 times or more are learned, instead of 5" in caplog.text
    twice = ["a dog runs"] * 2
    assert train_tokenizer(twice, None).get_vocab() == train_tokenizer(twice, 2).get_vocab()
