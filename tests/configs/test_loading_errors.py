"""Errors in a configuration name the key, the value, what was expected and the nearest match."""

from __future__ import annotations

import re

import pytest

from configs.loading import load_config, parse_config
from configs.schema import Config


def error_of(text: str = "", *overrides: str) -> str:
    """Return the message of the ValueError that loading raises."""
    with pytest.raises(ValueError) as caught:
        parse_config(text, "x.yaml", overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("dat.frames=8", "unknown key 'dat.frames'; did you mean 'data.num_frames'?"),
        ("epochs=3", "unknown key 'epochs'; did you mean 'optim.epochs'?"),
        ("zzz=3", "unknown key 'zzz'; the sections are data, model, adapter, task, optim, probe, eval, run"),
        ("data.image_size.x=3", "unknown key 'data.image_size.x'; did you mean 'data.image_size'?"),
        ("optim.lr", "'optim.lr': expected section.key=value, for instance optim.lr=1e-3"),
        ("data.num_frames=8.0", "data.num_frames=8.0: expected a whole number"),
        ("data.num_frames=", "data.num_frames=: expected a whole number"),
        ("data.num_frames=nan", "data.num_frames=nan: expected a whole number"),
        ("optim.lr=fast", "optim.lr=fast: expected a number"),
        ("data.crop_scale=0.5", "data.crop_scale=0.5: expected 2 numbers, for instance [0.5, 1.0]"),
        ("data.mean=1,2", "data.mean=1,2: expected 3 numbers"),
        ("data.crop_scale=a,1", "data.crop_scale=a: expected a number"),
        ("data.short_clip=wrapp", "data.short_clip=wrapp: expected one of wrap, repeat_last; did you mean 'wrap'?"),
        ("data.decoder=xyz", "data.decoder=xyz: expected one of auto, dali, pyav, both"),
        ("optim.name=adam", "optim.name=adam: expected one of adamw, sgd, lamb, lion; did you mean 'adamw'?"),
        ("run.compile=true", "run.compile=true: expected one of auto, yes, no"),
        ("run.compile=reduce-overhead", "run.compile=reduce-overhead: this mode of torch.compile captures CUDA graphs"),
        ("model.args=4", "model.args=4: expected keys and values, for instance {depth: 4}"),
        ("model.args={depth", "model.args={depth: expected keys and values, for instance {depth: 4}"),
    ],
)
def test_error_in_an_override_names_the_key_and_what_was_expected(override, message):
    assert message in error_of("", override)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("optim: {lrr: 1}", ["unknown key 'optim.lrr'; did you mean 'optim.lr'?"]),
        ("optimm: {lr: 1}", ["unknown key 'optimm.lr'; did you mean 'optim.lr'?"]),
        ("data: {num_frames: }", ["data.num_frames=: expected a whole number"]),
        ("data: {train: [a]}", ["data.train=['a']: expected text"]),
        ("data: {hflip: [1]}", ["data.hflip=['1']: expected a number"]),
        ("data: {crop_scale: [[1], 1]}", ["data.crop_scale=", "expected a number"]),
        ("data: {short_clip: wrapp}", ["did you mean 'wrap'?"]),
        ("data: 3", ["x.yaml: section 'data' holds '3', expected keys and values"]),
        ("- 1", ["x.yaml: expected sections (data, model, adapter, task, optim, probe, eval, run)"]),
        ("text", ["x.yaml: expected sections", "'text'"]),
        ("data: {num_frames: 3", ["x.yaml: not a readable YAML file", "line 1"]),
        ("data:\n\tnum_frames: 3", ["x.yaml: not a readable YAML file", "line 2"]),
        ("epochs: 3", ["epochs", "'optim.epochs'"]),  # a key outside its section is no section
        ("dataa: {}", ["dataa", "data"]),  # empty, and still unknown
        ("data: {image_size: 3}\ndata: {num_frames: 3}", ["data"]),  # the first would be dropped in silence
        ("data: {image_size: 3, image_size: 4}", ["size"]),
    ],
)
def test_error_in_a_file_names_the_key_and_what_was_expected(text, messages):
    error = error_of(text)
    for message in messages:
        assert message in error


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.num_frames=0", "1 or more"),
        ("data.frame_stride=-1", "0 or more"),
        ("data.image_size=0", "1 or more"),
        ("data.batch_size=0", "1 or more"),
        ("data.num_workers=-1", "0 or more"),
        ("data.dali_threads=0", "auto, or a whole number, 1 or more"),
        ("data.dali_threads=many", "auto, or a whole number, 1 or more"),
        ("data.pyav_share=1.5", "auto, or a number, 0 to 1"),
        ("data.pyav_share=-0.5", "auto, or a number, 0 to 1"),
        ("data.prefetch=0", "1 or more"),
        ("data.hflip=1.1", "a number, 0 to 1"),
        ("data.max_unreadable=-0.1", "a number, 0 to 1"),
        ("data.crop_scale=0,1", "0 < low <= high <= 1"),
        ("data.crop_scale=1,0.5", "0 < low <= high <= 1"),
        ("data.crop_scale=0.5,1.1", "0 < low <= high <= 1"),
        ("data.crop_ratio=2,1", "0 < low <= high"),
        ("data.std=1,0,1", "numbers above 0"),
        ("optim.lr=-1", "0 or more"),
        ("optim.weight_decay=-0.1", "0 or more"),
        ("optim.clip_grad_norm=-1", "0 or more"),
        ("optim.epochs=0", "1 or more"),
        ("optim.warmup_epochs=30", "less than optim.epochs=30"),
        ("optim.min_lr=1", "at most optim.lr=0.001"),
        ("optim.betas=0.9,1", "1"),  # torch would refuse it later, without the key
        ("task.label_smoothing=-0.1", "0"),
        ("task.label_smoothing=1.5", "1"),
        ("eval.num_clips=0", "1 or more"),
        ("eval.num_crops=2", "1 or 3"),
        ("eval.batch_size=0", "1 or more"),
        ("eval.short_side=100", "image_size, 8/7, or at least data.image_size=224"),
        ("run.seed=-1", "0 or more"),
        ("run.log_interval=0", "1 or more"),
        ("run.max_nonfinite_steps=0", "1 or more"),
        ("run.cpu_threads=-1", "0 or more"),
    ],
)
def test_value_out_of_range_is_refused_with_its_key_and_bounds(override, expected):
    key = override.partition("=")[0]
    assert re.match(rf"{re.escape(key)}=.*: expected .*{re.escape(expected)}", error_of("", override))


