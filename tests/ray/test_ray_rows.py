"""What a worker does with files, rows and row groups, without a cluster: outputs equal those of the plain command."""

from __future__ import annotations

import http.server
import io
import subprocess
import sys
import threading

import numpy as np
import pytest
from needs import needs
from PIL import Image
from small import one_thread  # noqa: F401

import adabm_kernels
from adabm_kernels.ray import cluster, stores, upscale_dataset
from adabm_kernels.ray.columns import key_column, key_path, picture_column
from adabm_kernels.ray.dataset import check_model, plan_files
from adabm_kernels.ray.plan import PARQUET, FileTask
from adabm_kernels.ray.recipe import Recipe
from adabm_kernels.ray.stores import Store
from adabm_kernels.ray.worker import Files, Places, RowFiles, RowTables, Upscaler
from adabm_kernels.upscaling.sizes import Size

pytestmark = needs("ray")
MODEL = "edsr_x4_w4a4"


def encoded(rows: np.ndarray, format: str = "PNG") -> bytes:
    made = io.BytesIO()
    Image.fromarray(rows).save(made, format)
    return made.getvalue()


def picture(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def upscaler():
    return Upscaler(Recipe.of(MODEL, {}, Size()))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with pictures, of which one cannot be read, and the folder that the plain function makes of it, by name."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "sub").mkdir()
    for seed, name in enumerate(("a.png", "sub/a.png", "sub/b.jpg")):
        (folder / name).write_bytes(encoded(picture(seed), "JPEG" if name.endswith("jpg") else "PNG"))
    (folder / "broken.png").write_bytes(encoded(picture(9))[:200])
    model = adabm_kernels.load(adabm_kernels.builtin_models()[MODEL])
    plain = {}
    for name in ("a.png", "sub/a.png", "sub/b.jpg"):
        target = tmp_path_factory.mktemp("plain") / "out.png"
        adabm_kernels.upscale_file(folder / name, target, model)
        plain[name.rsplit(".", 1)[0] + "_x4.png"] = target.read_bytes()
    return folder, plain


def memory_files(folder=None):
    """An empty file system in memory, with the files of a folder."""
    from fsspec.implementations.memory import MemoryFileSystem

    files = type("OwnMemory", (MemoryFileSystem,), {"store": {}, "pseudo_dirs": [""], "cachable": False})()
    if folder is not None:
        files.put(f"{folder}/", "/in", recursive=True)
    return files


def places(source, target, **others):
    settings = {"skips": True, "added": "_x4", "format": None}
    return Places(source, target, **settings | others)


# ---- files


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "store"])
def test_files_equal_those_of_the_plain_function(upscaler, pictures, tmp_path, remote) -> None:
    folder, plain = pictures
    files = memory_files(folder) if remote else None
    where = places(Store.of("memory://in", files), Store.of("memory://out", files)) if remote else None
    where = where or places(Store.of(folder), Store.of(tmp_path / "out"))
    planned = plan_files(where)
    assert {task.target for task in planned.tasks} == plain.keys() | {"broken_x4.png"}
    reports = {report["task"]: report for report in Files(upscaler, where).reports(planned.tasks)}
    assert "cannot read" in reports.pop("broken_x4.png")["error"] and "broken.png" in str(planned.tasks)
    assert all(report["mean_bits"] > 0 and "error" not in report for report in reports.values())
    assert {name: where.target.read(name) for name in where.target.names()} == plain
    # Another run has only the broken one to do, and a worker that is given all the same finds the others there.
    assert [task.target for task in plan_files(where).tasks] == ["broken_x4.png"] and plan_files(where).found == 3
    again = list(Files(upscaler, where).reports(planned.tasks))
    assert sum("found" in report for report in again) == 3


def test_an_upload_that_fails_leaves_nothing(upscaler, pictures) -> None:
    folder, _ = pictures
    files = memory_files(folder)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read only")

    files.mv = refuse
    where = places(Store.of("memory://in", files), Store.of("memory://out", files))
    (report,) = Files(upscaler, where).reports([FileTask("a.png", "a_x4.png", "PNG")])
    assert report["error"] == "cannot write 'memory://out/a_x4.png': read only"
    assert where.target.names() == []


