"use strict";
// A head's button sorts its table, a second press the other way; numbers by value, texts by letters
for (const head of document.querySelectorAll("table.sortable th")) {
  head.querySelector("button").addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const isUp = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
    const sorted = [...body.rows].sort((one, other) => {
      const [x, y] = [one, other].map(row => row.cells[head.cellIndex]);
      const areNumbers = "value" in x.dataset && "value" in y.dataset;
      const order = areNumbers ? x.dataset.value - y.dataset.value : x.textContent.localeCompare(y.textContent);
      return isUp ? order : -order;
    });
    body.append(...sorted);
  });
}

// The gallery's filters: equal values, a range of confidence, and words that all occur
const filters = document.querySelector(".filters");
if (filters) {
  const cards = [...filters.nextElementSibling.querySelectorAll(".card")];
  const output = filters.querySelector("output");
  const isIn = (range, value) => {
    const [low, high] = range.split(" ");
    return value >= +low && value < +high;
  };
  const show = () => {
    const search = filters.querySelector("input").value.toLowerCase().split(/\s+/);
    const selects = [...filters.querySelectorAll("select")].filter(select => select.value);
    for (const card of cards) {
      const text = card.textContent.toLowerCase();
      card.hidden = !search.every(word => text.includes(word)) || !selects.every(({dataset, value}) =>
        dataset.filter ? card.dataset[dataset.filter] === value : isIn(value, +card.dataset[dataset.range]));
    }
    const shown = cards.filter(card => !card.hidden).length;
    output.textContent = output.dataset.words.replace("{shown}", shown).replace("{all}", cards.length);
  };
  filters.addEventListener("input", show);
  filters.addEventListener("submit", event => event.preventDefault());
  filters.hidden = false;
  show();
}
