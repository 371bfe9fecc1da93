"use strict";
(() => {
  const each = (selector, use, root = document) => root.querySelectorAll(selector).forEach(use);

  // Sites: a hash or a box opens the site, and the box says that it is the one.
  const openSite = () => {
    const id = decodeURIComponent(location.hash.slice(1));
    const target = id && document.getElementById(id);
    each(".strip a", (link) => {
      if (link.hash === `#${id}`) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    });
    const details = target && target.closest("details");
    if (!details) return;
    details.open = true;
    target.scrollIntoView();
    details.querySelector("summary").focus({ preventScroll: true });
  };
  addEventListener("hashchange", openSite);
  each('a[href^="#"]', (link) => link.addEventListener("click", () => {
    if (link.hash === location.hash) openSite();
  }));
  openSite();

  // Tables: sorted by a column's button, unknown values last; filtered by words.
  const compare = (a, b, numeric) => (numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true }));
  const sort = (table, place, heading) => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    each("thead th", (other) => other.removeAttribute("aria-sort"), table);
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const numeric = heading.classList.contains("number");
    const key = (row) => row.cells[place].dataset.sort ?? row.cells[place].textContent;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
      return (down ? -1 : 1) * compare(key(a), key(b), numeric);
    });
    table.tBodies[0].append(...rows);
  };
  each(".table table", (table) => {
    [...table.tHead.rows[0].cells].forEach((heading, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => sort(table, place, heading));
    });
  });
  each(".table[data-filter]", (box) => {
    const rows = [...box.querySelector("tbody").rows];
    if (rows.length < 3) return;
    const label = document.createElement("label");
    label.className = "filter";
    const input = document.createElement("input");
    input.type = "search";
    const count = document.createElement("span");
    count.className = "quiet";
    count.setAttribute("role", "status");
    label.append("Show rows with", input, count);
    box.before(label);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row) => { row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word)); });
      const shown = rows.filter((row) => !row.hidden).length;
      count.textContent = words.length ? `${shown} of ${rows.length}` : "";
    });
  });

  // Lines to copy.
  each("td code", (code) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "copy";
    button.setAttribute("aria-label", `copy ${code.textContent}`);
    button.addEventListener("click", async () => {
      getSelection().selectAllChildren(code);
      try { await navigator.clipboard.writeText(code.textContent); } catch { document.execCommand("copy"); }
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
    code.after(button);
  });

  // On paper everything is open.
  addEventListener("beforeprint", () => each("details", (one) => { one.open = true; }));
})();
