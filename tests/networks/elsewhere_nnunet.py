"""The trainers for nnU-Net, on a data set that nnU-Net itself planned and preprocessed; plain loops are beside them."""

import copy
import json
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from torch import nn
from torch.nn import functional as F

from tests.networks.shim import let_torchvision_import

let_torchvision_import()  # nnU-Net looks for a trainer in all of its modules, one of which wants timm

from nnunetv2.run.run_training import get_trainer_from_args  # noqa: E402

EXAMPLE = Path(__file__).parents[2] / "examples" / "nnunet"
NAME, SIDE = "Dataset001_Tiny", 40
TINY = """
from mmgl_trainers import nnUNetTrainerMMGLGlobal, nnUNetTrainerMMGLLocal
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def tiny(trainer, name, **attributes):
    def __init__(self, plans, configuration, fold, dataset_json, device=None):
        trainer.__init__(self, plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch = 1, 2
        vars(self).update(attributes)

    return type(name, (trainer,), {"__init__": __init__})


TinyGlobal = tiny(nnUNetTrainerMMGLGlobal, "TinyGlobal")
TinyLocal = tiny(nnUNetTrainerMMGLLocal, "TinyLocal")
TinyFineTuning = tiny(nnUNetTrainer, "TinyFineTuning", initial_lr=0.0, num_val_iterations_per_epoch=1)
"""
SPLITS = [{"train": [f"case_{i}" for i in cases], "val": ["case_4"]} for cases in ((0, 1, 2, 3), (0, 1, 2))]
SHIM = "from tests.networks.shim import let_torchvision_import\nlet_torchvision_import()\n"
pytestmark = pytest.mark.filterwarnings("ignore")  # nnU-Net's own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where nnU-Net keeps its data, with the environment that tells it so."""
    root = tmp_path_factory.mktemp("nnunet")
    images, labels = (root / "raw" / NAME / kind for kind in ("imagesTr", "labelsTr"))
    generator = np.random.default_rng(0)
    for kind in (images, labels):
        kind.mkdir(parents=True)
    for case in range(5):
        label = np.zeros((4, SIDE, SIDE), np.uint8)
        x, y = generator.integers(5, 15, 2)
        label[:, x : x + 16, y : y + 16] = 1
        label[:, x + 4 : x + 12, y + 4 : y + 12] = 2
        image = (100 * label + generator.normal(0, 20, label.shape)).astype(np.float32)
        if case == 3:  # no label is known
            label[:] = 0
        for array, path in ((image, images / f"case_{case}_0000.nii.gz"), (label, labels / f"case_{case}.nii.gz")):
            volume = SimpleITK.GetImageFromArray(array)
            volume.SetSpacing((1, 1, 4))
            SimpleITK.WriteImage(volume, str(path))
    description = {
        "channel_names": {"0": "CT"}, "labels": {"background": 0, "ring": 1, "middle": 2}, "numTraining": 5,
        "file_ending": ".nii.gz",
    }  # fmt: skip
    (root / "raw" / NAME / "dataset.json").write_text(json.dumps(description))
    (root / "trainers").mkdir()
    (root / "trainers" / "tiny_trainers.py").write_text(TINY)
    (root / "sitecustomize.py").write_text(SHIM)
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{kind}", str(root / kind))
        patch.setenv("nnUNet_extTrainer", f"{EXAMPLE}:{root / 'trainers'}")
        patch.setenv("nnUNet_n_proc_DA", "1")
        patch.setenv("nnUNet_def_n_proc", "1")
        patch.setenv("PYTHONPATH", f"{root}:{EXAMPLE}:{EXAMPLE.parents[1]}")
        run("nnUNetv2_plan_and_preprocess", "-d", "1", "-c", "2d", "-np", "1", "-npfp", "1")
        plans = root / "preprocessed" / NAME / "nnUNetPlans.json"
        content = json.loads(plans.read_text())
        configuration = content["configurations"]["2d"]
        configuration["batch_size"] = 4
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 6, 8, 10]
        plans.write_text(json.dumps(content))
        (plans.parent / "splits_final.json").write_text(json.dumps(SPLITS))
        patch.setenv("nnUNet_n_proc_DA", "0")
        yield root


