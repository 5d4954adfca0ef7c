"""The recipe's optimizer, each step of it in as few kernels as torch has."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from ..recipe import TrainSection


def new_optimizer(section: TrainSection, module: nn.Module) -> Optimizer:
    """Over all parameters of the module that learn."""
    groups, rate = _groups(section, module), section.learning_rate
    if section.optimizer == "sgd":
        return SGD(groups, rate, momentum=section.momentum, nesterov=section.nesterov, fused=True)
    if section.optimizer == "rmsprop":
        return RMSprop(groups, rate, momentum=section.momentum, foreach=True)
    if section.optimizer == "adagrad":
        return Adagrad(groups, rate, foreach=True)
    kind = AdamW if section.optimizer == "adamw" else Adam
    return kind(groups, rate, fused=True)


def _groups(section: TrainSection, module: nn.Module) -> list[dict[str, Any]]:
    """One group; two where biases and norms, the parameters of one dimension, are spared the decay."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in learning if section.decay_norms or parameter.ndim > 1]
    spared = [parameter for parameter in learning if not section.decay_norms and parameter.ndim <= 1]
    groups = [(decayed, section.weight_decay), (spared, 0.0)]
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]