def number_overrides() -> list[tuple[str, str]]:
    """Return (key, override) with an @ in the place of each number of a configuration."""
    overrides = []
    for section, values in Config().model_dump().items():
        for name, value in values.items():
            key = f"{section}.{name}"
            if isinstance(value, float):
                overrides.append((key, f"{key}=@"))
            elif isinstance(value, tuple) and not any(isinstance(part, str) for part in value):
                for i in range(len(value)):
                    parts = ("@" if i == j else str(part) for j, part in enumerate(value))
                    overrides.append((key, f"{key}={','.join(parts)}"))
    return overrides


@pytest.mark.parametrize(("key", "override"), number_overrides())
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_nan_and_infinity_are_refused(key, override, value):
    assert f"{key}=" in error_of("", override.replace("@", value))


def test_missing_file_is_reported_with_the_nearest_name(tmp_path):
    (tmp_path / "demo.yaml").write_text("")
    with pytest.raises(ValueError, match=r"demos\.yaml: no such configuration file; did you mean demo\.yaml\?"):
        load_config(tmp_path / "demos.yaml")
    (tmp_path / "k400").mkdir()
    (tmp_path / "k400" / "vivit.yaml").write_text("")
    with pytest.raises(ValueError, match=r"no such configuration file; did you mean k400/vivit\.yaml\?"):
        load_config(tmp_path / "vivit.yaml")
    with pytest.raises(ValueError, match=r"zzz: no such configuration file$"):
        load_config(tmp_path / "zzz")
    with pytest.raises(ValueError, match=r"elsewhere/demo\.yaml: no such configuration file$"):
        load_config(tmp_path / "elsewhere" / "demo.yaml")


def test_folder_and_binary_file_are_refused(tmp_path):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x81")
    for path in (tmp_path, tmp_path / "b.yaml"):
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: not a readable YAML file"):
            load_config(path)
