"""Stacks: runs on one base model that train in one forward and one backward pass.

The trained parameters of each run are a row of one matrix, so that the norm of a gradient, the best
checkpoint, entering a stack and leaving it are each an operation on rows. A batch holds examples of
every run, run after run. A frozen base works on all of them at once; what is trained multiplies
each run's part by that run's parameters, as one batched product.

A stack of one run is the model itself, with PEFT's own forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.func import functional_call
from torch.nn.functional import linear

from tunecast.training.devices import autocast
from tunecast.training.tuned import Tuned

type Forward = Callable[[torch.Tensor], torch.Tensor]


class NotStackable(Exception):
    """A model whose runs must train one by one."""


class Stack:
    """Places for runs of one method on one base model.

    Parameters
    ----------
    tuned : Tuned
        The base model with the method in its widest setting, on its device. It is changed: with
        one place its parameters become the row of the stack, with several its layers do without
        parameters of their own.
    places : int
        How many runs fit.

    Raises
    ------
    NotStackable
        If several places do not give what the model itself gives, or part of the model is random.
    """

    def __init__(self, tuned: Tuned, places: int) -> None:
        self.tuned = tuned
        self.shapes = {name: p.shape for name, p in tuned.trainable.items()}
        device = next(iter(tuned.trainable.values())).device
        size = sum(shape.numel() for shape in self.shapes.values())
        self.values = torch.zeros(places, size, device=device)
        self.grads = torch.zeros_like(self.values)
        # What optimizers are given: a parameter for each run, whose gradient is a row of `grads`.
        self.rows = [torch.nn.Parameter(row) for row in self.values]
        for row, grad in zip(self.rows, self.grads, strict=True):
            row.grad = grad
        # Of each run: its virtual tokens, and the scale of LoRA's update.
        self._virtual = torch.full((places,), tuned.virtual, device=device)
        self._scale = torch.full((places, 1, 1), tuned.scale, device=device)
        # Which places take part, in the order of the batch, and how many targets each of them has.
        self._active = list(range(places))
        self._index = torch.arange(places, device=device)
        self._counts: Sequence[int] = ()
        if places > 1:
            self._parameters = [torch.nn.Parameter(part) for part in self._split(self.values)]
            self._widen()
        else:
            self._parameters = list(tuned.trainable.values())
            self.values[0] = self.packed(tuned.trainable)
            for parameter, part in zip(self._parameters, self._split(self.values), strict=True):
                parameter.data = part[0]

    # ------------------------------------------------------------------------- rows

    def _split(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Return the columns of each parameter, shapes (rows, *shape), without a copy."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        return [
            part.unflatten(1, shape)
            for part, shape in zip(whole.split(sizes, dim=1), self.shapes.values(), strict=True)
        ]

    def packed(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the parameters of a run as a row, a narrower setting filled up with zeros.

        The zeros stay. The rows of A and the columns of B that they fill have each other as factors
        of their gradients, and virtual tokens that they would be stand in no input.
        """
        row = torch.zeros_like(self.values[:1])
        for name, part in zip(self.shapes, self._split(row), strict=True):
            part[0][tuple(slice(n) for n in values[name].shape)] = values[name].detach()
        return row[0]

    def unpacked(
        self, row: torch.Tensor, shapes: Mapping[str, torch.Size]
    ) -> dict[str, torch.Tensor]:
        """Return the parameters in a row, in the shapes that the run has them in."""
        return {
            name: part[0][tuple(slice(n) for n in shapes[name])]
            for name, part in zip(self.shapes, self._split(row[None]), strict=True)
        }

    def enter(self, place: int, tuned: Tuned) -> None:
        """Give a place to a run that starts from these parameters."""
        self.values[place] = self.packed(tuned.trainable)
        self._virtual[place] = tuned.virtual
        self._scale[place] = tuned.scale

    def take(self, places: Sequence[int]) -> None:
        """Say which places the next passes are for, in the order of their batches."""
        if list(places) != self._active:
            self._active = list(places)
            self._index = torch.tensor(self._active, device=self.values.device)

    def backward(self, loss: torch.Tensor, *, first: bool) -> None:
        """Set the gradients to those of a loss, or add them to what the first one left."""
        found = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        parts = [part.reshape(len(self.grads), -1) for part in found]
        if first:
            torch.cat(parts, dim=1, out=self.grads)
        else:
            self.grads += torch.cat(parts, dim=1)

    def clip(self, most: float) -> None:
        """Shorten the gradient of each run to a length of at most ``most``."""
        norms = torch.linalg.vector_norm(self.grads, dim=1, keepdim=True)
        self.grads.mul_((most / (norms + 1e-6)).clamp(max=1.0))

    def checkpointing(self) -> None:
        """Keep the inputs of layers alone, and compute the rest anew in the backward pass."""
        model = self.tuned.inner
        # Its older name is to go from transformers, and the newer is not in every release of 5.
        name = "activation_checkpointing_enable"
        enable = getattr(model, name, None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    # ------------------------------------------------------------------------- the forward pass

    def logits(
        self, ids: torch.Tensor, positions: torch.Tensor, counts: Sequence[int]
    ) -> torch.Tensor:
        """Return the logits of the next token; see `Tuned.logits`.

        Parameters
        ----------
        ids : Tensor of int64, shape (runs * examples, length)
            Token ids, run after run.
        positions : Tensor of int64, shape (targets,)
            Indices into the flattened ``ids``, run after run.
        counts : sequence of int
            How many of them belong to each run.
        """
        self._counts = counts
        if len(self.values) == 1 or not self.tuned.virtual:
            return self.tuned.logits(ids, positions)
        # Each row is its prompt, then its tokens; the shorter the prompt, the earlier they start.
        height, length, longest = len(ids) // len(counts), ids.shape[1], self.tuned.virtual
        virtual = self._virtual[self._index].repeat_interleave(height, output_size=len(ids))
        embedded = self.tuned.inner.get_input_embeddings()(ids)
        (prompt,) = self._parameters
        prompts = self._taken(prompt).repeat_interleave(height, dim=0).to(embedded.dtype)
        column = torch.arange(longest + length, device=ids.device)
        source = torch.where(column < virtual[:, None], column, column + longest - virtual[:, None])
        source = source.clamp(max=longest + length - 1)
        both = torch.cat([prompts, embedded], dim=1)
        inputs = both.gather(1, source[:, :, None].expand_as(both))
        row, column = positions // length, positions % length
        return self.tuned.at(row * (longest + length) + virtual[row] + column, inputs_embeds=inputs)

    def _taken(self, leaf: torch.Tensor) -> torch.Tensor:
        """Return the active rows of a stacked parameter."""
        return leaf if len(self._active) == len(leaf) else leaf[self._index]

    @torch.no_grad()
    def _widen(self) -> None:
        """Make the layers work on several runs at once, and see whether they do."""
        model, device = self.tuned.model, self.values.device
        dropouts = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
        if any(dropouts) or getattr(self.tuned.inner.config, "attention_dropout", None):
            raise NotStackable("it has dropout, which a run alone would draw differently")
        # Two runs of two examples each: first one by one, as PEFT has it, then at once.
        generator = torch.Generator().manual_seed(0)
        ids = torch.arange(24, device=device).view(4, 6)
        where = torch.arange(12, device=device)
        model.eval()
        alone = []
        for place in (0, 1):
            for p in self.tuned.trainable.values():
                p.add_(0.02 * torch.randn(p.shape, generator=generator).to(p))
            self.values[place] = self.packed(self.tuned.trainable)
            with autocast(device.type):  # which remembers parameters for as long as it lasts
                alone.append(self.tuned.logits(ids[2 * place : 2 * place + 2], where))
        self._replace(model)
        self.take([0, 1])
        try:
            with autocast(device.type):
                both = self.logits(ids, torch.cat([where, where + 12]), (12, 12))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise NotStackable(f"its layers do not take several runs: {error}") from error
        wanted = torch.cat(alone).float()
        gap = (both.float() - wanted).abs().max() / wanted.abs().max()
        if gap > (1e-4 if both.dtype == torch.float32 else 0.05):
            raise NotStackable("its layers mix the examples of a batch")
        model.train()

    def _replace(self, model: torch.nn.Module) -> None:
        """Give the layers that are trained a forward pass for several runs."""
        from peft.tuners.lora import LoraLayer

        leaves = dict(zip(self.shapes, self._parameters, strict=True))
        adapted = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
        for name, layer in adapted.items():
            a, b = (leaves[f"{name}.lora_{x}.default.weight"] for x in "AB")
            layer.forward = self._adapted(layer.base_layer, a, b)  # type: ignore[attr-defined]
        if adapted or self.tuned.virtual:
            return
        leaf_of = {id(p): leaves[name] for name, p in self.tuned.trainable.items()}
        for module in list(model.modules()):
            own = {n: leaf_of[id(p)] for n, p in module.named_parameters(recurse=False)}
            if own:
                make = {torch.nn.Linear: self._multiplied, torch.nn.Embedding: self._looked_up}
                module.forward = make.get(type(module), self._broadcast)(module, own)

    def _adapted(self, base: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> Forward:
        def forward(x: torch.Tensor) -> torch.Tensor:
            y = base(x)
            parts = len(self._active)
            low = torch.bmm(x.reshape(parts, -1, x.shape[-1]), self._taken(a).transpose(1, 2))
            low = low * self._scale[self._index].to(low.dtype)
            out = torch.baddbmm(y.view(parts, -1, y.shape[-1]), low, self._taken(b).transpose(1, 2))
            return out.view(y.shape)

        return forward

    def _multiplied(self, module: torch.nn.Module, own: Mapping[str, torch.Tensor]) -> Forward:
        def forward(x: torch.Tensor) -> torch.Tensor:
            weight = self._taken(own["weight"])
            bias = self._taken(own["bias"]) if "bias" in own else [None] * len(weight)
            if x.dim() == 2:  # the vocabulary head, which sees targets alone, as many as each has
                parts = zip(x.split(list(self._counts)), weight, bias, strict=True)
                return torch.cat([linear(*part) for part in parts])
            y = torch.bmm(x.reshape(len(weight), -1, x.shape[-1]), weight.transpose(1, 2))
            if isinstance(bias, torch.Tensor):
                y = y + bias[:, None]
            return y.view(*x.shape[:-1], -1)

        return forward

    def _looked_up(self, module: torch.nn.Module, own: Mapping[str, torch.Tensor]) -> Forward:
        def forward(ids: torch.Tensor) -> torch.Tensor:
            weight = self._taken(own["weight"])
            run = torch.arange(len(weight), device=ids.device)
            return weight[run.repeat_interleave(len(ids) // len(weight))[:, None], ids]

        return forward

    def _broadcast(self, module: torch.nn.Module, own: Mapping[str, torch.Tensor]) -> Forward:
        # It multiplies or adds its parameters entry by entry, as a norm does, or `_widen` sees it.
        plain = copy.deepcopy(module)

        def forward(x: torch.Tensor) -> torch.Tensor:
            taken = {}
            for name, leaf in own.items():
                rows = self._taken(leaf).repeat_interleave(len(x) // len(self._active), dim=0)
                ones = [1] * (x.dim() - rows.dim())
                taken[name] = rows.view(len(x), *ones, *leaf.shape[1:])
            return functional_call(plain, taken, (x,))

        return forward
