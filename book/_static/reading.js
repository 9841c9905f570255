/* What a style sheet cannot know: which boxes scroll, which tables do not fit, what is printed. */
"use strict";

(() => {
  const BOXES =
    "div.math, div.math > mjx-container, :is(p, li, dd, dt) span.math, .text_html, " +
    ".pst-scrollable-table-container, pre";
  const PHONE = window.matchMedia("(max-width: 480px)");
  const MOST_CELLS = 48; // of a table of numbers that is shown row below row
  const WORDS = 10; // characters of a cell, in the mean, from which a table is one of words

  /* Boxes that scroll are stops of the tab key, and fade where more follows. */
  function extent(box) {
    if (!box.matches(".math, .math > *")) return box.scrollWidth;
    // What is there for screen readers only is wider than the formula, and not seen.
    const start = box.getBoundingClientRect().left - box.scrollLeft;
    const seen = [...box.querySelectorAll("mjx-math, .eqno")];
    return Math.max(0, ...seen.map((part) => part.getBoundingClientRect().right - start));
  }

  const scrolls = (box) =>
    box.clientWidth > 0 && // what flows with the text has none
    extent(box) > box.clientWidth + 2 &&
    /auto|scroll/.test(getComputedStyle(box).overflowX);

  const fade = (box) =>
    box.classList.toggle("more-follows", extent(box) - box.scrollLeft > box.clientWidth + 2);

  function markBoxes() {
    for (const box of document.querySelectorAll(`.bd-content :is(${BOXES})`)) {
      if (scrolls(box)) {
        box.tabIndex = 0;
        if (!box.dataset.scrolls) box.addEventListener("scroll", () => fade(box));
        box.dataset.scrolls = "yes";
        fade(box);
      } else if (box.dataset.scrolls) {
        box.removeAttribute("tabindex");
        box.classList.remove("more-follows");
      }
    }
  }

  /* Tables that are too wide for a phone: each row becomes a list of labels and values. */
  const text = (cell) => cell.textContent.trim();

  function labels(table) {
    const heads = [...table.tHead.rows].map((row) => [...row.cells]);
    return heads[0].map((_, i) => heads.map((row) => text(row[i])).filter(Boolean).join(", "));
  }

  function isRegular(table) {
    if (!table.tHead || !table.tBodies.length) return false;
    const cells = [...table.querySelectorAll("th, td")];
    const whole = cells.every((cell) => cell.colSpan === 1 && cell.rowSpan === 1);
    return whole && !table.tHead.querySelector(".math, mjx-container");
  }

  function fitsBelowEachOther(table) {
    const cells = [...table.querySelectorAll("tbody th, tbody td")];
    const mean = cells.reduce((sum, cell) => sum + text(cell).length, 0) / cells.length;
    return cells.length <= MOST_CELLS || mean >= WORDS;
  }

  function stack(table) {
    const names = labels(table);
    table.setAttribute("role", "table");
    for (const row of table.tBodies[0].rows) {
      row.setAttribute("role", "row");
      [...row.cells].forEach((cell, i) => {
        cell.setAttribute("role", cell.tagName === "TH" ? "rowheader" : "cell");
        if (text(cell)) cell.dataset.label = names[i];
      });
    }
    table.classList.add("stacked");
  }

  function stackTables() {
    if (!PHONE.matches) return;
    for (const table of document.querySelectorAll(".bd-content table:not(.stacked)")) {
      const tooWide = table.scrollWidth > table.parentElement.clientWidth + 1;
      if (tooWide && isRegular(table) && fitsBelowEachOther(table)) stack(table);
    }
  }

  /* A button that shows its name and its keys needs no other name, which would hide the keys. */
  function nameButtons() {
    for (const button of document.querySelectorAll(".search-button-field[aria-label]")) {
      button.removeAttribute("aria-label");
    }
  }

  /* Every claim shows its address, as headings do. */
  function linkClaims() {
    for (const statement of document.querySelectorAll(".claim[id] > .claim-statement")) {
      const link = statement.appendChild(document.createElement("a"));
      link.className = "headerlink";
      link.href = `#${statement.parentElement.id}`;
      link.title = "Link to this claim";
      link.textContent = "#";
    }
  }

  function arrange() {
    stackTables();
    markBoxes();
  }

  /* On paper proofs are open, and the page is light. */
  const root = document.documentElement;
  const CLOSED = ".bd-content details.sd-dropdown:not([open])";
  let opened = [];
  let theme = null;

  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll(CLOSED)];
    opened.forEach((fold) => (fold.open = true));
    theme = root.dataset.theme;
    root.dataset.theme = "light";
  });
  window.addEventListener("afterprint", () => {
    opened.forEach((fold) => (fold.open = false));
    root.dataset.theme = theme;
  });

  let waiting = null;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(arrange, 300);
  });
  window.addEventListener("load", () => {
    nameButtons();
    linkClaims();
    arrange();
    document.querySelectorAll(".bd-content details").forEach((fold) => {
      fold.addEventListener("toggle", markBoxes);
    });
    window.MathJax?.startup?.promise?.then(arrange);
  });
})();
