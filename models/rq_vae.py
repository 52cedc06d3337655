"""RQ-VAE: residual codebooks learned between an encoder and a decoder of the content (as TIGER, 2305.05065).

Dims: I items, C width of the content, L levels, K codes a level, D width of the codebooks
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctrbench.models.blocks import MLP
from ctrbench.models.residual_codes import SidConfig, quantise, rq_kmeans

RESTART_ITEMS = 16384
"""Most items by which it is judged whether a code is dead."""


class RqVae(nn.Module):
    """Encoder, residual codebooks, decoder; the loss of a batch is its forward.

    |x - x'|² + sum over levels of |sg[r] - e|² + commitment |r - sg[e]|², where x' decodes the sum of codes with the
    gradient passed straight through it to the encoder.
    """

    def __init__(self, content: int, config: SidConfig) -> None:
        super().__init__()
        self.commitment = config.commitment
        self.encoder = MLP(content, config.hidden, config.width)
        self.decoder = MLP(config.width, config.hidden[::-1], content)
        self.books_LKD = nn.Parameter(torch.randn(config.levels, config.codes, config.width))

    @torch.no_grad()
    def start(self, x_IC: Tensor, seed: int = 0) -> None:
        """Codebooks by k-means on the encoder's output for these items."""
        levels, codes, _ = self.books_LKD.shape
        self.books_LKD.copy_(rq_kmeans(self.encoder(x_IC), levels, codes, seed))

    @torch.no_grad()
    def restart(self, x_IC: Tensor, generator: torch.Generator) -> int:
        """Puts each code that none of these items has on what is left of an item drawn at random; returns how many."""
        left_ID, count = self.encoder(x_IC), 0
        for book_KD in self.books_LKD:
            has_K = torch.bincount(quantise(left_ID, book_KD[None]).codes_IL[:, 0], minlength=len(book_KD))
            dead_N = (has_K == 0).nonzero().squeeze(1)
            book_KD[dead_N] = left_ID[torch.randint(len(left_ID), (len(dead_N),), generator=generator)]
            left_ID, count = quantise(left_ID, book_KD[None]).left_LID[0], count + len(dead_N)
        return count

    def forward(self, x_IC: Tensor) -> Tensor:
        """Mean loss of the items."""
        z_ID = self.encoder(x_IC)
        with torch.no_grad():
            codes_IL = quantise(z_ID, self.books_LKD).codes_IL
        left_ID, total_ID, pulled = z_ID, torch.zeros_like(z_ID), z_ID.new_zeros(len(z_ID))
        for book_KD, chosen_I in zip(self.books_LKD, codes_IL.unbind(1), strict=True):
            code_ID = book_KD[chosen_I]
            to_code = (left_ID.detach() - code_ID).square().sum(dim=1)
            pulled = pulled + to_code + self.commitment * (left_ID - code_ID.detach()).square().sum(dim=1)
            left_ID, total_ID = left_ID - code_ID.detach(), total_ID + code_ID
        decoded_IC = self.decoder(z_ID + (total_ID - z_ID).detach())
        return ((x_IC - decoded_IC).square().sum(dim=1) + pulled).mean()


def train_rq_vae(x_IC: Tensor, config: SidConfig, *, steps: int, batch: int, lr: float, seed: int) -> RqVae:
    """Trains on random batches, codebooks started by k-means on the first.

    Codes that no item has start anew every `config.restart` steps; the last so many steps are left to settle.
    """
    with torch.random.fork_rng():  # the caller's draws are its own
        torch.manual_seed(seed)
        model, g = RqVae(x_IC.shape[1], config), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    for step in range(steps):
        rows_IC = x_IC[torch.randint(len(x_IC), (min(batch, len(x_IC)),), generator=g)]
        if step == 0:
            model.start(rows_IC, seed)
        elif config.restart and step % config.restart == 0 and step + config.restart <= steps:
            model.restart(x_IC[torch.randint(len(x_IC), (min(RESTART_ITEMS, len(x_IC)),), generator=g)], g)
        optimizer.zero_grad(set_to_none=True)
        model(rows_IC).backward()
        optimizer.step()
    return model.eval()
