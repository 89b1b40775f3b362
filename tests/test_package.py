"""The package as others meet it: its public names, its metadata, its examples and the code in its README."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import toy_world

import clever3d
from clever3d.datasets.synthetic.layouts import LAYOUTS, make_plan, write_dataset

REPOSITORY = Path(__file__).resolve().parents[1]


def _run(*arguments: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", clever3d.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(clever3d, name) is not None
    assert name in dir(clever3d)


def test_public_names_are_few_and_others_are_refused() -> None:
    assert len(clever3d.__all__) < 15
    with pytest.raises(AttributeError, match="no_such_thing"):
        clever3d.no_such_thing  # noqa: B018


def test_import_is_light() -> None:
    _run("-c", "import sys, clever3d; assert not {'torch', 'numpy', 'timm'} & set(sys.modules)", cwd=REPOSITORY)


def test_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("clever3d") == clever3d.__version__


def test_changelog_has_this_version() -> None:
    assert f"## {clever3d.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", sorted(path.name for path in (REPOSITORY / "examples").glob("*.py")))
def test_every_example_runs_as_it_stands(script: str, tmp_path: Path) -> None:
    assert _run(str(REPOSITORY / "examples" / script), cwd=tmp_path)


def test_python_code_of_the_readme_runs(tmp_path: Path) -> None:
    import numpy as np

    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    generator = np.random.default_rng(0)
    scan = np.concatenate([generator.uniform(-20, 20, (3000, 3)), generator.random((3000, 1))], axis=1)
    scan.astype("<f4").tofile(tmp_path / "000000.bin")
    write_dataset(
        tmp_path / "town", make_plan("nuscenes", scenes=1, frames=2, seed=0), LAYOUTS["nuscenes"], toy_world.frames
    )
    for block in blocks:
        (tmp_path / "block.py").write_text(block, encoding="utf-8")
        _run("block.py", cwd=tmp_path)


def test_zoo_table_of_the_readme_is_the_manifest() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `([^`]+)` \| (.*?) ?\| ([\d.]+) M \| (\d+) \| (\w+) \|$", readme, flags=re.MULTILINE)
    expected = []
    for name in clever3d.list_backbones():
        info = clever3d.backbone_info(name)
        short = ", ".join(f"`{alias}`" for alias in info.aliases)
        expected.append((name, short, f"{info.parameters / 1e6:.1f}", str(info.feature_dim), info.status))
    assert sorted(shown) == expected
