"""`nic push`."""

from pathlib import Path
from typing import Annotated

import typer

from .card import CAPTIONER
from .checks import check_own_captioner
from .terminal import print_json, reported


def push(
    captioner: Annotated[Path, CAPTIONER],
    repo: Annotated[
        str, typer.Argument(help="Repository on the Hub: owner/name; created if it does not exist.", metavar="REPO")
    ],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload captioner",
    onnx: Annotated[bool, typer.Option("--onnx", help="Push exported ONNX files too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the commit as JSON.")] = False,
) -> None:
    """Push a captioner to the Hugging Face Hub.

    Pushes weights, code, tokenizer, processor, generation config, recipe and model card in one commit. Sample captions
    and logs, which show photos of the training data, are not pushed. The token is from `hf auth login` or HF_TOKEN.

    Exit code: 0 on success, 2 on an error, 130 after Ctrl-C; after an error the repository is unchanged.

    \b
    Example:
      nic push runs/flickr8k me/flickr8k-captioner --private
    """
    with reported("push", "stopped; the repository is unchanged"):
        check_own_captioner(captioner)
        from ..training.hub_upload import push_captioner

        commit = push_captioner(
            captioner, repo, private=private or None, revision=revision, message=message, onnx=onnx
        )
    if as_json:
        print_json({"repo": repo, "revision": revision or "main", "commit": commit.oid, "url": commit.commit_url})
    else:
        typer.echo(commit.commit_url)
