"""Distillation: its formulas, teachers that see other clips, and runs that are resumed and spread."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from networks import weights
from networks.student import feature_dim, make_student
from tests.helpers.networks import EVERY, SMALL, random_video, randomize
from tests.helpers.runs import (
    ONE_EPOCH,
    assert_resumed_run_is_bit_identical,
    assert_two_processes_equal_one,
    evaluate,
    last_checkpoint,
    losses,
    metrics,
    train,
)
from training.distillation import Distill, Teacher, binary_divergence, cosine_distance, soft_divergence
from training.losses import Loss

TEACHER_ARGS = "model.args={embed_dim: 48, depth: 2, num_heads: 2}"
ONES, ZEROS = torch.ones(3), torch.zeros(3)


def make_network(kind: str = "videomae", seed: int = 3, **options) -> nn.Module:
    name, settings = EVERY[kind]
    return randomize(networks.build(name, **settings | options), seed)


def batch_for(network: nn.Module) -> SimpleNamespace:
    return SimpleNamespace(video=random_video(2, *network.patch_embed.input_shape), label=torch.tensor([1, 4]))


def test_soft_divergence_is_that_of_hinton():
    student, teacher = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[3.0, 0.0, 1.0]])
    p, q = (teacher / 4).softmax(-1), (student / 4).softmax(-1)
    expected = 16 * (p * (p / q).log()).sum()
    torch.testing.assert_close(soft_divergence(student, teacher, tau=4.0), expected)
    torch.testing.assert_close(soft_divergence(student.repeat(3, 1), teacher.repeat(3, 1), tau=4.0), expected)
    assert soft_divergence(student, student + 7, tau=2.0).abs() < 1e-6
    student.requires_grad_()
    soft_divergence(student, teacher, tau=4.0).backward()
    torch.testing.assert_close(student.grad, 4 * (q - p))


def test_binary_divergence_is_that_of_each_class():
    student, teacher = torch.tensor([[1.0, -2.0, 0.5], [0, 0, 3]]), torch.tensor([[3.0, 0.0, 1.0], [1, -1, 0]])
    p, q = (teacher / 2).sigmoid(), (student / 2).sigmoid()
    expected = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(binary_divergence(student, teacher, tau=2.0), expected)
    assert binary_divergence(student, student, tau=2.0).abs() < 1e-6
    assert binary_divergence(student, student + 7, tau=2.0) > 0.5, "a class has a probability of its own"
    student.requires_grad_()
    binary_divergence(student, teacher, tau=2.0).backward()
    torch.testing.assert_close(student.grad, 2 * (q - p) / 6)


def test_cosine_distance_does_not_depend_on_lengths():
    features, teacher = random_video(4, 6), random_video(4, 6, seed=1)
    normalized = F.normalize(features, dim=-1), F.normalize(teacher, dim=-1)
    expected = (normalized[0] - normalized[1]).square().sum(-1).mean()
    torch.testing.assert_close(cosine_distance(3 * features, 0.2 * teacher), expected)


@pytest.mark.parametrize("kind", EVERY)
def test_every_network_can_be_a_student_and_a_teacher_of_features(kind):
    student, teacher = make_network(kind), make_network(kind, seed=4)
    keys = set(student.state_dict())
    before = batch_for(student)
    with torch.no_grad():
        expected = student(before.video)
    make_student(student, 7)
    assert set(student.state_dict()) - keys == {"teacher_projection.weight", "teacher_projection.bias"}
    with torch.no_grad():
        assert torch.equal(student.eval()(before.video), expected)
        logits, features = student.train()(before.video)
    assert logits.shape == expected.shape and features.shape == (2, 7)
    assert feature_dim(teacher) == student.head.in_features


def test_total_is_the_weighted_sum_of_label_and_teacher():
    student, teacher = make_network(), make_network(seed=4)
    batch = batch_for(student)
    distill = Distill(Loss(label_smoothing=0.1), Teacher(teacher, ONES, ZEROS), alpha=0.3, tau=2.0)
    out = distill(student, batch)
    label = F.cross_entropy(out["logits"], batch.label, label_smoothing=0.1)
    with torch.no_grad():
        soft = soft_divergence(out["logits"], teacher(batch.video), 2.0)
    torch.testing.assert_close(out["loss"], 0.7 * label + 0.3 * soft)
    torch.testing.assert_close(out["label_loss"], label.detach())
    torch.testing.assert_close(out["distillation_loss"], soft.detach())
    out["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    make_student(student, feature_dim(teacher))
    both = Distill(Loss(), Teacher(teacher, ONES, ZEROS), "features", alpha=1.0)(student.train(), batch)
    assert 0 < both["loss"] < 4


def test_teacher_sees_clips_normalized_as_its_own():
    network = make_network()
    pixels = torch.rand(2, *network.patch_embed.input_shape)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])

    def normalize(mean, std):
        return (pixels - mean.view(3, 1, 1, 1)) / std.view(3, 1, 1, 1)

    own_mean, own_std = torch.tensor([0.45] * 3), torch.tensor([0.225] * 3)
    teacher = Teacher(network, own_std / std, (own_mean - mean) / std)
    with torch.no_grad():
        torch.testing.assert_close(teacher.logits(normalize(own_mean, own_std)), network(normalize(mean, std)))
    same = Teacher(network, ONES, ZEROS)
    assert same._clips(pixels) is pixels, "clips of the same normalization are not copied"
    half = Teacher(make_network().bfloat16(), ONES, ZEROS)
    assert half.logits(pixels).dtype == torch.float32 and half.description.endswith("bfloat16")


@pytest.fixture
def teacher(arguments):
    """Return the folder of a run of a wider network on longer clips."""
    return train(arguments, "teacher", "model.name=videomae_tiny", TEACHER_ARGS, "data.num_frames=8", *ONE_EPOCH)


def distill(teacher, kind: str = "logits") -> list[str]:
    return [f"task.teacher={teacher}", f"task.distillation={kind}", *(["task.distillation_tau=2"] * (kind == "logits"))]


@pytest.mark.parametrize("kind", ["logits", "features"])
def test_student_run_leaves_a_plain_network(arguments, teacher, kind):
    run_dir = train(arguments, "student", *distill(teacher, kind), "optim.ema_decay=0.5", "optim.layer_decay=0.8")
    log = (run_dir / "log.txt").read_text()
    assert f"learns the {kind} of a teacher (ViViT, 0.0" in log
    for row in metrics(run_dir, "train"):
        total = (row["label_loss"] + row["distillation_loss"]) / 2
        assert row["loss"] == pytest.approx(total, abs=1e-5)
        assert (
            f"loss {row['loss']:.4f} (label {row['label_loss']:.4f}, distillation {row['distillation_loss']:.4f})"
            in log
        )
    network, _ = weights.load_network(run_dir / "best")
    plain = networks.build("vivit_tiny", **network.kwargs)
    assert set(network.state_dict()) == set(plain.state_dict())
    evaluate(run_dir)
    alone = train(arguments, "alone", "optim.ema_decay=0.5", "optim.layer_decay=0.8")
    assert losses(alone) != losses(run_dir)


@pytest.mark.parametrize("kind", ["logits", pytest.param("features", marks=pytest.mark.slow)])
def test_stopped_and_resumed_student_run_is_bit_identical(arguments, teacher, kind, monkeypatch):
    assert_resumed_run_is_bit_identical(arguments, *distill(teacher, kind), "data.mixup=0.8", monkeypatch=monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["logits", "features"])
def test_student_run_of_two_processes_equals_one(arguments, teacher, kind, parallel):
    without = "model.args={embed_dim: 32, depth: 2, num_heads: 2}"
    assert_two_processes_equal_one(arguments, *distill(teacher, kind), without, parallel=parallel)


@pytest.mark.slow
def test_compiled_student_run_has_the_same_losses(arguments, teacher):
    keys = [*distill(teacher, "features"), "model.args={embed_dim: 32, depth: 2, num_heads: 2}"]
    plain, compiled = (train(arguments, how, *keys, f"run.compile={how}") for how in ("no", "yes"))
    for (_, loss, _), (_, expected, _) in zip(losses(compiled), losses(plain), strict=True):
        assert loss == pytest.approx(expected, abs=1e-5)


def test_adapter_learns_from_a_teacher(arguments, teacher):
    base = train(arguments, "base", *ONE_EPOCH)
    keys = [*distill(teacher, "features"), f"model.pretrained={base}", "adapter.name=lora"]
    run_dir = train(arguments, "a", *keys)
    assert "teacher_projection.weight" in last_checkpoint(run_dir)["network"]
    weights.load_network(run_dir / "best")


def test_teacher_of_other_classes_is_refused_unless_features_are_compared(arguments, tmp_path, capsys):
    network = networks.build("videomae_tiny", **SMALL)
    weights.save_network(tmp_path / "five", network, "videomae_tiny")
    train(arguments, "a", *distill(tmp_path / "five"), status=2)
    assert "it has 5 classes, and the training list 6; expected the same" in capsys.readouterr().err
    train(arguments, "a", *distill(tmp_path / "five", "features"), *ONE_EPOCH)
    network = networks.build("videomae_tiny", **SMALL | {"num_classes": 6})
    names = {"id2label": {str(number): f"name {number}" for number in range(6)}}
    weights.save_network(tmp_path / "six", network, "videomae_tiny", names)
    (tmp_path / "names.txt").write_text("\n".join(f"name {number}" for number in (1, 0, 2, 3, 4, 5)))
    train(arguments, "a", *distill(tmp_path / "six"), f"data.class_names={tmp_path / 'names.txt'}", status=2)
    assert "its class 'name 0' is 'name 1' in the training list" in capsys.readouterr().err
    weights.save_network(tmp_path / "several", network, "videomae_tiny", {"multi_label": True})
    train(arguments, "a", *distill(tmp_path / "several"), status=2)
    assert "it knows several labels per video; expected one label, as the student" in capsys.readouterr().err
    train(arguments, "a", "task.teacher=nowhere", status=2)
    assert "nowhere: No such file or directory" in capsys.readouterr().err
