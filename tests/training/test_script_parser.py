"""`--help` of the examples shows their own options, `--help_all` Trainer's too."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "own"),
    [("train_captioner", ["--backbone", "--from_checkpoint"]), ("train_self_critical", ["--checkpoint"])],
)
def test_help_shows_own_options_and_help_all_the_others(
    name: str, own: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    texts = {}
    for option in ("--help", "--help_all"):
        monkeypatch.setattr("sys.argv", [f"{name}.py", option])
        with pytest.raises(SystemExit) as ended:
            example(name).main()
        assert ended.value.code == 0
        texts[option] = capsys.readouterr().out
    short, whole = (re.findall(r"^  (?:-h, )?(--\w+)", texts[option], re.MULTILINE) for option in texts)
    assert {*own, "--data", "--learning_rate", "--output_dir", "--help_all"} <= set(short)
    assert not {"--fsdp", "--deepspeed", "--optim", "--hub_token"} & set(short)
    assert {"--fsdp", "--optim", "--hub_token", *short} <= set(whole)
    assert texts["--help"].count("\n") < 250 and "--help_all also shows Trainer's other options." in texts["--help"]
    assert texts["--help"].startswith(f"usage: {name}.py --OPTION VALUE ...\n")
