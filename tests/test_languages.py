"""The tokenizer on languages without spaces, and on Turkish: what it learns, and that text comes out as it went in."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from nic_hf import languages
from nic_hf.languages import longest_match, mirrored_word
from nic_hf.tokenization import extend_tokenizer, train_tokenizer, vocabulary_coverage

UNK, EOS = 3, 2
CHINESE = ["一只棕色的狗跳过木头", "两个孩子在沙滩上玩耍。", "一个男人穿着红色外套，拿着iPhone 15", "一只鸟停在电线上"]
# A sentence, the words that people see in it, and its characters where they are not single code points.
SENTENCES = [
    ("一只棕色的狗跳过木头", "一只 棕色 的 狗 跳 过 木头", None),
    ("茶色の犬が丸太を飛び越える", "茶色 の 犬 が 丸太 を 飛び越える", None),
    ("เด็กสองคนเล่นอยู่บนชายหาด", "เด็ก สอง คน เล่น อยู่ บน ชายหาด", "เ ด็ ก ส อ ง ค น เ ล่ น อ ยู่ บ น ช า ย ห า ด"),
    ("กระโดดน้ำ", "กระโดด น้ำ", "ก ร ะ โ ด ด น้ำ"),
    ("ກຳລັງຫຼິ້ນນ້ຳ", "ກຳລັງ ຫຼິ້ນ ນ້ຳ", "ກຳ ລັ ງ ຫຼິ້ ນ ນ້ຳ"),
    ("ក្មេងពីរនាក់លេងនៅលើខ្សាច់", "ក្មេង ពីរ នាក់ លេង នៅ លើ ខ្សាច់", "ក្មេ ង ពី រ នា ក់ លេ ង នៅ លើ ខ្សា ច់"),
    ("ကလေးနှစ်ယောက်ကစားနေသည်", "ကလေး နှစ် ယောက် ကစား နေသည်", "က လေး နှ စ် ယော က် က စား နေ သ ည်"),
]


def tokens(tokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.fixture
def without_icu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra `languages` is not installed."""
    monkeypatch.setitem(sys.modules, "icu4py", None)
    monkeypatch.setitem(sys.modules, "icu4py.breakers", None)
    monkeypatch.setattr(languages, "can_segment", lambda: False)
    monkeypatch.setattr("nic_hf.tokenization.can_segment", lambda: False)


@pytest.mark.parametrize(("sentence", "words", "characters"), SENTENCES)
def test_a_sentence_is_cut_into_its_words_or_characters(sentence, words, characters):
    pytest.importorskip("icu4py")
    for segmentation, expected in (("words", words), ("characters", characters or " ".join(sentence))):
        tokenizer = train_tokenizer([sentence], min_frequency=1, segmentation=segmentation)
        assert tokens(tokenizer, sentence) == expected.split()
        ids = tokenizer(sentence).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == sentence
        assert tokenizer.decode([1, *ids, 0, 0], skip_special_tokens=True) == sentence


@pytest.mark.parametrize("segmentation", ["words", "characters"])
def test_words_of_other_scripts_keep_their_spaces(segmentation):
    pytest.importorskip("icu4py")
    tokenizer = train_tokenizer(["一个 t-shirt 的man's dog 在跑3.5公里"], min_frequency=1, segmentation=segmentation)
    ids = tokenizer("一个 T-shirt 的man's dog 在跑3.5公里").input_ids
    assert UNK not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "一个 t-shirt 的 man's dog 在跑 3.5 公里"


def test_kept_punctuation_of_chinese_has_no_spaces_around_it():
    tokenizer = train_tokenizer(["一只狗。「两只」、狗"], min_frequency=1, keep_punctuation=True)
    ids = tokenizer("一只狗。「两只」、狗").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "一只狗。「两只」、狗"


def test_rare_words_fall_apart_into_characters_that_are_frequent():
    pytest.importorskip("icu4py")
    tokenizer = train_tokenizer(["红色外套", "红色", "红色", "外", "外"], min_frequency=3)
    assert tokens(tokenizer, "红色外套") == ["红色", "外", "<unk>"]


def test_every_word_of_the_vocabulary_is_one_that_the_tokenizer_cuts():
    """Longer words take the place of shorter ones, so that counts of the two have to agree."""
    tokenizer = train_tokenizer(CHINESE * 2, min_frequency=2)
    seen = {token for caption in CHINESE for token in tokens(tokenizer, caption)}
    assert seen - {"<unk>"} == set(tokenizer.get_vocab()) - {"<pad>", "<bos>", "<eos>", "<unk>"}


