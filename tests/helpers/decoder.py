"""A decoder as language models have it: blocks in a list, and an embedding beside them."""

from torch import nn


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Decoder(nn.Module):
    def __init__(self, blocks, size=4, words=10, tied=False):
        super().__init__()
        self.embed = nn.Embedding(words, size)
        self.layers = nn.ModuleList(Block(size) for _ in range(blocks))
        self.head = nn.Linear(size, words, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
