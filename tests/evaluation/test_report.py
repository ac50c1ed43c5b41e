"""The report page: what it says, that it stands alone, and that it works in a browser."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from browser import chromium, needs_browser
from command_line import names

from adabm_kernels.images import open_picture
from adabm_kernels.models import _ASSETS, load_model
from adabm_kernels.report.bitmap import COLOURS, bit_map, colour, group_name, ink
from adabm_kernels.upscale import upscale
from adabm_kernels.upscaling.picture import Patch

needs_builtin = pytest.mark.skipif(
    not (_ASSETS / "edsr_x4_w6a6.safetensors").is_file(), reason="the built-in model's file is not there"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report on a crop of the sample, half of it made smooth: (its text, what the command printed)."""
    from adabm_kernels import cli

    if not (_ASSETS / "edsr_x4_w6a6.safetensors").is_file():
        pytest.skip("the built-in model's file is not there")
    folder = tmp_path_factory.mktemp("report")
    with PIL.Image.open(_ASSETS / "sample.png") as sample:
        rgb = np.array(sample.convert("RGB").crop((40, 40, 136, 104)))
    rgb[:, :48] = 128
    PIL.Image.fromarray(rgb).save(folder / "<half> & half.png")
    out = folder / "report.html"
    argv = ["report", str(folder / "<half> & half.png"), "-o", str(out), "--model", "edsr_x4_w6a6", "--tile", "32", "--halo", "4"]
    assert cli.main(argv) == 0
    return out.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """All elements of a page: (tag, attributes)."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@needs_builtin
def test_the_page_stands_alone_and_is_accessible(page):
    elements = Elements(page)
    links = [value for _, attributes in elements.found for name, value in attributes.items() if name in ("src", "href", "srcset")]
    assert len(links) == 2 and all(link.startswith("data:image/") for link in links)
    assert "url(" not in page and "@import" not in page and "default-src 'none'" in page
    assert elements.of("html") == [{"lang": "en"}] and all(image["alt"] for image in elements.of("img"))
    labelled = {label["for"] for label in elements.of("label") if "for" in label}
    inside = set(re.findall(r"<label>\s*<input id=\"(\w+)\"", page))
    controls = {control["id"] for tag in ("input", "select") for control in elements.of(tag)}
    assert controls == {"cut", "show", "group"} and controls == labelled | inside
    assert "prefers-color-scheme: dark" in page and "color-scheme: light dark" in page
    assert "&lt;half&gt; &amp; half.png, upscaled 4 times" in page and "<half>" not in page


@needs_builtin
def test_the_page_tells_bits_times_and_quality(page):
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    bits = data["bits"]["mean over the layers"]
    count = page.partition('id="tile-map"')[0].count("<rect")
    assert len(bits) == count > 4 and min(bits) < max(bits)
    assert len(Elements(page).of("rect")) > count  # tiles, too
    assert data["colours"] == list(COLOURS) and {"body.0", "body.7", "head", "tail"} <= data["bits"].keys()
    assert re.search(r"<dt>PSNR to the float model</dt><dd>\d+\.\d\d dB, nothing interpolated</dd>", page)
    assert re.search(r"<dt>float model</dt><dd>\d+\.\d{3} s, \d+\.\d\d times as long", page)
    assert re.search(r'<th scope="row">body\.0\.conv1</th><td>\d\.\d\d</td><td>\d+\.\d\d</td>', page)
    assert re.search(r"body\.0\.conv1 +\d +(F\([24]x\d\)|direct)", page)  # the plan


@needs_builtin
@needs_browser
def test_it_works_in_a_browser(page, tmp_path):
    script = """
    const cut = document.getElementById('cut'), map = document.getElementById('map'), group = document.getElementById('group');
    const seen = () => getComputedStyle(document.querySelector('.after')).clipPath;
    const before = seen();
    cut.focus();
    cut.value = 10;
    cut.dispatchEvent(new Event('input'));
    const hidden = getComputedStyle(map).display;
    document.getElementById('show').click();
    const fills = () => [...map.querySelectorAll('#patch-map rect')].map(rect => rect.getAttribute('fill'));
    const mean = fills();
    group.value = 'head';
    group.dispatchEvent(new Event('change'));
    const result = {errors, before, after: seen(), focused: document.activeElement.id, hidden, shown: getComputedStyle(map).display,
      mean, head: fills(), loaded: [...document.images].every(image => image.naturalWidth > 0),
      requests: performance.getEntriesByType('resource').map(entry => entry.name).filter(name => !name.startsWith('data:'))};
    document.body.innerHTML = '<pre id="result"></pre>';
    document.getElementById('result').textContent = JSON.stringify(result);
    """
    done = chromium(tmp_path, page, script, "--dump-dom", "--virtual-time-budget=5000")
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    result = json.loads(found[1])
    assert result["errors"] == [] and result["requests"] == [] and result["loaded"]
    assert (result["before"], result["after"]) == ("inset(0px 0px 0px 50%)", "inset(0px 0px 0px 10%)")
    assert result["focused"] == "cut" and result["hidden"] == "none" and result["shown"] != "none"
    assert len(set(result["mean"])) > 1 and set(result["head"]) == {COLOURS[6]}


@needs_builtin
@needs_browser
def test_the_slider_changes_what_is_seen(page, tmp_path):
    shots = []
    for value in (0, 100):
        script = f"const cut = document.getElementById('cut'); cut.value = {value}; cut.dispatchEvent(new Event('input'));"
        path = tmp_path / f"{value}.png"
        done = chromium(tmp_path, page, script, f"--screenshot={path}", "--virtual-time-budget=5000")
        assert path.exists(), done.stderr
        with PIL.Image.open(path) as image:
            shots.append(np.array(image.convert("RGB")).astype(int))
    changed = (np.abs(shots[0] - shots[1]).max(2) > 8).mean()
    assert changed > 0.02  # of the window, where the photograph is


PATCHES = [Patch(0, 0, 4, 6, -1, 3.0, 0.1), Patch(0, 6, 4, 4, 1, 5.0, 0.1), Patch(4, 0, 3, 10, 0, 4.0, 0.1)]


def test_bit_map_as_a_picture_and_as_a_figure():
    model = load_model("edsr_x4_w4a4")
    bits = bit_map(model, PATCHES[::-1], 10, 7)
    assert bits.patches == tuple(PATCHES) and bits.mean.tolist() == [3.0, 5.0, 4.0]
    layers = model.layer_bits(None, offset=np_offsets())
    want = (layers["body.2.conv1"].float() + layers["body.2.conv2"].float()) / 2
    assert bits.of("body.2").tolist() == want.tolist() and bits.of("head").tolist() == [8, 8, 8]
    image = bits.to_image()
    assert image.size == (168, 35) and image.getpixel((2, 2)) == PIL.ImageColor.getrgb(COLOURS[1])
    assert image.getpixel((8, 2)) == PIL.ImageColor.getrgb(COLOURS[3])
    ground = PIL.Image.new("RGB", (10, 7), "white")
    assert bits.to_image(ground, opacity=0).getpixel((2, 2)) == (255, 255, 255)
    figure = bits.to_figure(ground, group="body.2")
    assert [axes.get_title() for axes in figure.axes][:2] == ["bits, body.2", "patch by group of layers"]
    assert figure.axes[-1].get_ylabel() == "bits" and len(figure.axes[0].patches) == 3
    figure.canvas.draw()


def test_a_figure_without_matplotlib_says_where_it_comes_from(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.colors", None)  # as where it is not installed
    bits = bit_map(load_model("edsr_x4_w4a4"), PATCHES, 10, 7)
    with pytest.raises(ModuleNotFoundError, match=r"matplotlib is not installed; it comes with adabm-kernels\[figure\]"):
        bits.to_figure()


def np_offsets():
    import torch

    return torch.tensor([patch.offset for patch in PATCHES], dtype=torch.int32)


def test_bit_map_refuses_what_does_not_belong():
    model = load_model("edsr_x4_w4a4")
    bits = bit_map(model, PATCHES, 10, 7)
    with pytest.raises(ValueError, match="group must be one of head, body.0, .* got 'foot'"):
        bits.of("foot")
    for draw in (bits.to_image, bits.to_figure):
        with pytest.raises(ValueError, match="picture must be 10x7, got 3x3"):
            draw(PIL.Image.new("RGB", (3, 3)))
        with pytest.raises(ValueError, match="opacity must be in 0..1, got 2"):
            draw(opacity=2)
    with pytest.raises(ValueError, match="at least one patch, got none"):
        bit_map(model, [], 10, 7)


def test_groups_and_colours():
    layers = ("head.0", "body.3.conv1", "body.8", "tail.0.0", "RDBs.2.convs.1.conv.0", "GFF.1", "SFENet1")
    assert [group_name(layer) for layer in layers] == ["head", "body.3", "body.8", "tail", "RDBs.2", "GFF", "SFENet1"]
    assert colour(2.4) == COLOURS[0] and colour(7.6) == COLOURS[6]

    def luminance(shade):
        linear = [((int(shade[i : i + 2], 16) / 255 + 0.055) / 1.055) ** 2.4 for i in (1, 3, 5)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for shade in COLOURS:
        light, dark = sorted((luminance(shade), luminance(ink(shade))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, AA


def test_bad_input(empty_folder, adabm):
    PIL.Image.new("RGB", (20, 20)).save("in.png")
    PIL.Image.new("RGBA", (20, 20), (9, 9, 9, 0)).save("clear.png")
    Path("there.html").write_text("old")
    for argv, message in {
        ("in.png", "-o", "a.txt"): "--output must end in .html, got 'a.txt'",
        ("in.png", "-o", "there.html"): "--output must not exist yet without --existing replace, got 'there.html'",
        ("in.png", "-o", "no/a.html"): "cannot write 'no/a.html': the folder 'no' does not exist",
        ("clear.png", "-o", "a.html"): "IMAGE must have a pixel that is not transparent, got 'clear.png'",
        ("absent.png", "-o", "a.html"): "cannot read 'absent.png'",
        ("in.png", "-o", "a.html", "--max-pixels", "399"): "20x20 = 400 pixels, more than the limit of 399",
    }.items():
        status, out, err = adabm("report", *argv)
        assert (status, out) == (2, "") and message in err and err.count("\n") == 1
    assert names(empty_folder) == ["clear.png", "in.png", "there.html"]


@needs_builtin
def test_warnings_of_a_picture_are_said_once(empty_folder, adabm):
    PIL.Image.new("CMYK", (20, 20)).save("in.tif")
    with pytest.warns(UserWarning, match="'in.tif' is in CMYK and becomes sRGB") as said:
        status, _, _ = adabm("report", "in.tif")
    assert status == 0 and len(said) == 1


@needs_builtin
def test_as_many_pixels_as_the_option_allows(empty_folder, adabm, monkeypatch):
    PIL.Image.new("RGB", (20, 20)).save("in.png")
    monkeypatch.setitem(open_picture.__kwdefaults__, "max_pixels", 399)  # as if the picture were larger than the usual limit
    status, _, err = adabm("report", "in.png", "--max-pixels", "400")
    assert (status, err) == (0, "") and "PSNR to the float model" in Path("report.html").read_text(encoding="utf-8")


def test_record_of_upscale_makes_a_bit_map():
    model, patches = load_model("edsr_x4_w4a4"), []
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    upscale(rgb, model, tile=16, halo=2, record=patches)
    assert bit_map(model, patches, 50, 40).to_image().size == (168, 68)
