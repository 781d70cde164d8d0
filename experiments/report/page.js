"use strict";
const board = document.getElementById("board"), tip = document.getElementById("tip");
board.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const th = button.parentElement, column = [...th.parentElement.children].indexOf(th);
  const up = th.getAttribute("aria-sort") !== "ascending";
  th.parentElement.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.children[column].dataset.v ?? "";
  const compare = (a, b) => {
    const x = key(a), y = key(b);
    if (x === "" || y === "") return (x === "") - (y === "");  // what does not exist stays last
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return up ? order : -order;
  };
  const body = board.tBodies[0];
  body.append(...[...body.rows].sort(compare));
}));
document.querySelectorAll("[data-policy]").forEach(item => {
  const same = document.querySelectorAll(`[data-policy="${CSS.escape(item.dataset.policy)}"]`);
  item.addEventListener("mouseenter", () => same.forEach(other => other.classList.add("lit")));
  item.addEventListener("mouseleave", () => same.forEach(other => other.classList.remove("lit")));
});
document.querySelectorAll("[data-tip]").forEach(item => {
  item.addEventListener("mousemove", event => {
    tip.textContent = item.dataset.tip;
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)) + "px";
    tip.style.opacity = 1;
  });
  item.addEventListener("mouseleave", () => { tip.style.opacity = 0; });
});
