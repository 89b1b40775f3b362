"""Compiles the Triton kernels for GPUs that are not here, and prints what came out as JSON. Run by test_triton_engine.

A process of its own, because Triton's interpreter, in which the other tests run, cannot be left once it is entered.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from clever3d.sparse.engines import tuning
from clever3d.sparse.engines.triton_kernels import gathered_product, kernel_gradient

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
POINTERS = {"feats", "kernel", "out", "grad", "residual"}
INDICES = {"table", "order", "active", "counts", "tiles"}
MULTIPLES_OF_16 = {"padded", "channels_in", "channels_out", "stride_k", "stride_in"}  # as Triton specialises them
ROWS, TILE, CHANNELS = 1 << 17, 128, 256


def build(function: Any, precision: str, constants: dict[str, Any], config: Any, capability: int) -> dict[str, Any]:
    element = "fp32" if TYPES[precision] is torch.float32 else precision
    signature, attributes = {}, {}
    for position, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in INDICES:
            signature[name] = "*i32"
        elif name in ("scale", "shift") or (function is kernel_gradient and name == "out"):
            signature[name] = "*fp32"
        else:
            signature[name] = f"*{element}" if name in POINTERS else "i32"
        if signature[name].startswith("*") or name in MULTIPLES_OF_16:
            attributes[(position,)] = [["tt.divisibility", 16]]
    made = compile(
        ASTSource(function, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": config.warps, "num_stages": config.stages},
    )
    ptx = made.asm["ptx"]
    return {
        "kernel": function.__name__,
        "capability": capability,
        "precision": precision,
        "shared": made.metadata.shared,
        "tensor cores": bool(re.search(r"wgmma\.mma_async|mma\.sync", ptx)),
    }


def main() -> None:
    found = []
    for capability in (80, 90):
        for precision in TYPES:
            dot = "tf32" if precision == "tf32" else "ieee"
            common: dict[str, Any] = {"TILE": TILE, "PRECISION": dot, "UPCAST": False}
            shape = tuning.Shape("", TYPES[precision], CHANNELS, CHANNELS, 27, TILE, ROWS)
            product = tuning.product_rule(shape)
            blocks = {"BLOCK_N": product.block_n, "BLOCK_K": product.block_k}
            end = {"AFFINE": True, "RESIDUAL": True, "RELU": True, "LIMIT": 65504.0 if precision == "fp16" else 0.0}
            forward = {**common, **blocks, **end, "MIRROR": False, "stride_out": 1}
            backward = {**forward, "MIRROR": True, "AFFINE": False, "RESIDUAL": False, "RELU": False, "LIMIT": 0.0}
            backward |= {"scale": None, "shift": None, "residual": None}
            gradient = tuning.gradient_rule(shape)
            blocks = {"BLOCK_I": gradient.block_i, "BLOCK_O": gradient.block_o, "SPLITS": gradient.splits}
            found.append(build(gathered_product, precision, forward, product, capability))
            found.append(build(gathered_product, precision, backward, product, capability))
            found.append(build(kernel_gradient, precision, {**common, **blocks}, gradient, capability))
    print(json.dumps(found))  # noqa: T201 (the test reads it)


if __name__ == "__main__":
    main()
