"""The ``clever3d`` command. Thin: torch and everything else that is heavy is imported inside the commands."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from clever3d._version import __version__
from clever3d.cli import data, rig
from clever3d.cli.bench import bench
from clever3d.cli.convert import convert
from clever3d.cli.demo import demo
from clever3d.cli.export import export
from clever3d.cli.extract import extract
from clever3d.cli.publish import publish
from clever3d.cli.synth import synth
from clever3d.cli.zoo import info, list_
from clever3d.errors import Clever3dError, InputWarning

app = typer.Typer(
    name="clever3d",
    help="LiDAR backbones distilled from 2D foundation models: a feature for every point of a scan.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the ``clever3d`` command."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clever3d {__version__}")
        raise typer.Exit


@app.callback()
def _before(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    plain = warnings.formatwarning

    def without_source_line(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> str:
        if issubclass(category, InputWarning):
            return f"WARNING: {message}\n"
        return plain(message, category, *args, **kwargs)

    warnings.formatwarning = without_source_line


def _add(name: str, command: Callable[..., None], group: typer.Typer = app) -> None:
    """Register a command that answers our own errors with their message on stderr and exit status 2."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("clever3d: interrupted", err=True)
            raise typer.Exit(130) from None
        except Clever3dError as error:
            if os.environ.get("CLEVER3D_DEBUG"):
                raise
            typer.echo(f"clever3d: {error}", err=True)
            raise typer.Exit(2) from None

    group.command(name)(guarded)


def _group(name: str, text: str) -> typer.Typer:
    """A command with commands of its own."""
    group = typer.Typer(help=text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.add_typer(group, name=name)
    return group


_add("demo", demo)
_add("extract", extract)
_add("list", list_)
_add("info", info)
_add("convert", convert)
_add("export", export)
_add("publish", publish)
_add("bench", bench)
_add("synth", synth)

_data = _group("data", "Look after data sets.")
_add("check", data.check, _data)
_add("info", data.info, _data)

_rig = _group("rig", "A data set of your own sensors: a folder with scans, images and one YAML.")
_add("new", rig.new, _rig)
_add("check", rig.check, _rig)
