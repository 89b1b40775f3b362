"""The training loop shared by distillation and fine-tuning. Imports nothing else of the package but its errors."""

from clever3d.training.checkpoint import STATE_FILE, load_state, save_state
from clever3d.training.loop import LoopConfig, Task, run
from clever3d.training.schedule import warmup_cosine

__all__ = ["STATE_FILE", "LoopConfig", "Task", "load_state", "run", "save_state", "warmup_cosine"]
