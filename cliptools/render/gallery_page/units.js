// Units: their names and addresses, search, cards, and all that is known of one.

const SHOWN_PICTURES = 8;
const SHOWN_WORDS = 6;
const SHOWN_SEEN = 3;
const PICTURED = data.picture.some((number) => number >= 0);
const SHARES = data.weight === "share"; // whose words have no sign
const plural = data.kind;

const unitName = ([layer, neuron, head]) =>
  `layer ${layer}` + (neuron >= 0 ? ` neuron ${neuron}` : "") + (head >= 0 ? ` head ${head}` : "");
const unitKey = (unit) => unitName(unit).replaceAll(" ", "-");
const shortName = ([layer, neuron, head]) => `${layer}:${neuron >= 0 ? neuron : ""}${head >= 0 ? `.${head}` : ""}`;

const rowOf = new Map();
data.unit.forEach((unit, row) => rowOf.has(unitKey(unit)) || rowOf.set(unitKey(unit), row));

const texts = data.texts ?? [];
const lowerTexts = texts.map((text) => text.toLowerCase());
const termsOf = (query) => query.toLowerCase().split(/\s+/).filter(Boolean);
const ASKED_UNIT = /^(\d+):(\d*)(?:\.(\d+))?$/;
const weightOf = (value) => (SHARES ? digits(value) : signed(value));
const kindOf = (value) => (SHARES ? "" : value > 0 ? "plus" : "minus");

const explainedOf = (row) => data.explained?.[row] ?? 1;

// The largest coefficient of a unit's words that contain one of the terms: a search puts the units first that write them most.
const weightOfTerms = (row, terms) =>
  Math.max(...wordsOf(row).filter(([text]) => terms.some((term) => text.toLowerCase().includes(term))).map(([, weight]) => weight));

// Rows that are all that is asked for, in the order asked for; if words are searched for, by their weight. A term is a unit as 9:391, or a part of one of a unit's words.
function chosenUnits({ query, layers, least, order }) {
  const tests = termsOf(query).map((term) => {
    const unit = ASKED_UNIT.exec(term);
    if (unit) {
      const wanted = unit.slice(1).map((part) => (part ? Number(part) : null));
      return (row) => wanted.every((part, i) => part === null || part === data.unit[row][i]);
    }
    const having = new Set(lowerTexts.flatMap((text, i) => (text.includes(term) ? [i] : [])));
    return (row) => data.word !== undefined && data.word[row].some((word) => having.has(word));
  });
  const rows = data.orders[order].filter(
    (row) =>
      (!layers.size || layers.has(data.unit[row][0])) && explainedOf(row) >= least && tests.every((test) => test(row)),
  );
  const words = termsOf(query).filter((term) => !ASKED_UNIT.test(term));
  if (!words.length) return rows;
  const weights = new Map(rows.map((row) => [row, weightOfTerms(row, words)]));
  return rows.sort((one, other) => weights.get(other) - weights.get(one));
}

function wordsOf(row) {
  return (data.word?.[row] ?? []).map((word, i) => [texts[word], data.coefficient[row][i]]);
}

function seenWordsOf(row) {
  return (data.seen?.[row] ?? []).map((word, i) => [texts[word], data.correlation[row][i]]);
}

// The strongest words, and of those searched for at least one.
function tellingWords(row, terms) {
  const words = wordsOf(row);
  const shown = words.slice(0, SHOWN_WORDS);
  const found = ([text]) => terms.some((term) => text.toLowerCase().includes(term));
  const further = words.slice(SHOWN_WORDS).find(found);
  if (further && !shown.some(found)) shown[shown.length - 1] = further;
  return shown;
}

function curveOf(row, width, height) {
  const values = data.curve[row];
  const said = values.length
    ? `norms of the top ${data.ranks[values.length - 1]} images, falling from ${norm(values[0])} to ${norm(values.at(-1))}`
    : "no top images";
  return curve(values, data.threshold?.[row] ?? Infinity, width, height, said);
}

