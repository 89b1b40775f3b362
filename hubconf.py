"""Entry points of torch.hub: ``torch.hub.load("OWNER/clever3d", "load_backbone", "minkunet-dinov2-s")``.

``torch.hub.list`` shows them, ``torch.hub.help`` their documentation. A local clone: ``source="local"``.
"""

dependencies = ["torch", "numpy", "safetensors", "huggingface_hub"]

from clever3d import backbone_info, list_backbones, load_backbone  # noqa: E402, F401 (torch.hub reads dependencies first)
