"""What several test files of this folder share."""

import torch
from ignite.engine import Engine, Events
from torch import nn


def make_training(seed: int = 0, features: int = 3) -> tuple[Engine, dict]:
    """An engine that fits a linear network, its loss a term of its output; and what a checkpoint needs."""
    torch.manual_seed(seed)
    network = nn.Linear(features, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def step(engine: Engine, x: torch.Tensor) -> dict:
        loss = (network(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach(), "pred": {"terms": {"similarity": loss.detach() / 2}}}

    engine = Engine(step)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: scheduler.step())
    return engine, {"network": network, "optimizer": optimizer, "lr_scheduler": scheduler}


def batches(features: int = 3) -> list[torch.Tensor]:
    return list(torch.randn(3, 4, features, generator=torch.Generator().manual_seed(5)))
