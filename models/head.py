"""The head of a network: the parameters that make the answer for each class, those of auxiliary classifiers too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def head_parameters(module: nn.Module, num_classes: int, example: Tensor) -> tuple[str, ...]:
    """Names of the parameters of the last layers, in the order of the module; all others are the backbone.

    They are found by what was computed: from each of the logits back to the first weights on the way.
    example: two pictures (2, C, H, W) as the module takes them, zeros will do. The module is left as it was.
    Raises ValueError where the last weights don't have one row for each class.
    """
    parameters = {name: parameter.detach().requires_grad_() for name, parameter in module.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.train()  # auxiliary classifiers answer only then
        with torch.random.fork_rng(), torch.enable_grad():
            answer = functional_call(module, (parameters, buffers), (example,))
    finally:
        for part, training in modes:
            part.training = training
    names = {id(parameter): name for name, parameter in parameters.items()}
    found = {
        names[id(weight)] for logits in _tensors(answer) for weight in _last_weights(logits) if id(weight) in names
    }
    head = tuple(name for name, tensor in parameters.items() if name in found and tensor.shape[:1] == (num_classes,))
    if not any(parameters[name].ndim > 1 for name in head):
        raise ValueError(
            f"expected a last layer with {num_classes} rows, one for each class, "
            f"found {', '.join(f'{name} {tuple(parameters[name].shape)}' for name in sorted(found)) or 'no weights'}"
        )
    return head


def _tensors(answer: Any) -> list[Tensor]:
    """The logits and those of the auxiliary classifiers."""
    parts: Iterable[Any] = (answer,) if isinstance(answer, Tensor) else answer
    return [part for part in parts if isinstance(part, Tensor) and part.grad_fn is not None]


def _last_weights(logits: Tensor) -> Iterator[Tensor]:
    """Leaves of the autograd graph, from the logits back to the first operation with weights, on each branch."""
    waiting: list[Any] = [logits.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        weights = [weight for source, _ in node.next_functions if (weight := _weight(source)) is not None]
        yield from weights
        if not any(weight.ndim > 1 for weight in weights):  # a bias or a scale: the weights are still to come
            waiting.extend(source for source, _ in node.next_functions)


def _weight(node: Any) -> Tensor | None:
    """The leaf that a node passes on as it is, but for its shape; None where there is none."""
    while node is not None and not hasattr(node, "variable"):
        if len(node.next_functions) != 1 or not node.name().startswith(("T", "Transpose", "View", "Permute", "ToCopy")):
            return None
        node = node.next_functions[0][0]
    return node.variable if node is not None else None
