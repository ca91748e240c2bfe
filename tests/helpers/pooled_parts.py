"""Parts of the output of a tower that pools by attention, from its own modules and recorded attention: slow and literal."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from cliptools.towers.kinds import tower_of
from cliptools.towers.tower import VALUES
from helpers.other_towers import Frozen, attention_as


class DirectParts(Frozen):
    """One recorded pass, whose parts are taken out of the residual stream and reach the output through the pooling alone."""

    def __init__(self, visual: Any, image: Tensor) -> None:
        self.tower = tower_of(visual)
        self.p: dict[int, Tensor] = {}
        handles = [
            block.hidden.register_forward_hook(lambda m, i, o, layer=layer: self.p.__setitem__(layer, o))
            for layer, block in enumerate(self.tower.blocks)
        ]
        super().__init__(visual, image, 0)
        for handle in handles:
            handle.remove()

    @property
    def every_head(self) -> list[tuple[int, int]]:
        """Layer and number of all heads of self-attention."""
        return [(layer, head) for layer, block in enumerate(self.tower.blocks) for head in range(block.attention.heads)]

    def without(self, heads: Collection[tuple[int, int]] = (), neurons: bool = False, token: int | slice = slice(None)) -> Tensor:
        """Return the output without what these heads write, biases of values apart, and without what any neuron writes.

        Args:
            token: The only token of which the heads' reading is left out.
        """
        handles = [
            module.register_forward_hook(self._linear_norm(x, y))
            for module, (x, y) in self.norms.items()
            if id(module) not in self.keys
        ]
        mlps = dict(self.mlps)
        for layer, block in enumerate(self.tower.blocks if neurons else ()):
            mlps[block.mlp] = mlps[block.mlp] - self.p[layer] @ block.output.weight.T
        handles += [mlp.register_forward_hook(lambda m, i, o: mlps[m]) for mlp in mlps]
        recorded = iter(enumerate(self.attention))

        def attend(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
            number, (A, before) = next(recorded)
            if number == len(self.blocks):
                return A @ v
            output = (A @ before).clone()
            for layer, head in heads:
                if layer == number:
                    read = before[:, head] - self.value_bias(layer)[head]  # [b, token, e]
                    output[:, head] -= A[:, head][..., token].reshape(len(A), A.shape[2], -1) @ read[:, token].reshape(
                        len(A), -1, read.shape[2]
                    )
            return output

        with attention_as(attend):
            output = self.visual(self.image)
        for handle in handles:
            handle.remove()
        return output

    def value_bias(self, layer: int) -> Tensor:
        """Return the biases [head, e] of a layer's values."""
        attention = self.tower.blocks[layer].attention
        weight, bias = attention.weights(VALUES)
        return (weight.new_zeros(len(weight)) if bias is None else bias).unflatten(0, (attention.heads, -1))

    def pooling_heads(self) -> tuple[Tensor, Tensor]:
        """Return the contributions [b, g, token, d] of the pooling's heads at every token that it reads, and the rest [b, d]."""
        A, v = self.attention[-1]
        coca = hasattr(self.visual, "ln_post")
        pool = self.visual.attn_pool.attn if coca else self.visual.trunk.attn_pool
        if coca:
            W_O, b_O, b_V = pool.out_proj.weight, pool.out_proj.bias, pool.in_proj_bias.chunk(3)[2]
            queries = [0] if self.visual.pool_type == "tok" else list(range(1, A.shape[2]))
        else:
            W_O, b_O, b_V, queries = pool.proj.weight, pool.proj.bias, pool.kv.bias.chunk(2)[1], [0]
        G, e = v.shape[1], v.shape[3]
        heads, rest = 0, 0
        for q in queries:
            written = torch.stack(
                [(A[:, g, q, :, None] * (v[:, g] - b_V[g * e : (g + 1) * e])) @ W_O[:, g * e : (g + 1) * e].T for g in range(G)],
                1,
            )  # [b, g, token, width]
            constant = W_O @ b_V + b_O
            if coca:
                norm = self.visual.ln_post
                o = written.sum((1, 2)) + constant
                gain = norm.weight / ((o - o.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + norm.eps).sqrt()  # [b, w]
                written = written * gain[:, None, None]
                constant = gain * (constant - o.mean(-1, keepdim=True)) + norm.bias
            heads, rest = heads + written / len(queries), rest + constant / len(queries)
        if coca:
            return heads @ self.visual.proj, rest @ self.visual.proj
        mlp = self.mlps[pool.mlp][:, 0]
        head = self.visual.trunk.head
        if isinstance(head, nn.Linear):
            return heads @ head.weight.T, (rest + mlp) @ head.weight.T + head.bias
        return heads, rest + mlp

    def pooling_mlp(self) -> Tensor | None:
        """Return what the neurons of the MLP behind the pooling add [b, d]; None if there is none."""
        if hasattr(self.visual, "ln_post"):
            return None
        pool, head = self.visual.trunk.attn_pool, self.visual.trunk.head
        o = self.norms[pool.norm][0][:, 0] if pool.norm in self.norms else None
        if o is None:  # PE has no LayerNorm here: its input is what the attention writes
            A, v = self.attention[-1]
            o = (A @ v).transpose(1, 2).flatten(2)[:, 0] @ pool.proj.weight.T + pool.proj.bias
            hidden = pool.mlp.fc1(pool.norm(o))
        else:
            hidden = pool.mlp.fc1(self.norms[pool.norm][1][:, 0])
        added = pool.mlp.act(hidden) @ pool.mlp.fc2.weight.T
        return added @ head.weight.T if isinstance(head, nn.Linear) else added

    def head_shares(self) -> Tensor:
        """Return r_i^g [b, token, g, d]: a head's output at a token, with biases; tokens that the pooling reads, patches last."""
        A, v = self.attention[-1]
        coca = hasattr(self.visual, "ln_post")
        pool = self.visual.attn_pool.attn if coca else self.visual.trunk.attn_pool
        layer = pool.out_proj if coca else pool.proj
        queries = [0] if not coca or self.visual.pool_type == "tok" else list(range(1, A.shape[2]))
        G, e, total = v.shape[1], v.shape[3], 0
        for q in queries:
            parts = [
                (A[:, g, q, :, None] * v[:, g]) @ layer.weight[:, g * e : (g + 1) * e].T + layer.bias / (G * self.tower.tokens)
                for g in range(G)
            ]
            r = torch.stack(parts, 2)  # [b, token, g, width]
            if coca:
                norm = self.visual.ln_post
                o = self.norms[norm][0][:, q]
                sigma = ((o - o.mean(-1, keepdim=True)).square().mean(-1) + norm.eps).sqrt()
                r = norm.weight * (r - r.mean(-1, keepdim=True)) / sigma[:, None, None, None]
            total = total + r / len(queries)
        if coca:
            return total @ self.visual.proj
        head = self.visual.trunk.head
        return total @ head.weight.T if isinstance(head, nn.Linear) else total
