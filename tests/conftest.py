"""What all tests share: no network, no home, and the way to the real scans, which are not part of the repository."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub
    from release_page import Publisher

    from clever3d.backbones import Backbone

REPOSITORY = Path(__file__).resolve().parents[1]

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: it reads this once
os.environ["MPLBACKEND"] = "Agg"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported, by whatever test comes first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("cuda")]
    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True, scope="session")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that a test does may read or write the user's home."""
    home = tmp_path_factory.mktemp("home")
    for variable in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "HF_HOME"):
        os.environ[variable] = str(home)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for another machine fails, also where there is a network."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        here = self.family not in (socket.AF_INET, socket.AF_INET6) or address[0] in ("127.0.0.1", "::1", "localhost")
        if not here:
            raise OSError(f"the tests run offline, but something connects to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def _real_data(name: str) -> Path:
    folder = REPOSITORY.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"needs ../shared/{name} (real scans, not part of the repository)")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real KITTI, nuScenes, ... frames."""
    return _real_data("data")


@pytest.fixture(scope="session")
def shared_data_more() -> Path:
    """Folder with more real KITTI drives."""
    return _real_data("data_more")


@pytest.fixture()
def small() -> Backbone:
    """A network of a few thousand parameters whose statistics differ from those of a new one."""
    from clever3d.backbones import InputSpec, create_backbone

    generator = torch.Generator().manual_seed(0)
    spec = InputSpec(voxel_size=0.25, trained_sensors=("test",))
    backbone = create_backbone("minkunet18", input_spec=spec, width=0.05)
    with torch.no_grad():
        for name, tensor in backbone.state_dict().items():
            if name.endswith("kernel"):  # about three of the neighbours are there: features stay near one
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (3 * tensor.shape[-2]) ** -0.5)
            elif tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.1 + 0.5)
    return backbone.eval()


@pytest.fixture()
def hub() -> Iterator[LoopbackHub]:
    """A Hugging Face Hub on 127.0.0.1."""
    from hub_tools import TOKEN
    from loopback_hub import LoopbackHub

    with LoopbackHub() as server:
        server.tokens = {TOKEN: "someone"}
        yield server


@pytest.fixture()
def online(hub: LoopbackHub, tmp_path: Path) -> Iterator[Path]:
    """This process is a client of that Hub, with an empty cache; gives its home."""
    from hub_tools import TOKEN

    home = tmp_path / "home"
    with hub.client(home, TOKEN):
        yield home


@pytest.fixture()
def publisher() -> Iterator[Publisher]:
    """A release page on 127.0.0.1."""
    from release_page import serving

    with serving() as state:
        yield state


@pytest.fixture()
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests run offline; these have their own server, and no patience."""
    from huggingface_hub import constants

    from clever3d.zoo import download

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(download, "_PAUSE_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
