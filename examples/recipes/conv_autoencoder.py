"""A tied conv autoencoder: the decoder goes back through the filters of the encoder."""

import torch
import torch.nn.functional as F
from digits import load, train
from tabulate import tabulate
from torch import Tensor, nn

import fxtie


class AutoEncoder(nn.Module):
    """8x8 images to 16 numbers and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder_1 = nn.Conv2d(1, 16, 3, 2, 1)
        self.encoder_2 = nn.Conv2d(16, 32, 3, 2, 1)
        self.encoder_3 = nn.Conv2d(32, 16, 2)
        self.decoder_3 = nn.ConvTranspose2d(16, 32, 2)
        self.decoder_2 = nn.ConvTranspose2d(32, 16, 3, 2, 1, output_padding=1)
        self.decoder_1 = nn.ConvTranspose2d(16, 1, 3, 2, 1, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        code = self.encoder_3(self.encoder_2(self.encoder_1(x).relu()).relu())
        return self.decoder_1(self.decoder_2(self.decoder_3(code).relu()).relu())


# A ConvTranspose2d with the weight of a Conv2d is its adjoint: nothing is to be transposed.
RULE = fxtie.Rule("decoder_*", "encoder_{0}", bias=None)

x, _, test_x, _ = load()
rows = []
for name in ("untied", "tied"):
    torch.manual_seed(0)
    net = AutoEncoder()
    net = train(net if name == "untied" else fxtie.transform(net, RULE), x, x, loss=F.mse_loss)
    weights = sum(p.numel() for p in net.parameters() if p.dim() > 1)
    with torch.no_grad():
        left = F.mse_loss(net(test_x), test_x) / test_x.var()
    rows.append((name, f"{weights:,}", f"{left:.1%}"))
print(tabulate(rows, ("autoencoder", "in its weights", "variance not explained"), stralign="right"))
assert 2 * int(rows[1][1].replace(",", "")) == int(rows[0][1].replace(",", ""))
fxtie.picture(net).svg("conv_autoencoder.svg")
