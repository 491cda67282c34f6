"""`homerun export`: a run's model in Hugging Face's format, proven equal."""

import sys
from pathlib import Path

import typer

from homerun.commands._models import find_source
from homerun.errors import RequestError
from homerun.settings import Settings


def command(
    run: str = typer.Argument(metavar="RUN|DIR", help="A run's id, `latest`, or a folder."),
    out: Path = typer.Argument(help="The folder to make."),
    format: str = typer.Option("hf", help="hf: safetensors, config and tokenizer for transformers."),
    model: str = typer.Option("", help="A checkpoint's id or its beginning (base, sft-d20); unset: the best there is."),
    step: str = typer.Option(None, help="For a run in the bucket: `last`, `best` or a step; unset: the last."),
    push: str = typer.Option(None, metavar="USER/NAME", help="Upload it to this repository on the Hub, with HF_TOKEN."),
) -> None:
    """Write a model that transformers loads as NanoChatForCausalLM; refused where it would not be the same model.

    Examples:

        homerun export latest ./my-model

        homerun export nanochat-d20-20261121T023100Z-1f3a ./my-model --push me/my-nanochat
    """
    if format != "hf":
        raise RequestError(f"--format {format} is not known", "Use --format hf")
    settings = Settings.load()
    if push and not settings.hf_token:
        raise RequestError("--push needs HF_TOKEN, which is not set", "export HF_TOKEN=hf_...")
    try:
        import transformers  # noqa: F401

        from homerun.serve.export import export
    except ImportError as error:
        raise RequestError(f"{error.name} is not installed", "pip install 'homerun[export]'") from None
    from homerun.serve.checkpoints import choose, find_checkpoints, find_tree

    source = find_source(settings, run, step)
    there = find_checkpoints(find_tree(source.folder))
    checkpoint = choose(there, model)
    if checkpoint is None:
        raise RequestError(f"no checkpoint {model!r}", "There are: " + (", ".join(c.id for c in there) or "none"))
    difference = export(checkpoint, out, source.metadata())
    print(f"{checkpoint.id}: logits differ by at most {difference:.1e}", file=sys.stderr)
    print(out)
    if push:
        assert settings.hf_token
        print(_push(out, push, settings.hf_token.get_secret_value()))


def _push(folder: Path, repo: str, token: str) -> str:
    """Upload `folder`; the URL. A new repository is private: its owner decides who sees it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder)
    except (HfHubHTTPError, ValueError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise RequestError(f"the Hub did not take {repo}: {first}", "Check the name and HF_TOKEN's rights") from None
    return f"{api.endpoint}/{repo}"
