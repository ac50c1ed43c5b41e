"""Programs of torch.export: saved, and run in a fresh process that imports the package and nothing else of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import run_process
from small import NETWORKS, images, one_thread  # noqa: F401
from torch.utils._pytree import tree_leaves
from traced_modules import Detector

from adabm_kernels import ConvertConfig, builtin_models, convert_model, load
from adabm_kernels.nn import ConvertedNetwork

CONFIG = ConvertConfig(4, 4, recipe="paper", batch=1)


def traced() -> ConvertedNetwork:
    torch.manual_seed(0)
    return convert_model(Detector().eval(), [torch.rand(1, 3, 16, 16)], CONFIG, traced=True)


MODELS: dict[str, Callable[[], ConvertedNetwork]] = {
    "rdn": lambda: convert_model(NETWORKS["rdn"](), [images(1, 3, 16, 16)], CONFIG, check=False),
    "traced": traced,
    "built-in": lambda: load(builtin_models()["edsr_x4_w4a4"]),  # with tiles of two depths
}
SIZES = {"built-in": ((2, 3, 40, 20), (1, 3, 17, 33)), "traced": ((2, 3, 16, 16), (1, 3, 24, 20))}


@pytest.mark.parametrize("names", [["rdn", "traced"], pytest.param(["built-in"], marks=pytest.mark.slow)], ids="-".join)
def test_saved_programs_run_by_import_alone(names: list[str], tmp_path: Path) -> None:
    """Each is traced with one size and run with another too: batch, rows and columns are dynamic."""
    dynamic = {"x": {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}}
    for name in names:
        model, pictures = MODELS[name](), [images(*size) for size in SIZES.get(name, ((2, 3, 9, 12), (1, 3, 14, 11)))]
        torch.export.save(torch.export.export(model, (pictures[0],), dynamic_shapes=dynamic), tmp_path / f"{name}.pt2")
        torch.save([(x, tree_leaves(model(x))) for x in pictures], tmp_path / f"{name}.pt")
    code = f"""
import adabm_kernels
import torch
from torch.utils._pytree import tree_leaves
torch.set_num_threads(1)
for name in {names}:
    program = torch.export.load(name + ".pt2").module()
    for x, want in torch.load(name + ".pt"):
        got = tree_leaves(program(x))
        print(len(got) == len(want) and all(map(torch.equal, got, want)))
"""
    done = run_process(code=code, cwd=tmp_path)
    assert done.stdout.split() == ["True"] * 2 * len(names), done.stderr
