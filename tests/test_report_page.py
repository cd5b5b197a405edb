"""The page in a real browser: it draws without a complaint, its filter and its tables do what they say, and
people who see little, use a phone, or no mouse can read it.
"""

import itertools
import json
import shutil

import browser
import pytest
import report_tree

PROGRAM = browser.find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here; TWODRCL_CHROMIUM can name one")
ROWS = "#categories tbody tr"
NOTHING = "\N{EN DASH}"  # in a cell without a number


@pytest.fixture(scope="module")
def project(report_project, tmp_path_factory):
    """Whole, and inside it another one in which nothing was evaluated."""
    folder = tmp_path_factory.mktemp("page") / "project"
    shutil.copytree(report_project, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report_tree.command(patch, "report")
        shutil.copytree(folder, folder / "half", ignore=shutil.ignore_patterns("evaluate", "stats", "report"))
        patch.chdir(folder / "half")
        report_tree.command(patch, "report")
    return folder


@pytest.fixture(scope="module")
def chromium():
    started = browser.Browser(PROGRAM)
    yield started
    started.close()


@pytest.fixture
def page(chromium, project):
    """The whole project's page, just opened on a desk."""
    chromium.resize(1280, 900)
    chromium.media(prefers_color_scheme="light", prefers_reduced_motion="no-preference")
    chromium.open(project / "artifacts/report/default/report.html")
    yield chromium
    assert chromium.complaints == []


@pytest.fixture(scope="module")
def metrics(project):
    return {
        run: json.loads((project / f"artifacts/evaluate/{run}/metrics.json").read_text())
        for run in report_tree.RUNS
    }


def shown(value):
    return f"{value:.1f}".replace("-", "\N{MINUS SIGN}")


def results(page):
    """Of the first table of results: run -> AP as shown."""
    rows = page.ask(
        "[...document.querySelector('#results table').tBodies[0].rows]"
        ".map((row) => [row.cells[0].textContent.trim(), row.cells[3].firstChild.textContent])"
    )
    return dict(rows)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("half", [False, True])
def test_it_draws_without_a_complaint_and_asks_nobody(chromium, project, scheme, half):
    chromium.media(prefers_color_scheme=scheme)
    path = project / ("half/" if half else "") / "artifacts/report/default/report.html"
    chromium.open(path)
    assert chromium.ask("document.documentElement.hasAttribute('data-drawn')")
    assert chromium.complaints == [] and chromium.requests == [path.resolve().as_uri()]
    ground = chromium.ask("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(251, 250, 246)" if scheme == "light" else "rgb(21, 23, 26)")
    assert (
        bool(chromium.texts(".absent")) and ("no run has been evaluated" in chromium.texts("h1")[0]) == half
    )


def test_hostile_names_are_text(page):
    assert "broken" not in page.ask("document.title")
    assert page.ask("document.querySelectorAll('script').length") == 2
    assert page.ask("document.querySelectorAll('[onerror], img[src=x]').length") == 0
    names = page.texts("#categories button.name")
    assert set(report_tree.HOSTILE) <= set(names)


@pytest.mark.parametrize("letter", ["r", "c", "f"])
def test_a_group_reaches_everything(page, metrics, letter):
    word = {"r": "Rare", "c": "Common", "f": "Frequent"}[letter]
    before = page.ask("document.querySelectorAll('.pie').length")
    page.press(f"#filter input[value={letter}]")
    assert {t.split()[0] for t in page.texts(f"{ROWS} .group")} == {word}
    chosen = len(page.texts(ROWS))
    assert page.texts("#filter output") == [f"{chosen} of 8 categories"] and 0 < chosen < 8
    assert results(page) == {run: shown(m[f"bbox_AP{letter}"]) for run, m in metrics.items()}
    assert page.texts("#answer-chart .row-label") == [word]
    assert 0 < page.ask("document.querySelectorAll('.pie').length") < before
    assert {t.split()[0] for t in page.texts(".pie strong")} == {word}
    for chart in ("#categories", "#tail"):  # every mark of another category stands back
        marks = page.ask(
            f"[...new Set([...document.querySelectorAll('{chart} path.marker:not(.back)[data-category]')]"
            ".map((m) => m.dataset.category))].length"
        )
        assert marks == chosen
    assert set(page.texts(".picture h3 .group")) <= {word}
    page.press("#clear")
    assert len(page.texts(ROWS)) == 8 and page.ask("location.hash") == ""


def test_reconstructions_stand_beside_the_curves_of_pretraining(page):
    assert page.texts("#training .gallery strong") == ["Reconstructions"]
    assert "Reconstructions" not in page.texts("#figures .gallery strong")


def test_a_group_is_the_errors_of_errors_json(page, project):
    page.press("#filter input[value=r]")
    errors = json.loads((project / "artifacts/analyze/ecm/errors.json").read_text())["r"]
    found = page.texts(".pie-row:first-child .pie b")
    kinds = ("correct", "localization", "background", "classification", "other")
    assert found == [f"{shown(errors[kind]['percent'])} %" for kind in kinds]


def test_a_category_reaches_everything(page, project):
    name = report_tree.HOSTILE[2]
    page.write("#category", name)
    assert page.texts(f"{ROWS} button.name") == [name]
    lines = (project / "artifacts/evaluate/ecm/figures/per_category.csv").read_text().splitlines()
    number = json.loads((project / "artifacts/sample/val_lvis.json").read_text())["categories"][2]["id"]
    keys, row = lines[0].split(","), next(line for line in lines if line.startswith(f"{number},"))
    ap = row.split(",")[keys.index("bbox_AP") - len(keys)]
    assert results(page)["ecm"] == (shown(float(ap)) if ap else NOTHING)
    assert page.texts("#answer-chart .row-label") == [name]
    page.press(f"{ROWS}:not([hidden]) button.name")
    assert page.texts("#filter output") == ["1 of 8 categories"]
    page.write("#category", "no such thing")
    assert page.texts(ROWS) == [] and page.texts("#filter output") == ["0 of 8 categories"]


def test_a_name_in_the_table_chooses_its_category(page):
    page.press(f"{ROWS} button.name")
    assert len(page.texts(ROWS)) == 1
    assert page.ask("document.getElementById('category').value") == page.ask(
        f"document.querySelector('{ROWS}:not([hidden]) button.name').textContent"
    )


def test_an_address_keeps_the_choice(page, project):
    page.press("#filter input[value=r]")
    chosen, address = page.texts(ROWS), page.ask("location.hash")
    page.open(project / "artifacts/report/default/report.html", address)
    assert page.texts(ROWS) == chosen and page.ask("document.querySelector('#filter input[value=r]').checked")


def test_tables_sort_both_ways_with_empty_cells_last(page):
    heads = page.texts("#categories thead button")
    for number, head in enumerate(heads):
        button = f"#categories thead th:nth-child({number + 1}) button"
        for direction in ("ascending", "descending"):
            page.press(button)
            sorts = page.ask(
                "[...document.querySelectorAll('#categories thead th')]"
                ".map((head) => head.getAttribute('aria-sort'))"
            )
            assert sorts == [direction if i == number else None for i in range(len(heads))]
            cells = page.ask(
                f"[...document.querySelectorAll('{ROWS}')].map((r) => r.cells[{number}].textContent)"
            )
            if head in ("images", "instances", "ecm", "ecm-alone", "ecm-control"):
                values = [
                    float(c.replace("\N{MINUS SIGN}", "-").replace(",", "")) for c in cells if c != NOTHING
                ]
                assert values == sorted(values, reverse=direction == "descending") and len(values) > 3
                assert cells[len(values) :] == [NOTHING] * (len(cells) - len(values))


def test_more_pictures_on_demand(page):
    before = len(page.texts(".picture"))
    page.press(".more")
    assert len(page.texts(".picture")) > before and page.texts(".more") == []


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_sticks_out_on_a_phone(page, width):
    page.resize(width, 800)
    page.wait("document.querySelector('#answer-chart svg').clientWidth <= innerWidth")
    page.ask("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert page.ask("document.documentElement.scrollWidth") <= width


def test_a_screen_reader_finds_its_way(page):
    for wrong in (
        "svg[role=img]:not([aria-label]), svg:not([role=img]):not([aria-hidden])",
        "img:not([alt]), img[alt='']",
        "table:not(:has(> caption:not(:empty)))",
        "th:not([scope])",
        "section:not([aria-labelledby])",
        "input:not([id]):not(label *), select:not([id]), button:empty",
        "[role=region]:not([tabindex])",
    ):
        assert page.ask(f"document.querySelectorAll({json.dumps(wrong)}).length") == 0, wrong
    for one in ("main", "header", "nav[aria-label]", "footer", "h1", "[role=search]", "a.skip"):
        assert page.ask(f"document.querySelectorAll({json.dumps(one)}).length") == 1, one
    levels = page.ask("[...document.querySelectorAll('h1, h2, h3')].map((h) => +h.tagName[1])")
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels)) and levels[0] == 1
    nameless = page.ask(
        "[...document.querySelectorAll('[aria-labelledby]')]"
        ".filter((e) => !document.getElementById(e.getAttribute('aria-labelledby'))?.textContent).length"
    )
    assert nameless == 0


