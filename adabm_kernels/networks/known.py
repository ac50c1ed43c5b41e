"""The known networks and their layouts."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .carn import CARNSpec
from .dncnn import DnCNNSpec
from .edsr import EDSRSpec
from .espcn import ESPCNSpec
from .fsrcnn import FSRCNNSpec
from .imdn import IMDNSpec
from .layouts import Layout, State, matches
from .rdn import RDNSpec
from .rfdn import RFDNSpec
from .rrdb import RRDBSpec
from .span import SPANSpec
from .spec import NetworkSpec
from .srresnet import SRResNetSpec
from .srvgg import SRVGGSpec
from .vdsr import VDSRSpec

NETWORKS: tuple[type[NetworkSpec], ...] = (  # a new network gets its row here
    EDSRSpec,
    RDNSpec,
    SRResNetSpec,
    SRVGGSpec,
    RRDBSpec,
    SPANSpec,
    IMDNSpec,
    RFDNSpec,
    CARNSpec,
    VDSRSpec,
    DnCNNSpec,
    ESPCNSpec,
    FSRCNNSpec,
)
SPECS = {spec.network: spec for spec in NETWORKS}
ADABM = Layout("adabm", tuple(spec.anchor for spec in NETWORKS), lambda state: True)
IN_UNIT_RANGE = "in_unit_range"  # marks, in state dicts under AdaBM's names, a network of pixels in 0..1 (importers/)
UNIT = Layout("adabm_unit", (), lambda state: IN_UNIT_RANGE in state, lambda state: _unmarked(state), 1)
LAYOUTS = (UNIT, *(layout for spec in NETWORKS for layout in spec.layouts), ADABM)


def _unmarked(state: State) -> dict[str, str]:
    return {key: name for key, name in ADABM.rename(state).items() if key != IN_UNIT_RANGE}


def _in_words(words: list[str], last: str = "and") -> str:
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _sizes() -> str:
    """Words for messages: the scales that most networks have, the networks with further scales, and the networks with fewer."""

    def listed(scales: Iterable[int]) -> str:
        return _in_words([f"x{scale}" for scale in scales])

    usual, words = NetworkSpec.scales, []
    for spec in NETWORKS:
        if not set(usual) <= set(spec.scales):
            words.append(f"{spec.title} for {listed(spec.scales)} alone")
        elif more := [scale for scale in spec.scales if scale not in usual]:
            words.append(f"{spec.title} for {listed(more)} too")
    return f"for {listed(usual)}" + (f" ({'; '.join(words)})" if words else "")


SIZES = _sizes()
SUPPORTED = f"{_in_words([spec.called for spec in NETWORKS])}, {SIZES}"
KNOWN = f"known are {_in_words([f'{spec.called} ({spec.known_by})' for spec in NETWORKS])}, {SIZES} and pictures of three colours"
NONE_OF_THEM = f"not an {_in_words([spec.title for spec in NETWORKS], 'or')} state dict"

# Other networks that users may bring: a key that identifies each of them, and the reason why it cannot be converted.
_OTHERS = (
    (
        r"(conv_hr|HRconv|upconv1|upsample1\.upsample_conv)\.weight$",
        r"(conv_after_body\.|body\.\d+\.rdb1\.|RRDB_trunk\.)",
        "an MSRResNet (the SRResNet of BasicSR and mmagic) or a network built like it, which adds a bilinear enlargement of the "
        "picture to its output and has no convolution after its blocks: the integer networks do otherwise",
    ),
    (
        r"(model\.)?1\.sub\.\d+\.res\.",
        None,
        "an SRResNet in the layout of BasicSR before 2020, whose upsampler has activations and a convolution more than "
        "the integer networks have",
    ),
    (
        r"conv_block1\.conv_block\.0\.",
        None,
        "an SRResNet of sgrvinod's tutorial, which ends in a tanh and takes pixels normalised by ImageNet's mean and deviation: "
        "the integer networks compute neither",
    ),
    (r"residual\.\d+\.in1\.", None, "an SRResNet with InstanceNorm, which depends on the picture: only BatchNorm is supported"),
    (r"body\.\d+\..*conv_du\.", None, "an RCAN, whose channel attention depends on the picture"),
    (r"pre_process\.\d+\.", None, "an MDSR, which has an upsampler for each of several scales"),
    (r"layers\.\d+\.residual_group\.", None, "a SwinIR or HAT"),
    (r"body\.\d+\.(bitsel\d|quant_act\d)\.", None, "a network that CADyQ has quantised: convert the float weights instead"),
)
_OTHER_ANCHORS = ("conv_block1.conv_block.0.weight",)
# The keys of the first convolution's weight in every layout, and in the networks above. By such a key a network is found in a
# checkpoint that holds more.
ANCHORS = tuple(dict.fromkeys([*(anchor for layout in LAYOUTS for anchor in layout.anchors), *_OTHER_ANCHORS]))


def by_scale(state: State) -> dict[str, dict[str, torch.Tensor]]:
    """The state dicts of the networks for each scale, by "x2" and so on, where `state` holds several or does not tell its scale; an
    empty dict where it holds one network."""
    return layout_of(state).by_scale(state)


def layout_of(state: State) -> Layout:
    """The layout of a state dict without wrappers; "adabm" where it has no known layout."""
    return next(layout for layout in LAYOUTS if layout.fits(state))


def why_not(state: State) -> str:
    """Words that say which known network that cannot be converted these weights belong to, and why it cannot; empty where they
    belong to none of those."""
    for pattern, without, words in _OTHERS:
        if matches(state, pattern) and not (without and matches(state, without)):
            return words
    return ""