@pytest.mark.parametrize("segmentation", ["words", "characters"])
def test_the_saved_file_needs_nothing_but_transformers(tmp_path, segmentation):
    pytest.importorskip("icu4py")
    tokenizer = train_tokenizer(CHINESE, min_frequency=1, segmentation=segmentation)
    tokenizer.save_pretrained(tmp_path)
    program = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "assert not {'nic_hf', 'icu4py'} & set(sys.modules)\n"
        "ids = [tokenizer(text).input_ids for text in json.loads(sys.argv[2])]\n"
        "print(json.dumps([ids, tokenizer.batch_decode(ids)]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path), json.dumps(CHINESE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    ids = tokenizer(CHINESE).input_ids
    assert json.loads(done.stdout) == [ids, tokenizer.batch_decode(ids)]
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [backend.encode(caption).ids for caption in CHINESE] == ids
    assert backend.decode(ids[3]) == CHINESE[3]


def test_what_is_done_is_said(caplog, without_icu):
    caplog.set_level("INFO")
    assert tokens(train_tokenizer(CHINESE, min_frequency=1), "棕色的狗") == list("棕色的狗")
    assert "are split into characters, since icu4py" in caplog.text and "nic_hf[languages]" in caplog.text
    with pytest.raises(ImportError, match=r"nic_hf\[languages\]"):
        train_tokenizer(CHINESE, min_frequency=1, segmentation="words")


def test_words_found_are_said(caplog):
    pytest.importorskip("icu4py")
    caplog.set_level("INFO")
    train_tokenizer(CHINESE, min_frequency=1)
    assert caplog.messages == ["captions in a script without spaces are split into words by ICU"]


def test_a_stray_sign_leaves_an_english_tokenizer_as_it_is(caplog):
    caplog.set_level("INFO")
    english = ["a man holds a sign that says hello to all of us"] * 20
    sign = train_tokenizer([*english, "a sign with 禁止吸烟 on it"])
    assert (
        sign.backend_tokenizer.to_str()
        == train_tokenizer([*english, "a sign with xxxx on it"]).backend_tokenizer.to_str()
    )
    assert not caplog.messages
    forced = train_tokenizer([*english, "a sign with 禁止吸烟 on it"], min_frequency=1, segmentation="characters")
    assert tokens(forced, "禁止") == ["禁", "止"]


def test_spaces_alone_can_be_asked_for():
    tokenizer = train_tokenizer(["一只 棕色 的 狗"], min_frequency=1, segmentation="spaces")
    assert tokens(tokenizer, "一只 棕色 的 狗") == ["一只", "棕色", "的", "狗"]
    with pytest.raises(ValueError, match="segmentation must be one of auto, words, characters, spaces, got 'word'"):
        train_tokenizer(["a"], min_frequency=1, segmentation="word")


SOME_TEXT = st.text("一二的狗ーカ゛ガがก้ำนเ็ัກ້ຳཀ្កេမ်္aIıİi'-, 。、3ſ\u3099\ufe0f\u200b\U00020000\U000323b0", max_size=30)


@given(text=SOME_TEXT, segmentation=st.sampled_from(["characters", "words"]), keep=st.booleans())
@example(text="3'ſກ", segmentation="characters", keep=False)  # the possessive ends where another script begins
@example(text="'ſກ", segmentation="characters", keep=False)
@settings(max_examples=400, deadline=None)
def test_what_was_decoded_is_decoded_again(text, segmentation, keep):
    pytest.importorskip("icu4py")
    tokenizer = train_tokenizer([text, "filler"], min_frequency=1, segmentation=segmentation, keep_punctuation=keep)
    ids = tokenizer(text).input_ids
    assert UNK not in ids and ids[-1] == EOS
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(tokenizer(decoded).input_ids, skip_special_tokens=True) == decoded


FEW, MANY = "abc", "".join(map(chr, range(0x4E00, 0x4E00 + 60)))


@given(
    st.lists(st.text(FEW, min_size=1, max_size=4), min_size=1, max_size=8)
    | st.just([*MANY[::2], *(MANY[i] + MANY[i + 1] for i in range(0, 50, 3))]),
    st.text(FEW + "d", max_size=12) | st.text(MANY, max_size=12),
)
def test_the_longest_word_is_found_at_each_place(words, text):
    import re

    found, start = [], 0
    while start < len(text):
        word = max((word for word in words if text.startswith(word, start)), key=len, default="")
        found += [word] if word else []
        start += len(word) or 1
    assert re.findall(longest_match(words), text) == found


