"""Where Transformers' own test suites come from."""

from pathlib import Path

import pytest
import transformers
import upstream


def test_the_suites_are_those_of_the_installed_version() -> None:
    try:
        folder = upstream.upstream_tests()
    except OSError as error:
        pytest.skip(str(error))
    assert (folder / "test_processing_common.py").is_file()
    assert (folder / "test_modeling_common.py").is_file()
    assert folder.parent.name == f"transformers-{transformers.__version__}"
    assert Path(__file__).parents[1] not in folder.parents


def test_without_a_network_their_tests_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr(upstream, "upstream_tests", upstream.upstream_tests.__wrapped__)
    with pytest.raises(pytest.skip.Exception, match=r"the source of Transformers [\d.]+ cannot be downloaded: "):
        upstream.import_suite("test_processing_common")
    assert list((tmp_path / "nic_hf_tests").iterdir()) == []
