"""schema: the field decides a value's type, every user error names its key, a dumped configuration loads as it was."""

import dataclasses
import math
import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.loading import changes, dump, help_text, load
from configs.loading import load_text as load_text_
from configs.schema import SECTIONS, Config, Data, Eval, Model, Optim, Run, Task
from tests.helpers.runs import ROOT
from train import build_network

RECIPES = sorted((ROOT / "configs").glob("*/*.yaml"))


def load_text(text: str = "", *overrides: str) -> Config:
    return load_text_(text, "x.yaml", overrides)


def both(key: str, value: str) -> list:
    """What `key` becomes when it is set in a file and when it is set by an override."""
    section, name = key.split(".", 1)
    configs = load_text(f"{section}:\n  {name}: {value}\n"), load_text("", f"{key}={value}")
    return [getattr(getattr(cfg, section), name) for cfg in configs]


def fails(message: str, text: str = "", *overrides: str) -> str:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_text(text, *overrides)
    return str(caught.value)


# --- types --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optim.lr", "1e-3", 1e-3),
        ("optim.lr", "2", 2.0),
        ("optim.lr", ".5", 0.5),
        ("optim.weight_decay", "0", 0.0),
        ("data.frames", "16", 16),
        ("data.stride", "0", 0),
        ("run.name", "0012", "0012"),
        ("run.name", "1e-3", "1e-3"),
        ("run.name", "true", "true"),
        ("run.name", "null", "null"),
        ("run.name", "2020-01-01", "2020-01-01"),
        ("run.resume", "no", "no"),
        ("run.compile", "yes", "yes"),
        ("data.train", "my videos/train list.txt", "my videos/train list.txt"),
        ("data.scale", "[0.5, 1.0]", (0.5, 1.0)),
        ("data.scale", "0.5,1", (0.5, 1.0)),
        ("data.scale", "(5e-1, 1)", (0.5, 1.0)),
        ("data.mean", "0.1, 0.2, 0.3", (0.1, 0.2, 0.3)),
        ("model.args", "{depth: 4, rate: 1e-3}", {"depth": 4, "rate": 1e-3}),
    ],
)
def test_the_field_decides_the_type_in_files_and_overrides(key, value, expected):
    for found in both(key, value):
        assert found == expected and type(found) is type(expected)
        if isinstance(expected, tuple):
            assert {type(v) for v in found} == {float}


def test_overrides_hold_their_text_to_the_last_character():
    assert load_text("", "data.train=a=b c").data.train == "a=b c"
    assert load_text("data: {train: x}", "data.train=").data.train == ""
    assert load_text("", "run.name=a: b # c").run.name == "a: b # c"


def test_overrides_win_over_the_file_and_later_ones_over_earlier():
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
        ("factorised", "factorised"),
        ("mean", "mean"),
        ("cls", "cls"),
        ("[1, 2e-3]", [1, 2e-3]),
        ("{deep: 1, rate: 1e-3}", {"deep": 1, "rate": 1e-3}),
        ("'4'", "4"),
        ('"1e-3"', "1e-3"),
    ],
)
def test_network_arguments_are_typed_as_yaml_types_them_and_1e_3_is_a_number(value, expected):
    configs = load_text(f"model:\n  args:\n    x: {value}\n"), load_text("", f"model.args.x={value}")
    for cfg in configs:
        assert cfg.model.args == {"x": expected}
        assert type(cfg.model.args["x"]) is type(expected)


def test_network_arguments_are_added_one_by_one_or_replaced_as_a_whole():
    text = "model: {args: {depth: 4, width: 8}}"
    assert load_text(text, "model.args.depth=2", "model.args.heads=3").model.args == dict(depth=2, width=8, heads=3)
    assert load_text(text, "model.args={heads: 3}").model.args == dict(heads=3)
    assert Model().args == {}, "the default must not be shared with a configuration"


