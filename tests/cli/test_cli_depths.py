"""What commands do and say with a network that leaves out the blocks of easy tiles."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from browser import chromium, needs_browser
from command_line import rows
from small import one_thread, small_edsr  # noqa: F401
from with_exits import TILE, an_exit, pictures, with_exit

from adabm_kernels import ConvertConfig, convert_model, load, save, upscale, upscale_file
from adabm_kernels.report.bitmap import BLOCK_COLOURS, bit_map
from adabm_kernels.upscale import upscale_many
from adabm_kernels.upscaling.batch import bits_with_zeros, computed_share, mean_bits
from adabm_kernels.upscaling.picture import Patch


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A converted network x2 with an exit, and beside it, without.safetensors, the same without."""
    folder = tmp_path_factory.mktemp("models")
    calibration = [torch.randint(0, 256, (2, 3, 24, 24), generator=torch.Generator().manual_seed(0)).float()]
    model = convert_model(small_edsr(blocks=1), calibration, ConvertConfig(depths="none"), check=False)
    save(model, folder / "without.safetensors")
    save(with_exit(model, an_exit(2)), folder / "with.safetensors")
    return folder / "with.safetensors"


@pytest.fixture
def network(path):
    return load(path)


@pytest.fixture
def folder(empty_folder):
    """A working directory with in/a.png, of 80x48 pixels, of which the right half is easy, and in/b.png, all of which is."""
    Path("in").mkdir()
    PIL.Image.fromarray(half_easy()).save("in/a.png")
    PIL.Image.fromarray(np.full((48, 40, 3), 90, np.uint8)).save("in/b.png")
    return empty_folder


def half_easy():
    return pictures(48, 80)[0].permute(1, 2, 0).numpy().astype(np.uint8)


def share_of(network, rgb):
    return float(network.computed_share(torch.from_numpy(rgb).permute(2, 0, 1)[None].float())[0])


def test_one_picture(folder, path, network, adabm):
    share = share_of(network, half_easy())
    assert 0.3 < share < 0.8
    status, out, err = adabm("upscale", "in/a.png", "-o", "auto.png", "--model", path, "--smooth", "network", "--verbose")
    table = rows(out)
    assert status == 0 and table["blocks"] == f"{100 * share:.0f} % computed, the rest of the picture is easy or interpolated"
    want = float(table["mean bits"]) * share
    assert table["bits with zeros"] == f"{want:.2f} (a pixel without blocks counts as 0)"
    assert f", {100 * share:.0f} % with blocks, " in err
    report = json.loads(adabm("upscale", "in/a.png", "-o", "auto.png", "--model", path, "--smooth", "network", "--json")[1])
    assert report["depth"] == "auto" and report["computed_share"] == pytest.approx(share)
    assert report["bits_with_zeros"] == pytest.approx(share * report["mean_bits"])


@pytest.mark.parametrize(("depth", "words"), [("full", None), ("1", None), ("0", "none computed (fixed)")])
def test_the_option_decides(folder, path, network, adabm, depth, words):
    options = "--model", path, "--depth", depth, "--smooth", "network"
    status, out, err = adabm("upscale", "in/a.png", "-o", "out.png", *options)
    assert (status, err, rows(out).get("blocks")) == (0, "", words)
    report = json.loads(adabm("upscale", "in/a.png", "-o", "out.png", *options, "--json")[1])
    assert (report["computed_share"], report["bits_with_zeros"]) == ((None, None) if words is None else (0, 0))
    assert report["mean_bits"] > 2
    network.set_depth(depth if depth == "full" else int(depth))
    with PIL.Image.open("out.png") as image:
        assert np.array_equal(np.array(image), upscale(half_easy(), network, smooth="network"))


def test_a_picture_that_is_easy_throughout(folder, path, adabm):
    for options in ([], ["--smooth", "network"], ["--smooth", "interpolate"]):
        status, out, _ = adabm("upscale", "in/b.png", "-o", "out.png", "--model", path, *options)
        assert status == 0 and rows(out)["blocks"] == "none computed, all of the picture is easy or interpolated"
        assert rows(out)["bits with zeros"].startswith("0.00 ")


