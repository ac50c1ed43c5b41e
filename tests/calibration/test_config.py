"""ConvertConfig: what it accepts, what it refuses and how it travels through JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adabm_kernels.config import BestTuning, ConvertConfig, PaperTuning


@pytest.mark.parametrize("base", [4, 5, 6])
def test_adaptive_base_bits_that_fit(base):
    assert ConvertConfig(act_bits=base).act_bits == base


@pytest.mark.parametrize(("base", "needed"), [(2, 0), (3, 1), (7, 9), (8, 10)])
def test_adaptive_base_bits_that_do_not_fit(base, needed):
    with pytest.raises(ValueError, match=f"must be 4..6, got {base}: it would need {needed}-bit codes.*clamp_bits=True"):
        ConvertConfig(act_bits=base)
    assert ConvertConfig(act_bits=base, clamp_bits=True).act_bits == base
    assert ConvertConfig(act_bits=base, adaptive=False).act_bits == base


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weight_bits", 1, "weight_bits must be 2..8, got 1"),
        ("weight_bits", 9, "weight_bits must be 2..8, got 9"),
        ("act_bits", 9, "act_bits must be 2..8, got 9"),
        ("quantize", "fq", "quantize must be 'full' or 'body', got 'fq'"),
        ("image_percentile", 51.0, r"image_percentile must be a percentage in 0..50, got 51.0"),
        ("layer_percentile", -1, r"layer_percentile must be a percentage in 0..50, got -1"),
        ("ema_beta", 1.5, "ema_beta must be in 0..1, got 1.5"),
        ("bac_beta", float("nan"), "bac_beta must be in 0..1, got nan"),
        ("recipe", "fast", "recipe must be 'best' or 'paper', got 'fast'"),
        ("objective", "time", "objective must be 'bits' or 'latency', got 'time'"),
        ("act_ranges", "kl", "act_ranges must be 'auto', 'search', 'minmax', 'percentile' or 'omse', got 'kl'"),
        ("weight_ranges", "search", "weight_ranges must be 'minmax', 'percentile' or 'omse', got 'search'"),
        ("range_percentile", 50.0, "range_percentile must be in 50..100, got 50.0"),
        ("steps", -1, "steps must be at least 0, got -1"),
        ("target_bits", 6, "target_bits must be within 1 of act_bits, got 6"),
        ("target_bits", "4", "target_bits must be within 1 of act_bits, got '4'"),
        ("tuning", BestTuning(batch=0), "tuning.batch must be a whole number, at least 1, got 0"),
        ("tuning", BestTuning(lr_bias=-1.0), "tuning.lr_bias must be a finite number, at least 0, got -1.0"),
        ("tuning", BestTuning(lr_weight=float("nan")), "tuning.lr_weight must be a finite number, at least 0, got nan"),
        ("tuning", BestTuning(lr_weight=float("inf")), "tuning.lr_weight must be a finite number, at least 0, got inf"),
        ("seed", -1, "seed must be in 0..9223372036854775806, got -1"),
        ("seed", 2**70, "seed must be in 0..9223372036854775806, got 1180591620717411303424"),
        ("patch", 0, "patch must be at least 1, got 0"),
        ("depths", "4", "depths must be 'auto' or 'none', got '4'"),
        ("depth_tile", 4, "depth_tile must be one of 8, 12, 16, 24, 32, 48, got 4"),
        ("depth_tile", 18, "depth_tile must be one of 8, 12, 16, 24, 32, 48, got 18"),
        ("depth_tile", 68, "depth_tile must be one of 8, 12, 16, 24, 32, 48, got 68"),
        ("residual", "int8", "residual must be 'auto', 'float32' or 'int16', got 'int8'"),
        ("equalize", "yes", "equalize must be 'auto', 'on' or 'off', got 'yes'"),
        ("depth_loss", -0.1, "depth_loss must be in 0..10, got -0.1"),
        ("depth_loss", float("nan"), "depth_loss must be in 0..10, got nan"),
        ("batch", -1, "batch must be at least 1, got -1"),
    ],
)
def test_values_out_of_range(field, value, message):
    with pytest.raises(ValueError, match=f"ConvertConfig: {message}"):
        ConvertConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("weight_bits", 4.0, "int"),
        ("act_bits", True, "int"),
        ("adaptive", 1, "bool"),
        ("ema_beta", "0.9", "float"),
        ("recipe", ["best"], "str"),
    ],
)
def test_values_of_another_type(field, value, kind):
    with pytest.raises(TypeError, match=f"ConvertConfig: {field} must be {kind}, got"):
        ConvertConfig(**{field: value})


def test_features_of_16_bits_need_convolutions_on_integers_around_them():
    with pytest.raises(ValueError, match="residual must be 'auto' or 'float32' with quantize='body', .* in float .*, got 'int16'"):
        ConvertConfig(quantize="body", residual="int16")
    assert ConvertConfig(residual="int16").chosen("residual") == "int16"
    assert [ConvertConfig(recipe=recipe).chosen("residual") for recipe in ("best", "paper")] == ["int16", "float32"]


def test_tuning_is_that_of_the_recipe():
    assert ConvertConfig().tuning == BestTuning() and ConvertConfig(recipe="paper").tuning == PaperTuning()
    with pytest.raises(TypeError, match="tuning must be BestTuning for recipe 'best', got PaperTuning"):
        ConvertConfig(tuning=PaperTuning())


@given(
    st.builds(
        ConvertConfig,
        weight_bits=st.integers(2, 8),
        act_bits=st.integers(2, 8),
        clamp_bits=st.just(True),
        quantize=st.sampled_from(["full", "body"]),
        ema_beta=st.floats(0, 1),
        seed=st.integers(0, 2**32),
        recipe=st.just("paper"),
        tuning=st.builds(PaperTuning, epoch=st.integers(1, 100), lr_act_range=st.floats(0, 1)),
    )
)
def test_json_round_trip(config):
    assert ConvertConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_fills_defaults_and_names_unknown_fields():
    assert ConvertConfig.from_dict({"act_bits": 6}) == ConvertConfig(act_bits=6)
    with pytest.raises(ValueError, match=r"unknown fields \['bits', 'colour'\]"):
        ConvertConfig.from_dict({"colour": 1, "bits": 2, "seed": 3})
    with pytest.raises(ValueError, match=r"unknown fields of tuning \['foo'\]"):
        ConvertConfig.from_dict({"tuning": {"foo": 1}})
    with pytest.raises(ValueError, match="recipe must be 'best' or 'paper', got 'x'"):
        ConvertConfig.from_dict({"recipe": "x", "tuning": {}})
    with pytest.raises(TypeError, match=r"recipe must be str, got \['best'\]"):
        ConvertConfig.from_dict({"recipe": ["best"], "tuning": {}})