def test_an_empty_file_is_the_defaults():
    for text in ("", "# nothing\n", "{}", "---\n"):
        assert load_text(text) == Config()
    assert load(None) == Config()


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().data.size = 3


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("dat.frames=8", "unknown key 'dat.frames'; did you mean 'data.frames'?"),
        ("epochs=3", "unknown key 'epochs'; did you mean 'optim.epochs'?"),
        ("zzz=3", "unknown key 'zzz'; the sections are data, model, task, optim, eval, run"),
        ("data.size.x=3", "unknown key 'data.size.x'; did you mean 'data.size'?"),
        ("optim.lr", "'optim.lr': expected section.key=value, for instance optim.lr=1e-3"),
        ("data.frames=8.0", "data.frames=8.0: expected a whole number"),
        ("data.frames=", "data.frames=: expected a whole number"),
        ("data.frames=nan", "data.frames=nan: expected a whole number"),
        ("optim.lr=fast", "optim.lr=fast: expected a number"),
        ("data.scale=0.5", "data.scale=0.5: expected 2 numbers, for instance [0.5, 1.0]"),
        ("data.mean=1,2", "data.mean=1,2: expected 3 numbers"),
        ("data.scale=a,1", "data.scale=a: expected a number"),
        ("data.short=loob", "data.short=loob: expected one of loop, edge; did you mean 'loop'?"),
        ("data.decoder=xyz", "data.decoder=xyz: expected one of auto, dali, host"),
        ("optim.name=adam", "optim.name=adam: expected one of adamw, sgd, lamb, lion; did you mean 'adamw'?"),
        ("run.compile=true", "run.compile=true: expected one of auto, yes, no"),
        ("run.compile=reduce-overhead", "run.compile=reduce-overhead: this mode of torch.compile captures CUDA graphs"),
        ("model.args=4", "model.args=4: expected keys and values, for instance {depth: 4}"),
        ("model.args={depth", "model.args={depth: expected keys and values, for instance {depth: 4}"),
    ],
)
def test_errors_of_an_override_name_the_key_and_what_was_expected(override, message):
    fails(message, "", override)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("optim: {lrr: 1}", ["unknown key 'optim.lrr'; did you mean 'optim.lr'?"]),
        ("optimm: {lr: 1}", ["unknown key 'optimm.lr'; did you mean 'optim.lr'?"]),
        ("data: {frames: }", ["data.frames=: expected a whole number"]),
        ("data: {train: [a]}", ["data.train=['a']: expected text"]),
        ("data: {flip: [1]}", ["data.flip=['1']: expected a number"]),
        ("data: {scale: [[1], 1]}", ["data.scale=", "expected a number"]),
        ("data: {short: loob}", ["did you mean 'loop'?"]),
        ("data: 3", ["x.yaml: section 'data' holds '3', expected keys and values"]),
        ("- 1", ["x.yaml: expected sections (data, model, task, optim, eval, run)"]),
        ("text", ["x.yaml: expected sections", "'text'"]),
        ("data: {frames: 3", ["x.yaml: not a readable YAML file", "line 1"]),
        ("data:\n\tframes: 3", ["x.yaml: not a readable YAML file", "line 2"]),
        ("epochs: 3", ["epochs", "'optim.epochs'"]),  # a key outside its section is no section
        ("dataa: {}", ["dataa", "data"]),  # empty, and still unknown
        ("data: {size: 3}\ndata: {frames: 3}", ["data"]),  # the first would be dropped in silence
        ("data: {size: 3, size: 4}", ["size"]),
    ],
)
def test_errors_of_a_file_name_the_key_and_what_was_expected(text, messages):
    found = fails(messages[0], text)
    for message in messages[1:]:
        assert message in found


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.frames=0", "1 or more"),
        ("data.stride=-1", "0 or more"),
        ("data.size=0", "1 or more"),
        ("data.batch=0", "1 or more"),
        ("data.workers=-1", "0 or more"),
        ("data.threads=0", "auto, or 1 or more"),
        ("data.threads=many", "auto, or 1 or more"),
        ("data.pyav_share=1.5", "a share, 0 to 1, or -1"),
        ("data.pyav_share=-0.5", "a share, 0 to 1, or -1"),
        ("data.prefetch=0", "1 or more"),
        ("data.flip=1.1", "a probability, 0 to 1"),
        ("data.max_bad=-0.1", "a share, 0 to 1"),
        ("data.scale=0,1", "0 < low <= high <= 1"),
        ("data.scale=1,0.5", "0 < low <= high <= 1"),
        ("data.scale=0.5,1.1", "0 < low <= high <= 1"),
        ("data.ratio=2,1", "0 < low <= high"),
        ("data.std=1,0,1", "numbers above 0"),
        ("optim.lr=-1", "0 or more"),
        ("optim.weight_decay=-0.1", "0 or more"),
        ("optim.clip_grad=-1", "0 or more"),
        ("optim.epochs=0", "1 or more"),
        ("optim.warmup_epochs=30", "less than optim.epochs=30"),
        ("optim.min_lr=1", "at most optim.lr=0.001"),
        ("optim.betas=0.9,1", "1"),  # torch would refuse it later, without the key
        ("task.label_smoothing=-0.1", "0"),
        ("task.label_smoothing=1.5", "1"),
        ("eval.clips=0", "1 or more"),
        ("eval.crops=2", "1 or 3"),
        ("eval.batch=0", "1 or more"),
        ("eval.short_side=100", "0, -1, or at least data.size=224"),
        ("run.seed=-1", "0 or more"),
        ("run.log_every=0", "1 or more"),
        ("run.max_bad_steps=0", "1 or more"),
        ("run.threads=-1", "0 or more"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key(override, expected):
    key = override.partition("=")[0]
    assert re.match(rf"{re.escape(key)}=.*: expected .*{re.escape(expected)}", fails(key, "", override))


def floats() -> list[tuple[str, str]]:
    """(key, override) with an @ in the place of every number that a configuration holds."""
    places = []
    for section in dataclasses.fields(Config):
        for name, value in dataclasses.asdict(getattr(Config(), section.name)).items():
            key = f"{section.name}.{name}"
            if isinstance(value, float):
                places.append((key, f"{key}=@"))
            elif isinstance(value, tuple):
                for i in range(len(value)):
                    places.append((key, f"{key}=" + ",".join("@" if i == j else str(v) for j, v in enumerate(value))))
    return places


@pytest.mark.parametrize(("key", "override"), floats())
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_no_number_may_be_nan_or_infinite(key, override, value):
    fails(f"{key}=", "", override.replace("@", value))


def test_a_missing_file_names_its_nearest_neighbour(tmp_path):
    (tmp_path / "demo.yaml").write_text("")
    with pytest.raises(ValueError, match=r"demos\.yaml: no such configuration file; did you mean demo\.yaml\?"):
        load(tmp_path / "demos.yaml")
    with pytest.raises(ValueError, match=r"zzz: no such configuration file$"):
        load(tmp_path / "zzz")
    with pytest.raises(ValueError, match=r"elsewhere/demo\.yaml: no such configuration file$"):
        load(tmp_path / "elsewhere" / "demo.yaml")


def test_a_folder_or_a_binary_file_is_no_configuration(tmp_path):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x81")
    for path in (tmp_path, tmp_path / "b.yaml"):
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: not a readable YAML file"):
            load(path)


# --- round trip ---------------------------------------------------------------------------------------------------

_share = st.floats(0, 1)
_number = st.floats(-1e6, 1e6)
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_scalar = st.one_of(st.none(), st.booleans(), st.integers(), _number, _text)
_value = st.recursive(_scalar, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text("xyz"), v), max_leaves=4)
_args = st.dictionaries(st.from_regex("[a-z][a-z_0-9]{0,6}", fullmatch=True), _value, max_size=3)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    low, high = sorted(draw(st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1))))
    min_lr, lr = sorted(draw(st.tuples(_share, _share)))
    data = Data(
        train=draw(_text),
        root=draw(_text),
        frames=draw(st.integers(1, 64)),
        scale=(low, high),
        flip=draw(_share),
        short=draw(st.sampled_from(["loop", "edge"])),
        mean=draw(st.tuples(_number, _number, _number)),
    )
    optim = Optim(lr=lr, min_lr=min_lr, epochs=draw(st.integers(3, 10**6)), clip_grad=draw(st.floats(0, 1e30)))
    run = Run(name=draw(_text), seed=draw(st.integers(0, 2**63)), compile=draw(st.sampled_from(["auto", "yes", "no"])))
    evaluation = Eval(crops=draw(st.sampled_from([1, 3])), clips=draw(st.integers(1, 99)))
    return Config(data, Model(name=draw(_text)), Task(label_smoothing=draw(st.floats(0, 0.5))), optim, evaluation, run)


