import pytest

from nic_hf.evaluation.ptb import ptb_tokenize


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("", ""),
        ("We cannot see the T-shirt .", "we can not see the t-shirt"),
        ("A 4x4 near 3rd St .", "a 4x4 near 3rd st"),
        ("a five o'clock shadow", "a five o'clock shadow"),
        ("a grey dog", "a grey dog"),
    ],
)
def test_tokens_are_those_of_the_java_tool(caption: str, tokens: str) -> None:
    assert " ".join(ptb_tokenize(caption)) == tokens
