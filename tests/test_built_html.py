"""The built book is whole: links lead somewhere, images speak, nothing comes from outside."""

import os
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from bs4 import BeautifulSoup

SITE = Path(__file__).parents[1] / "_build" / "html"
BOOK = sorted(path.relative_to(SITE).as_posix() for path in (SITE / "book").rglob("*.html"))
PAGES = BOOK + sorted(path.name for path in SITE.glob("*.html"))
LOADING = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href"}
SITE_URL = os.environ.get("BNMLP_SITE_URL", "")
BASE = urlsplit(SITE_URL).path.rstrip("/") + "/"
MOST_BYTES = 300_000

pytestmark = [
    pytest.mark.built,
    pytest.mark.skipif(not PAGES, reason="no book in _build/html: run make book first"),
]


@cache
def soup(page: str) -> BeautifulSoup:
    return BeautifulSoup((SITE / page).read_text(encoding="utf8"), "html.parser")


@cache
def anchors(page: str) -> set[str]:
    named = soup(page).find_all("a", attrs={"name": True})
    return {tag["id"] for tag in soup(page).find_all(id=True)} | {tag["name"] for tag in named}


def target(page: str, link: str) -> str:
    """The file in the site that a link of ``page`` leads to."""
    path = unquote(urlsplit(link).path)
    if not path:
        return page
    if path.startswith("/"):
        return path.removeprefix(BASE)
    return os.path.normpath(os.path.join(os.path.dirname(page), path))


def unrounded(article: BeautifulSoup) -> list[str]:
    """Numbers with more than six decimals in text and results; code and links may have them."""
    found = []
    for text in article.find_all(string=re.compile(r"\d\.\d{7}")):
        in_code = text.find_parent(["pre", "code"]) and not text.find_parent(class_="cell_output")
        if not (in_code or text.find_parent(["a", "script", "style"])):
            found += re.findall(r"\d+\.\d{7,}(?:e[+-]?\d+)?", text)
    return found


def is_inside(link: str) -> bool:
    parts = urlsplit(link)
    return not parts.scheme and not parts.netloc


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_lead_somewhere(page):
    for tag in soup(page).find_all("a", href=is_inside):
        file, anchor = target(page, tag["href"]), urlsplit(tag["href"]).fragment
        assert (SITE / file).is_file(), f"{tag['href']} leads to no file"
        if anchor and file.endswith(".html"):
            assert unquote(anchor) in anchors(file), f"{tag['href']} leads to no anchor"


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_loaded_from_outside(page):
    for name, attribute in LOADING.items():
        for tag in soup(page).find_all(name, attrs={attribute: True}):
            address = tag[attribute]
            if "canonical" in tag.get("rel", []) or address.startswith("data:"):
                continue
            assert is_inside(address), f"{tag} comes from outside"
            assert (SITE / target(page, address)).is_file(), f"{tag} is missing"


def test_style_sheets_load_nothing_from_outside():
    for path in SITE.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']+", path.read_text())
        assert not found, f"{path.relative_to(SITE)}: {found}"


@pytest.mark.parametrize("page", BOOK)
def test_images_have_alternative_text(page):
    for image in soup(page).find_all("img"):
        if "logo__image" in image.get("class", []):
            continue
        text = image.get("alt", "")
        assert len(text) >= 20 and " " in text, f"alternative text of {image['src']}: {text!r}"


@pytest.mark.parametrize("page", BOOK)
def test_nothing_is_left_unresolved(page):
    article = soup(page).find("article")
    for code in article.find_all(["pre", "code"]):
        if "Traceback (most recent call last)" in code.get_text():
            cell = code.find_parent(class_="cell")
            assert "tag_raises-exception" in cell.get("class", []), "a traceback"
        code.extract()
    text = article.get_text()
    left = re.findall(r"\{[a-z:-]+\}`|\{(?:glue|cite|numref|ref|eq)\b|```|:::", text)
    assert not left, f"unresolved {left}"
    soup.cache_clear()


@pytest.mark.parametrize("page", BOOK)
def test_numbers_are_rounded(page):
    assert not unrounded(soup(page).find("article"))


def test_a_number_that_nobody_rounded_is_found():
    raw = "0.2030000000000003"
    shown = f"<p>{raw}</p><td>{raw}</td><div class=cell_output><pre>{raw}</pre></div>"
    typed = f"<pre>{raw}</pre><a>{raw}</a><p>0.203000</p>"
    assert unrounded(BeautifulSoup(shown, "html.parser")) == 3 * [raw]
    assert not unrounded(BeautifulSoup(typed, "html.parser"))