const UNIT_CARDS = {
  least: 250,
  height: (width) => (PICTURED ? width / 2 : 0) + (data.word ? 126 : 66),
  terms: [],
  card(row) {
    const unit = data.unit[row], name = unitName(unit);
    const words = tellingWords(row, this.terms);
    const mosaic = make("div", { class: "mosaic" });
    for (const image of data.image[row].slice(0, SHOWN_PICTURES)) {
      mosaic.append(picture(data.picture[image], `a top image of ${name}: ${data.images[image]}`));
    }
    const said = make("div", { class: "said" });
    said.append(make("div", { class: "name" }, make("span", {}, name), curveOf(row, 54, 20)));
    if (data.word) {
      const list = make("ul", { class: "words" });
      for (const [text, weight] of words) {
        list.append(make("li", { class: "word" }, make("b", { class: kindOf(weight) }, weightOf(weight)), marked(text, this.terms)));
      }
      said.append(list);
    }
    const seen = seenWordsOf(row).slice(0, SHOWN_SEEN);
    if (seen.length) said.append(make("div", { class: "sees faint" }, "sees ", marked(seen.map(([text]) => text).join(", "), this.terms)));
    if (data.explained) {
      const share = data.explained[row];
      said.append(make("div", { class: "share" }, bar(share), `${Math.round(100 * share)} % explained`));
    }
    const about = words.map(([text]) => text).join(", ");
    const card = make("a", { href: `#${unitKey(unit)}`, "aria-label": about ? `${name}: ${about}` : name });
    card.append(...(PICTURED ? [mosaic] : []), said);
    return card;
  },
};

const fact = (name, value) => make("div", {}, make("dt", {}, name), make("dd", {}, value));

function unitFacts(row) {
  const facts = make("dl", { class: "facts" });
  if (data.explained) facts.append(fact("explained, top images", digits(data.explained[row])));
  if (data.explained_all) facts.append(fact("explained, all images", digits(data.explained_all[row])));
  if (data.residual) facts.append(fact("residual of the words", digits(data.residual[row])));
  if (data.agreement) facts.append(fact("agreement with the first word", digits(data.agreement[row])));
  facts.append(fact("mean top norm", norm(data.strength[row])));
  const within = data.threshold_bound?.[row] ? ` ± ${norm(data.threshold_bound[row])}` : "";
  if (data.threshold) facts.append(fact("active above", norm(data.threshold[row]) + within));
  return facts;
}

function wordTable(words, search) {
  const most = Math.max(...words.map(([, weight]) => Math.abs(weight)), 1e-30);
  const list = make("dl", { class: "list" });
  for (const [text, weight] of words) {
    const found = make("a", { href: "#neurons", title: "search for this word", dir: "auto" }, text);
    found.addEventListener("click", (event) => {
      event.preventDefault();
      search(text);
    });
    const shown = bar(Math.abs(weight) / most, SHARES ? "" : weight > 0 ? "more" : "less");
    list.append(make("dt", { class: kindOf(weight) }, weightOf(weight)), make("dd", {}, found), shown);
  }
  return list;
}

function largeCurve(row) {
  const width = 340, height = 110, values = data.curve[row];
  const made = curveOf(row, width, height);
  made.setAttribute("viewBox", `-36 -8 ${width + 46} ${height + 26}`);
  made.setAttribute("width", "100%");
  made.setAttribute("height", height + 34);
  if (!values.length) return made;
  const note = (x, y, text, anchor) => made.append(draw("text", { x, y, "text-anchor": anchor }, text));
  note(-6, 8, norm(values[0]), "end");
  note(-6, height, "0", "end");
  note(0, height + 15, "1", "start");
  note(width, height + 15, String(data.ranks[values.length - 1]), "end");
  note(width / 2, height + 15, "rank of the image", "middle");
  return made;
}

function topImages(row) {
  const made = make("div", { class: "tops" });
  data.image[row].forEach((image, i) => {
    const name = data.images[image];
    const link = make("a", { href: imageAddress(image) }, picture(data.picture[image], `top image ${i + 1} of ${unitName(data.unit[row])}: ${name}`));
    link.append(isolated(lastPart(name), "text", name), make("span", { class: "faint" }, norm(data.norm[row][i])));
    made.append(link);
  });
  return made;
}

function unitDetail(row, search) {
  const body = make("div", { class: "body" }, make("section", { class: "whole" }, unitFacts(row)));
  const words = wordsOf(row);
  if (words.length) body.append(section(SHARES ? "Words, shares of the variance" : "Words that it writes", wordTable(words, search)));
  const seen = seenWordsOf(row);
  if (seen.length) body.append(section("Words that it sees, correlations", wordTable(seen, search)));
  body.append(section("Norms of the top images; dashed: active above", largeCurve(row)));
  const tops = section("Top images, the largest norm first", topImages(row));
  tops.classList.add("whole");
  body.append(tops);
  return body;
}

const section = (title, ...children) => make("section", {}, make("h3", {}, title), ...children);