def test_many_pictures(folder, path, network, adabm):
    share = share_of(network, half_easy())
    status, out, _ = adabm("upscale", "in", "-o", "out", "--model", path, "--smooth", "network")
    mean = share * 2 / 3  # of 80 and 40 columns
    assert status == 0 and rows(out)["blocks"].startswith(f"{100 * mean:.0f} % computed")
    report = json.loads(adabm("upscale", "in", "-o", "out", "--model", path, "--smooth", "network", "--json")[1])
    assert [image["computed_share"] for image in report["images"]] == [pytest.approx(share), 0]
    status, out, _ = adabm("upscale", "in", "-o", "out", "--model", path, "--depth", "full")
    assert status == 0 and "blocks" not in rows(out) and "bits with zeros" not in rows(out)


def test_frames(folder, path, network, adabm):
    Path("in.rgb").write_bytes(half_easy().tobytes() + np.full_like(half_easy(), 90).tobytes())
    options = "--raw", "80x48", "--model", path, "--smooth", "network"
    status, out, _ = adabm("upscale", "in.rgb", "-o", "out.rgb", *options, "--json")
    report = json.loads(out)
    assert status == 0 and report["computed_share"] == pytest.approx(share_of(network, half_easy()) / 2)
    assert 0 < report["bits_with_zeros"] < report["mean_bits"]
    status, out, _ = adabm("upscale", "in.rgb", "-o", "out.rgb", *options)
    assert status == 0 and rows(out)["blocks"].startswith(f"{100 * report['computed_share']:.0f} % computed")
    report = json.loads(adabm("upscale", "in.rgb", "-o", "out.rgb", *options, "--depth", "full", "--json")[1])
    assert (report["frames"], report["computed_share"], report["bits_with_zeros"]) == (2, None, None)


def test_the_comparison_is_of_the_network_at_its_depth(folder, path, adabm):
    command = "upscale", "in/a.png", "-o", "out.png", "--model", path, "--compare", "--json"
    found = {depth: json.loads(adabm(*command, "--depth", depth)[1])["psnr_db"] for depth in ("auto", "full", "0")}
    assert found["full"] > found["auto"] > found["0"]  # whose filter here is of random numbers


def test_bench_takes_a_depth(path, adabm):
    command = "bench", "--model", path, "--size", 32, "--json", "-"
    status, out, err = adabm(*command, "--depth", 0)
    assert (status, err) == (0, "") and json.loads(out)["depth"] == 0


@pytest.mark.parametrize("command", ["upscale", "report", "bench"])
def test_depths_that_a_model_cannot_have(folder, path, adabm, command):
    picture = ["in/a.png"] if command != "bench" else []
    for name, depth, rule in (
        ("with", 2, "'auto', 'full', 0 or 1, the blocks of this network, got 2"),
        ("without", 0, "'auto' or 'full' for a model without an exit for easy tiles, got 0"),
    ):
        model = path.with_name(f"{name}.safetensors")
        assert adabm(command, *picture, "--model", model, "--depth", depth) == (2, "", f"adabm: error: --depth must be {rule}\n")


# ---- Python


def test_python_takes_a_depth(folder, path, network):
    rgb = half_easy()
    results = {depth: upscale(rgb, network, depth=depth, smooth="network") for depth in ("full", 0, "auto")}
    assert not np.array_equal(results["full"], results["auto"]) and not np.array_equal(results[0], results["auto"])
    assert np.array_equal(upscale(rgb, network, smooth="network"), results["auto"])  # what was set stays
    assert np.array_equal(next(upscale_many([rgb], network, depth="full", smooth="network")), results["full"])
    outcome = upscale_file("in/a.png", "out.png", path, depth="auto", smooth="network")
    assert outcome.computed_share == pytest.approx(share_of(load(path), rgb))
    assert outcome.bits_with_zeros == pytest.approx(outcome.mean_bits * outcome.computed_share)
    assert upscale_file("in/a.png", "out.png", path, depth=1).computed_share is None