def test_what_fails_for_a_moment_is_tried_again(monkeypatch) -> None:
    monkeypatch.setattr(stores, "_PAUSE", 0.0)
    files, failures = memory_files(), [OSError("reset by peer"), OSError("reset by peer")]
    files.pipe("/in/a", b"data")
    opened = files.open

    def fail_first(*args: object, **options: object):
        if failures:
            raise failures.pop()
        return opened(*args, **options)

    files.open = fail_first
    assert Store.of("memory://in", files).read("a") == b"data"
    failures += [OSError("reset by peer")] * 4
    with pytest.raises(OSError, match=r"^cannot read 'memory://in/a': reset by peer$"):
        Store.of("memory://in", files).read("a")


def test_a_store_that_refuses_access_is_named_with_what_to_do(monkeypatch) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in (("AWS_ACCESS_KEY_ID", "nobody"), ("AWS_SECRET_ACCESS_KEY", "nothing"), ("AWS_REGION", "nowhere")):
        monkeypatch.setenv(name, value)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"s3://bucket/in?scheme=http&endpoint_override=127.0.0.1:{server.server_port}"
        with pytest.raises(OSError, match=r"cannot list 's3://bucket/in\S*': .*every node needs its credentials"):
            Store.of(uri).names()
        server.shutdown()


def test_uris_that_nothing_reads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'nosuch://a/b' cannot be reached: neither pyarrow nor fsspec"):
        Store.of("nosuch://a/b")


def test_two_pictures_of_one_output_are_refused(tmp_path) -> None:
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"another file for every picture, got 'a_x4.png' for 'a.jpg' and 'a.png'"):
        plan_files(places(Store.of(tmp_path), Store.of(tmp_path / "out")))


def test_outputs_are_no_inputs(tmp_path) -> None:
    for name in ("a.png", "a_x4.png", "out/a_x4.png", "_tmp/b.png", "notes.txt", "b.psd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    inside = plan_files(places(Store.of(tmp_path), Store.of(tmp_path / "out"), skips=False))
    assert [task.source for task in inside.tasks] == ["a.png", "a_x4.png"]
    assert inside.others == 1 and "Photoshop" in inside.passed_over[0][1]
    beside = plan_files(places(Store.of(tmp_path), Store.of(tmp_path), skips=False))
    assert [task.source for task in beside.tasks] == ["a.png", "out/a_x4.png"]


# ---- rows


def test_rows_of_every_form(upscaler, tmp_path) -> None:
    """Encoded pictures, structs, arrays and paths give the same pixels; what cannot be read has an error in its row."""
    import pyarrow
    from ray.data.extensions import ArrowVariableShapedTensorArray

    rows = [picture(0), picture(1, 30, 17)]
    want = [adabm_kernels.upscale(row, MODEL) for row in rows]
    data = [encoded(row) for row in rows]
    (tmp_path / "a.png").write_bytes(data[0])
    forms = {
        "bytes": pyarrow.array([*data, b"none", None], pyarrow.binary()),
        "image": pyarrow.array([*({"bytes": one, "path": "p.png"} for one in data), {"bytes": b"none", "path": "q.png"}, None]),
        "path": pyarrow.array([str(tmp_path / "a.png"), str(tmp_path / "missing.png"), None, str(tmp_path)]),
    }
    for name, column in forms.items():
        table = pyarrow.table({name: column, "label": [1, 2, 3, 4]}).replace_schema_metadata({"owner": "me"})
        pictures = picture_column(table.schema, None)
        made, errors = RowTables(upscaler, pictures, None, "").upscaled(table)
        good = 1 if name == "path" else 2
        assert [i for i, _ in errors] == list(range(good, 4)), errors
        assert made.schema.metadata[b"owner"] == b"me" and made.column("label").to_pylist() == [1, 2, 3, 4]
        assert made.column("error").null_count == good
        for value, expected in zip(made.column(pictures.made).to_pylist()[:good], want, strict=False):
            value = value["bytes"] if name == "image" else value
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(value))), expected)
    arrays = np.empty(3, object)
    arrays[:] = [*rows, np.zeros((0, 0, 3), np.uint8)]
    table = pyarrow.table({"image": ArrowVariableShapedTensorArray.from_numpy(arrays)})
    made, errors = RowTables(upscaler, picture_column(table.schema, None), None, "").upscaled(table)
    assert [i for i, _ in errors] == [2]
    assert all(np.array_equal(made.column("image")[i].as_py(), want[i]) for i in range(2))


