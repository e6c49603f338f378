"""export --to hf: transformers loads what is written, the model card says what is known, a hub is given all of it."""

import base64
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import networks
from configs.loading import parse_config
from networks import weights
from networks.weights.__main__ import main
from networks.weights.read import read_checkpoint
from tests.helpers.networks import SMALL, random_video, randomize, seeded_clips
from tests.networks.test_masked_autoencoders import IMAGENET, SMALL_VIDEOMAE
from training.pretraining_tasks import MAETask
from training.setup import model_card

IMAGE_HIERA = dict(patch_kernel=(1, 7, 7), patch_stride=(1, 4, 4), embed_dim=8, depths=(1, 1, 2))
ONE_FRAME = dict(num_frames=1, image_size=64)
EXTRA = {
    "id2label": {str(number): f"class {number}" for number in range(5)},
    "input": {"mean": [0.45] * 3, "std": [0.225] * 3, "frame_stride": 4},
}
LEARNED = {"pos_embed": "learned"}
CASES = {
    "TimesformerForVideoClassification": ("timesformer_tiny", SMALL),
    "TimesformerForVideoClassification, joint": ("timesformer_tiny", SMALL | {"attention": "joint"}),
    "VivitForVideoClassification": ("vivit_tiny", SMALL),
    "VivitForVideoClassification, oblong": ("vivit_tiny", SMALL | {"image_size": (32, 64)}),
    "VideoMAEForVideoClassification": ("videomae_tiny", SMALL),
    "VJEPA2ForVideoClassification": ("vjepa2_tiny", SMALL | {"pooler_depth": 3}),
    "HieraForImageClassification": ("hiera_tiny", {"num_classes": 5} | ONE_FRAME | IMAGE_HIERA),
    "VideoMAEForPreTraining": ("pretrain_videomae_tiny", SMALL_VIDEOMAE),
    "VJEPA2Model": (
        "pretrain_vjepa2_tiny",
        dict(num_frames=4, predictor_embed_dim=24, predictor_num_heads=2, backbone_args=dict(patch_size=8)),
    ),
    "HieraForPreTraining": (
        "mae_hiera_tiny",
        ONE_FRAME | dict(backbone_args=IMAGE_HIERA, decoder_embed_dim=16, decoder_num_heads=2),
    ),
}


def export(name, options, folder, *arguments, status=0):
    """Write a random network to FOLDER/ours and export it to FOLDER/hf."""
    network = randomize(networks.build(name, **options), seed=4)
    extra = EXTRA if options.get("num_classes") else {"input": EXTRA["input"]}
    weights.save_network(folder / "ours", network, name, extra)
    assert main(["export", str(folder / "ours"), str(folder / "hf"), "--to", "hf", *arguments]) == status
    return network


def auto_class(kind):
    import transformers

    ends = {"VideoClassification": "VideoClassification", "ImageClassification": "ImageClassification"}
    if kind == "VJEPA2Model":
        return transformers.AutoModel
    end = next((name for end, name in ends.items() if kind.partition(",")[0].endswith(end)), "PreTraining")
    return getattr(transformers, f"AutoModelFor{end}")


@pytest.mark.parametrize("kind", CASES)
def test_transformers_loads_every_weight_and_computes_the_same(kind, tmp_path):
    network = export(*CASES[kind], tmp_path)
    loaded, info = auto_class(kind).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert type(loaded).__name__ == kind.partition(",")[0]
    assert all(key.startswith("vjepa2.predictor.") for key in info["missing_keys"])  # of a classifier
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    video = random_video(2, *network.patch_embed.input_shape)
    with torch.no_grad():
        loaded.eval()
        if kind.startswith("HieraForImage"):
            expected = loaded(video[:, :, 0]).logits
        elif kind.startswith("VJEPA2For"):
            expected = loaded(pixel_values_videos=video.transpose(1, 2)).logits
        elif "Classification" in kind:
            expected = loaded(video.transpose(1, 2)).logits
        elif kind == "VJEPA2Model":  # test_jepa compares the predictor
            expected = loaded(pixel_values_videos=video.transpose(1, 2), skip_predictor=True).last_hidden_state
            torch.testing.assert_close(network.teacher.forward_tokens(video), expected, atol=1e-5, rtol=1e-5)
            return
        else:
            return  # test_masked_autoencoders compares the predictions of the same weights
        torch.testing.assert_close(network(video), expected, atol=1e-5, rtol=1e-5)
    assert loaded.config.id2label[2] == "class 2"
    if not kind.startswith("Hiera"):  # which is not read from transformers
        assert weights.input_spec(read_checkpoint(tmp_path / "hf")).frame_stride == 4