def test_bad_depths(folder, path, network):
    message = "depth must be 'auto', 'full' or a number of blocks, got "
    for depth in ("deep", -1, True, 1.0):
        for call in (
            lambda depth: upscale("absent.png", network, depth=depth),
            lambda depth: next(upscale_many(["absent.png"], network, depth=depth)),
            lambda depth: upscale_file("absent.png", "out.png", path, depth=depth),
        ):
            with pytest.raises(ValueError, match=f"^{re.escape(message + repr(depth))}$"):
                call(depth)
    with pytest.raises(ValueError, match="^depth must be 'auto', 'full', 0 or 1, the blocks of this network, got 3$"):
        upscale(half_easy(), network, depth=3)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'dept' \(did you mean 'depth'\?\)"):
        upscale(half_easy(), network, dept=3)


def test_shares_are_means_over_pixels():
    patches = [
        Patch(0, 0, 4, 10, 0, 3.0, 0.0, 0, 10),
        Patch(4, 0, 8, 10, 1, 6.0, 0.0, 0, 80),
        Patch(12, 0, 2, 10, 0, 5.0, 0.0, 20, 0),
    ]
    assert computed_share(patches) == 90 / 140
    assert bits_with_zeros(patches) == pytest.approx((3 * 10 + 6 * 80) / 140)
    assert mean_bits(patches) == pytest.approx((3 * 40 + 6 * 80 + 5 * 20) / 140)
    without = [Patch(0, 0, 4, 10, 0, 3.0, 0.0, 10)]
    assert (computed_share(without), bits_with_zeros(without), computed_share([])) == (None, None, None)


def test_windows_that_are_interpolated_have_no_blocks(network):
    """Alone, where nothing of a window is computed, and around what is."""
    rgb = np.full((64, 160, 3), 128, np.uint8)
    rgb[:, :24] = half_easy()[:1, :24].repeat(64, 0)
    rgb[8:, :24] = rgb[:56, :24]
    patches = []
    upscale(rgb, network, tile=32, smooth="interpolate", record=patches)
    flat = [patch for patch in patches if patch.flat == patch.height * patch.width]
    assert flat and all(patch.deep == 0 and not patch.depths.any() for patch in flat)
    assert 0 < computed_share(patches) <= 32 / 160
    # Too small for the filter of the exit: all blocks everywhere.
    upscale(half_easy()[:4], network, smooth="network", record=(small := []))
    assert computed_share(small) == 1 and small[0].depths.min() == 1


# ---- maps


def recorded(network, rgb, **options):
    patches = []
    upscale(rgb, network, smooth="network", record=patches, **options)
    return bit_map(network, patches, rgb.shape[1], rgb.shape[0])


@pytest.mark.parametrize("cut", [{}, {"tile": 16, "halo": 2}, {"tile": 20, "halo": 2}], ids=str)
def test_the_map_of_blocks_is_that_of_the_tiles(network, cut):
    rgb = half_easy()[:45, :75]
    bits = recorded(network, rgb, **cut)
    if not cut:
        want = network.tile_depths(torch.from_numpy(rgb).permute(2, 0, 1)[None].float()).values[0].numpy() > 0
        want = want.repeat(TILE, 0).repeat(TILE, 1)[:45, :75]
        seen = np.array(bits.to_image(group="blocks").crop((0, 0, 75, 45)))
        colours = [PIL.ImageColor.getrgb(BLOCK_COLOURS[name]) for name in ("no blocks", "all blocks")]
        assert np.array_equal(seen, np.array(colours, np.uint8)[want.astype(int)])
    covered, blocks = np.zeros((45, 75), int), 0
    for area in bits.areas("blocks"):
        covered[area.y : area.y + area.height, area.x : area.x + area.width] += 1
        blocks += area.value * area.width * area.height
    assert (covered == 1).all()
    pixels = np.array([patch.height * patch.width for patch in bits.patches])
    assert blocks / (45 * 75) == pytest.approx(bits.of("blocks") @ pixels / pixels.sum())


