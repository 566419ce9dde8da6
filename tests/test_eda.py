import re

import numpy as np
import pandas as pd
import pytest
from html_page import Page

from dermstack.errors import DataError
from dermstack.report.eda import EdaPictures, write_eda
from stack.folds import make_folds
from stack.tables.table import Table

EVIL = "<script>alert(1)</script>\"'&"


def rows(n, rng, prefix="train"):
    return pd.DataFrame(
        {
            "id": [f"{prefix}_{number:05d}" for number in range(n)],
            "group": [f"{prefix}_p{number}" for number in rng.integers(0, max(n // 4, 2), n)],
            "age": np.where(rng.random(n) < 0.1, np.nan, 5.0 * rng.integers(3, 19, n)).astype(np.float32),
            "sex": pd.Series(rng.choice(["male", "female", None], n, p=[0.5, 0.4, 0.1]), dtype="str"),
            "site": pd.Series(rng.choice(["torso", "head/neck", "palms"], n), dtype="str"),
        }
    )


def make_table(n=300, n_test=120, seed=0):
    rng = np.random.default_rng(seed)
    train = rows(n, rng)
    target = (rng.random(n) < 0.2).astype(np.int8)
    train.insert(2, "target", target)
    train["diagnosis"] = pd.Series(
        np.where(target == 1, "melanoma", rng.choice(["nevus", "keratosis"], n)), dtype="str"
    )
    return Table(train, rows(n_test, rng, "test"))


def make_pictures(table, asked=None):
    ids = [*table.train["id"], *table.test["id"]]
    rng = np.random.default_rng(1)
    index = pd.DataFrame(
        {
            "id": ids,
            "source_height": rng.choice([480, 1053], len(ids)),
            "source_width": rng.choice([640, 1872], len(ids)),
            "source_bytes": rng.integers(10_000, 90_000, len(ids)),
        }
    )

    def thumbnails(wanted):
        if asked is not None:
            asked.extend(wanted)
        return np.stack([np.full((112, 112, 3), ids.index(name) % 256, np.uint8) for name in wanted])

    return EdaPictures(index.sample(frac=1, random_state=0, ignore_index=True), thumbnails)


def make_pairs(table):
    ids = table.train["id"]
    return pd.DataFrame(
        {
            "id_1": ids[:6].to_numpy(),
            "id_2": ids[6:12].to_numpy(),
            "distance": [0.01, 0.02, 0.03, 0.04, np.nan, 0.06],
            "kind": ["same group"] * 4 + ["across groups"] * 2,
        }
    )


def render(tmp_path, table, **given):
    path = write_eda(tmp_path / "eda.html", name=given.pop("name", "small"), table=table, **given)
    html = path.read_text(encoding="utf-8")
    return Page(html), html


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page with all that it can show, its html and its table."""
    table = make_table()
    given = {
        "folds": make_folds(table.train, k=3, seed=0),
        "pictures": make_pictures(table),
        "pairs": make_pairs(table),
    }
    return *render(tmp_path_factory.mktemp("eda"), table, **given, sheet=5), table


def test_the_page_asks_the_network_for_nothing_and_runs_nothing(whole):
    page, html, _ = whole
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on")
            assert name not in {"srcset", "action", "background"}
            assert name != "src" or (tag == "img" and value.startswith("data:image/jpeg;base64,"))
            assert not name.endswith("href") or value.startswith("#")
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", html)
    assert "@import" not in html
    assert "default-src 'none'" in html


@pytest.mark.usefixtures("without_figures")
def test_a_middle_size_that_is_the_risky_one_shows_by_shape_where_ranks_are_blind(tmp_path):
    table, rng = make_table(900), np.random.default_rng(2)
    positive = table.train["target"] == 1
    middle = np.where(positive, rng.random(900) < 0.9, rng.random(900) < 0.2)
    height = np.where(middle, 2000, rng.choice([480, 4000], 900))
    index = make_pictures(table).index.set_index("id")
    index.loc[table.train["id"], "source_height"] = height
    pictures = EdaPictures(index.reset_index(), make_pictures(table).thumbnails)
    folds = make_folds(table.train, k=3, seed=0)

    def line(**given):
        page, _ = render(tmp_path, table, pictures=pictures, **given)
        return next(cells for cells in page.rows if cells[:1] == ["image height"])

    *_, ranked, shape = line(folds=folds)
    assert float(ranked.split()[0]) < 0.6
    assert float(shape.split()[0]) > 0.8
    assert line()[-1] == ranked, "without folds there is one AUC, that of ranks"


def test_the_same_data_has_the_same_bytes_whatever_the_order_of_the_pictures(whole, tmp_path):
    _, html, table = whole
    folds = make_folds(table.train, k=3, seed=0)
    again = EdaPictures(make_pictures(table).index.sort_values("id"), make_pictures(table).thumbnails)
    assert render(tmp_path, table, folds=folds, pictures=again, pairs=make_pairs(table), sheet=5)[1] == html


def test_headings_ids_and_labels_hold_together(whole):
    page, _, _ = whole
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) == 1
    assert len(page.ids) == len(set(page.ids))
    for _, attrs in page.tags:
        for name in ("href", "xlink:href", "aria-labelledby"):
            assert attrs.get(name, page.ids[0]).removeprefix("#") in page.ids
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table")


def test_every_figure_is_said_in_words_and_tells_how_to_read_it(whole):
    page, html, _ = whole
    plots = [attrs for tag, attrs in page.tags if tag == "svg" and attrs["class"] == "plot"]
    assert len(plots) == len(re.findall("<figure", html)) > 15
    assert all(plot["role"] == "img" and len(plot["aria-label"]) > 20 for plot in plots)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html, flags=re.DOTALL)
    assert len(captions) == len(plots)
    assert all(len(caption.strip()) > 60 for caption in captions)


def test_a_level_without_positives_has_no_line_among_the_positives(whole):
    page, _, _ = whole
    said = [attrs["aria-label"] for _, attrs in page.tags if attrs.get("aria-label", "").startswith("Ages of")]
    assert len(said) == 6
    assert ["nevus" in words for words in said if "melanoma" in words] == [True, False]


def test_every_picture_has_words_instead_and_twins_come_in_pairs(whole):
    page, _, table = whole
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 2 * (5 + 5) + 2 * 6
    assert len({picture["alt"] for picture in pictures}) == len(pictures)
    shown = [picture["alt"].removeprefix("Edges of ") for picture in pictures if picture["alt"].startswith("Edges")]
    target = table.train.set_index("id")["target"]
    assert target[shown].tolist() == [0] * 5 + [1] * 5
    for name in shown:
        assert any(p["alt"].startswith(f"{name}, {'positive' if target[name] else 'negative'}") for p in pictures)


def test_the_numbers_of_the_page_are_those_of_the_table(whole):
    page, _, table = whole
    train = table.train
    positives = int(train["target"].sum())
    assert f"{100 * positives / 300:.2f} %" in page.text
    assert f"{positives} of 300" in page.text
    nevus = (train["diagnosis"] == "nevus").sum()
    assert page.named["nevus"] == [f"{nevus} ({100 * nevus / (300 - positives):.1f} %)", "0 (0.0 %)", "0.00 %"]
    assert page.named["melanoma"] == ["0 (0.0 %)", f"{positives} (100.0 %)", "100.00 %"]
    sized = train.merge(make_pictures(table).index, on="id")
    large = sized[(sized["source_width"] == 1872) & (sized["source_height"] == 1053)]["target"]
    assert page.named["1872 × 1053"] == [
        *(str(len(large)), str(large.sum()), f"{100 * large.mean():.2f} %"),
    ]
    assert page.named["same group"] == ["4", "8"]
    assert page.named["across groups"] == ["2", "4"]
    assert f"Negative: 5 of {300 - positives}" in page.text


def test_no_text_of_the_data_becomes_markup(tmp_path):
    table = make_table()
    for frame in (table.train, table.test):
        frame["id"], frame["group"] = EVIL + frame["id"], EVIL + frame["group"]
        frame["sex"], frame["site"] = EVIL + frame["sex"], EVIL + frame["site"]
    table.train["diagnosis"] = EVIL + table.train["diagnosis"]
    pairs = make_pairs(table).assign(kind=EVIL)
    page, html = render(tmp_path, table, name=EVIL, pictures=make_pictures(table), pairs=pairs, sheet=5)
    assert "<script" not in html
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("alert(1)") > 30
    assert not any(name.startswith("alert") for _, attrs in page.tags for name in attrs)


def test_a_table_alone_makes_a_page(tmp_path):
    table = make_table(n_test=0)
    page, _ = render(tmp_path, Table(table.train.drop(columns="diagnosis"), table.test))
    assert "There are no test rows to compare with." in page.text
    assert "Near-duplicates have not been searched yet." in page.text
    assert "img" not in {tag for tag, _ in page.tags}
    assert "iagnosis" not in page.text
    assert "image width" not in page.named
    assert not {"sheet", "folds", "drift-columns"} & set(page.ids)


@pytest.mark.usefixtures("without_figures")
def test_no_images_leaves_out_the_pictures_and_asks_for_none(tmp_path):
    table, asked = make_table(), []
    pictures = make_pictures(table, asked)
    page, _ = render(tmp_path, table, pictures=pictures, pairs=make_pairs(table), sheet=0)
    assert "img" not in {tag for tag, _ in page.tags}
    assert "image width" in page.named
    assert asked == []


@pytest.mark.parametrize("column", ["age", "sex", "site", "diagnosis"])
def test_a_column_without_any_value_is_left_out(tmp_path, column):
    table = make_table()
    for frame in (table.train, table.test):
        if column in frame:
            frame[column] = frame[column].mask(frame[column].notna())
    page, _ = render(tmp_path, table)
    assert page.named[column][:2] == ["300", "100.00 %"]
    assert f"age by {column}" not in page.text.lower()
    assert ("No age is known." in page.text) == (column == "age")


def test_one_site_makes_a_page(tmp_path):
    table = make_table()
    page, _ = render(tmp_path, Table(table.train.assign(site="torso"), table.test.assign(site="torso")))
    assert page.named["torso"][0] == f"{(table.train['target'] == 0).sum()} (100.0 %)"
    assert page.named["site"][:3] == ["0.000", "0.000", "within chance"]


def test_positives_without_an_age_make_a_page(tmp_path):
    table = make_table()
    ages = table.train["age"].where(table.train["target"] == 0, np.float32(np.nan))
    page, _ = render(tmp_path, Table(table.train.assign(age=ages), table.test))
    assert f"0 of the {table.train['target'].sum()} positive ones" in page.text


def test_two_rows_make_a_page(tmp_path):
    two = pd.DataFrame({"id": ["a", "b"], "group": ["a", "b"], "target": np.array([0, 1], np.int8)})
    two = two.assign(age=np.float32([1e6, 0]), sex=np.nan, site=np.nan).astype({"sex": "str", "site": "str"})
    table = Table(two, two.drop(columns="target").assign(id=["c", "d"], group="c"))
    page, _ = render(tmp_path, table, pictures=make_pictures(table), pairs=make_pairs(make_table()).iloc[:0])
    assert "50.00 %" in page.text
    assert "No near-duplicates were found." in page.text


def test_pictures_that_lack_an_id_are_refused(tmp_path):
    table = make_table()
    pictures = make_pictures(table)
    lacking = EdaPictures(pictures.index[pictures.index["id"] != "test_00003"], pictures.thumbnails)
    with pytest.raises(DataError, match="lacks 1 of 120 ids, first 'test_00003'"):
        render(tmp_path, table, pictures=lacking)
    twice = EdaPictures(pd.concat([pictures.index, pictures.index.iloc[:1]]), pictures.thumbnails)
    with pytest.raises(DataError, match="twice"):
        render(tmp_path, table, pictures=twice)
    assert not (tmp_path / "eda.html").exists()


@pytest.mark.usefixtures("without_figures")
def test_pairs_with_a_picture_that_is_not_at_hand_are_counted_and_not_shown(tmp_path):
    table = make_table()
    pairs = make_pairs(table).assign(id_2="elsewhere")
    page, _ = render(tmp_path, table, pictures=make_pictures(table), pairs=pairs, sheet=2)
    assert page.named["same group"] == ["4", "5"]
    assert not any("of a pair" in attrs.get("alt", "") for _, attrs in page.tags)


@pytest.mark.slow
def test_a_page_of_33_126_rows_is_below_5_mb(tmp_path):
    table = make_table(33_126, 10_982)
    rng = np.random.default_rng(0)
    index = make_pictures(table).index.assign(source_width=lambda f: rng.integers(100, 9_000, len(f)))
    noise = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)  # what compresses worst
    pictures = EdaPictures(index, lambda ids: np.stack([noise] * len(ids)))
    _, html = render(tmp_path, table, pictures=pictures, pairs=make_pairs(table), sheet=24)
    assert len(html.encode()) < 5_000_000