def test_a_row_group_becomes_a_file_that_is_whole(upscaler, tmp_path) -> None:
    import pyarrow
    import pyarrow.parquet

    data = [encoded(picture(seed)) for seed in range(4)]
    (tmp_path / "in").mkdir()
    table = pyarrow.table({"key": list("abcd"), "png": [*data[:3], b"none"]})
    pyarrow.parquet.write_table(table, tmp_path / "in" / "part.parquet", row_group_size=2)
    (tmp_path / "in" / "broken.parquet").write_bytes(b"PAR1")
    where = places(Store.of(tmp_path / "in"), Store.of((tmp_path / "out").as_uri()))
    planned = plan_files(where)
    assert [(task.target, task.format, task.group) for task in planned.tasks] == [
        ("part_x4-00000.parquet", PARQUET, 0),
        ("part_x4-00001.parquet", PARQUET, 1),
    ]
    assert "no Parquet file" in planned.unread[0][1]
    reports = list(Files(upscaler, where).reports(planned.tasks))
    assert [report["rows"] for report in reports] == [2, 2]
    assert reports[0]["failed_rows"] == [] and [error[:7] for error in reports[1]["failed_rows"]] == ["row 1: "]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [task.target for task in planned.tasks]
    made = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    assert [row["key"] for row in made] == list("abcd") and [row["png"] is None for row in made] == [False] * 3 + [True]
    expected = adabm_kernels.upscale(picture(2), MODEL)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(made[2]["png"]))), expected)


def test_rows_as_files_are_named_by_their_keys(upscaler, tmp_path) -> None:
    import pyarrow

    table = pyarrow.table({"path": ["s3://b/x/1.jpg", "/x/2.jpg", "../.."], "bytes": [encoded(picture(0))] * 3})
    pictures = picture_column(table.schema, None)
    where = places(Store.of("."), Store.of(tmp_path), format="jpg")
    files = RowFiles(RowTables(upscaler, pictures, "jpg", "_x4"), where, key_column(table.schema, pictures, None))
    reports = {report["input"]: report for report in files.reports(table)}
    assert "must not be empty" in reports["../.."]["error"]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg")) == ["b/x/1_x4.jpg", "x/2_x4.jpg"]
    assert sum("found" in report for report in files.reports(table)) == 2


def test_columns_that_are_no_pictures_are_refused() -> None:
    import pyarrow

    schema = pyarrow.schema({"id": pyarrow.int64(), "text": pyarrow.string()})
    with pytest.raises(ValueError, match=r"must have a column of pictures .* it has the columns 'id' \(int64\), 'text' \(string\)"):
        picture_column(schema, None)
    assert picture_column(schema, "text").kind == "path"
    with pytest.raises(ValueError, match=r"column must hold pictures .*, got 'id' of type int64"):
        picture_column(schema, "id")
    with pytest.raises(ValueError, match=r"column must be one of the dataset, got 'image'"):
        picture_column(schema, "image")
    taken = pyarrow.schema({"bytes": pyarrow.binary(), "error": pyarrow.string()})
    with pytest.raises(ValueError, match=r"must not have a column 'error', which results get"):
        picture_column(taken, None)
    only = pyarrow.schema({"bytes": pyarrow.binary(), "label": pyarrow.int64()})
    with pytest.raises(ValueError, match=r"name must be the column that gives each output its name"):
        key_column(only, picture_column(only, None), None)
    assert str(key_path("gs://b/a/../c.png")) == "b/a/c.png"


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dataset": "x"}, "output must be given for the pictures of a folder"),
        ({"dataset": 3, "output": "y"}, "dataset must be a ray.data.Dataset, or the path or URI of a folder, got int"),
        ({"existing": "refuse"}, "existing must be 'skip' or 'replace'"),
        ({"workers": 0}, "workers must be an integer of at least 1, got 0"),
        ({"format": "gif"}, "format must be one of 'keep', 'png'"),
        ({"model": "nosuch"}, "model must be a built-in model"),
        ({"bits": 9}, "bits must be 'auto' or an integer from 2 to 8"),
        ({"colour": 1}, "unexpected keyword argument 'colour'"),
        ({"dataset": "nowhere", "output": "y"}, "must hold pictures or Parquet files that can be read, and 'nowhere' has none"),
    ],
)
def test_arguments_that_cannot_be(arguments, words) -> None:
    with pytest.raises((ValueError, TypeError, OSError)) as caught:
        upscale_dataset(**{"dataset": "in"} | arguments)
    assert words in str(caught.value)


