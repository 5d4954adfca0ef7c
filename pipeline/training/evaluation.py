"""Measuring the network as it will be exported: eager, in float32, in eval mode."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..metrics import mean_average_precision
from .distributed import Processes
from .losses import Loss

BATCH = 256
PIXELS = 2**20
"""In a batch, so that pictures of 224 x 224 don't take gigabytes for their feature maps."""


class Labelled(NamedTuple):
    """Prepared pictures uint8 (N, H, W, C) and their classes int64 (N,), or labels uint8 (N, K).

    Of several processes each holds every n-th picture of a part.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class Measured(NamedTuple):
    """Over the pictures of all processes."""

    loss: float
    """Mean, by the very loss that is trained, label smoothing included."""
    score: float
    """0 to 1: the share of right answers, or the mean average precision where a picture has several labels."""


def evaluate(served: nn.Module, data: Labelled, loss: Loss, processes: Processes) -> Measured:
    """Measure on this process's pictures and its fellows'; the module is left in eval mode."""
    served.eval()
    rows = max(1, min(BATCH, PIXELS // max(1, data.images[0:1].numel())))
    sums = torch.zeros(3, dtype=torch.float64, device=processes.device)  # loss, right answers, pictures
    answers = []
    with torch.inference_mode():
        for images, labels in zip(torch.split(data.images, rows), torch.split(data.labels, rows), strict=True):
            logits, wanted = served(images.to(processes.device)), labels.to(processes.device)
            sums[0] += loss.sum(logits.double(), wanted)
            sums[2] += len(labels)
            if loss.task == "classification":
                sums[1] += (logits.argmax(1) == wanted).sum()
            else:
                answers.append(logits)
    total, right, count = processes.add(sums).tolist()
    if loss.task == "classification":
        return Measured(total / count, right / count)
    scores = torch.cat(answers) if answers else torch.zeros(0, loss.classes, device=processes.device)
    gathered = [processes.gather(part).cpu().numpy() for part in (scores, data.labels.to(processes.device))]
    return Measured(total / count, mean_average_precision(*gathered))
