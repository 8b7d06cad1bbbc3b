"""The example of one file: it trains, it stays one page, and it needs nothing but torch, matplotlib and the package."""

import ast
import copy
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples" / "three_stages.py"


@pytest.fixture(scope="module")
def names() -> dict:
    """What the file defines, without its main part."""
    return runpy.run_path(str(SCRIPT))


def test_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--seeds", "1", "--steps", "2", "2", "2"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [re.match(r"seed 0, (.+): Dice 0\.\d{3};", line)[1] for line in lines] == ["random start", "three stages"]
    assert (tmp_path / "three_stages.png").read_bytes().startswith(b"\x89PNG")


def test_is_one_page_of_plain_torch():
    source = SCRIPT.read_text()
    assert len(source.splitlines()) <= 150
    imported = {node.names[0].name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import)}
    imported |= {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    foreign = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names
    assert foreign == {"torch", "matplotlib", "mmgl_losses"}


def test_patients_are_repeated_and_differ(names):
    images, labels = names["patient"](3)
    again, _ = names["patient"](3)
    other, _ = names["patient"](4)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    assert images.shape == (8, 1, names["SIZE"], names["SIZE"])
    assert labels.shape == (8, names["SIZE"], names["SIZE"])
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 4}


def test_labels_move_with_the_image(names):
    labels = names["patient"](0)[1]
    images = (labels[:, None] > 0).float()  # an image that shows where the labels are
    moved, moved_labels = names["augment"](images, labels)
    inside, outside = moved[:, 0][moved_labels > 0], moved[:, 0][moved_labels == 0]
    assert inside.mean() > 0.5 > 0.1 > outside.mean()


def test_dice_is_that_of_a_loop(names):
    labels = torch.randint(5, (3, 6, 6))
    logits = torch.randn(3, 5, 6, 6)
    found = logits.argmax(1)
    for score, c in zip(names["dice"](lambda images: images, logits, labels), range(1, 5), strict=True):
        both = sum(a == b == c for a, b in zip(found.flatten().tolist(), labels.flatten().tolist(), strict=True))
        either = (found == c).sum().item() + (labels == c).sum().item()
        assert score.item() == pytest.approx(2 * both / either)


def test_the_validation_patients_choose_the_weights(names, monkeypatch):
    """The weights that are left have the best of the scores that were seen."""
    images, labels = names["patient"](0)
    torch.manual_seed(0)
    net = names["mmgl"].UNet(1, 5, channels=(4, 8, 16, 16), norm="batch")
    scores = iter([0.3, 0.9, 0.1])
    kept = []

    def dice(net, *data):
        kept.append(copy.deepcopy(net.state_dict()))
        return torch.tensor([next(scores)])

    monkeypatch.setitem(names["finetune"].__globals__, "dice", dice)
    names["finetune"](net, images, labels, (images, labels), 51)
    assert all(torch.equal(value, kept[1][name]) for name, value in net.state_dict().items())
