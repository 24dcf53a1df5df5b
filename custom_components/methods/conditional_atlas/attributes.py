"""From attributes of a person (age, sex) to the vector that a conditional template sees."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...vocabulary import Config

# A number, or a category by name; in a collated batch a number is a tensor.
Attribute = float | str | Tensor
Attributes = Mapping[str, Attribute]

Kinds = Mapping[str, str | Sequence[Attribute]]


_TAKEN = ("image", "contrast", "label", "mask", "moving", "fixed", "affine", "id")


class AttributeEncoder(nn.Module):
    """Attributes as numbers of comparable size: numeric ones standardised, categorical ones one-hot.

    Mean, standard deviation and range are those of the training data (`fit`) and travel with the weights.

    Args:
        attributes: name to "numeric" or to the list of its categories.
    Shapes: input (B, A), raw values, a category as its index; output (B, `size`). Without input (1, `size`): the mean
        of the numeric ones, all categories in equal parts.
    Raises:
        ValueError: for an attribute that is neither; of `values`, for a missing, unknown or impossible value.
    """

    def __init__(self, attributes: Kinds) -> None:
        super().__init__()
        self.names = list(attributes)
        self.categories: list[list[str]] = []
        for name, kind in attributes.items():
            several = isinstance(kind, Sequence) and not isinstance(kind, str)
            categories = [_category(c) for c in kind] if several else []
            if kind != "numeric" and (len(categories) < 2 or len(set(categories)) < len(categories)):
                raise ValueError(f"attribute {name!r}: expected 'numeric' or a list of categories, got {kind!r}")
            if name in _TAKEN:
                raise ValueError(f"attribute {name!r}: the scans of a data list have another entry of that name")
            self.categories.append(categories)
        # Number of categories, 0 for a numeric attribute; never empty, for TorchScript knows no empty list.
        self.counts = [len(c) for c in self.categories] or [0]
        self.size = sum(max(1, len(c)) for c in self.categories)
        self.mean, self.sd = nn.Buffer(torch.zeros(len(self.names))), nn.Buffer(torch.ones(len(self.names)))
        self.lowest, self.highest = (nn.Buffer(torch.zeros(len(self.names))) for _ in range(2))

    def forward(self, raw: Tensor | None = None) -> Tensor:
        parts: list[Tensor] = []
        for i in range(self.mean.numel()):
            count = self.counts[i]
            if count > 0:
                if raw is None:
                    parts.append(torch.full([1, count], 1.0 / count, device=self.mean.device))
                else:
                    parts.append(F.one_hot(raw[:, i].long(), count).to(self.mean.dtype))
            elif raw is None:
                parts.append(torch.zeros([1, 1], device=self.mean.device))
            else:
                parts.append(((raw[:, i].to(self.mean.dtype) - self.mean[i]) / self.sd[i]).unsqueeze(1))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def fit(self, raw: Tensor) -> None:
        """Take mean, standard deviation and range from the raw values (N, A) of the training data.

        Raises:
            ValueError: if a numeric attribute is the same for all.
        """
        raw = raw.to(self.mean)
        numeric = torch.tensor([not c for c in self.categories], dtype=torch.bool, device=raw.device)
        sd = raw.std(0, correction=0)
        for name, constant in zip(self.names, (numeric & ~(sd > 0)).tolist(), strict=True):
            if constant:
                raise ValueError(f"attribute {name}: the same for all {len(raw)} scans, nothing can be learned of it")
        self.mean.copy_(torch.where(numeric, raw.mean(0), 0))
        self.sd.copy_(torch.where(numeric, sd, 1))
        self.lowest.copy_(raw.amin(0))
        self.highest.copy_(raw.amax(0))

    def values(self, attributes: Attributes) -> Tensor:
        """Raw values (A,) of attributes given by name: numbers, and categories by name.

        Raises:
            ValueError: for an attribute that there is not, or a value that it cannot have.
        """
        unknown = [name for name in attributes if name not in self.names]
        missing = [name for name in self.names if name not in attributes]
        if unknown or missing:
            wanted, given = (", ".join(names) or "none" for names in (self.names, list(attributes)))
            raise ValueError(f"the template's attributes are {wanted}; given were {given}")
        result = []
        for name, categories in zip(self.names, self.categories, strict=True):
            value = attributes[name]
            if categories:
                if _category(value) not in categories:
                    raise ValueError(f"attribute {name}: expected one of {', '.join(categories)}, got {value}")
                result.append(float(categories.index(_category(value))))
            else:
                try:
                    number = float(value)
                except (TypeError, ValueError):
                    number = math.nan
                if not math.isfinite(number):
                    raise ValueError(f"attribute {name}: expected a number, got {value!r}")
                result.append(number)
        return torch.tensor(result)

    def outside(self, raw: Tensor) -> list[str]:
        """What of raw values (A,) the training data did not cover, in words."""
        found = []
        for name, categories, value, low, high in zip(
            self.names, self.categories, raw.tolist(), self.lowest.tolist(), self.highest.tolist(), strict=True
        ):
            if not categories and not low <= value <= high:
                found.append(f"{name} {value:g} (trained from {low:g} to {high:g})")
        return found


def _category(value: Attribute) -> str:
    """Its name; 2 and 2.0 (of a table, or of a collated batch) are one."""
    value = value.item() if isinstance(value, Tensor) else value
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def read_description(state: Tensor) -> Config:
    """The `description` of a template, from its extra state.

    Raises:
        ValueError: if it is no such description.
    """
    try:
        found: Config = json.loads(bytes(state.tolist()).decode())
        kinds, labels = found["attributes"].values(), found["labels"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError("these are not the weights of an atlas: they do not say of what attributes") from error
    texts = all(kind == "numeric" or (isinstance(kind, list) and all(type(c) is str for c in kind)) for kind in kinds)
    ids = labels is None or (isinstance(labels, list) and all(type(label) is int for label in labels))
    if not texts or not ids or set(found) != {"attributes", "labels"}:
        raise ValueError(f"these are not the weights of an atlas: {str(found)[:200]} is no description of one")
    return found