# every text whose contrast with its ground is below 4.5 (WCAG AA), as {element: ratio}
CONTRAST = """
(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
  };
  const found = { looked: 0 };
  const kinds = 'p, a, b, li, th, td, small, span, summary, caption, figcaption, button, output, label, h1';
  for (const e of document.querySelectorAll(kinds)) {
    if (!e.textContent.trim() || !e.checkVisibility()) continue;
    const pair = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    found.looked += 1;
    if (ratio < 4.5) found[`${e.tagName}.${e.className}`] = ratio;
  }
  return found;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page, project, scheme):
    page.media(prefers_color_scheme=scheme)
    page.open(project / "artifacts/report/default/report.html")
    page.ask("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    found = page.ask(CONTRAST)
    assert found.pop("looked") > 300 and found == {}


def test_a_chosen_theme_goes_before_the_systems(page):
    page.write("#theme-choice", "dark")
    page.ask("document.getElementById('theme-choice').dispatchEvent(new Event('change'))")
    assert page.ask("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"


def test_what_moves_can_be_stilled_and_focus_is_seen(page):
    page.media(prefers_reduced_motion="reduce")
    assert page.ask("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    assert page.ask("getComputedStyle(document.querySelector('path.marker')).transitionDuration") == "0s"
    page.ask("document.querySelector('#categories button.name').focus({focusVisible: true})")
    outline = page.ask("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
