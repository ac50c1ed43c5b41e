"""The cluster: reaching it, what its nodes have, and whether a worker there can load the model."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..machine import version

LOCAL, AUTO = "local", "auto"
_CONNECT_SECONDS = 3  # how long a node may take to accept a connection
_ANSWER_SECONDS = 20  # how long a cluster may take to say that it is one; starting the question takes some of it
_CLIENT = "ray://"
_LAST_PORT = 65535
_INSTALL = "pip install 'adabm-kernels[ray]'"


def require_ray() -> Any:
    """Ray with Ray Data. Raises RuntimeError, which says what to install, where it is missing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to others unless a user wants it
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RuntimeError(f"Ray with Ray Data is not installed ({error}): {_INSTALL}") from error
    return ray


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A block in which this process is connected to a cluster.

    address: what `check_address` gives. A cluster that "local" starts ends with the block. A process that is connected already
    stays so. Raises RuntimeError where the cluster cannot be joined: it runs another version of Ray or Python, for example.
    """
    ray = require_ray()
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == LOCAL:
        options["include_dashboard"] = False
    try:
        with _without_notes():
            ray.init(address=address, **options)
    except Exception as error:
        raise RuntimeError(_why_not(address, error)) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _without_notes() -> Iterator[None]:
    """A block in which Ray is started without what it writes on stderr for its own developers: that a level of notes is set, and
    later, with another level, that actors of Ray Data have arguments. What goes wrong is raised."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if sys.stderr is not None:
        sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def check_address(address: str) -> str:
    """The address of a cluster that answers: the given one, or that of RAY_ADDRESS for "auto".

    address: HOST:PORT or ray://HOST:PORT of a cluster; "auto" for the one that RAY_ADDRESS names or that runs on this machine;
    "local", which is not looked for, to start one on this machine. Raises RuntimeError within half a minute where none answers:
    Ray itself would try for two minutes, and then end the process.
    """
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS") or AUTO
    if address == LOCAL:
        return address
    if address != AUTO:
        host, _, port = address.removeprefix(_CLIENT).rpartition(":")
        if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > _LAST_PORT:
            raise RuntimeError(f"the address of a Ray cluster must be auto, local, HOST:PORT or ray://HOST:PORT, got '{address}'")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except OSError as error:
            raise RuntimeError(_no_answer(address, error.strerror or str(error))) from error
    if address.startswith(_CLIENT):
        return address
    asked = [] if address == AUTO else ["--address", address]
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--skip-version-check", *asked]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=_ANSWER_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(_no_answer(address, f"no answer of Ray within {_ANSWER_SECONDS} seconds")) from error
    if answer.returncode and b"AuthenticationError" in answer.stderr:
        raise RuntimeError(
            f"the Ray cluster at '{address}' asks for a token, which this process does not give: set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    if answer.returncode:
        raise RuntimeError(_no_answer(address, "nothing there answers as Ray does"))
    return address


def _no_answer(address: str, reason: str) -> str:
    where = "on this machine" if address == AUTO else f"at '{address}'"
    return (
        f"no Ray cluster answers {where} ({reason}): start one with `ray start --head` and give its address, which `ray status` "
        "shows, or use 'local', which starts one on this machine"
    )


def _why_not(address: str, error: Exception) -> str:
    words = " ".join(str(error).split())
    if found := re.search(r"Ray: (\S+) Python: (\S+).*?Ray: (\S+) Python: (\S+)", words):
        theirs, ours = "Ray {} with Python {}".format(*found.groups()[:2]), "Ray {} with Python {}".format(*found.groups()[2:])
        return f"the cluster at '{address}' runs {theirs} and this process {ours}: both must be the same, so install the same here"
    return _no_answer(address, words[:300])


# ---- what nodes have


def workers_that_fit(cpus: int, cards: int) -> int:
    """How many workers of this many CPUs and cards the nodes of the cluster hold at once. Raises RuntimeError where none fits."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = [min(node.get("CPU", 0) // cpus, node.get("GPU", 0) // cards if cards else cpus << 32) for node in nodes]
    count = int(sum(fitting))
    if not count:
        have = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes[:3]) or "none"
        wants = f"{cpus} CPU{'s' if cpus > 1 else ''}" + (f" and {cards} GPU" if cards else "")
        raise RuntimeError(
            f"no node of the cluster has the {wants} of a worker; its nodes have {have}. Take fewer threads or another device, or "
            "add a node (a cluster that grows by itself needs one such node to begin with)"
        )
    return count


# ---- whether a worker can load the model


def try_model(recipe: Any, cpus: int, cards: int) -> dict[str, Any]:
    """What a worker says about the model: its backend. Raises RuntimeError where a worker cannot load it, before anything is
    computed. recipe: a reference to the recipe."""
    import ray

    ours = version("adabm-kernels")

    def probe(recipe: Any) -> dict[str, Any]:
        # This function travels as it stands, so it also runs where the package is missing.
        try:
            from adabm_kernels.machine import version as version_of
        except ImportError as error:
            return {"error": f"adabm_kernels is not installed there ({error})"}
        if (theirs := version_of("adabm-kernels")) != ours:
            return {"error": f"adabm_kernels {theirs} is installed there, and {ours} here"}
        import ray

        try:
            network = ray.get(recipe[0]).network()
        except Exception as error:
            return {"error": str(error) or type(error).__name__}
        return {"backend": network.network.model.backend_summary()}

    try:
        asked = ray.remote(probe).options(num_cpus=cpus, num_gpus=cards, max_retries=0)
        answer = ray.get(asked.remote([recipe]))
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"no worker can load the model: {' '.join(str(error).split())[:300]}") from error
    if "error" in answer:
        raise RuntimeError(f"no worker can load the model: {answer['error']}")
    return answer
