"""What the book needs beyond its Sphinx extensions: fresh results, scoreboard, build table."""

import os
from urllib.parse import urlsplit

from sphinx.application import Sphinx

from . import (
    captions,
    changed,
    environment,
    execution,
    figures,
    glance,
    listed,
    notebooks,
    pages,
    plotted,
    reading,
    report,
    scoreboard,
    status,
)


def set_site_url(app: Sphinx, config) -> None:
    """Take the published address from ``BNMLP_SITE_URL``; a local build has none."""
    url = os.environ.get("BNMLP_SITE_URL", "")
    config.html_baseurl = config.ogp_site_url = url and url.rstrip("/") + "/"
    config.notfound_urls_prefix = root = urlsplit(config.html_baseurl).path or "/"
    missing = config.notfound_context  # shown at any depth, so its links start at the root
    config.notfound_context = {**missing, "body": missing["body"].replace("{root}", root)}


def set_data_folder(app: Sphinx, config) -> None:
    """Let all chapters find datasets in one folder, wherever they run."""
    os.environ.update(environment.data_folder())


def setup(app: Sphinx) -> dict:
    """Register everything."""
    captions.setup(app)
    app.connect("config-inited", set_site_url, priority=100)
    app.connect("config-inited", set_data_folder, priority=50)
    app.connect("config-inited", execution.share_cores, priority=50)  # before torch is imported
    app.connect("builder-inited", execution.begin)
    app.connect("builder-inited", report.begin)
    app.connect("env-before-read-docs", execution.execute_ahead)
    app.connect("source-read", execution.use_cache)
    app.connect("env-updated", execution.write_in_parallel)
    app.connect("env-updated", changed.begin)
    app.connect("doctree-read", pages.note_numbers_from_elsewhere)
    app.connect("doctree-read", pages.share_description)
    app.connect("doctree-read", glance.missing)
    app.connect("doctree-read", listed.note, priority=900)
    app.connect("doctree-resolved", pages.write_powers)
    app.connect("env-get-outdated", pages.outdated, priority=900)
    app.connect("html-page-context", notebooks.offer, priority=400)
    app.connect("html-page-context", plotted.show_picture, priority=400)  # before opengraph
    app.connect("html-page-context", changed.say)
    app.connect("html-page-context", pages.name_once, priority=900)
    app.connect("html-page-context", pages.drop_repeated_scripts, priority=900)
    app.connect("html-page-context", pages.drop_plain_spans, priority=900)
    app.connect("html-page-context", pages.drop_empty_heads, priority=900)
    app.connect("html-page-context", pages.drop_list_roles, priority=900)
    app.connect("build-finished", figures.lighten)
    app.connect("build-finished", scoreboard.write_csv)
    app.connect("build-finished", notebooks.write_all)
    app.connect("build-finished", plotted.write_all)
    app.connect("build-finished", report.write, priority=900)
    app.add_post_transform(plotted.OfferData)
    app.add_post_transform(listed.WriteLists)
    app.add_directive("at-a-glance", glance.AtAGlance)
    app.add_directive("build-info", status.BuildInfo)
    app.add_directive("claim-count", scoreboard.ClaimCount)
    app.add_directive("list-of", listed.ListOf)
    app.add_role("minutes", reading.Minutes())
    app.add_role("measured", reading.Measured())
    app.add_directive("scoreboard", scoreboard.Scoreboard)
    # A higher version has all pages read again, from their results: what they keep has changed.
    return {"env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
