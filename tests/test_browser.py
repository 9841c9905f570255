"""Every page opens in a browser without errors: phone and desktop, light and dark."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest

SITE = Path(__file__).parents[1] / "_build" / "html"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in (SITE / "book").rglob("*.html"))
OTHERS = ["404.html", "genindex.html", "search.html?q=network"] if PAGES else []

pytestmark = [
    pytest.mark.built,
    pytest.mark.browser,
    pytest.mark.skipif(not PAGES, reason="no book in _build/html: run make book first"),
]

UNRENDERED = """() => {
  const left = [...document.querySelectorAll("mjx-merror")].map(tag => tag.textContent);
  for (const tag of document.querySelectorAll("main .math")) {
    if (!tag.querySelector("mjx-container")) left.push(tag.textContent);
  }
  const main = document.querySelector("main").cloneNode(true);
  const skipped = "pre, code, script, style, mjx-container, #search-results";
  main.querySelectorAll(skipped).forEach(tag => tag.remove());
  return left.concat(main.textContent.match(/\\$[^$\\n]+\\$|\\\\\\(|\\\\\\[/g) || []);
}"""
OVERFLOWING = """() => {
  const page = document.documentElement;
  if (page.scrollWidth <= page.clientWidth) return [];
  const wide = [...document.querySelectorAll("main *")]
    .filter(tag => tag.getBoundingClientRect().right > page.clientWidth + 1)
    .map(tag => tag.outerHTML.slice(0, 120));
  return [`${page.scrollWidth} > ${page.clientWidth}`, ...wide.slice(0, 5)];
}"""

TALL = """() => [...document.querySelectorAll(".at-a-glance")]
  .map(box => box.getBoundingClientRect().height).filter(height => height > 320)"""
# Boxes that scroll are reached by keyboard, and formulas that do not scroll are no stops.
KEYBOARD = """() => {
  const inside = [...document.querySelectorAll(".bd-article *")];
  const scrolls = tag => tag.clientWidth && tag.scrollWidth > tag.clientWidth + 5
    && /auto|scroll/.test(getComputedStyle(tag).overflowX) && !tag.matches(".math, .math *");
  const missed = inside.filter(tag => scrolls(tag) && tag.tabIndex < 0
    && !tag.querySelector('[tabindex="0"]'));
  const idle = inside.filter(tag => tag.matches('.math [tabindex="0"], .math[tabindex="0"]')
    && tag.querySelector("mjx-math").getBoundingClientRect().width <= tag.clientWidth);
  return missed.map(tag => `out of reach: ${tag.outerHTML.slice(0, 120)}`)
    .concat(idle.map(tag => `a stop without need: ${tag.outerHTML.slice(0, 120)}`));
}"""
# What a phone has no room for stands row below row; tables of many numbers may scroll.
WORDY = """() => [...document.querySelectorAll(".bd-article table.table")]
  .filter(tag => tag.scrollWidth > tag.parentElement.clientWidth + 1)
  .map(tag => `a table of words scrolls: ${tag.outerHTML.slice(0, 120)}`)"""

COLOURS = ["color-contrast", "link-in-text-block"]  # rules that look at colours, slow on long pages
# Of tags that look alike, by their classes and styles and those around them, three are left.
ONE_OF_EACH = """() => {
  const seen = {};
  const of = tag => tag.tagName + (tag.getAttribute("class") ?? "") + (tag.style?.cssText ?? "");
  const look = tag => tag === document.body ? "" : look(tag.parentElement) + of(tag);
  for (const tag of document.querySelectorAll("body *")) {
    if (!tag.isConnected) continue;
    seen[look(tag)] = (seen[look(tag)] ?? 0) + 1;
    if (seen[look(tag)] > 3) tag.remove();
  }
}"""


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("localhost", 0), partial(QuietHandler, directory=SITE))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", PAGES + OTHERS)
def test_a_page_opens(browser, address, name, width, mode):
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=mode, service_workers="block"
    )
    page = context.new_page()
    problems = []
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))

    def local_only(route):
        if route.request.url.startswith((address, "data:")):
            route.continue_()
        else:
            problems.append(f"outside: {route.request.url}")
            route.abort()

    context.route("**/*", local_only)
    try:
        page.goto(address + name, wait_until="load")
        if page.query_selector(".math"):
            page.evaluate("MathJax.startup.promise")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.dataset.theme") == mode
        problems += [f"not typeset: {text}" for text in page.evaluate(UNRENDERED)]
        problems += [f"scrolls sideways: {text}" for text in page.evaluate(OVERFLOWING)]
        page.wait_for_timeout(100)  # for what follows the typesetting
        problems += page.evaluate(KEYBOARD)
        if width == 390:
            problems += page.evaluate(WORDY)
            problems += [f"box of {height} px, at most 320" for height in page.evaluate(TALL)]
        assert not problems, "\n".join(problems)
    finally:
        context.close()


def test_on_paper_proofs_are_open_and_the_page_is_light(browser, address):
    page = browser.new_page(color_scheme="dark")
    page.goto(address + "book/theory/one-layer.html", wait_until="load")
    page.evaluate("""() => addEventListener("beforeprint", () => {
      window.printed = [...document.querySelectorAll("details.sd-dropdown")].map(tag => tag.open)
      window.printed.push(document.documentElement.dataset.theme == "light")
    })""")
    page.pdf()
    printed = page.evaluate("window.printed")
    assert len(printed) > 1 and all(printed)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("!document.querySelector('details.sd-dropdown[open]')")
    page.close()


def shown(page):
    """Names of the claims that the scoreboard shows."""
    rows = page.locator("table.scoreboard tbody tr:visible")
    return rows.evaluate_all("rows => rows.map(row => row.id.replace('score-', ''))")


def test_the_scoreboard_shows_what_is_asked_for_and_says_so_in_its_address(browser, address):
    table = pd.read_csv(SITE / "book" / "reference" / "claims.csv")
    assert set(table["holds"].dropna()) <= {True, False} and table["name"].is_unique
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(f"{address}book/reference/scoreboard.html?verdict=corrected")
    form = page.locator("form.score-filter")
    corrected = table[table["verdict"] == "corrected"]
    assert shown(page) == corrected["name"].tolist()
    assert page.locator(".score-count").inner_text() == f"{len(corrected)} of {len(table)} claims"
    part = corrected["part"].iloc[-1]
    form.get_by_label("Part").select_option(part)
    assert shown(page) == corrected[corrected["part"] == part]["name"].tolist()
    assert "verdict=corrected" in page.url and "part=" in page.url
    page.get_by_role("button", name="Show all").focus()
    page.keyboard.press("Enter")
    form.get_by_label("Search").fill("harmonic gap")
    found = shown(page)
    assert "harmonic-gap-law" in found and len(found) < 40
    assert page.url.endswith("?q=harmonic+gap")
    form.get_by_label("Margin").select_option("below 4 σ")
    near = table[(table["kind"] == "live") & (table["margin"] < 3.95)]["name"]
    assert set(shown(page)) <= set(table[table["margin"] < 4.05]["name"])
    form.get_by_label("Search").fill("")
    assert set(near) <= set(shown(page))
    page.goto(f"{address}book/reference/scoreboard.html#score-harmonic-gap-law")
    assert page.locator("#score-harmonic-gap-law").is_visible()
    page.locator("#score-harmonic-gap-law a").first.click()
    assert page.url.endswith("many-layers.html#claim-harmonic-gap-law")
    assert page.locator("#claim-harmonic-gap-law a.headerlink").get_attribute("href") == (
        "#claim-harmonic-gap-law"
    )
    page.close()


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES + OTHERS)
def test_axe_finds_nothing_serious(browser, address, name, mode):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=mode)
    page.set_default_timeout(120_000)
    page.route("**/mathjax/**", lambda route: route.abort())  # its output is MathJax's own matter
    only_violations = {"resultTypes": ["violations"]}
    try:
        page.goto(address + name, wait_until="load")
        page.add_style_tag(content=".math { overflow: hidden !important }")  # see KEYBOARD
        found = []
        if mode == "light":  # what depends on no colour
            options = only_violations | {"rules": {rule: {"enabled": False} for rule in COLOURS}}
            found += axe.run(page, options=options).response["violations"]
        page.evaluate(ONE_OF_EACH)
        found += axe.run(page, options=only_violations | {"runOnly": COLOURS}).response[
            "violations"
        ]
        serious = [rule for rule in found if rule["impact"] in ("serious", "critical")]
        assert not serious, "\n".join(
            f"{rule['id']}: {node['html'][:200]} ({node['failureSummary']})"
            for rule in serious
            for node in rule["nodes"][:5]
        )
    finally:
        page.close()


def test_links_show_what_they_lead_to(browser, address):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    fetched = []
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(address + "book/theory/many-layers.html", wait_until="load")
    page.evaluate("MathJax.startup.promise")
    box = page.locator("#preview")
    links = page.locator(".bd-article a.reference.internal")

    def to(target):
        """The first link to it that is seen."""
        return links.and_(page.locator(f'[href$="{target}"]:visible')).first

    to("#equation-harmonic-law").hover()
    box.locator("div.math mjx-container").wait_for()
    page.keyboard.press("Escape")
    assert box.is_hidden()
    to("#fig-harmonic-gap").hover()
    image = box.locator("figure img")
    image.wait_for()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    page.mouse.move(0, 0)
    box.wait_for(state="hidden")
    theorem = to("#thm-gap-decay-paper")
    theorem.evaluate("link => link.focus({focusVisible: true})")
    box.locator("div.proof").wait_for()
    assert theorem.get_attribute("aria-describedby") == box.get_attribute("id")
    page.keyboard.press("Escape")
    assert box.is_hidden() and theorem.get_attribute("aria-describedby") is None
    page.evaluate("document.activeElement.blur()")
    fetched.clear()
    far = 'a[href*="bibliography.html#"]'
    page.locator(f".bd-article {far}:visible").first.hover()
    box.locator("div.citation, dd").first.wait_for()
    page.mouse.move(0, 0)
    box.wait_for(state="hidden")
    page.locator(f".bd-article {far}:visible").first.hover()
    box.wait_for()
    assert len([url for url in fetched if url.endswith("bibliography.html")]) == 1
    assert not page.query_selector("#preview [id]")  # ids stay with what they name
    page.close()
    phone = browser.new_context(has_touch=True, is_mobile=True).new_page()
    phone.goto(address + "book/theory/many-layers.html", wait_until="load")
    assert not phone.query_selector("#preview")
    phone.context.close()