def test_maps_of_blocks_as_a_figure_and_where_there_are_none(network):
    bits = recorded(network, half_easy())
    figure = bits.to_figure(group="blocks")
    assert figure.axes[0].get_title() == "blocks computed"
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["no blocks", "all blocks"]
    assert len(bits.areas("blocks")) == len(figure.axes[0].patches) > len(bits.areas())
    with pytest.raises(ValueError, match=r"group must be one of head, body.0, .*, blocks, got 'foot'"):
        bits.of("foot")
    network.set_depth("full")
    with pytest.raises(ValueError, match=r"group must be one of head, body.0, body.1, tail, got 'blocks'"):
        recorded(network, half_easy()).to_image(group="blocks")


def test_a_page_about_depths(folder, path, network, adabm):
    status, out, err = adabm("report", "in/a.png", "--model", path, "--tile", 32, "--halo", 8, "--smooth", "network")
    assert (status, err) == (0, "")
    page = Path("report.html").read_text(encoding="utf-8")
    share = share_of(network, half_easy())
    said = rf"<dt>blocks</dt><dd>{100 * share:.0f} % computed, the rest of the picture is easy or interpolated</dd>"
    assert re.search(said, page)
    assert "<dt>bits with zeros</dt>" in page
    assert f'<option value="blocks">blocks that were computed, by tiles of {TILE} pixels</option></select>' in page
    assert re.findall(r'<th scope="col">(\w+)</th>', page)[:6] == ["patch", "place", "size", "ms", "blocks", "mean"]
    shares = [int(found) for found in re.findall(r"<td>(\d+) %</td><td style", page)]
    assert shares == [100, 20] and rows(out)["patches"] == "2"  # 32 columns of noise, and 8 of 40 columns
    tiles = re.search(r'<g id="tile-map"[^>]*>(.*?)</g>', page)[1]
    area = {words: 0 for words in ("no blocks", "all blocks")}
    for width, height, words in re.findall(r'width="(\d+)" height="(\d+)" fill="#\w+"><title>([^<]*)</title>', tiles):
        area[words] += int(width) * int(height)
    assert sum(area.values()) == 48 * 80 and area["all blocks"] / (48 * 80) == pytest.approx(share)
    assert 'id="tile-legend"' in page and ">no blocks</li>" in page and ">all blocks</li>" in page


@needs_browser
def test_the_page_shows_tiles_in_a_browser(folder, path, adabm):
    assert adabm("report", "in/a.png", "--model", path)[0] == 0
    script = """
    const shown = id => getComputedStyle(document.getElementById(id)).display !== 'none';
    const ids = ['patch-map', 'tile-map', 'patch-legend', 'tile-legend'], group = document.getElementById('group');
    const found = [];
    for (const value of ['mean over the layers', 'blocks', 'body.0']) {
      group.value = value;
      group.dispatchEvent(new Event('change'));
      found.push(ids.map(shown));
    }
    const result = {errors, found};
    document.body.innerHTML = '<pre id="result"></pre>';
    document.getElementById('result').textContent = JSON.stringify(result);
    """
    page = Path("report.html").read_text(encoding="utf-8")
    done = chromium(folder, page, script, "--dump-dom", "--virtual-time-budget=5000")
    result = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert result, done.stderr
    bits, blocks = [True, False, True, False], [False, True, False, True]
    assert json.loads(result[1]) == {"errors": [], "found": [bits, blocks, bits]}


def test_a_page_where_all_blocks_are_computed(folder, path, adabm):
    assert adabm("report", "in/a.png", "--model", path, "--depth", "full")[0] == 0
    page = Path("report.html").read_text(encoding="utf-8")
    assert '<option value="blocks">' not in page and "<dt>blocks</dt>" not in page and "no blocks" not in page
