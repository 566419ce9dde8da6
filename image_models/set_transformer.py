"""A set transformer: predicts each row of a group from that row and, by attention, from the other rows of its group.

It is a model of level 2, for rows of numbers, and stands here because torch is imported nowhere else. After the set
attention blocks of Lee et al. 2019 (Set Transformer, ICML). Attention knows no order of rows, so a permutation of the
rows permutes the predictions, and a row attends to rows of its own group only, so other groups change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from dermstack.errors import ImageError
from image_models.settings import SetTransformerSettings, set_transformer_settings

CLIP_SD = 6.0  # standardised values are clipped to ± this, as for the logistic regression of level 2
ROWS_AT_ONCE = 1024  # rows that go through the network together, if no group has more
_SPAN = 64  # rows of whole groups whose attention is one matrix: time grows with its square
_MAX_QUERIES = 1024  # rows of one matrix; memory grows with this times the largest group
_KEY = "dermstack"  # of the one entry of metadata in a model's file
MAX_COLUMNS = 100_000

Floats = NDArray[np.floating]
Codes = NDArray[np.integer]


class SetTransformer(nn.Module):
    """Logits (n,) of n rows of any number of groups: a linear term, and what set attention blocks add to it.

    The linear term is that of the row and of its distance from the mean row of its group; a row alone, which has none,
    has weights of its own, but no base rate of its own, as the number of images of a group is an artefact.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, columns: int, settings: SetTransformerSettings) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("scale", torch.ones(columns))
        self.line = nn.Linear(3 * columns, 1)
        self.embed = nn.Linear(columns, settings.width)
        self.blocks = nn.ModuleList(_SetAttention(settings) for _ in range(settings.blocks))
        self.norm = nn.LayerNorm(settings.width)
        self.head = nn.Linear(settings.width, 1)
        nn.init.zeros_(self.head.weight)  # it starts as the linear term
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor, group: Codes) -> torch.Tensor:
        """Returns logits (n,) of standardised rows ``x`` (n, columns); rows of one ``group`` (n,) see each other.

        The rows of a group stand together.
        """
        h, spans = self.embed(x), list(_spans(group))
        for block in self.blocks:
            h = block(h, spans)
        made: torch.Tensor = self.line(linear_features(x, group)) + self.head(self.norm(h))
        return made[:, 0]

    def standardised(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the rows (n, columns) standardised and clipped, missing values as the mean."""
        return torch.nan_to_num((x - self.mean) / self.scale).clamp(-CLIP_SD, CLIP_SD)


def linear_features(x: torch.Tensor, group: Codes) -> torch.Tensor:
    """Returns (n, 3c): rows ``x`` (n, c), their distance from their group's mean row, and x again for rows alone."""
    code = torch.from_numpy(np.cumsum(np.concatenate([[0], group[1:] != group[:-1]])))
    size = torch.bincount(code)
    mean = x.new_zeros(len(size), x.shape[1]).index_add_(0, code, x) / size[:, None]
    return torch.cat([x, x - mean[code], x * (size == 1)[code, None]], dim=1)


class _Span(NamedTuple):
    """Rows whose attention is one matrix: they see ``keys`` but not ``others`` (rows, keys), if that is given."""

    rows: slice
    keys: slice
    others: torch.Tensor | None


def _spans(group: Codes) -> Iterator[_Span]:
    """Yields spans of whole groups; one group with more rows than `_MAX_QUERIES` has several, which see all of it."""
    for rows in whole_groups(group, _SPAN):
        own = group[rows]
        if own[0] != own[-1]:
            yield _Span(rows, rows, torch.from_numpy(own[:, None] != own))
            continue
        for start in range(rows.start, rows.stop, _MAX_QUERIES):
            yield _Span(slice(start, min(start + _MAX_QUERIES, rows.stop)), rows, None)


class _SetAttention(nn.Module):
    """A set attention block: every row attends to the rows of its group, itself included, then a small perceptron."""

    def __init__(self, settings: SetTransformerSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads, self.dropout = settings.heads, settings.dropout
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: torch.Tensor, spans: list[_Span]) -> torch.Tensor:
        n, width = h.shape
        # (heads, n, width / heads) each
        q, k, v = self.qkv(self.before(h)).view(n, 3, self.heads, width // self.heads).permute(1, 2, 0, 3)
        q, parts = q / float(np.sqrt(width // self.heads)), []
        for rows, keys, others in spans:
            score = q[:, rows] @ k[:, keys].transpose(1, 2)
            if others is not None:
                score = score.masked_fill(others, -torch.inf)
            parts.append(score.softmax(dim=-1) @ v[:, keys])
        # The distance from the row's own value: nothing for a row alone, however many copies of it there are.
        seen = (torch.cat(parts, dim=1) - v).permute(1, 0, 2).reshape(n, width)
        h = h + F.dropout(self.out(seen), self.dropout, self.training)
        made = self.down(F.gelu(self.up(self.between(h))))
        return h + F.dropout(made, self.dropout, self.training)


@dataclass(frozen=True)
class SetNet:
    """A fitted set transformer, in double precision, and the number of epochs that it was trained for."""

    net: SetTransformer
    columns: tuple[str, ...]
    settings: SetTransformerSettings
    epochs: int

    def logit(self, x: Floats, group: Codes) -> NDArray[np.float32]:
        """Returns log odds (n,) of rows ``x`` (n, columns), NaN for missing; ``group`` (n,) are codes of their groups.

        Every row attends to all rows of its group. It is computed in double precision and rounded to float32 at the
        end, so that the other groups and the order of rows change no digit that is kept.
        """
        made = np.empty(len(x), np.float32)
        if not len(x):
            return made
        order = np.argsort(group, kind="stable")
        with one_thread(), torch.inference_mode():
            for rows in whole_groups(group[order], ROWS_AT_ONCE):
                at = order[rows]
                made[at] = _logits(self.net, torch.from_numpy(x[at].astype(np.float64)), group[at]).numpy()
        return made

    def to_bytes(self) -> bytes:
        """Returns the content of a safetensors file: weights in float32, columns, settings and epochs as metadata."""
        entry = {"columns": self.columns, "settings": asdict(self.settings), "epochs": self.epochs}
        tensors = {name: value.float().contiguous() for name, value in self.net.state_dict().items()}
        made: bytes = save(tensors, {_KEY: json.dumps(entry)})
        return made


def set_net_from_bytes(content: bytes, name: str) -> SetNet:
    """Reads the content of a file of `SetNet.to_bytes`, which errors call ``name``; nothing in it is executed.

    Raises ImageError for content that is damaged or of another network.
    """
    try:
        tensors: dict[str, torch.Tensor] = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        entry: dict[str, Any] = json.loads(header["__metadata__"][_KEY])
        columns = tuple(entry["columns"])
        if not all(isinstance(column, str) for column in columns) or not 1 <= len(columns) <= MAX_COLUMNS:
            raise ValueError("its columns are no names")
        epochs = entry["epochs"]
        if not isinstance(epochs, int) or not 0 <= epochs <= 100_000:
            raise ValueError(f"{epochs!r} epochs")
        settings = set_transformer_settings(entry["settings"])
        width = settings.width
        if tuple(tensors["embed.weight"].shape) != (width, len(columns)):  # before memory is taken for the network
            raise ValueError(f"embed.weight is not of {width} × {len(columns)} numbers")
        if any(value.dtype != torch.float32 or not value.isfinite().all() for value in tensors.values()):
            raise ValueError("a weight is no finite number of 32 bits")
        if not (tensors["scale"] > 0).all():
            raise ValueError("a scale is not positive")
        with torch.random.fork_rng(devices=[]):  # building a network draws weights, which are overwritten
            net = SetTransformer(len(columns), settings)
        net.load_state_dict(tensors)
    except (
        SafetensorError, LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError,
        RecursionError, MemoryError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"{name} is not a set transformer ({reason}): remove it and fit the model again") from error
    return SetNet(net.double().eval(), columns, settings, epochs)


def whole_groups(group: Codes, rows: int) -> Iterator[slice]:
    """Yields slices of about ``rows`` rows, of whole groups; the rows of each ``group`` (n,) stand together."""
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    first = starts[np.unique(starts // rows, return_index=True)[1]]
    for start, end in zip(first, [*first[1:], len(group)], strict=True):
        yield slice(int(start), int(end))


def _logits(net: SetTransformer, x: torch.Tensor, group: Codes) -> torch.Tensor:
    made: torch.Tensor = net(net.standardised(x), group)
    return made.float()


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch with one thread inside: sums would depend on how many share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
