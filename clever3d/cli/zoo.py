"""``clever3d list`` and ``clever3d info``: what the zoo has."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from clever3d.zoo.records import BackboneInfo

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def list_(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a shell pattern such as 'minkunet*'.")] = "*",
    status: Annotated[
        str | None, typer.Option("--status", help="Only these: bundled, hub, external or recipe (nobody trained it).")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="Only those of this teacher: part of its name, such as dinov2_b.")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--licence", help="Only these weights: part of the licence's name, commercial or non-commercial."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the backbones, with which of them have weights.

    Example: clever3d list minkunet34 --teacher dinov2_b
    """
    from clever3d.zoo import backbone_info, list_backbones

    glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    names = list_backbones(glob, status=status, teacher=teacher, licence=licence)
    found = [backbone_info(name) for name in names]
    if as_json:
        typer.echo(json.dumps([_as_json(one) for one in found], indent=2, ensure_ascii=False))
        return
    if not found:
        asked = [
            f"--{key} {value}"
            for key, value in (("status", status), ("teacher", teacher), ("licence", licence))
            if value
        ]
        typer.echo(
            f"clever3d: no backbone matches {' '.join([repr(pattern), *asked])}; clever3d list shows all", err=True
        )
        raise typer.Exit(1)
    rows = [("NAME", "SHORT", "WEIGHTS", "PARAMETERS", "FEATURES", "LICENCE")]
    for one in found:
        weights = "not trained yet" if one.status == "recipe" else one.status
        kind = one.weights_licence if one.has_weights else "-"
        size = f"{one.parameters / 1e6:.1f} M"
        rows.append((one.name, ", ".join(one.aliases) or "-", weights, size, str(one.feature_dim), kind))
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
    typer.echo(json.dumps(_as_json(found), indent=2, ensure_ascii=False) if as_json else str(found))


def _as_json(found: BackboneInfo) -> dict[str, Any]:
    return {**found.to_dict(), "aliases": list(found.aliases)}