def test_exported_pretraining_predicts_the_same(tmp_path):
    network = export(*CASES["VideoMAEForPreTraining"], tmp_path)
    loaded = auto_class("").from_pretrained(tmp_path / "hf").eval()
    video = random_video(2, 3, 4, 32, 32)
    mask = (torch.arange(32) % 4 > 0).expand(2, -1)
    visible, predicted = (part.nonzero()[:, 1].view(2, -1) for part in (~mask, mask))
    with torch.no_grad():
        expected = loaded(video.transpose(1, 2), mask).logits
        # transformers norms with an epsilon of 1e-5 after the decoder, the authors of VideoMAE with 1e-6.
        torch.testing.assert_close(network(video, visible, predicted), expected, atol=1e-4, rtol=1e-4)


def test_exported_hiera_pretraining_has_the_same_loss_on_color_images(tmp_path):
    """transformers has the channels of a predicted patch before its pixels, Hiera for videos after them."""
    network = export(*CASES["HieraForPreTraining"], tmp_path)
    loaded = auto_class("").from_pretrained(tmp_path / "hf", mask_ratio=0.6).eval()
    batch = seeded_clips(3, 3, 1, 64, 64)
    with torch.no_grad():
        out = MAETask(network, "random", 0.6)(network, batch)
        noise = out["mask"].flatten(1).float() + torch.rand(3, 16) / 2
        assert loaded(batch.video[:, :, 0], noise=noise).loss.item() == pytest.approx(out["loss"].item(), rel=1e-5)


def test_exported_pretraining_has_the_loss_of_its_run(tmp_path):
    """The folder of a run tells in `task` what was predicted, and transformers predicts the same."""
    for kind, expected in (
        ("VideoMAEForPreTraining", {"norm_pix_loss": False}),
        ("HieraForPreTraining", {"normalize_pixel_loss": False, "mask_ratio": 0.9}),
    ):
        name, options = CASES[kind]
        network = randomize(networks.build(name, **options), seed=4)
        ratio = ["task.mask_ratio=0.75"] if kind.startswith("VideoMAE") else []
        folder = tmp_path / name
        card = model_card(
            parse_config("", "", ["task.name=mae", "task.norm_pix_loss=no", *ratio, f"model.name={name}"]), []
        )
        weights.save_network(folder / "ours", network, name, card)
        assert main(["export", str(folder / "ours"), str(folder / "hf"), "--to", "hf"]) == 0
        config = json.loads((folder / "hf" / "config.json").read_text())
        assert config.items() >= expected.items()
        card_text = read_card(folder / "hf")[1]
        assert ("not normalized for each patch" in card_text) == kind.startswith("VideoMAE")
        assert ("a tube mask, 75 % of the patches" in card_text) == kind.startswith("VideoMAE")
    network, config = weights.load_network(tmp_path / "pretrain_videomae_tiny" / "ours")
    loaded = auto_class("").from_pretrained(tmp_path / "pretrain_videomae_tiny" / "hf").eval()
    batch = seeded_clips(2, 3, 4, 32, 32)
    with torch.no_grad():
        out = MAETask(network, normalize=config["task"]["norm_pix_loss"], **IMAGENET)(network, batch)
        expected = loaded(batch.video.transpose(1, 2), out["mask"].flatten(1)).loss
    assert out["loss"].item() == pytest.approx(expected.item(), rel=1e-4)

    network, _ = weights.load_network(tmp_path / "mae_hiera_tiny" / "ours")
    loaded = auto_class("").from_pretrained(tmp_path / "mae_hiera_tiny" / "hf", mask_ratio=0.6).eval()
    batch = seeded_clips(2, 3, 1, 64, 64)
    with torch.no_grad():
        out = MAETask(network, "random", 0.6, normalize=False)(network, batch)
        noise = out["mask"].flatten(1).float() + torch.rand(2, 16) / 2
        assert loaded(batch.video[:, :, 0], noise=noise).loss.item() == pytest.approx(out["loss"].item(), rel=1e-5)

    source = tmp_path / "pretrain_videomae_tiny"
    for folder in ("ours", "hf"):  # what is predicted is not lost on the way over another folder
        assert main(["convert", str(source / folder), str(source / "again")]) == 0
        assert main(["export", str(source / "again"), str(source / "hf_again"), "--to", "hf"]) == 0
        assert json.loads((source / "hf_again" / "config.json").read_text())["norm_pix_loss"] is False


