/* Shows the equation, theorem, figure, claim or work that a link leads to, before it is followed. */
"use strict";
(() => {
  const article = document.querySelector(".bd-article");
  if (!article || !window.matchMedia("(hover: hover)").matches) return; // a touch follows the link
  const SHOWN = "div.math, div.proof, figure, div.claim, div.citation, dl.glossary > dd";
  const LINK = '.bd-article a.reference.internal[href*="#"]';
  const box = document.body.appendChild(document.createElement("div"));
  Object.assign(box, { className: "preview bd-content", hidden: true, id: "preview", role: "tooltip" });
  const pages = new Map([[location.pathname, document]]);
  let shown = null; // the link whose target the box shows
  let waiting = null;

  /* The page of an address: fetched once, from this site only; null if it can't be. */
  function load({ origin, pathname }) {
    const saves = window.matchMedia("(prefers-reduced-data: reduce)").matches;
    const leave = origin !== location.origin || saves || navigator.connection?.saveData;
    if (!pages.has(pathname) && !leave) {
      const parse = (html) => new DOMParser().parseFromString(html, "text/html");
      const text = fetch(pathname).then((answer) => (answer.ok ? answer.text() : ""));
      pages.set(pathname, text.then(parse).catch(() => null));
    }
    return pages.get(pathname);
  }

  /* A copy without names, whose addresses are seen from here. */
  function copy(target, url) {
    const found = document.importNode(target, true);
    found.querySelectorAll(".headerlink, details").forEach((part) => part.remove());
    for (const part of [found, ...found.querySelectorAll("*")]) {
      part.removeAttribute("id");
      for (const name of ["src", "href"].filter((name) => part.hasAttribute(name))) {
        part.setAttribute(name, new URL(part.getAttribute(name), url));
      }
    }
    return found;
  }

  function place(link) {
    const line = [...link.getClientRects()].at(-1);
    const right = document.documentElement.clientWidth - box.offsetWidth - 8;
    const fits = line.bottom + box.offsetHeight + 8 < window.innerHeight;
    const top = window.scrollY + (fits ? line.bottom + 4 : line.top - box.offsetHeight - 4);
    Object.assign(box.style, { left: `${Math.max(8, Math.min(line.left, right))}px`, top: `${top}px` });
  }

  async function show(link) {
    hide();
    shown = link;
    const url = new URL(link.href);
    const named = (await load(url))?.getElementById(decodeURIComponent(url.hash.slice(1)));
    const target = (named?.matches("dt") ? named.nextElementSibling : named)?.closest(SHOWN);
    const readable = window.MathJax || !target?.matches(".math, :has(.math)");
    if (!target || !readable || shown !== link) return;
    box.replaceChildren(copy(target, url));
    box.hidden = false;
    link.setAttribute("aria-describedby", "preview");
    if (!box.querySelector("mjx-container")) await window.MathJax?.typesetPromise?.([box]);
    if (shown === link) place(link);
  }

  function hide() {
    clearTimeout(waiting);
    shown?.removeAttribute("aria-describedby");
    shown = null;
    box.hidden = true;
  }

  function change({ type, target }) {
    const link = target.closest(LINK);
    const meant = link && (type === "mouseover" || link.matches(":focus-visible"));
    const focused = document.activeElement.matches(`${LINK}:focus-visible`);
    if (type === "mouseover" && !link && focused) return; // the page may have moved
    clearTimeout(waiting);
    if (box.contains(target) || (meant && link === shown)) return;
    waiting = setTimeout(meant ? show : hide, 250, link);
  }
  for (const name of ["mouseover", "focusin"]) document.addEventListener(name, change);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
})();
