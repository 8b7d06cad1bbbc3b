"""What needs the environment of `make networks`: outputs of those libraries, and the blocks of the guide that use them."""

import re
from pathlib import Path

import pytest
import torch

from tests.networks.shim import let_torchvision_import

let_torchvision_import()

from mmgl_losses import DeepSupervisionDice  # noqa: E402
from mmgl_losses.functional import soft_dice  # noqa: E402
from tests.networks.zoo import ZOO  # noqa: E402

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "networks_howto.md", *sorted((DOCS / "howto").glob("smp_*.md"))]
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the networks' own libraries


def output_of(name):
    entry = ZOO[name]
    return entry.make()(entry.image()), torch.randint(3, (2, *entry.size))


def test_torchvision_with_an_auxiliary_head():
    output, labels = output_of("torchvision fcn_resnet50, auxiliary head")
    with pytest.raises(ValueError, match="Give `weights` as a mapping"):
        DeepSupervisionDice(weights=(0.3, 0.7))(output, labels)
    got = DeepSupervisionDice(weights={"out": 1.0, "aux": 0.4})(output, labels)
    torch.testing.assert_close(got, soft_dice(output["out"], labels) + 0.4 * soft_dice(output["aux"], labels))


def test_torchvision_with_one_head():
    output, labels = output_of("torchvision fcn_resnet50")
    got = DeepSupervisionDice(weights=(1.0,))(output, labels)
    torch.testing.assert_close(got, soft_dice(output["out"], labels))


def test_hugging_face_logits():
    output, labels = output_of("HF SegFormer")
    expected = soft_dice(output.logits, labels)
    torch.testing.assert_close(DeepSupervisionDice(weights=(1.0,))([output.logits], labels), expected)
    torch.testing.assert_close(DeepSupervisionDice(weights=(1.0,))(output, labels), expected)  # its only entry


def test_hugging_face_masks_of_queries_are_refused():
    output, labels = output_of("HF MaskFormer")
    with pytest.raises(ValueError, match="take the levels out of 'class_queries_logits', 'masks_queries_logits'"):
        DeepSupervisionDice(weights=(1.0,))(output, labels)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_of_the_pages(page):
    blocks = re.findall(r"^```python networks\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    names: dict = {"__name__": "page"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), names)
    assert blocks
