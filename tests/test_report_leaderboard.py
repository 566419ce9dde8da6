"""The leaderboard page: what it says, and how it looks in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from browser import SCHEMES, WIDTHS, accessibility_violations, opened_page, wide_tables
from html_page import Page
from test_leaderboard import entry, rows

from dermstack.report.leaderboard import MAX_DRAWN, leaderboard_html
from stack.leaderboard import Leaderboard, leaderboard

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def board(number_of_runs: int = 4) -> Leaderboard:
    of = rows()
    return leaderboard(
        [
            entry(
                f"experiment_{number}", of if number else of.iloc[5:], seed=number,
                settings={"folds.k": str(3 + number % 2), "blend.methods": "rank_mean, mean" if number else "mean"},
            )
            for number in range(number_of_runs)
        ],
        draws=200,
    )  # fmt: skip


def test_it_holds_every_number_and_no_other_names() -> None:
    made = board()
    page = Page(leaderboard_html([made], created="2026-01-01"))
    for line in made.table.to_dict("records"):
        row = next(row for row in page.rows if row and row[0].startswith(line["run"]))
        assert row[1] == f"{line['auc']:.4f}"
        assert row[2] == f"{line['low']:.4f} to {line['high']:.4f}"
        assert line["verdict"] in row
    assert f"{made.optimism:.4f}" in page.text
    values = [row[1:] for row in page.rows if row and row[0] in made.names and len(row) == 3]
    expected = [
        ["4" if name[-1] in "13" else "3", "mean" if name[-1] == "0" else "rank_mean, mean"] for name in made.names
    ]
    assert values == expected, "fewer keys than runs: a row is a run"
    assert len(page.ids) == len(set(page.ids))


def test_names_are_text() -> None:
    of = rows()
    made = leaderboard([entry("<b>a</b>", of), entry("b", of, seed=1, settings={"<i>": "<u>"})], draws=50)
    assert not {"b", "i", "u"} & {tag for tag, _ in Page(leaderboard_html([made])).tags}


def test_several_boards_have_ids_of_their_own() -> None:
    page = Page(leaderboard_html([board(), board()]))
    assert len(page.ids) == len(set(page.ids))
    assert "8 runs of 2 sets of rows or targets" in page.text


def test_one_run_is_not_called_the_best() -> None:
    page = Page(leaderboard_html([leaderboard([entry("alone", rows())], draws=50)]))
    assert "was chosen" not in page.text
    assert page.named["alone"][0].startswith("0.")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "board.html"
    path.write_text(leaderboard_html([board(MAX_DRAWN + 5), board(3)], created="2026-01-01"), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_the_window_and_complains_of_nothing(
    page: Path, browser: Browser, scheme: Literal["light", "dark"], width: int
) -> None:
    with opened_page(browser, page, scheme=scheme, width=width) as seen:
        assert seen.overflow_px == 0
        assert seen.console_errors == []
        assert len(seen.requests) == 1  # the page itself
        assert {hinted for _, hinted in wide_tables(seen.page)} == {width == 360}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_no_barrier(page: Path, browser: Browser, scheme: Literal["light", "dark"]) -> None:
    with opened_page(browser, page, scheme=scheme, bypass_csp=True) as seen:
        assert accessibility_violations(seen.page) == []
