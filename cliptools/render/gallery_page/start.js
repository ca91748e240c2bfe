// Once, at the start: fill the tools, listen, and show what the address asks for.

const ORDER_NAMES = {
  clear: "largest agreement first", index: "by number", norm: "largest effect first", explained: "most explained first",
  residual: "best told by words first",
};

function fillTools() {
  byId("title").textContent = data.title;
  byId("notes").textContent = data.notes;
  const tabs = Object.entries(TABS).filter(([, { items }]) => items);
  for (const [tab, { title, tab: label }] of tabs) byId("tabs").append(make("a", { href: `#${tab}`, "data-tab": tab }, label ?? title));
  byId("tabs").hidden = tabs.length < 2;
  for (const order of Object.keys(data.orders)) byId("order").append(make("option", { value: order }, ORDER_NAMES[order] ?? order));
  const layers = [...new Set(data.unit.map(([layer]) => layer))].sort((one, other) => one - other);
  if (layers.length > 1) byId("layers").append("layer ");
  for (const layer of layers) {
    const chosen = make("button", { type: "button", "aria-pressed": "false", "aria-label": `layer ${layer}` }, String(layer));
    chosen.addEventListener("click", () => {
      if (!asked.layers.delete(layer)) asked.layers.add(layer);
      chosen.setAttribute("aria-pressed", asked.layers.has(layer));
      refresh();
    });
    byId("layers").append(chosen);
  }
}

function listen() {
  byId("query").addEventListener("input", (event) => {
    asked.query = event.target.value;
    refresh();
  });
  byId("least").addEventListener("input", (event) => {
    asked.least = Number(event.target.value);
    byId("least-shown").textContent = asked.least.toFixed(2);
    refresh();
  });
  byId("order").addEventListener("change", (event) => {
    asked.order = event.target.value;
    refresh();
  });
  byId("only").addEventListener("change", (event) => {
    asked.only = event.target.checked;
    refresh();
  });
  detail.addEventListener("cancel", (event) => {
    event.preventDefault();
    shut();
  });
  detail.addEventListener("close", closed);
  detail.addEventListener("click", (event) => event.target === detail && shut());
  addEventListener("hashchange", route);
  addEventListener("keydown", press);
}

const STEPS = { ArrowLeft: -1, ArrowRight: 1 };
const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const query = byId("query"), typing = event.target === query;
  if (detail.open) {
    if (!STEPS[event.key]) return;
    step(STEPS[event.key]);
  } else if (event.key === "/" && !typing) {
    query.focus();
    query.select();
  } else if (typing && event.key === "Escape") {
    query.value = "";
    asked.query = "";
    refresh();
    query.blur();
  } else if (typing && (event.key === "ArrowDown" || event.key === "Enter")) {
    grid.go(0);
  } else if (!typing && !event.target.matches("select, input") && ARROWS.includes(event.key)) {
    grid.go(grid.beside(event.key));
  } else {
    return;
  }
  event.preventDefault();
}

fillTools();
listen();
showTab("neurons");
route();
