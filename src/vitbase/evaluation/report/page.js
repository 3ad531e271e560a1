"use strict";
(() => {
  const all = (where, what) => [...where.querySelectorAll(what)];
  const AT_FIRST = 20;

  // Tabs: one run's part at a time; arrows move between them.
  const tabs = all(document, "[role=tab]");
  const choose = (tab) => {
    for (const other of tabs) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
    }
  };
  tabs.forEach((tab, place) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) {
        const next = tabs[(place + step + tabs.length) % tabs.length];
        choose(next);
        next.focus();
      }
    });
  });
  if (tabs.length) choose(tabs[0]);

  // Tables: sorted by a column, filtered by a name, the first rows until all are asked for.
  for (const table of all(document, "table.sortable")) {
    const section = table.closest("section");
    const button = section.querySelector("button.all");
    const filter = section.querySelector("input.filter");
    const body = table.tBodies[0];
    const isLong = Boolean(button) && body.rows.length > AT_FIRST;
    let shown = !isLong;
    const show = () => {
      const asked = isLong && filter ? filter.value.trim().toLowerCase() : "";
      let seen = 0;
      for (const row of body.rows) {
        const fits = !asked || row.cells[0].textContent.toLowerCase().includes(asked);
        row.hidden = !fits || (!shown && !asked && seen >= AT_FIRST);
        seen += fits ? 1 : 0;
      }
    };
    if (isLong) {
      button.addEventListener("click", () => { shown = true; button.hidden = true; show(); });
      if (filter) filter.addEventListener("input", show);
    }
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const press = document.createElement("button");
      press.type = "button";
      press.textContent = head.textContent;
      head.replaceChildren(press);
      press.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
        const isNumber = [...body.rows].every((row) => row.cells[column].classList.contains("n"));
        const rows = [...body.rows].map((row) => [isNumber ? Number(key(row)) : key(row), row]);
        rows.sort(([a], [b]) => (isNumber ? a - b : a.localeCompare(b)) * (up ? 1 : -1));
        body.append(...rows.map(([, row]) => row));
        show();
      });
    });
    show();
  }

  // The confusion matrix: what is in the cell that is pointed at.
  for (const figure of all(document, "figure.matrix")) {
    const { classes, cells, box, confusion } = JSON.parse(figure.querySelector("script").textContent);
    const reading = figure.parentElement.querySelector(".reading");
    const [left, top, width, height] = box;
    const spot = document.createElement("div");
    spot.className = "spot";
    spot.hidden = true;
    figure.append(spot);
    const cellOf = (number) => Math.floor((number * cells) / classes.length);
    const inCell = new Map();
    for (const entry of confusion) {
      const [truth, seen] = entry;
      const key = cellOf(truth) * cells + cellOf(seen);
      if (!inCell.has(key)) inCell.set(key, []);
      inCell.get(key).push(entry);
    }
    const rangeOf = (cell) => {
      const first = Math.ceil((cell * classes.length) / cells);
      const last = Math.ceil(((cell + 1) * classes.length) / cells) - 1;
      return first === last ? classes[first] : `${classes[first]} … ${classes[last]}`;
    };
    const read = (event) => {
      const area = figure.getBoundingClientRect();
      const x = ((event.clientX - area.left) / area.width - left) / width;
      const y = ((event.clientY - area.top) / area.height - top) / height;
      const inside = x >= 0 && x < 1 && y >= 0 && y < 1;
      spot.hidden = !inside;
      if (!inside) return;
      const [row, column] = [Math.floor(y * cells), Math.floor(x * cells)];
      Object.assign(spot.style, {
        left: `${100 * (left + (column * width) / cells)}%`,
        top: `${100 * (top + (row * height) / cells)}%`,
        width: `${(100 * width) / cells}%`,
        height: `${(100 * height) / cells}%`,
      });
      const found = (inCell.get(row * cells + column) || []).slice()
        .sort((a, b) => (a[0] === a[1]) - (b[0] === b[1]) || b[2] - a[2]);
      const told = found.slice(0, 3).map(([truth, seen, count]) =>
        `${classes[truth]} → ${classes[seen]}: ${count.toLocaleString("en")}`);
      if (found.length > 3) told.push("…");
      reading.textContent = told.join(";  ") || `${rangeOf(row)} → ${rangeOf(column)}: 0`;
    };
    figure.addEventListener("pointermove", read);
    figure.addEventListener("pointerdown", read);
    figure.addEventListener("pointerleave", () => { spot.hidden = true; });
  }

  // Paper shows what is folded.
  addEventListener("beforeprint", () => {
    for (const one of all(document, "section.config details")) one.open = true;
  });
})();
