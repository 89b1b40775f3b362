"""``clever3d list`` and ``clever3d info``: what the zoo has."""

from __future__ import annotations

import json
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def list_(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a shell pattern such as 'minkunet*'.")] = "*",
    as_json: AsJson = False,
) -> None:
    """List the backbones, with which of them have weights."""
    from clever3d.zoo import backbone_info, list_backbones

    glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    found = [backbone_info(name) for name in list_backbones(glob)]
    if as_json:
        typer.echo(json.dumps([{**one.to_dict(), "aliases": list(one.aliases)} for one in found], indent=2))
        return
    if not found:
        typer.echo(f"clever3d: no backbone matches {pattern!r}; clever3d list shows all", err=True)
        raise typer.Exit(1)
    rows = [("NAME", "SHORT", "WEIGHTS", "PARAMETERS", "FEATURES", "LICENCE")]
    for one in found:
        weights = "not trained yet" if one.status == "recipe" else one.status
        licence = one.weights_licence if one.has_weights else "-"
        size = f"{one.parameters / 1e6:.1f} M"
        rows.append((one.name, ", ".join(one.aliases) or "-", weights, size, str(one.feature_dim), licence))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def info(
    name: Annotated[str, typer.Argument(help="Full or short name of a backbone; see clever3d list.")],
    as_json: AsJson = False,
) -> None:
    """Show all that is known of a backbone: input, teacher, data, licence, metrics, where its weights are."""
    from clever3d.zoo import backbone_info

    found = backbone_info(name)
    if as_json:
        typer.echo(json.dumps({**found.to_dict(), "aliases": list(found.aliases)}, indent=2))
    else:
        typer.echo(str(found))
