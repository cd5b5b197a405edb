"""The bridged operators on a GPU equal those on the CPU; skipped where there is none."""

import pytest
import torch

import pipeline.detectors  # noqa: F401  the operators come first

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_nms():
    from mmcv.ops import nms

    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(200, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 5 + torch.rand(200, 2, generator=generator) * 20], dim=1)
    scores = torch.rand(200, generator=generator)
    kept = nms(boxes, scores, 0.5)[1]
    assert torch.equal(nms(boxes.cuda(), scores.cuda(), 0.5)[1].cpu(), kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_roi_align_forward_and_backward(dtype):
    from mmcv.ops import RoIAlign

    rois = torch.tensor([[0, 1.0, 2.0, 20.0, 25.0], [1, 3.0, 3.0, 9.0, 30.0]])
    values = torch.rand(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    layer = RoIAlign(7, spatial_scale=0.5, sampling_ratio=0)
    results = []
    for device in ("cpu", "cuda"):
        features = values.to(device, dtype).requires_grad_()
        pooled = layer(features, rois.to(device))
        pooled.float().square().sum().backward()
        results.append((pooled.detach().float().cpu(), features.grad.float().cpu()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-2)


def test_sigmoid_focal_loss_forward_and_backward():
    from mmcv.ops import SigmoidFocalLoss

    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 1, 2, 3, 3, 0])
    results = []
    for device in ("cpu", "cuda"):
        inputs = logits.to(device).requires_grad_()
        SigmoidFocalLoss(2.0, 0.25, reduction="sum")(inputs, labels.to(device)).backward()
        results.append(inputs.grad.cpu())
    torch.testing.assert_close(*results)
