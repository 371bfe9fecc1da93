"""Pages: one file that needs nothing else, true to its tables, and usable in a real browser."""

from __future__ import annotations

import base64
import io
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from figure_tables import make_tables
from torch import nn

import spectral
from spectral.analysis import Diagnosis, SiteDetail, diagnose, write_headline
from spectral.analysis.levels import LEVELS, add_levels
from spectral.cli import main
from spectral.errors import SpectralError
from spectral.figures import FIGURES, plot_site_levels
from spectral.page.cells import FIXES, SITES, STABILITY, make_downloads, view
from spectral.page.results import view_table
from spectral.table.schema import BOUNDS, with_bounds

BROWSER = next(
    (found for found in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if found), None
)
EVIL = "<script>alert('x')</script>&\"'"


class Page(HTMLParser):
    """What a page refers to, its ids, and whether its elements are closed in order."""

    VOID = ("meta", "link", "img", "br", "input", "use", "path", "rect", "image", "line")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.files: dict[str, str] = {}
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        own = dict(attrs)
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [own[key] for key in ("href", "src", "xlink:href") if own.get(key)]
        self.ids += [own["id"]] if "id" in own else []
        if "download" in own:
            self.files[own["download"]] = own["href"]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d((3, 3)), nn.Flatten(), nn.Linear(72, 5),
    )  # fmt: skip
    images = spectral.load_images("synthetic", size=32, limit=8)
    return diagnose(
        net, images, methods=("blurpool", "flc"), progress=False, preprocessing="none", name="own net",
        minutes=1000.0,  # on any machine enough for all images
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(found, tmp_path_factory):
    return spectral.write_page(found, tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def text(page):
    return page.read_text(encoding="utf-8")


def test_it_asks_nobody_for_anything(text):
    parsed = Page(text)
    assert parsed.open == []
    assert all(link.startswith(("#", "data:")) for link in parsed.links)
    assert "default-src 'none'" in text
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttp", text)
    assert len(text.encode()) < 5e6


def test_ids_are_unique_and_every_anchor_leads_somewhere(text):
    parsed = Page(text)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)


def test_downloads_are_the_tables(found, text):
    files = Page(text).files
    assert {"sites.csv", "fixes.csv", "summary.csv", "stability_per_image.csv"} <= set(files)
    for name, address in files.items():
        content = base64.b64decode(address.partition("base64,")[2])
        table = pd.read_csv(io.BytesIO(content))
        assert len(table) == len(found.tables[name.removesuffix(".csv")])
    sites = pd.read_csv(io.BytesIO(base64.b64decode(files["sites.csv"].partition("base64,")[2])))
    assert np.allclose(sites["level_ratio"], found.sites["level_ratio"], equal_nan=True)


def test_a_table_that_is_too_long_says_where_it_is():
    (one,) = make_downloads({"long": pd.DataFrame({"x": np.arange(100_000) + 0.5})})
    assert (one.address, one.rows) == ("", 100_000)


def test_every_site_every_reason_and_every_line_is_on_it(found, text):
    for site in found.sites["name"]:
        assert f">{site}<" in text
    for line in found.fixes["line"]:
        assert line.replace("'", "&#39;") in text
    for reason in found.missing["reason"]:
        assert reason.split("'")[0] in text


def test_names_are_text_and_never_markup(found):
    sites = found.sites.assign(name=[EVIL, *found.sites["name"][1:]], reason=EVIL)
    evil = Diagnosis({**found.facts, "model": EVIL, "notes": [EVIL]}, sites=sites)
    evil.missing = pd.DataFrame({"what": [EVIL], "reason": [EVIL]})
    evil.details = {EVIL: SiteDetail(EVIL)}
    evil.unstable.table = found.unstable.table.assign(image=EVIL, **{"class": EVIL})
    rendered = spectral.page.render.render_page([evil])
    assert "<script>alert" not in rendered
    assert Page(rendered).tags.count("script") == 1


def test_pictures_are_of_the_worst_sites_where_there_are_many(found, monkeypatch):
    monkeypatch.setattr(spectral.page.render, "MOST_DETAILS", 3)
    one = next(iter(found.details.values()))
    count = 9
    names = [f"layer{i}" for i in range(count)]
    row = found.sites.iloc[[0] * count].assign(name=names, level_ratio=np.linspace(0.1, 0.9, count))
    many = Diagnosis(found.facts, sites=row.reset_index(drop=True), details=dict.fromkeys(names, one))
    rendered = spectral.page.render.render_page([many])
    assert rendered.count("Spectra of ") == 3
    assert "pictures are of the 3 worst sites" in rendered


class TestWords:
    def say(self, sites) -> str:
        return write_headline(
            Diagnosis({}, sites=pd.DataFrame(sites).reindex(columns=Diagnosis({}).sites.columns))
        )[0]

    def site(self, name, ratio, low=None):
        db = {f"level_db{end}": 10 * np.log10(ratio) for end in ("", "_ci_low", "_ci_high")}
        return {"name": name, "level_ratio": ratio, "level_ratio_ci_low": low or ratio, **db}

    def test_it_counts_what_surely_aliases_and_names_the_worst(self):
        said = self.say([self.site("a", 0.1), self.site("b", 0.25), self.site("c", 0.02, low=0.005)])
        assert said.startswith("2 of 3 measured sites alias")
        assert "b with −6.0 dB" in said
        assert "25.0 % of the median channel's power" in said

    def test_nothing_that_aliases_is_said_so(self):
        assert self.say([self.site("a", 0.001)]).startswith("None of the 1 measured site is sure")
        assert "no place where resolution drops" in self.say([])
        assert "None of its 1 downsampling site could be measured" in self.say([{"name": "a"}])

    def test_sites_of_an_earlier_version_are_told_by_what_was_measured_on_all_images(self):
        """It had the median channel of the 4 images alone whose maps are shown, and no interval of it."""
        earlier = dict.fromkeys(with_bounds("alias_power_ratio"), 0.1) | {"channel_median": 0.25}
        sites = add_levels(pd.DataFrame([{"name": "a", **earlier}]))
        said = self.say(sites)
        assert "a with −10.0 dB" in said
        assert "10.0 % of the power that it passes on at the tap dense" in said
        assert "channel_median" not in sites  # it would stand beside the number of all images

    def test_without_an_interval_none_is_claimed(self):
        lone = {**self.site("a", 0.1), "level_ratio_ci_low": np.nan}
        assert "1 % of the median channel's power, without an interval, which needs" in self.say([lone])
        quiet = {**self.site("a", 0.001), "level_ratio_ci_low": np.nan}
        assert "site passes on more than 1 % aliases (without an interval" in self.say([quiet])
        assert "interval included where there is one" in self.say([lone, self.site("b", 0.2)])

    def fix(self, site, method, change, p, after=-20.0):
        return {
            "site": site, "method": method, "n": 30, "delta_sis": change, "delta_sis_ci_low": change - 0.01,
            "delta_sis_ci_high": change + 0.01, "p_holm": p, "agreement": 0.9, "level_db": after,
            "level_db_original": -8.0, "reason": "",
        }  # fmt: skip

    def say_fixes(self, *rows) -> str:
        (said,) = write_headline(Diagnosis({}, fixes=pd.DataFrame(rows)))[1:]
        return said

    def test_what_lowers_sis_most_is_of_those_that_lower_it_for_sure(self):
        unsure = self.fix("all sites", "flc", -0.02, 0.2)
        one, two = self.fix("a", "blurpool", -0.012, 0.001), self.fix("b", "blurpool", -0.011, 0.001)
        said = self.say_fixes(unsure, one)
        assert (
            "Of 2 replacements (on 30 images, without training), 1 lowers SIS for sure, blurpool at" in said
        )
        said = self.say_fixes(unsure, one, two)
        assert "2 lower SIS for sure, blurpool at a most of them: by 0.012" in said

    def test_no_aliases_are_said_to_be_none(self):
        after = spectral.table.schema.to_decibels(1e-15)
        said = self.say_fixes(self.fix("all sites", "flc", 0.0, 1.0, after))
        cost = "with 90.0 % of the predictions kept."
        assert f"At all sites, flc removes all aliases that are measured (−8.0 dB as it is), {cost}" in said
        none = self.fix("all sites", "flc", 0.0, 1.0, after) | {"level_db_original": after}
        assert "aliases" not in self.say_fixes(none)  # there were none before
        silent = {f"level_db{end}": -100.0 for end in BOUNDS}
        ratios = {f"level_ratio{end}": 0.0 for end in BOUNDS}
        assert (
            self.say([{"name": "a", **ratios, **silent}]) == "None of the 1 measured site passes on aliases."
        )

    def test_what_is_sure_to_be_little_is_told_from_what_may_be_much(self):
        quiet = {**self.site("a", 0.001), "level_ratio_ci_high": 0.009}
        assert self.say([quiet]).startswith(
            "None of the 1 measured site passes on more than 1 % aliases (int"
        )
        assert "is sure to" in self.say([{**quiet, "level_ratio_ci_high": 0.02}])

    def test_layers_that_raise_sis_for_sure_are_counted(self):
        said = self.say_fixes(self.fix("all sites", "flc", 0.02, 0.01), self.fix("a", "flc", -0.02, 0.2))
        assert said.startswith("None of 2 replacements lowers SIS for sure, 1 raises it (on 30 images")

    def test_of_one_photograph_no_test_and_no_tenth_is_told(self, found):
        row = self.fix("all sites", "flc", -0.02, np.nan) | {"n": 1}
        said = self.say_fixes(row)
        assert said.startswith(
            "Whether one of 1 replacement lowers SIS isn't known: that needs two photographs"
        )
        assert (
            "flc leaves aliases of −20.0 dB (−8.0 dB as it is)" in said
        )  # the least of one is nothing to tell
        one = found.stability.assign(n=1, n_clusters=1, ci_low=np.nan, ci_high=np.nan)
        (sis,) = write_headline(Diagnosis({}, stability=one))[1:]
        assert "median" not in sis
        assert "a tenth" not in sis

    def test_layers_with_which_nothing_could_be_measured_have_their_reason(self):
        said = self.say_fixes({"site": "all sites", "method": "flc", "n": 0, "reason": "the map has NaN"})
        assert "flc at all sites: the map has NaN" in said
        assert "put in" not in said

    def test_shifts_count_images_with_their_interval(self, found):
        said = " ".join(write_headline(found))
        changed = int((found.per_image["n_changed"] > 0).sum())
        assert f"change the predicted class of {changed} of 8 images" in said

    def test_shares_over_photographs_say_so(self, found):
        images = found.per_image.assign(cluster=["a"] * 5 + ["b", "c", "d"], n_changed=[1] * 5 + [0] * 3)
        said = write_headline(Diagnosis({}, stability=found.stability, per_image=images))[1]
        assert "of 5 of 8 images, each photograph counting once: 25.0 % (" in said


def test_a_table_says_of_how_many_photographs_its_images_are(found):
    budget = found.stability.assign(n_clusters=found.stability["n"] - 1)
    shown = [
        [column.heading for column in view(table, "", STABILITY).columns]
        for table in (budget, found.stability)
    ]
    assert ["photographs" in headings for headings in shown] == [True, False]


def test_a_site_of_one_photograph_is_drawn_without_an_interval():
    bounds = {"level_db_ci_low": [-14.0, np.nan, -np.inf], "level_db_ci_high": [-8, np.nan, -25]}
    sites = pd.DataFrame({"name": ["a", "b", "c"], "level_db": [-10.0, -20.0, -30.0]})
    for table, expected in ((sites.assign(**bounds), [[-14.0, -8.0], [-100.0, -25.0]]), (sites, [])):
        lines = plot_site_levels(table).axes[0].collections[0].get_segments()
        assert [line[:, 0].tolist() for line in lines if len(line)] == expected


def test_several_networks_share_a_page(found, tmp_path):
    other = Diagnosis({**found.facts, "model": "other net"}, sites=found.sites, stability=found.stability)
    page = spectral.write_page([found, other], tmp_path / "two.html")
    parsed = Page(page.read_text(encoding="utf-8"))
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)
    assert "Side by side" in page.read_text(encoding="utf-8")
    strange = Diagnosis({**other.facts, "images": "others@1"})
    assert "saw different images" in spectral.page.render.render_page([found, strange])
    assert "told by different ratios" not in page.read_text(encoding="utf-8")
    pooled = add_levels(found.sites.drop(columns="level_of"), LEVELS[1]).reindex(columns=found.sites.columns)
    mixed = spectral.page.render.render_page([found, Diagnosis({**other.facts}, sites=pooled)])
    assert "told by different ratios" in mixed
    assert " dB (alias power ratio of the median channel)" in mixed
    assert " dB (alias power ratio at the tap signal)" in mixed