@settings(max_examples=50)
@given(configs())
def test_a_dumped_configuration_loads_as_it_was(cfg):
    assert load_text(dump(cfg)) == cfg


@settings(max_examples=40)
@given(_args)
@example({"a": "0E0"})
@example({"a": "1e-3", "b": ["2E5", "yes", "3"]})
def test_dumped_network_arguments_load_as_they_were(args):
    cfg = Config(model=Model(args=args))
    assert repr(load_text(dump(cfg)).model.args) == repr(args)  # repr: 1 == True == 1.0


def test_a_dumped_file_loads_as_it_was_with_the_run_name_of_the_first(tmp_path):
    (tmp_path / "recipe.yaml").write_text("optim: {lr: 1e-3, min_lr: 1e-7}\nmodel: {args: {depth: 4}}\n")
    cfg = load(tmp_path / "recipe.yaml", ["data.size=32"])
    assert cfg.run.name == "recipe"
    (tmp_path / "config.yaml").write_text(dump(cfg))
    assert load(tmp_path / "config.yaml") == cfg
    assert "scale: [0.08, 1.0]" in dump(cfg)
    assert load(tmp_path / "recipe.yaml", ["run.name=0012"]).run.name == "0012"


def test_changes_names_the_keys_that_differ():
    old = load_text("", "model.args.depth=4")
    new = load_text("", "optim.lr=3e-4", "data.scale=0.5,1", "model.args.depth=2")
    assert changes(old, old) == []
    assert changes(old, new) == [
        "data.scale: (0.08, 1.0) -> (0.5, 1.0)",
        "model.args: {'depth': 4} -> {'depth': 2}",
        "optim.lr: 0.001 -> 0.0003",
    ]