@pytest.mark.parametrize("page", BOOK)
def test_a_page_describes_itself(page):
    assert soup(page).html["lang"] == "en-GB"
    for kind, value in (("name", "description"), ("property", "og:description")):
        tag = soup(page).find("meta", attrs={kind: value})
        assert tag, f"no {value}"
        assert not re.search(r"[$\\]", tag["content"]), f"raw maths in {value}"


@pytest.mark.parametrize("page", BOOK)
def test_the_book_has_one_name(page):
    name = "Training without depth limits"
    assert soup("index.html").title.get_text() == soup("book/index.html").title.get_text() == name
    assert soup("book/index.html").h1.find(string=True).strip() == name
    assert soup(page).title.get_text().endswith(name)
    assert soup(page).find(class_="logo__title").get_text().strip() == name
    assert soup(page).find("meta", attrs={"property": "og:site_name"})["content"] == name


def test_links_of_a_missing_page_start_at_the_root():
    article = soup("404.html").find("article")
    links = [tag["href"] for tag in article.find_all("a", href=is_inside)]
    links += [tag["action"] for tag in article.find_all("form")]
    assert len(links) > 2 and all(link.startswith(BASE) for link in links)


@pytest.mark.parametrize("page", BOOK)
def test_tables_and_figures_say_what_they_are(page):
    for figure in soup(page).find_all("figure", id=re.compile("^(fig|tab)-")):
        kind = "Table" if figure["id"].startswith("tab-") else "Fig."
        assert figure.find(class_="caption-number").get_text().startswith(kind), figure["id"]
    assert not soup(page).find(string=re.compile("(Show|Hide) code cell"))


@pytest.mark.parametrize("page", BOOK)
def test_figures_offer_their_data(page):
    for figure in soup(page).select(".cell_output figure[id^=fig-]"):
        link = figure.find_parent(class_="cell_output").select_one(".figure-data a[download]")
        assert link and link["href"].endswith(f"figures/{figure['id']}.csv"), figure["id"]
        path = SITE / target(page, link["href"])
        data = pd.read_csv(path, comment="#")
        assert [*data] == ["panel", "series", "x", "y", "low", "high", "value"] and len(data)
        assert path.stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("page", BOOK)
def test_links_to_a_page_are_shown_with_a_picture(page):
    told = {tag["property"]: tag["content"] for tag in soup(page).find_all("meta", property=True)}
    assert {"og:title", "og:description", "og:image", "og:image:alt"} <= set(told)
    file = urlsplit(told["og:image"]).path
    picture = SITE / (file.removeprefix(BASE) if SITE_URL else target(page, file))
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert not SITE_URL or told["og:image"].startswith(SITE_URL)
    assert soup(page).find("meta", attrs={"name": "twitter:card"})


@pytest.mark.skipif(not SITE_URL, reason="a sitemap has full addresses: set BNMLP_SITE_URL")
def test_the_sitemap_lists_every_page():
    listed = set(re.findall("<loc>(.*?)</loc>", (SITE / "sitemap.xml").read_text()))
    assert {f"{SITE_URL.rstrip('/')}/{page}" for page in BOOK} <= listed


def test_every_theorem_and_figure_is_listed():
    links = {
        a["href"].split("#")[-1] for a in soup("book/reference/lists.html").article.find_all("a")
    }
    for page in BOOK:
        named = soup(page).select("figure[id^=fig-], figure[id^=tab-], div.proof[id]:not(#proof)")
        assert {tag["id"] for tag in named} <= links, page


@pytest.mark.parametrize("page", BOOK)
def test_a_page_is_light(page):
    own = {target(page, tag["src"]) for tag in soup(page).find_all("img", src=is_inside)}
    sizes = {name: (SITE / name).stat().st_size for name in own}
    sizes["text"] = len(str(soup(page).find("article")).encode())  # without the site's navigation
    assert sum(sizes.values()) <= MOST_BYTES, sizes


def test_formulas_are_typeset_by_a_local_script():
    assert (SITE / "mathjax/tex-mml-chtml.js").is_file()
    assert list((SITE / "mathjax/output/chtml/fonts/woff-v2").glob("*.woff"))