def test_what_was_looked_at_on_fewer_images_says_on_how_many(found, text):
    """A diagnosis inspects 4 of its 8 images, and may try layers on fewer."""
    assert text.count("Mean power spectra over 4 images and all channels") == len(found.details)
    shown = view(found.fixes, "", FIXES)
    place = [column.heading for column in shown.columns].index("images")
    assert [row[place].text for row in shown.rows] == [str(n) for n in found.fixes["n"]]


def test_columns_that_say_nothing_are_left_out(found):
    shown = view(found.sites.assign(reason=""), "sites", SITES)
    assert "not measured because" not in [column.heading for column in shown.columns]


def test_words_of_any_letters_are_shown_and_unknown_times_are_not():
    shown = view_table("t", pd.DataFrame({"a": [1, 2], "model": ["m", "sm"], "unit": ["ms", "s"]}))
    assert [column.heading for column in shown.columns] == ["a", "model", "unit"]
    unknown = dict.fromkeys(("latency_ms", "latency_ms_original"), np.nan)
    fixes = pd.DataFrame([{"site": "a", "method": "s", **unknown}])
    assert [column.heading for column in view(fixes, "fixes", FIXES).columns] == ["at", "layer"]


def test_counts_have_all_their_digits():
    sites = pd.DataFrame({"name": ["a"], "n": [50_000]})
    assert [cell.text for cell in view(sites, "sites", SITES).rows[0]] == ["a", "50000"]
    for counts in ([1234, 50_000], [1234.0, np.nan]):
        assert view_table("t", pd.DataFrame({"n": counts})).rows[0][0].text == "1234"
    assert view_table("t", pd.DataFrame({"x": [0.123456]})).rows[0][0].text == "0.123"