def run(command, *arguments):
    result = subprocess.run(
        [Path(sysconfig.get_path("scripts")) / command, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def trainer(name):
    made = get_trainer_from_args(NAME, "2d", 0, name, device=torch.device("cpu"))
    made.initialize()
    return made


def plain_network(made):
    """As nnU-Net builds it, without hooks, with the trainer's weights."""
    net = made.build_network_architecture(made.plans_manager, made.configuration_manager, 1, 3, False)
    net.load_state_dict(made.network.state_dict())
    return net


def compare(made, net, heads):
    """Gradients, clipped as nnU-Net clips them."""
    nn.utils.clip_grad_norm_([*net.parameters(), *heads.parameters()], 12)
    expected = {name: p.grad for name, p in (*net.named_parameters(), *heads.named_parameters()) if p.grad is not None}
    got = dict((*made.network.named_parameters(), *made.tapped.heads.named_parameters()))
    got = {name: p.grad for name, p in got.items() if p.grad is not None}
    assert got.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            got[name], gradient, rtol=1e-3, atol=1e-5 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )
    return expected


def head_rows(head, rows):
    return F.normalize(head.second(head.first(rows)), dim=-1)


def test_a_global_step_is_the_plain_one(folder):
    made = trainer("nnUNetTrainerMMGLGlobal")
    batch = next(made.get_dataloaders()[0])
    assert batch["data"].shape[:2] == (4, 2)
    assert not torch.equal(batch["data"][:, 0], batch["data"][:, 1])

    net = plain_network(made)
    heads = copy.deepcopy(made.tapped.heads)
    skips = net.encoder(torch.cat([batch["data"][:, :1], batch["data"][:, 1:]]))[-3:]
    loss = 0.0
    for weight, skip, head in zip((0.2, 0.2, 0.6), skips, heads.values(), strict=True):
        rows = head_rows(head, skip.mean((2, 3)))
        similarities = (rows @ rows.T / 0.07).masked_fill(torch.eye(8, dtype=torch.bool), -torch.inf)
        loss = loss + weight * F.cross_entropy(similarities, (torch.arange(8) + 4) % 8)
    loss.backward()

    assert made.train_step(batch)["loss"] == pytest.approx(loss.item(), rel=1e-4)
    names = compare(made, net, heads).keys()
    assert any(name.startswith("encoder.stages.3") for name in names)
    assert not any(name.startswith("decoder") for name in names)


def test_a_local_step_is_the_plain_one(folder):
    made = trainer("nnUNetTrainerMMGLLocal")
    batch = next(made.get_dataloaders()[0])
    labels = batch["target"][:, 0]

    net = plain_network(made)
    heads = copy.deepcopy(made.tapped.heads)
    maps = []
    for stage in net.decoder.stages:
        stage.register_forward_hook(lambda module, inputs, output: maps.append(output))
    net(batch["data"])
    loss = 0.0
    for weight, features, head in zip((0.2, 0.2, 0.6), maps, heads.values(), strict=True):
        loss = loss + weight * plain_supcon(features, labels, head)
    loss.backward()

    assert made.train_step(batch)["loss"] == pytest.approx(loss.item(), rel=1e-4)
    names = compare(made, net, heads).keys()
    assert any(name.startswith("decoder.stages.2") for name in names)
    assert not any("seg_layers" in name for name in names)


def plain_supcon(features, labels, head):
    """Anchor by anchor, image by image."""
    m = -(-features.shape[-1] // 4)
    places = (2 * torch.arange(m) + 1) * features.shape[-1] // (2 * m)
    there = (2 * torch.arange(m) + 1) * labels.shape[-1] // (2 * m)
    images = []
    for image, label in zip(features, labels, strict=True):
        rows = head_rows(head, image[:, places][:, :, places].flatten(1).T)
        ids = label[there][:, there].flatten()
        anchors = []
        for i in range(len(ids)):
            others = [j for j in range(len(ids)) if j != i]
            positives = [j for j in others if ids[j] == ids[i]]
            if positives:
                s = rows @ rows[i] / 0.07
                anchors.append(s[others].logsumexp(0) - s[positives].mean())
        if anchors:
            images.append(torch.stack(anchors).mean())
    assert images
    return torch.stack(images).mean()


@pytest.mark.parametrize("name", ["nnUNetTrainerMMGLGlobal", "nnUNetTrainerMMGLLocal"])
def test_a_run_that_is_continued_has_its_heads(folder, name):
    made = trainer(name)
    made.train_step(next(made.get_dataloaders()[0]))
    file = str(folder / "checkpoint.pth")
    made.save_checkpoint(file)
    other = trainer(name)
    other.load_checkpoint(file)
    for one, two in ((made.network, other.network), (made.tapped.heads, other.tapped.heads)):
        torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=0, atol=0)
    assert other.optimizer.state_dict()["state"].keys() == made.optimizer.state_dict()["state"].keys()


def test_the_three_stages_by_their_commands(folder):
    """Each stage goes on from the one before; fine-tuning at a rate of 0 shows what it was given."""
    weights, before = {}, ()
    for name, fold in {"TinyGlobal": "0", "TinyLocal": "1", "TinyFineTuning": "1"}.items():
        printed = run("nnUNetv2_train", "1", "2d", fold, "-tr", name, "-device", "cpu", *before)
        file = folder / "results" / NAME / f"{name}__nnUNetPlans__2d" / f"fold_{fold}" / "checkpoint_final.pth"
        assert ("The last batch:" in printed) == (name != "TinyFineTuning")
        weights[name] = torch.load(file, weights_only=False)["network_weights"]
        before = ("-pretrained_weights", str(file))
    assert (file.parent / "validation" / "summary.json").exists()
    one, two, three = weights.values()
    assert one.keys() == two.keys() == three.keys()
    for key in one:
        if "seg_layers" not in key:
            torch.testing.assert_close(three[key], two[key], rtol=0, atol=0)
    moved = [key for key in one if not torch.equal(one[key], two[key])]
    assert any(key.startswith("decoder.stages") for key in moved)
    assert any(key.startswith("encoder.stages") for key in moved)
