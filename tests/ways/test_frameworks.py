"""Training loops of others: after the same steps, the parameters of the plain loop."""

import pytest
import torch
from torch.utils.data import DataLoader

from tests.ways import plain

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\)"),
]


def loader():
    """Each item is a whole batch."""
    return DataLoader(plain.batches(), batch_size=None)


def test_lightning(tmp_path):
    import lightning.pytorch as lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.tapped = plain.model()

        def training_step(self, batch, index):
            images, labels = batch
            return plain.loss_of(self.tapped(images), labels)

        def configure_optimizers(self):
            return plain.optimiser(self.tapped)

    module = Module()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "barebones": False}
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, precision="64-true", default_root_dir=tmp_path,
        enable_checkpointing=False, log_every_n_steps=1, **quiet,
    )  # fmt: skip
    trainer.fit(module, loader())
    plain.same_parameters(module.tapped, plain.trained())


def test_fabric():
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    model = plain.model()
    wrapped, steps = fabric.setup(model, plain.optimiser(model))
    for images, labels in fabric.setup_dataloaders(loader()):
        steps.zero_grad()
        fabric.backward(plain.loss_of(wrapped(images), labels))
        steps.step()
    # Fabric hands the outputs of a module on in the default type, float32.
    plain.same_parameters(model, plain.trained(), rtol=1e-4, atol=1e-6)


def test_accelerate():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = plain.model()
    wrapped, steps, batches = accelerator.prepare(model, plain.optimiser(model), loader())
    for images, labels in batches:
        steps.zero_grad()
        accelerator.backward(plain.loss_of(wrapped(images), labels))
        steps.step()
    plain.same_parameters(accelerator.unwrap_model(wrapped), plain.trained())


def test_monai_engine():
    """`loss_function` takes what the network returns and the labels."""
    from monai.engines import SupervisedTrainer
    from monai.inferers import SimpleInferer

    model = plain.model()
    batches = [{"image": images, "label": labels} for images, labels in plain.batches()]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(batches, batch_size=None),
        network=model,
        optimizer=plain.optimiser(model),
        loss_function=plain.loss_of,
        inferer=SimpleInferer(),
    )
    trainer.run()
    plain.same_parameters(model, plain.trained())
