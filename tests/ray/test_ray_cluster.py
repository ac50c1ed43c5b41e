"""A cluster of several processes on this machine: outputs equal those of the plain command, whoever ends in the middle."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from needs import needs
from PIL import Image

from adabm_kernels.ray import upscale_dataset

pytestmark = needs("ray")
_SECONDS = 240  # a run that takes longer hangs
_NODE_LOST = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 10}


@pytest.fixture(scope="module")
def nodes():
    """A cluster of two nodes of one CPU. The driver is at the first."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        options = {"num_cpus": 1, "object_store_memory": 100 << 20}
        head = {**options, "include_dashboard": False, "_system_config": _NODE_LOST}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(**options)
        ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cluster") / "photos"
    (folder / "sub").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(24):
        rows = generator.integers(0, 256, (20 + i % 3, 24, 3), np.uint8)
        Image.fromarray(rows).save(folder / ("sub" if i % 2 else ".") / f"{i}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory) -> dict[str, bytes]:
    """What the plain command makes of the folder, by name."""
    from adabm_kernels import cli

    out = tmp_path_factory.mktemp("plain") / "out"
    assert cli.main(["upscale", str(folder), "-o", str(out), "-q", "--threads", "1"]) == 1
    made = contents(out)
    assert len(made) == 24
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def worker_ids() -> list[int]:
    """The processes of the workers that hold a model."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if b"FileWorker" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


class Watcher(threading.Thread):
    """Does something once, when a folder has so many outputs."""

    def __init__(self, folder: Path, count: int, action):
        super().__init__(daemon=True)
        self.folder, self.count, self.action, self.done = folder, count, action, False
        self.start()

    def run(self) -> None:
        until = time.monotonic() + _SECONDS
        while time.monotonic() < until:
            if len(list(self.folder.rglob("*_x4.png"))) >= self.count:
                self.done = self.action() is not False
                return
            time.sleep(0.01)


def kill_one() -> bool:
    ids = worker_ids()
    for each in ids[:1]:
        os.kill(each, signal.SIGKILL)
    return bool(ids)


def test_a_killed_worker_leaves_no_trace(nodes, folder, plain, tmp_path, adabm) -> None:
    out = tmp_path / "out"
    watcher = Watcher(out, 3, kill_one)
    status, _, err = adabm("upscale", folder, "-o", out, "--ray", nodes.address, "-v")
    assert watcher.done, "a worker was killed"
    assert status == 1 and "1 of 25 pictures failed" in err and "broken.png" in err
    assert contents(out) == plain


def test_rows_of_a_dataset(nodes, folder, plain) -> None:
    import ray

    dataset = ray.data.read_binary_files([str(folder / "0.png"), str(folder / "2.png")], include_paths=True)
    rows = {Path(row["path"]).stem: row for row in upscale_dataset(dataset, progress=False, workers=1).take_all()}
    assert {name: row["bytes"] for name, row in rows.items()} == {name: plain[f"{name}_x4.png"] for name in ("0", "2")}
    assert all(row["error"] is None for row in rows.values())


def test_a_model_that_no_worker_can_load(nodes, folder, tmp_path, monkeypatch) -> None:
    with pytest.raises(RuntimeError, match=r"no node of the cluster has the 64 CPUs of a worker; its nodes have "):
        upscale_dataset(folder, output=tmp_path, threads=64)
    with pytest.raises(RuntimeError, match=r"no node of the cluster has the 1 CPU and 1 GPU of a worker"):
        upscale_dataset(folder, output=tmp_path, device="cuda")
    with pytest.raises(RuntimeError, match=r"no worker can load the model: graph must be left out or False unless"):
        upscale_dataset(folder, output=tmp_path, graph=True)
    monkeypatch.setattr("adabm_kernels.ray.cluster.version", lambda name: "9.9")
    with pytest.raises(RuntimeError, match=r"no worker can load the model: adabm_kernels \S+ is installed there, and 9.9 here"):
        upscale_dataset(folder, output=tmp_path)


def test_a_lost_node_leaves_no_trace(nodes, folder, plain, tmp_path) -> None:
    """A run that was stopped is started again, and one of two nodes ends and does not come again: the other does what is missing,
    and nothing else."""
    out = tmp_path / "out"
    for name in sorted(plain)[:8]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(plain[name])
    before = {name: (out / name).stat().st_mtime_ns for name in contents(out)}
    (lost,) = nodes.worker_nodes
    watcher = Watcher(out, 10, lambda: nodes.remove_node(lost, allow_graceful=False))
    summary = upscale_dataset(folder, output=out, progress=False, batch=2)
    assert watcher.done, "a node was ended"
    assert [Path(name).name for name, _ in summary.failed] == ["broken.png"]
    assert summary.found >= 8 and summary.done + summary.found == 24
    assert contents(out) == plain and {name: (out / name).stat().st_mtime_ns for name in before} == before


def test_other_versions_of_ray_are_said(nodes, monkeypatch) -> None:
    import ray

    from adabm_kernels.ray.cluster import check_address, connected

    ray.shutdown()
    assert check_address(nodes.address) == nodes.address
    here = ray.__version__
    monkeypatch.setattr(ray, "__version__", "2.0.0")
    with pytest.raises(RuntimeError, match=rf"runs Ray {here} with Python \S+ and this process Ray 2.0.0 with"):
        with connected(nodes.address):
            pass
