"""``clever3d publish``: a checkpoint onto the Hugging Face Hub, with its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from clever3d.cli.extract import interrupt_later, say_progress
from clever3d.errors import DataError, InputError


def publish(
    source: Annotated[str, typer.Argument(help="Checkpoint, folder or name (see clever3d list).", metavar="SOURCE")],
    repository: Annotated[
        str | None, typer.Argument(help="Repository of the Hub: organisation/name.", metavar="REPOSITORY")
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--record", help="JSON file with what the checkpoint does not know of itself.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository a private one; one that is public is then an error.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch to commit to.", show_default="main")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store the parameters as float16.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Only write the files to this folder; publish nothing.")
    ] = None,
    template: Annotated[bool, typer.Option("--template", help="Only print a record to fill in.")] = False,
) -> None:
    """Publish a backbone: weights, config.json and a model card, in one commit.

    The card is made from the record: teacher, data, licences, metrics with
    their protocol, limits, provenance. A checkpoint of clever3d-train knows its
    network; you say the rest in a JSON file. Afterwards the manifest record is
    printed, for a manifest of your own (CLEVER3D_MANIFEST).

    Example: clever3d publish runs/mine/student.safetensors --template > record.json
    clever3d publish runs/mine/student.safetensors me/minkunet18-mine --record record.json --private
    """
    if repository is None and folder is None and not template:
        raise InputError(
            "say where to: a REPOSITORY (organisation/name), or --folder FOLDER to look at the files first"
        )
    with interrupt_later():
        import torch

        from clever3d.zoo import load_backbone, push_to_hub, save_pretrained
        from clever3d.zoo.manifest import format_json
        from clever3d.zoo.publish import complete_record, known_record, record_template

    backbone = load_backbone(source)
    if template:
        typer.echo(format_json(record_template(backbone)), nl=False)
        return
    whole = complete_record(backbone, {**known_record(backbone), **_read_record(record)})
    dtype = torch.float16 if half else None
    if folder is not None:
        save_pretrained(backbone, folder, record=whole, dtype=dtype, repository=repository or "ORGANISATION/NAME")
        typer.echo(f"wrote     {folder} (nothing was published); load it: load_backbone({str(folder)!r})")
        return
    assert repository is not None
    say_progress(f"publishing {whole['name']} in {repository}")
    done = push_to_hub(backbone, repository, record=whole, private=private, revision=revision, dtype=dtype)
    typer.echo(f"published {done.address} at {done.commit}; its record, for a manifest:", err=True)
    typer.echo(format_json(done.record), nl=False)


def _read_record(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object: clever3d publish CHECKPOINT --template prints one to fill in")
    return content
