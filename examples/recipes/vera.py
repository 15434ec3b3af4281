"""VeRA: all layers share two frozen random matrices; each learns two vectors that scale them."""

import torch
from bert import Bert
from torch import Tensor, nn

import fxtie


class Vera(nn.Module):
    """`own + b * (B @ (d * A))`: `d` starts at 0.1, `b` at 0."""

    def __init__(self, rank: int, out: int) -> None:
        super().__init__()
        self.d, self.b = nn.Parameter(torch.full((rank,), 0.1)), nn.Parameter(torch.zeros(out))

    def forward(self, own: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return own + self.b[:, None] * (B @ (self.d[:, None] * A))


def rule(rank: int, width: int) -> fxtie.Rule:
    """For the queries and values of all layers."""
    matrices = fxtie.Tensors(A=(rank, width), B=(width, rank), frozen=("A", "B"))
    vectors = fxtie.each(lambda name: Vera(rank, width))
    return fxtie.Rule("re:(layers.*(?:query|value))", ("{0}", matrices), weight=vectors, bias=None)


# RoBERTa-base, frozen: 12 layers of 768.
with torch.device("meta"):  # counts need no values
    base = Bert(12, 768, 12, (50_265, 514, 1)).requires_grad_(False)
    tuned = fxtie.transform(base, rule(1024, 768))
vectors = [p.numel() for p in tuned.parameters() if p.requires_grad]
assert sum(vectors) == 43_008
print(f"trained: {sum(vectors):,} parameters in {len(vectors)} vectors")
fxtie.picture(tuned).svg("vera.svg")

# It starts as the model that it adapts.
torch.manual_seed(0)
small, ids = Bert(2, 32, 4, (100, 16, 1)).requires_grad_(False).eval(), torch.arange(8)[None]
assert torch.equal(fxtie.transform(small, rule(64, 32))(ids), small(ids))