@pytest.mark.parametrize("kind", [kind for kind in CASES if not kind.startswith("Hiera")])
def test_exported_folder_is_read_again(kind, tmp_path):
    network = export(*CASES[kind], tmp_path)
    if kind == "VJEPA2Model":
        converted = networks.build(CASES[kind][0], **CASES[kind][1])
        report = weights.load_pretrained(converted, tmp_path / "hf")
        assert "copy of the encoder" in report.text()
        actual, expected = converted.state_dict(), network.state_dict()
        for name in actual:
            assert torch.equal(actual[name], expected[name.replace("backbone.", "teacher.")]), name
        return
    converted, config, report = weights.convert(tmp_path / "hf")
    actual, expected = converted.state_dict(), network.state_dict()
    assert actual.keys() == expected.keys() and report.count("created") == 0
    for name, tensor in expected.items():
        if "VideoMAE" in kind and name.endswith("attn.qkv.bias"):  # transformers has no bias of the keys
            third = len(tensor) // 3
            tensor[third : 2 * third] = 0
        assert torch.equal(actual[name], tensor), name
    if network.kwargs.get("num_classes"):
        assert config["extra"]["id2label"]["2"] == "class 2"


@pytest.mark.parametrize(
    ("kind", "processor"),
    [
        ("VivitForVideoClassification", "AutoImageProcessor"),
        ("VideoMAEForVideoClassification", "AutoVideoProcessor"),
        ("VJEPA2ForVideoClassification", "AutoVideoProcessor"),
        ("HieraForImageClassification", "AutoImageProcessor"),
    ],
)
def test_preprocessor_normalizes_as_the_loader(kind, processor, tmp_path):
    import transformers

    network = export(*CASES[kind], tmp_path)
    _, num_frames, height, width = network.patch_embed.input_shape
    frames = torch.arange(num_frames * 3)[:, None, None].expand(-1, height, width).reshape(num_frames, 3, height, width)
    frames = (frames * 7 % 256).to(torch.uint8)  # of one color each: V-JEPA's processor resizes even to the same size
    load = getattr(transformers, processor).from_pretrained(tmp_path / "hf")
    given = list(frames)
    values = next(iter(load(given, return_tensors="pt").values()))
    expected = (frames / 255 - 0.45) / 0.225
    torch.testing.assert_close(values.reshape(expected.shape), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("mvit_v2_tiny", {}, "transformers has no MViT"),
        ("vivit_fe_tiny", SMALL, "attention=factorized_encoder"),
        ("timesformer_tiny", SMALL | {"attention": "space"}, "attention=space"),
        ("timesformer_tiny", SMALL | {"pooling": "mean"}, "pooling=mean"),
        ("timesformer_tiny", SMALL | {"image_size": (32, 64)}, "computes with squares"),
        ("vivit_tiny", SMALL | {"num_classes": 0}, "num_classes=0"),
        ("vivit_tiny", SMALL | {"rlt_threshold": 0.1}, "rlt_threshold=0.1"),
        ("videomae_tiny", SMALL | {"pooling": "mean"}, "pooling=mean"),
        ("vjepa2_1_tiny", SMALL, "rope_layout=interleaved"),
        ("pretrain_videomae_tiny", {"num_classes": None, "backbone_args": {"gelu": "tanh"}}, "gelu=tanh"),
        ("pretrain_videomae_tiny", {"num_classes": None, "backbone_args": LEARNED}, "pos_embed=learned"),
        ("hiera_tiny", {}, "num_frames=8: transformers has Hiera for images only"),
    ],
)
def test_what_transformers_cannot_build_is_refused(name, options, reason, tmp_path, capsys):
    options = {key: value for key, value in ({"num_classes": 5} | options).items() if value is not None}
    export(name, options, tmp_path, status=2)
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_export_overwrites_no_network_and_writes_nothing_unusable(tmp_path, capsys):
    weights.save_network(tmp_path / "a", networks.build("vivit_tiny", **SMALL), "vivit_tiny")
    assert main(["export", str(tmp_path / "a"), str(tmp_path / "a"), "--to", "hf"]) == 2
    assert "contains a network of this project" in capsys.readouterr().err
    weights.load_network(tmp_path / "a")
    wide = networks.build("timesformer_tiny", **SMALL | {"image_size": (32, 64)})
    weights.save_network(tmp_path / "b", wide, "timesformer_tiny")
    assert main(["export", str(tmp_path / "b"), str(tmp_path / "c"), "--to", "hf"]) == 2
    assert "computes with squares" in capsys.readouterr().err
    weights.save_network(tmp_path / "d", networks.build("vivit_tiny", **SMALL), "vivit_tiny", {"id2label": {"0": "a"}})
    assert main(["export", str(tmp_path / "d"), str(tmp_path / "c"), "--to", "hf"]) == 2
    assert "id2label names 1 classes, the network has 5" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


