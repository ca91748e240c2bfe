// What is shown: a tab with its tools, and what an address opens above it.

const grid = new Grid(byId("grid"));
const detail = byId("detail");
const TABS = {
  neurons: { title: plural, kind: UNIT_CARDS, items: data.unit },
  concepts: { title: "images", kind: CONCEPTS, items: data.concepts },
  masks: { title: "masks", kind: MASKS, items: data.masks },
  explained: { title: "margins", tab: "margins", kind: EXPLAINED, items: data.explained_margins },
  fooled: { title: "pictures", tab: "fooled", kind: FOOLED, items: data.fooled },
};
const asked = { tab: "neurons", query: "", layers: new Set(), least: 0, order: Object.keys(data.orders)[0], only: false };

function chosenItems() {
  const { kind, items } = TABS[asked.tab];
  if (asked.tab === "neurons") return chosenUnits(asked);
  const kept = items.filter((one) => matches(kind.said(one), kind.terms));
  return asked.tab === "fooled" && asked.only ? kept.filter((one) => one.fooled) : kept;
}

function refresh() {
  const { kind, items, title } = TABS[asked.tab];
  kind.terms = termsOf(asked.query).filter((term) => asked.tab !== "neurons" || !ASKED_UNIT.test(term));
  const shown = chosenItems();
  grid.show(shown, kind);
  const [part, whole] = [shown.length, items.length].map((number) => number.toLocaleString("en"));
  byId("count").textContent = part === whole ? `${whole} ${title}` : `${part} of ${whole} ${title}`;
  byId("nothing").hidden = shown.length > 0;
}

function showTab(tab) {
  if (asked.tab !== tab) scrollTo(0, 0);
  asked.tab = tab;
  for (const link of byId("tabs").children) {
    if (link.dataset.tab === tab) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const id of ["layers", "least-label", "order-label"]) byId(id).hidden = tab !== "neurons";
  byId("least-label").hidden ||= !data.explained;
  byId("layers").hidden ||= byId("layers").children.length < 2;
  byId("query").placeholder = tab === "neurons" ? "Search words, or 9:391" : "Search words or names";
  byId("only-label").hidden = tab !== "fooled";
  byId("grid").setAttribute("aria-label", TABS[tab].title);
  refresh();
}

function search(text) {
  asked.query = byId("query").value = text;
  history.replaceState(null, "", "#neurons");
  detail.close();
  showTab("neurons");
  scrollTo(0, 0);
}

// What an address names: the tab it belongs to, a title, what is known, and its place among the tab's items.
function named(hash) {
  let key;
  try {
    key = decodeURIComponent(hash.slice(1));
  } catch {
    return null;
  }
  if (rowOf.has(key)) {
    const row = rowOf.get(key);
    return { tab: "neurons", title: unitName(data.unit[row]), body: () => unitDetail(row, search), item: row };
  }
  const [, kind, rest] = /^(image|mask|explained|fooled)-(.*)$/s.exec(key) ?? [];
  const number = Number(rest) - 1;
  if (kind === "image") {
    const image = data.images.findIndex((name) => wellFormed(name) === rest);
    const tab = asked.tab === "concepts" && data.concepts ? "concepts" : asked.tab;
    const item = data.concepts?.find((one) => one.image === image);
    return image < 0 ? null : { tab, title: rest, body: () => imageDetail(image), item };
  }
  const one = kind && TABS[kind === "mask" ? "masks" : kind].items?.[number];
  if (!one) return null;
  if (kind === "explained") return { tab: "explained", title: marginTitle(one), body: () => explainedDetail(one), item: one };
  if (kind === "mask") return { tab: "masks", title: maskTitle(one), body: () => maskDetail(one), item: one };
  return { tab: "fooled", title: fooledTitle(one), body: () => fooledDetail(one), item: one };
}

function button(text, label, action) {
  const made = make("button", { type: "button", "aria-label": label, title: label }, text);
  made.addEventListener("click", action);
  return made;
}

function open(what) {
  const heading = make("h2", { id: "detail-title", dir: "auto" }, what.title);
  const head = make("div", { class: "head" }, heading);
  if (grid.items.includes(what.item)) head.append(button("←", "the one before", () => step(-1)), button("→", "the next one", () => step(1)));
  head.append(button("×", "close", shut));
  detail.replaceChildren(head, what.body());
  if (!detail.open) detail.showModal();
  detail.scrollTop = 0;
  head.lastChild.focus({ preventScroll: true });
}

// From the thing shown to one beside it, in the order of the grid.
function step(by) {
  const here = grid.items.indexOf(named(location.hash)?.item);
  const item = here < 0 ? undefined : grid.items[here + by];
  if (item !== undefined) history.replaceState(null, "", grid.kind.card(item).getAttribute("href"));
  route();
}

// Close the detail: at once, for its own event may come after the next key.
function shut() {
  detail.close();
  closed();
}

// When the detail has been closed, by whatever way: the address is the tab's again, and the keyboard goes to the card.
function closed() {
  const item = named(location.hash)?.item;
  if (item === undefined && !location.hash.startsWith("#image-")) return;
  history.replaceState(null, "", `#${asked.tab}`);
  grid.go(grid.items.indexOf(item));
}

function route() {
  const what = location.hash.length > 1 ? named(location.hash) : null;
  if (what) {
    if (what.tab !== asked.tab) showTab(what.tab);
    open(what);
    return;
  }
  if (detail.open) detail.close();
  const tab = location.hash.slice(1);
  if (TABS[tab]?.items) {
    if (tab !== asked.tab) showTab(tab);
  } else if (tab) {
    byId("count").textContent = `There is no ${tab} in this gallery.`;
  }
}
