"""Laws of the set transformer: what a row's prediction may depend on, what training draws, and what a file may hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dermstack.errors import ImageError
from image_models import set_transformer
from image_models.set_transformer import SetNet, SetTransformer, set_net_from_bytes
from image_models.settings import SetTransformerSettings, set_transformer_settings

SMALL = SetTransformerSettings(width=8, heads=2, epochs=3, patience=3)
COLUMNS = ("a", "b", "c")


def drawn_net(seed: int = 0, columns: int = 3) -> SetNet:
    """A network whose weights are all drawn, so that each part of it matters."""
    torch.manual_seed(seed)
    net = SetTransformer(columns, SMALL)
    for value in net.parameters():
        torch.nn.init.normal_(value, std=0.5)
    return SetNet(net.double().eval(), tuple(f"c{number}" for number in range(columns)), SMALL, 1)


def sets(rng: np.random.Generator, n: int, groups: int) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    x = rng.normal(size=(n, 3)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x, rng.integers(0, groups, n)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 20))
def test_a_permutation_of_the_rows_permutes_the_predictions(seed: int, n: int, groups: int) -> None:
    rng, net = np.random.default_rng(seed), drawn_net()
    x, group = sets(rng, n, groups)
    order = rng.permutation(n)
    np.testing.assert_array_equal(net.logit(x[order], group[order]), net.logit(x, group)[order])


def test_a_group_predicted_alone_is_the_group_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a group is larger than what is computed at once, and whatever that number is."""
    rng, net = np.random.default_rng(0), drawn_net()
    x, group = sets(rng, 300, 30)
    group[:120] = 3
    whole = net.logit(x, group)
    for one in np.unique(group):
        np.testing.assert_array_equal(net.logit(x[group == one], group[group == one]), whole[group == one])
    for name, number in (("ROWS_AT_ONCE", 7), ("_SPAN", 5), ("_MAX_QUERIES", 11)):
        monkeypatch.setattr(set_transformer, name, number)
        np.testing.assert_array_equal(net.logit(x, group), whole)


def test_every_row_sees_the_others_of_its_group_and_no_other_row() -> None:
    rng, net = np.random.default_rng(1), drawn_net()
    x, group = sets(rng, 40, 8)
    x = np.nan_to_num(x)
    before = net.logit(x, group)
    changed = x.copy()
    changed[5, 1] += 2
    moved = net.logit(changed, group) != before
    np.testing.assert_array_equal(moved, group == group[5])


def test_attention_is_that_of_torch() -> None:
    """Against torch's own attention, one group at a time."""
    net = drawn_net().net
    block = net.blocks[0]
    rng = np.random.default_rng(2)
    h = torch.from_numpy(rng.normal(size=(130, 8)))
    group = np.sort(rng.integers(0, 12, 130))
    with torch.inference_mode():
        made = block(h, list(set_transformer._spans(group)))
        for one in np.unique(group):
            rows = torch.from_numpy(group == one)
            q, k, v = block.qkv(block.before(h[rows])).chunk(3, dim=1)
            heads = [part.reshape(len(part), 2, 4).transpose(0, 1) for part in (q, k, v)]
            seen = torch.nn.functional.scaled_dot_product_attention(*heads) - heads[2]
            after = h[rows] + block.out(seen.transpose(0, 1).reshape(-1, 8))
            expected = after + block.down(torch.nn.functional.gelu(block.up(block.between(after))))
            torch.testing.assert_close(made[rows], expected)


def test_attention_adds_nothing_for_rows_that_do_not_differ() -> None:
    """The number of images of a group is an artefact: copies of a row say nothing, however many there are."""
    x, net = np.random.default_rng(3).normal(size=(1, 3)), drawn_net()
    made = [net.logit(np.repeat(x, n, axis=0), np.zeros(n, int)) for n in (2, 3, 50)]
    np.testing.assert_allclose(np.concatenate(made), made[0][0], rtol=1e-6)
    with torch.no_grad():
        net.net.line.weight[:, 6:] = 0  # of rows alone
    alone = net.logit(x, np.zeros(1, int))
    np.testing.assert_allclose(net.logit(np.repeat(x, 7, axis=0), np.zeros(7, int)), alone[0], rtol=1e-6)


def test_what_is_written_predicts_the_same() -> None:
    net, (x, group) = drawn_net(), sets(np.random.default_rng(4), 90, 20)
    net = set_net_from_bytes(net.to_bytes(), "first")  # its weights in 32 bits
    again = set_net_from_bytes(net.to_bytes(), "model.safetensors")
    assert (again.columns, again.settings, again.epochs) == (net.columns, net.settings, net.epochs)
    np.testing.assert_array_equal(again.logit(x, group), net.logit(x, group))
    assert again.to_bytes() == net.to_bytes()


def _entry(**changes: object) -> str:
    settings = {name: getattr(SMALL, name) for name in SetTransformerSettings.__dataclass_fields__}
    return json.dumps({"columns": ["c0", "c1", "c2"], "settings": settings, "epochs": 1} | changes)


@pytest.mark.parametrize(
    ("entry", "tensors"),
    [
        (_entry(columns=["a", "b"]), {}),
        (_entry(columns=[]), {}),
        (_entry(columns=[1, 2, 3]), {}),
        (_entry(epochs=-1), {}),
        (_entry(epochs="3"), {}),
        (_entry(settings={"width": 1 << 40}), {}),
        (_entry(settings={"unknown": 1}), {}),
        (_entry(settings={"width": 8, "heads": 3}), {}),
        ("[]", {}),
        ("{", {}),
        (_entry(), {"norm.weight": torch.ones(9)}),
        (_entry(), {"extra": torch.ones(1)}),
        (_entry(), {"scale": torch.zeros(3)}),
        (_entry(), {"mean": torch.full((3,), torch.nan)}),
        (_entry(), {"norm.bias": torch.zeros(8, dtype=torch.float64)}),
    ],
)
def test_a_file_of_another_network_is_refused(entry: str, tensors: dict[str, torch.Tensor]) -> None:
    own = {name: value.float() for name, value in drawn_net().net.state_dict().items()}
    good = safetensors.torch.save(own, {"dermstack": _entry()})
    assert set_net_from_bytes(good, "model").columns == ("c0", "c1", "c2")
    content = safetensors.torch.save({**own, **tensors}, {"dermstack": entry})
    with pytest.raises(ImageError, match="model is not a set transformer"):
        set_net_from_bytes(content, "model")


@pytest.mark.parametrize("part", [b"", b"\0" * 8, b"\xff" * 64, None])
def test_a_damaged_file_is_refused(part: bytes | None) -> None:
    content = drawn_net().to_bytes()
    with pytest.raises(ImageError, match="model is not a set transformer"):
        set_net_from_bytes(content[:-5] if part is None else part, "model")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"widht": 8}, "did you mean 'width'"),
        ({"rounds": 8}, "no parameter 'rounds'"),
        ({"width": 8.5}, "a whole number from 4 to 256"),
        ({"width": True}, "a whole number"),
        ({"dropout": 1.5}, "a number from 0 to 0.9"),
        ({"lr": "fast"}, "a number from"),
        ({"width": 30}, "not a multiple of its 4 heads"),
        ({"alone": 0.7, "subsets": 0.7}, "together more than 1"),
    ],
)
def test_a_parameter_that_it_cannot_have_is_named(params: dict[str, object], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        set_transformer_settings(params)