# ---- model card ------------------------------------------------------------------------------------------------------


def read_card(folder):
    _, front_matter, text = (folder / "README.md").read_text().split("---\n", 2)
    lines = (line.partition(": ") for line in front_matter.splitlines())
    return {key: json.loads(value) for key, _, value in lines}, text


def test_model_card_has_the_license_the_figures_of_the_run_and_code_that_runs(tmp_path):
    run_dir = tmp_path / "run"
    network = randomize(networks.build("videomae_tiny", **SMALL), seed=4)
    weights.save_network(run_dir / "best", network, "videomae_tiny", EXTRA)
    (run_dir / "eval" / "5x3").mkdir(parents=True)
    summary = {"top1": 0.8125, "top5": 0.95, "scored": 79, "videos": 80}
    (run_dir / "eval" / "5x3" / "summary.json").write_text(json.dumps(summary))
    assert main(["export", str(run_dir), str(tmp_path / "hf"), "--to", "hf", "--license", "cc-by-nc-4.0"]) == 0
    metadata, text = read_card(tmp_path / "hf")
    assert metadata["license"] == "cc-by-nc-4.0" and metadata["pipeline_tag"] == "video-classification"
    assert "| 5x3 | 79 of 80 | 81.25 % | 95.00 % |" in text
    assert "4 frames of 32x32 pixels, 4 frames apart" in text
    code = text.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "tensor([[" in done.stdout, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_code_of_every_model_card_runs(kind, tmp_path):
    export(*CASES[kind], tmp_path)
    metadata, text = read_card(tmp_path / "hf")
    assert metadata["license"] == "unknown" and "Not stated." in text
    code = text.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and "tensor(" in done.stdout, done.stderr[-2000:]


# ---- a hub -----------------------------------------------------------------------------------------------------------


class StandInHub(ThreadingHTTPServer):
    """Answer as the hub does when a repository is made and files are uploaded; keep what was uploaded."""

    def __init__(self):
        self.repositories, self.files, self.tokens = [], {}, set()
        super().__init__(("127.0.0.1", 0), HubHandler)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    server: StandInHub

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.headers["Authorization"] != "Bearer good":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            repository = json.loads(body)
            self.server.repositories.append(repository)
            return self.answer({"url": f"{self.server.address}/{repository['organization']}/{repository['name']}"})
        if self.path == "/api/validate-yaml":
            return self.answer({"warnings": [], "errors": []})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self.answer({"files": files})
        assert "/commit/" in self.path, self.path
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        oid = "0" * 40
        return self.answer({"commitOid": oid, "commitUrl": f"{self.server.address}/me/net/commit/{oid}"})

    def answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = StandInHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_push_uploads_the_whole_folder_to_a_private_repository(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "good")
    export(*CASES["VivitForVideoClassification"], tmp_path, "--push", "me/net")
    assert f"pushed to {hub.address}/me/net" in capsys.readouterr().out
    repository = hub.repositories[0]
    assert (repository["organization"], repository["name"]) == ("me", "net")
    assert repository.get("private") or repository.get("visibility") == "private"  # huggingface-hub 1 and 2
    written = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    assert hub.files == written
    assert set(written) == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert b'from_pretrained("me/net")' in written["README.md"]


@pytest.mark.parametrize(
    ("token", "repository", "message"),
    [
        ("", "me/net", "there is no token: log in with `hf auth login`, or set HF_TOKEN"),
        ("bad", "me/net", "the hub answers 401"),
        ("good", "net", "--push net: expected OWNER/NAME"),
        ("good", "me/n et", "--push me/n et: "),
    ],
)
def test_push_error_is_one_line(token, repository, message, hub, tmp_path, monkeypatch, capsys):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    export(*CASES["VivitForVideoClassification"], tmp_path, "--push", repository, status=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("networks.weights: ") and message in error
    assert not hub.files


def test_push_without_a_connection_is_one_line(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "good")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    export(*CASES["VivitForVideoClassification"], tmp_path, "--push", "me/net", status=2)
    assert "--push me/net: no connection to the hub: " in capsys.readouterr().err