def test_models_that_follow_their_pictures_are_refused() -> None:
    model = adabm_kernels.load(adabm_kernels.builtin_models()[MODEL])
    model.set_running_thresholds(0.1)
    with pytest.raises(ValueError, match="model must not have running thresholds"):
        check_model(Recipe.of(model, {}, Size()).plain_network())


def test_without_ray_it_is_said_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RuntimeError, match=r"pip install 'adabm-kernels\[ray\]'"):
        cluster.require_ray()


def test_a_cluster_that_asks_for_a_token(monkeypatch) -> None:
    refused = subprocess.CompletedProcess([], 1, b"", b"ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: refused)
    with pytest.raises(
        RuntimeError, match=r"the Ray cluster at 'auto' asks for a token, .*: set RAY_AUTH_MODE=token, and RAY_AUTH_"
    ):
        cluster.check_address("auto")


def test_importing_loads_no_ray() -> None:
    code = "import sys, adabm_kernels; adabm_kernels.ray.upscale_dataset; print({'ray', 'pyarrow', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("in", "--workers", 2), "--workers goes with --ray"),
        (("s3://b/in", "-o", "out"), "a URI must come with --ray (--ray local computes on this machine), got 's3://b/in' without"),
        (("in", "-o", "s3://b/out"), "a URI must come with --ray"),
        (("in", "--ray", "local", "--y4m", "-o", "-"), "--ray must be left out for the frames of a video"),
        (("in", "--ray", "local", "--compare"), "--compare must be left out with --ray"),
        (("-", "--ray", "local"), "IN must be files, folders or a URI with --ray, got the pipe '-'"),
        (("memory://in", "--ray", "local"), "OUT must be given (-o) for the URI 'memory://in'"),
        (("memory://in", "x", "--ray", "local", "-o", "out"), "IN must be one folder or URI where a URI is given, got 2 inputs"),
        (("memory://in", "--ray", "local", "-o", "out"), "must hold pictures or Parquet files that can be read"),
        (("in", "--ray", "somewhere"), "must be auto, local, HOST:PORT or ray://HOST:PORT, got 'somewhere'"),
        (("in", "--ray", "127.0.0.1:1"), "no Ray cluster answers at '127.0.0.1:1' (Connection refused): start one with"),
    ],
)
def test_commands_that_cannot_be(adabm, empty_folder, argv, words) -> None:
    (empty_folder / "in").mkdir()
    (empty_folder / "in" / "a.png").write_bytes(encoded(picture(0)))
    status, _, err = adabm("upscale", *argv)
    assert status == 2 and words in err


def test_a_picture_that_ends_its_workers_is_reported_and_the_rest_is_done(monkeypatch) -> None:
    """Lost batches are given out again, then one task at a time, until only the task is left at which workers end."""
    from adabm_kernels.ray import dataset

    turns = []

    def lossy(wanted, pool, places, size, ahead):
        turns.append((len(wanted), size, places.skips))
        for first in range(0, len(wanted), size):
            batch = wanted[first : first + size]
            if all(task.source != "7.png" for task in batch):
                yield from ({"task": task.target, "input": task.source} for task in batch)

    monkeypatch.setattr(dataset, "_round", lossy)
    wanted = [FileTask(f"{i}.png", f"{i}_x4.png", "PNG") for i in range(16)]
    files = memory_files()
    where = places(Store.of("memory://in", files), Store.of("memory://out", files))
    reports = list(dataset.run_files(wanted, dataset.Pool(None, 1, 0, 1, None, False), where))
    assert turns == [(16, 4, False), (4, 1, True), (1, 1, True), (1, 1, True)]
    assert sorted(report["input"] for report in reports if "error" not in report) == sorted(f"{i}.png" for i in range(16) if i != 7)
    (failed,) = (report for report in reports if "error" in report)
    assert failed["error"].startswith("'memory://in/7.png': each worker that began it ended, 4 times")