def test_a_page_that_cannot_be_written_is_one_sentence(found, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpectralError, match="can't write to"):
        spectral.write_page(found, tmp_path / "file" / "page.html")


class TestReport:
    def test_of_a_diagnosis_it_is_the_same_page(self, tmp_path):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        found = diagnose(net, torch.rand(3, 3, 16, 16), methods=("flc",), out=tmp_path / "a", progress=False)
        whole = spectral.page.render.render_page([found])
        assert spectral.write_report(tmp_path / "a").read_text(encoding="utf-8") == whole
        assert spectral.write_report(tmp_path).read_text(encoding="utf-8") == whole

    def test_of_measurements(self, tmp_path):
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        spectral.measure(net, torch.rand(3, 3, 16, 16), ("avr", "alias_power_ratio"), out=tmp_path / "m",
                         progress=False)  # fmt: skip
        text = spectral.write_report(tmp_path / "m").read_text(encoding="utf-8")
        assert "1 of 1 measured site aliases" in text
        shard = next((tmp_path / "m").glob("*.parquet"))
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(SpectralError, match=shard.name):  # and not a page without it
            spectral.write_report(tmp_path / "m")

    def test_of_a_studys_tables_and_figures(self, tmp_path):
        stem = "fig13_avr_intervention"
        (tmp_path / "tables").mkdir()
        tables = make_tables()
        for name in FIGURES[stem].tables:
            tables[name].to_csv(tmp_path / "tables" / f"{name}.csv", index=False)
        result = CliRunner().invoke(main, ["report", str(tmp_path)])
        assert result.exit_code == 0, result.output
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert FIGURES[stem].caption.split("'")[0] in text
        assert Page(text).open == []

    def test_a_table_of_no_figure_is_drawn_as_plot_draws_it(self, tmp_path):
        table = make_tables()["phase4_equivariance"]
        table.to_csv(tmp_path / "equivariance.csv", index=False)
        text = spectral.write_report(tmp_path).read_text(encoding="utf-8")
        assert text.count("PSNR of the mean error") == 1
        assert Page(text).open == []

    def test_of_tables_without_a_figure_it_promises_none(self, tmp_path):
        (tmp_path / "networks.csv").write_text("model,sites\nmine,3\n")
        text = spectral.write_report(tmp_path).read_text(encoding="utf-8")
        assert "mine" in text
        assert "figures whose tables are there" not in text

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("site;value\na;0,5\n", "';' between its columns"),
            ("", "is empty"),
            ("site,value\na,0,5\n", "more values"),
        ],
    )
    def test_a_table_that_shows_nothing_is_told(self, text, sentence, tmp_path):
        (tmp_path / "sites.csv").write_text(text)
        with pytest.raises(SpectralError, match=rf"sites\.csv (has )?{sentence}"):
            spectral.write_report(tmp_path)

    def test_nothing_to_show_is_one_sentence(self, tmp_path):
        with pytest.raises(SpectralError, match="no diagnosis, no measurements and no tables"):
            spectral.write_report(tmp_path)


needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed; .ci/run installs it")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, page):
    """Open the page and hold that the console stays silent and nothing is asked of a network."""
    contexts, said, asked = [], [], []

    def open_page(hash="", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(f"{page.as_uri()}{hash}")
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert {url.split("#")[0] for url in asked if not url.startswith("data:")} <= {page.as_uri()}


@needs_browser
class TestBrowser:
    def test_a_box_opens_its_site(self, opened, found):
        from playwright.sync_api import expect  # waits: the page follows a new hash in a task of its own

        tab = opened()
        assert tab.locator("details.detail[open]").count() == 0
        tab.click(".strip a >> nth=1")
        expect(tab.locator("details.detail[open] #site-1")).to_be_visible()
        expect(tab.locator("details.detail[open] svg")).to_be_visible()
        expect(tab.locator(".strip a[aria-current]")).to_have_attribute("href", "#site-1")
        assert tab.url.endswith("#site-1")

    def test_a_hash_opens_its_site_and_keys_do_too(self, opened):
        from playwright.sync_api import expect

        tab = opened("#site-2")
        expect(tab.locator("#site-2")).to_be_visible()
        tab.locator(".strip a >> nth=0").focus()
        tab.keyboard.press("Enter")
        expect(tab.locator("#site-0")).to_be_visible()
        expect(tab.locator("details:has(#site-0) summary")).to_be_focused()
        tab.keyboard.press("Space")
        expect(tab.locator("#site-0")).to_be_hidden()

    def test_tables_sort_by_numbers_both_ways(self, opened, found):
        tab = opened()
        place = [c.heading for c in view(found.sites, "", SITES).columns].index("aliases, median channel")
        button = tab.locator("#sites thead th").nth(place).locator("button")
        names = lambda: tab.locator("#sites tbody th").all_inner_texts()  # noqa: E731
        ordered = found.sites.sort_values("channel_median", na_position="last")["name"].tolist()
        button.click()
        assert names() == ordered
        assert tab.locator("#sites th[aria-sort=ascending]").count() == 1
        button.click()
        known = found.sites.dropna(subset="channel_median")["name"].tolist()
        assert names()[: len(known)] == [name for name in reversed(ordered) if name in known]

    def test_tables_are_filtered_by_words(self, opened, found):
        tab = opened()
        tab.locator("label.filter input").first.fill("max_pool")
        visible = tab.locator("#sites tbody tr:visible")
        assert visible.count() == (found.sites["op"] == "max_pool").sum() == 1
        assert tab.locator("label.filter [role=status]").first.inner_text() == f"1 of {len(found.sites)}"

    def test_a_table_can_be_downloaded(self, opened, found):
        tab = opened()
        with tab.expect_download() as info:
            tab.click("a[download='fixes.csv']")
        assert len(pd.read_csv(info.value.path())) == len(found.fixes)

    @pytest.mark.parametrize("width", [390, 1200])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_no_serious_fault(self, opened, width, scheme):
        from axe_playwright_python.sync_playwright import Axe

        tab = opened("#site-0", viewport={"width": width, "height": 844}, color_scheme=scheme)
        faults = [fault for fault in Axe().run(tab).response["violations"]
                  if fault["impact"] in ("serious", "critical")]  # fmt: skip
        assert [(fault["id"], fault["nodes"][0]["html"]) for fault in faults] == []

    @pytest.mark.parametrize("width", [320, 390, 1200])
    def test_nothing_is_wider_than_the_screen(self, opened, width):
        tab = opened("#site-0", viewport={"width": width, "height": 844})
        assert tab.evaluate("document.documentElement.scrollWidth") == width

    def test_without_javascript_all_is_there(self, opened, found):
        tab = opened(java_script_enabled=False)
        assert tab.locator("#sites tbody tr").count() == len(found.sites)
        assert tab.locator("#layers tbody tr").count() == len(found.fixes)
        tab.locator("summary >> nth=0").click()
        assert tab.locator("#site-0").is_visible()
        assert tab.locator("label.filter").count() == 0

    def test_dark_and_light_differ(self, opened):
        grounds = [
            opened(color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
            for scheme in ("light", "dark")
        ]
        assert grounds[0] == "rgb(255, 255, 255)" != grounds[1]

    def test_it_prints_with_everything_open(self, opened, found):
        tab = opened()
        assert len(tab.pdf()) > 10_000  # beforeprint has opened the sites
        assert tab.locator("details.detail[open]").count() == len(found.sites)


def test_causes_are_said_with_their_shares_and_what_cannot_be_ideal_is_listed(found, text):
    assert "What causes it" in text
    parsed = Page(text)
    assert "budget.csv" in parsed.files
    own = found.budget[found.budget["metric"] == "logit_jitter"].set_index("source")["share"]
    said = next(line for line in write_headline(found) if line.startswith("The movement of the logits"))
    order = [said.index(f"by {word}") for word in ("decimation", "nonlinearities", "borders")]
    shares = own[["decimation", "nonlinearity", "border"]].to_numpy()
    assert list(np.argsort(order)) == list(np.argsort(-shares))
    assert "a weight for each place (a flattened map)" in text
    made = pd.DataFrame({
        "metric": "logit_jitter", "source": ["total", "decimation", "border", "unexplained"],
        "share": [1.0, 0.25, 0.7, 0.05], "share_ci_low": [1.0, 0.2, 0.6, 0.04], "n": 9, "reason": "",
        "share_ci_high": [1.0, 0.3, 0.8, 0.06],
    })  # fmt: skip
    assert (
        "The movement of the logits is caused to 70.0 % (60.0 to 80.0) by borders, 25.0 % (20.0 to 30.0) by "
        "decimation; 5.0 % stays unexplained (on 9 images)." in write_headline(Diagnosis({}, budget=made))
    )
    unsure = made.assign(share_ci_low=[1.0, 0.2, -0.6, 0.04])
    assert write_headline(Diagnosis({}, budget=unsure))[1].endswith(
        "Whether borders have a part in it isn't sure."
    )
    few = made.assign(share_ci_low=np.nan, share_ci_high=np.nan)
    assert "(on 9 images, which are too few for intervals)." in write_headline(Diagnosis({}, budget=few))[1]
    nothing = {"share": [1.0, 1e-15, 0.95, 0.05], "share_ci_low": [1.0, -1e-15, 0.9, 0.04],
               "share_ci_high": [1.0, 1e-15, 1.0, 0.06]}  # fmt: skip
    said = write_headline(Diagnosis({}, budget=made.assign(**nothing)))[1]
    assert "by borders, none by decimation; 5.0 % stays unexplained (on 9 images)." in said


def test_without_a_budget_there_is_no_section_of_causes(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    left_out = diagnose(net, torch.rand(3, 3, 16, 16), methods=("flc",), budget_images=0, progress=False)
    assert left_out.budget.empty
    text = spectral.write_page(left_out, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "What causes it" not in text
    Page(text)
