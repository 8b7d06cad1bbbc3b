"""Model and losses in one compiled step: no break, no recompilation, the same training."""

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.ways import plain


def test_a_compiled_step_trains_alike_and_compiles_once():
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = plain.model()
    steps = plain.optimiser(model)

    @torch.compile(backend=counter, fullgraph=True)
    def step(images, labels):
        return plain.loss_of(model(images), labels)

    for images, labels in plain.batches():
        steps.zero_grad()
        step(images, labels).backward()
        steps.step()
    assert counter.frame_count == 1
    plain.same_parameters(model, plain.trained())


def test_an_exported_model_feeds_the_losses():
    model = plain.model().eval()
    images, labels = plain.batches()[0]
    program = torch.export.export(model, (images,), strict=False)
    output, features = program.module()(images)
    torch.testing.assert_close(plain.loss_of((output, features), labels), plain.loss_of(model(images), labels))