def test_turkish_words_are_one_word_in_either_case():
    tokenizer = train_tokenizer(["İstanbul'da IŞIKLI bir sokak", "ışıklı sokak, istanbul'da"], min_frequency=1)
    assert tokens(tokenizer, "IŞIKLI SOKAK İSTANBUL'DA") == ["ışıklı", "sokak", "istanbul'da"]
    assert tokenizer.decode(tokenizer("İSTANBUL'DA BİR").input_ids, skip_special_tokens=True) == "istanbul'da bir"
    assert tokens(tokenizer, "ışıklı sokak, i\u0307stanbul'da") != []


def test_a_dotted_i_in_english_breaks_nothing():
    tokenizer = train_tokenizer(["I saw İstanbul in istanbul"], min_frequency=1)
    assert tokens(tokenizer, "I saw İstanbul") == ["i", "saw", "istanbul"]


def test_an_extended_tokenizer_keeps_its_ids_and_cuts_both(tmp_path):
    english = train_tokenizer(["a man sees a dog", "a dog runs"], min_frequency=1)
    both = extend_tokenizer(english, CHINESE, min_frequency=1)
    assert {word: both.get_vocab()[word] for word in english.get_vocab()} == english.get_vocab()
    assert sorted(both.get_vocab().values()) == list(range(len(both)))
    assert both("a dog runs").input_ids == english("a dog runs").input_ids
    for caption in (CHINESE[0], "a man sees a dog"):
        ids = both(caption).input_ids
        assert UNK not in ids and both.decode(ids, skip_special_tokens=True) == caption
    both.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(CHINESE).input_ids == both(CHINESE).input_ids
    three = extend_tokenizer(AutoTokenizer.from_pretrained(tmp_path), ["Der Hund läuft"], min_frequency=1)
    assert three.convert_ids_to_tokens(list(range(len(both), len(three)))) == ["der", "hund", "läuft"]
    assert three(CHINESE).input_ids == both(CHINESE).input_ids


def test_characters_stay_characters_when_words_are_added():
    """A captioner that spells words must not see them whole, or its old rows would be of no use."""
    tokenizer = train_tokenizer(CHINESE[:2], min_frequency=1, segmentation="characters")
    extended = extend_tokenizer(tokenizer, CHINESE, min_frequency=1)
    assert all(len(token) == 1 for token in tokens(extended, "一个男人穿着红色外套"))


def test_nothing_new_is_no_error_and_other_tokenizers_are_refused():
    tokenizer = train_tokenizer(["a dog"], min_frequency=1)
    assert extend_tokenizer(tokenizer, ["a dog"], min_frequency=1).get_vocab() == tokenizer.get_vocab()
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match=r"can only be added to a tokenizer of nic_hf\.tokenization\.train_tokenizer"):
        extend_tokenizer(tokenizer, ["a cat"], min_frequency=1)


def test_what_a_minimum_frequency_costs_is_said(caplog):
    train_tokenizer(["a dog runs", "a cat sleeps"], min_frequency=2)
    assert (
        "66.7% of the words in the captions become <unk>: min_frequency=2 keeps 1 of 5 distinct words" in caplog.text
    )
    caplog.clear()
    train_tokenizer(["a dog runs", "a cat sleeps"], min_frequency=1)
    assert not caplog.messages


def test_chinese_is_foreign_to_an_english_vocabulary():
    assert vocabulary_coverage(train_tokenizer(["a dog"], min_frequency=1), CHINESE[:2]) == 0


def test_real_captions_lose_nothing_by_the_other_scripts(flickr8k: Path):
    """The words of English captions are the same beside Chinese ones."""
    lines = (flickr8k / "Flickr8k.token.txt").read_text("utf-8").splitlines()[:3000]
    english = [line.split("\t")[1] for line in lines]
    alone, mixed = train_tokenizer(english), train_tokenizer(english + CHINESE * 200)
    for caption in english:
        assert tokens(mixed, caption) == tokens(alone, caption)


@pytest.mark.parametrize(
    "pair", ["left right", "links rechts", "gauche droite", "左边 右边", "左 右", "ซ้าย ขวา", "sol sağ"]
)
def test_words_for_left_and_right_change_places_in_a_mirrored_photo(pair):
    left, right = pair.split()
    assert (mirrored_word(left), mirrored_word(right), mirrored_word("dog")) == (right, left, "dog")