# --- the repository's own recipes, and help -----------------------------------------------------------------------


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_its_network_can_be_built(path):
    cfg = load(path)
    assert cfg.run.name == path.stem
    assert load_text(dump(cfg)) == cfg
    with torch.device("meta"):  # shapes only
        network = build_network(cfg, 6)
    assert sum(p.numel() for p in network.parameters()) > 0


def test_help_has_a_line_for_every_key_with_its_default_and_choices():
    lines = {line.split()[0]: line for line in help_text().splitlines()}
    keys = [f"{name}.{f.name}" for name, section in SECTIONS.items() for f in dataclasses.fields(section)]
    assert list(lines) == keys
    for key in keys:
        assert len(lines[key].split()) > 3, f"{key} has no meaning"
    assert " 8 " in lines["data.frames"] and "0.001" in lines["optim.lr"] and "1e-06" in lines["optim.min_lr"]
    assert "[0.08, 1.0]" in lines["data.scale"] and "[loop|edge]" in lines["data.short"] and "{}" in lines["model.args"]


def test_every_default_is_valid_and_of_its_declared_type():
    for section in dataclasses.fields(Config):
        for name, value in dataclasses.asdict(getattr(Config(), section.name)).items():
            if isinstance(value, float):
                assert math.isfinite(value)
            if value != {}:
                shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
                assert load_text("", f"{section.name}.{name}={shown}") == Config()


def test_a_preset_sets_the_views_and_what_is_said_beside_it_wins(tmp_path):
    assert load(None, ["eval.preset=mvit"]).eval == Eval("mvit", 5, "spread", 1, short_side=-1)
    assert load(None, ["eval.clips=2", "eval.preset=mvit"]).eval.clips == 5
    assert load(None, ["eval.preset=mvit", "eval.clips=2"]).eval.clips == 2
    (tmp_path / "x.yaml").write_text("eval: {clips: 7, preset: vivit}")
    cfg = load(tmp_path / "x.yaml")
    assert (cfg.eval.clips, cfg.eval.crops) == (7, 3)
    (tmp_path / "again.yaml").write_text(dump(cfg))
    assert load(tmp_path / "again.yaml").eval == cfg.eval
    with pytest.raises(ValueError, match="eval.preset=mvitt: expected one of .*; did you mean 'mvit'?"):
        load(None, ["eval.preset=mvitt"])
