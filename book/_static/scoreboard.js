/* Filters the scoreboard by text and by what each row says; the choice is part of the address. */
(() => {
  const form = document.querySelector("form.score-filter");
  const count = document.querySelector("p.score-count");
  const parts = [...document.querySelectorAll(".score-part")];
  const slug = (row, kind) =>
    [...row.classList].find((c) => c.startsWith(`${kind}-`))?.slice(kind.length + 1) ?? "";

  const claims = parts.flatMap((part) =>
    [...part.querySelectorAll("tbody tr")].map((row) => {
      const cells = [...row.cells].map((cell) => cell.textContent.trim());
      const margin = cells[3].match(/([\d.]+) σ/);
      return {
        row,
        text: cells.join(" ").toLowerCase(),
        part: part.querySelector(".score-part-name").textContent.trim(),
        verdict: slug(row, "verdict").replaceAll("-", " "),
        kind: slug(row, "kind"),
        state: cells[2],
        source: cells[6].split(";")[0],
        margin: margin ? Number(margin[1]) : Infinity,
      };
    }),
  );

  const values = (name) => [...new Set(claims.map((claim) => claim[name]))].filter(Boolean);
  const fields = {
    q: ["Search", null],
    part: ["Part", values("part")],
    source: ["Source", values("source").sort((a, b) => a.localeCompare(b, "en", { numeric: true }))],
    verdict: ["Verdict", values("verdict")],
    state: ["In this build", values("state")],
    kind: ["Kind", values("kind")],
    margin: ["Margin", ["below 4 σ", "below 6 σ", "below 10 σ"]],
  };

  for (const [name, [label, options]] of Object.entries(fields)) {
    const holder = form.appendChild(document.createElement("label"));
    holder.append(label);
    const field = holder.appendChild(document.createElement(options ? "select" : "input"));
    field.name = name;
    if (options) {
      field.append(new Option("all", ""), ...options.map((value) => new Option(value, value)));
    } else {
      field.type = "search";
    }
  }
  const clear = form.appendChild(document.createElement("button"));
  clear.type = "reset";
  clear.textContent = "Show all";

  const fits = (claim, chosen) =>
    chosen.q.toLowerCase().split(/\s+/).every((word) => claim.text.includes(word)) &&
    ["part", "source", "verdict", "state", "kind"].every(
      (name) => !chosen[name] || claim[name] === chosen[name],
    ) &&
    (!chosen.margin || claim.margin < Number(chosen.margin.match(/\d+/)[0]));

  const show = () => {
    const chosen = Object.fromEntries(new FormData(form));
    let shown = 0;
    for (const claim of claims) {
      claim.row.hidden = !fits(claim, chosen);
      shown += claim.row.hidden ? 0 : 1;
    }
    for (const box of document.querySelectorAll(".score-page, .score-part")) {
      box.hidden = !box.querySelector("tbody tr:not([hidden])");
    }
    count.textContent = `${shown} of ${claims.length} claims`;
    const said = new URLSearchParams(Object.entries(chosen).filter(([, value]) => value));
    const query = said.toString();
    history.replaceState(null, "", `${location.pathname}${query && `?${query}`}${location.hash}`);
  };

  for (const [name, value] of new URLSearchParams(location.search)) {
    if (form.elements[name]) form.elements[name].value = value;
  }
  form.addEventListener("input", show);
  form.addEventListener("reset", () => setTimeout(show));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = count.hidden = false;
  show();
})();
