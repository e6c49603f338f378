"""Loading a configuration: the field decides the type of a value, overrides win, and a dump loads as it was."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from configs import loading
from configs.loading import diff_configs, dump_config, help_text, load_config
from configs.schema import SECTIONS, Config, Data, Eval, Model, Optim, Run, Task


def load_text(text: str = "", *overrides: str) -> Config:
    return loading.parse_config(text, "x.yaml", overrides)


def values_of(key: str, value: str) -> list:
    """Return the value that a key gets in a file, and the one that it gets by an override."""
    section, name = key.split(".", 1)
    configs = load_text(f"{section}:\n  {name}: {value}\n"), load_text("", f"{key}={value}")
    return [getattr(getattr(cfg, section), name) for cfg in configs]


# --- types --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optim.lr", "1e-3", 1e-3),
        ("optim.lr", "2", 2.0),
        ("optim.lr", ".5", 0.5),
        ("optim.weight_decay", "0", 0.0),
        ("data.num_frames", "16", 16),
        ("data.frame_stride", "0", 0),
        ("run.name", "0012", "0012"),
        ("run.name", "1e-3", "1e-3"),
        ("run.name", "true", "true"),
        ("run.name", "null", "null"),
        ("run.name", "2020-01-01", "2020-01-01"),
        ("run.resume", "no", "no"),
        ("run.compile", "yes", "yes"),
        ("data.train", "my videos/train list.txt", "my videos/train list.txt"),
        ("data.crop_scale", "[0.5, 1.0]", (0.5, 1.0)),
        ("data.crop_scale", "0.5,1", (0.5, 1.0)),
        ("data.crop_scale", "(5e-1, 1)", (0.5, 1.0)),
        ("data.mean", "0.1, 0.2, 0.3", (0.1, 0.2, 0.3)),
        ("model.args", "{depth: 4, rate: 1e-3}", {"depth": 4, "rate": 1e-3}),
    ],
)
def test_type_of_a_value_is_that_of_its_field(key, value, expected):
    for actual in values_of(key, value):
        assert actual == expected and type(actual) is type(expected)
        if isinstance(expected, tuple):
            assert {type(part) for part in actual} == {float}


def test_override_keeps_its_text_to_the_last_character():
    assert load_text("", "data.train=a=b c").data.train == "a=b c"
    assert load_text("data: {train: x}", "data.train=").data.train == ""
    assert load_text("", "run.name=a: b # c").run.name == "a: b # c"


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones():
    cfg = load_text("optim: {lr: 1, epochs: 7}", "optim.lr=2", "--optim.lr=3")
    assert (cfg.optim.lr, cfg.optim.epochs) == (3.0, 7)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("4", 4),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("5E4", 5e4),
        ("-2e1", -20.0),
        ("true", True),
        ("false", False),
        ("null", None),
        ("factorized", "factorized"),
        ("mean", "mean"),
        ("cls", "cls"),
        ("[1, 2e-3]", [1, 2e-3]),
        ("{deep: 1, rate: 1e-3}", {"deep": 1, "rate": 1e-3}),
        ("'4'", "4"),
        ('"1e-3"', "1e-3"),
    ],
)
def test_network_arguments_have_the_types_of_yaml_and_1e_3_is_a_number(value, expected):
    configs = load_text(f"model:\n  args:\n    x: {value}\n"), load_text("", f"model.args.x={value}")
    for cfg in configs:
        assert cfg.model.args == {"x": expected}
        assert type(cfg.model.args["x"]) is type(expected)


def test_network_arguments_are_changed_one_by_one_or_replaced_together():
    text = "model: {args: {depth: 4, embed_dim: 8}}"
    assert load_text(text, "model.args.depth=2", "model.args.num_heads=3").model.args == dict(
        depth=2, embed_dim=8, num_heads=3
    )
    assert load_text(text, "model.args={num_heads: 3}").model.args == dict(num_heads=3)
    assert Model().args == {}, "the default must not be shared with a configuration"


def test_empty_file_has_the_defaults():
    for text in ("", "# nothing\n", "{}", "---\n"):
        assert load_text(text) == Config()
    assert load_config(None) == Config()


def test_config_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Config().data.image_size = 3


# --- round trip ---------------------------------------------------------------------------------------------------

_fraction = st.floats(0, 1)
_number = st.floats(-1e6, 1e6)
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_scalar = st.one_of(st.none(), st.booleans(), st.integers(), _number, _text)
_value = st.recursive(_scalar, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text("xyz"), v), max_leaves=4)
_args = st.dictionaries(st.from_regex("[a-z][a-z_0-9]{0,6}", fullmatch=True), _value, max_size=3)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    low, high = sorted(draw(st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1))))
    min_lr, lr = sorted(draw(st.tuples(_fraction, _fraction)))
    data = Data(
        train=draw(_text),
        root=draw(_text),
        num_frames=draw(st.integers(1, 64)),
        crop_scale=(low, high),
        hflip=draw(_fraction),
        short_clip=draw(st.sampled_from(["wrap", "repeat_last"])),
        mean=draw(st.tuples(_number, _number, _number)),
    )
    optim = Optim(lr=lr, min_lr=min_lr, epochs=draw(st.integers(3, 10**6)), clip_grad_norm=draw(st.floats(0, 1e30)))
    run = Run(name=draw(_text), seed=draw(st.integers(0, 2**63)), compile=draw(st.sampled_from(["auto", "yes", "no"])))
    evaluation = Eval(num_crops=draw(st.sampled_from([1, 3])), num_clips=draw(st.integers(1, 99)))
    model, task = Model(name=draw(_text)), Task(label_smoothing=draw(st.floats(0, 0.5)))
    return Config(data=data, model=model, task=task, optim=optim, eval=evaluation, run=run)


@settings(max_examples=50)
@given(configs())
def test_dumped_config_loads_as_it_was(cfg):
    assert load_text(dump_config(cfg)) == cfg


@settings(max_examples=40)
@given(_args)
@example({"a": "0E0"})
@example({"a": "1e-3", "b": ["2E5", "yes", "3"]})
def test_dumped_network_arguments_load_as_they_were(args):
    cfg = Config(model=Model(args=args))
    assert repr(load_text(dump_config(cfg)).model.args) == repr(args)  # repr: 1 == True == 1.0


def test_dumped_file_loads_as_it_was_with_the_run_name_of_its_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text("optim: {lr: 1e-3, min_lr: 1e-7}\nmodel: {args: {depth: 4}}\n")
    cfg = load_config(tmp_path / "recipe.yaml", ["data.image_size=32"])
    assert cfg.run.name == "recipe"
    (tmp_path / "config.yaml").write_text(dump_config(cfg))
    assert load_config(tmp_path / "config.yaml") == cfg
    assert "crop_scale: [0.08, 1.0]" in dump_config(cfg)
    assert load_config(tmp_path / "recipe.yaml", ["run.name=0012"]).run.name == "0012"


def test_diff_names_the_keys_that_differ():
    old = load_text("", "model.args.depth=4")
    new = load_text("", "optim.lr=3e-4", "data.crop_scale=0.5,1", "model.args.depth=2")
    assert diff_configs(old, old) == []
    assert diff_configs(old, new) == [
        "data.crop_scale: (0.08, 1.0) -> (0.5, 1.0)",
        "model.args: {'depth': 4} -> {'depth': 2}",
        "optim.lr: 0.001 -> 0.0003",
    ]


# --- help, defaults and presets ------------------------------------------------------------------------------------


def test_help_has_a_line_per_key_with_default_and_choices():
    lines = {line.split()[0]: line for line in help_text().splitlines()}
    keys = [f"{name}.{key}" for name, section in SECTIONS.items() for key in section.model_fields]
    assert list(lines) == keys
    for key in keys:
        assert len(lines[key].split()) > 3, f"{key} has no meaning"
    for key, text in {
        "data.num_frames": " 8 ",
        "optim.lr": "0.001",
        "optim.min_lr": "1e-06",
        "data.crop_scale": "[0.08, 1.0]",
        "data.short_clip": "[wrap|repeat_last]",
        "model.args": "{}",
    }.items():
        assert text in lines[key]


def test_defaults_are_valid_and_of_their_declared_types():
    for section, values in Config().model_dump().items():
        for name, value in values.items():
            if isinstance(value, float):
                assert math.isfinite(value)
            if value != {}:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else value
                assert load_text("", f"{section}.{name}={text}") == Config()


def test_preset_sets_the_views_and_single_keys_win_over_it(tmp_path):
    assert load_config(None, ["eval.preset=mvit"]).eval == Eval(
        preset="mvit", num_clips=5, clip_placement="uniform", num_crops=1, short_side="8/7"
    )
    assert load_config(None, ["eval.num_clips=2", "eval.preset=mvit"]).eval.num_clips == 5
    assert load_config(None, ["eval.preset=mvit", "eval.num_clips=2"]).eval.num_clips == 2
    (tmp_path / "x.yaml").write_text("eval: {num_clips: 7, preset: vivit}")
    cfg = load_config(tmp_path / "x.yaml")
    assert (cfg.eval.num_clips, cfg.eval.num_crops) == (7, 3)
    (tmp_path / "again.yaml").write_text(dump_config(cfg))
    assert load_config(tmp_path / "again.yaml").eval == cfg.eval
    with pytest.raises(ValueError, match="eval.preset=mvitt: expected one of .*; did you mean 'mvit'?"):
        load_config(None, ["eval.preset=mvitt"])
