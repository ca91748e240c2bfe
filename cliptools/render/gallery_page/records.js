// Images with their concepts, masks, explained margins, and pictures that fool the model: cards, and all that is known of one.

const unitLink = (unit, words) => {
  const text = [shortName(unit), ...words.map(([word]) => word)].join(" ");
  return rowOf.has(unitKey(unit))
    ? make("a", { href: `#${unitKey(unit)}`, class: "text", dir: "auto" }, text)
    : isolated(text);
};

// A card with a picture on the left.
function beside(href, label, shown, ...said) {
  return make("a", { href, "aria-label": label }, make("div", { class: "beside" }, shown, make("div", {}, ...said)));
}

const scored = (found, terms) => {
  const list = make("ul", { class: "words" });
  for (const [word, score] of found) {
    list.append(make("li", { class: "word" }, make("b", { class: "faint" }, norm(score)), marked(word, terms)));
  }
  return list;
};

const matches = (said, terms) => terms.every((term) => said.some((text) => (text ?? "").toLowerCase().includes(term)));

const CONCEPTS = {
  least: 330, height: () => 148, terms: [],
  said: (one) => [data.images[one.image], ...one.concepts.map(([word]) => word)],
  card(one) {
    const name = data.images[one.image];
    const words = one.concepts.slice(0, 8);
    const about = words.map(([word]) => word).join(", ");
    const active = one.active === undefined ? "" : `${one.active} active ${plural}`;
    const said = [make("div", { class: "name" }, isolated(lastPart(name), "text", name)), scored(words, this.terms), make("div", { class: "faint" }, active)];
    return beside(imageAddress(one.image), `${name}: ${about}`, picture(data.picture[one.image], name), ...said);
  },
};

const percent = (share) => `${Number((100 * share).toPrecision(2))} %`;
const maskTitle = (one) => one.text ?? (one.found ?? []).map(([name]) => name).join(", ");
const maskLabel = (one) => `${data.images[one.image]}: ${maskTitle(one)}`;

const MASKS = {
  least: 270, height: () => 136, terms: [],
  said: (one) => [data.images[one.image], maskTitle(one)],
  card(one) {
    const facts = one.text === undefined
      ? scored(one.found.slice(0, 6), this.terms)
      : make("div", { class: "faint" }, `${percent(one.share)} of the image · score ${digits(one.score, 3)}`);
    const said = [make("div", { class: "name" }, marked(maskTitle(one), this.terms)), isolated(lastPart(data.images[one.image]), "text faint", data.images[one.image]), facts];
    return beside(`#mask-${data.masks.indexOf(one) + 1}`, maskLabel(one), picture(one.picture, maskLabel(one)), ...said);
  },
};

const fooledTitle = (one) => `${one.depict} → ${one.predict}`;
const badge = (one) => make("span", { class: `badge ${one.fooled ? "minus" : "faint"}` }, one.fooled ? "fools" : "does not fool");
const checked = ({ depict, predict, check }) =>
  `${check.by} says: ${check.depicted ? depict : `no ${depict}`}, ${check.predicted ? predict : `no ${predict}`}`;

const FOOLED = {
  least: 330, height: () => 136, terms: [],
  said: (one) => [one.depict, one.predict, one.description, ...one.words],
  card(one) {
    const label = `${fooledTitle(one)}, margin ${signed(one.margin)}: ${one.description ?? ""}`;
    const said = [
      make("div", { class: "name" }, marked(fooledTitle(one), this.terms), badge(one)),
      make("div", { class: "faint" }, `margin ${digits(one.margin, 3)}`),
      make("div", { class: "clamped", dir: "auto" }, one.description ?? ""),
    ];
    return beside(`#fooled-${data.fooled.indexOf(one) + 1}`, label, picture(one.picture, one.description ?? fooledTitle(one)), ...said);
  },
};

const marginTitle = (one) => `${one.a} or ${one.b ?? "the pool's mean"}`;
const marginLabel = (one) => `${data.images[one.image]}: ${marginTitle(one)}, margin ${signed(one.margin)}`;

const EXPLAINED = {
  least: 330, height: () => 148, terms: [],
  said: (one) => [data.images[one.image], one.a, one.b, ...one.units.flatMap((each) => [...each.sees, ...each.writes])],
  card(one) {
    const name = data.images[one.image];
    const list = make("ul", { class: "words" });
    for (const each of one.units.slice(0, 5)) {
      const words = marked([...each.sees.slice(0, 1), "→", ...each.writes.slice(0, 1)].join(" "), this.terms);
      list.append(make("li", { class: "word" }, make("b", { class: "faint" }, signed(each.excess)), words));
    }
    const said = [make("div", { class: "name" }, marked(marginTitle(one), this.terms)), make("div", { class: "faint" }, `margin ${signed(one.margin)}`), list];
    return beside(`#explained-${data.explained_margins.indexOf(one) + 1}`, marginLabel(one), picture(data.picture[one.image], name), ...said);
  },
};

const inWhole = (made) => (made.classList.add("whole"), made);

// An image: what it shows, where, and whose top image it is.
function imageDetail(image) {
  const name = data.images[image];
  const body = make("div", { class: "body" });
  body.append(make("section", {}, picture(data.picture[image], name, "picture large")));
  const concept = data.concepts?.find((one) => one.image === image);
  if (concept) {
    const most = Math.max(...concept.concepts.map(([, score]) => score), 1e-30);
    const list = make("dl", { class: "list" });
    for (const [word, score] of concept.concepts) {
      list.append(make("dt", {}, norm(score)), make("dd", { dir: "auto" }, word), bar(score / most));
    }
    body.append(section("What it shows", list));
    if (concept.truth) body.append(section("True names, of which found are marked", make("div", { class: "links" }, ...concept.truth.map(
      (each) => marked(each, concept.found?.includes(each) ? [each.toLowerCase()] : []),
    ))));
    if (concept.neurons.length) {
      const links = concept.neurons.map((each) => unitLink(each.unit, each.words));
      body.append(inWhole(section(`The ${plural} that say most of it`, make("div", { class: "links" }, ...links))));
    }
  }
  const masks = (data.masks ?? []).filter((one) => one.image === image);
  if (masks.length) {
    const tops = make("div", { class: "tops" });
    for (const one of masks) {
      tops.append(make("a", { href: `#mask-${data.masks.indexOf(one) + 1}` }, picture(one.picture, maskLabel(one)), isolated(maskTitle(one))));
    }
    body.append(inWhole(section("Where", tops)));
  }
  const rows = data.image.flatMap((images, row) => (images.includes(image) ? [[images.indexOf(image), row]] : []));
  rows.sort(([one], [other]) => one - other);
  if (rows.length) {
    const links = rows.slice(0, 200).map(([, row]) => unitLink(data.unit[row], wordsOf(row).slice(0, 1)));
    body.append(inWhole(section(`A top image of ${rows.length} ${plural}`, make("div", { class: "links" }, ...links))));
  }
  return body;
}

function maskDetail(one) {
  const facts = make("dl", { class: "facts" });
  if (one.text !== undefined) facts.append(fact("of the image", percent(one.share)), fact("score", digits(one.score, 3)));
  if (one.method) facts.append(fact("method", one.method));
  const name = make("a", { href: imageAddress(one.image), class: "text", dir: "auto" }, data.images[one.image]);
  const said = section("Image", name, facts);
  if (one.found) said.append(scored(one.found, []));
  return make("div", { class: "body" }, make("section", {}, picture(one.picture, maskLabel(one), "picture large")), said);
}

const PART_NAMES = { units: `these ${plural}`, other_units: `other ${plural}`, heads: "heads, directly", mlps: "MLPs, directly", pooling_mlp: "MLP of the pooling", rest: "rest" };

// A bar from a middle line, to the right for positive values.
function twoSided(value, most) {
  const filled = make("i", { class: value < 0 ? "less" : "more" });
  const width = 50 * Math.min(Math.abs(value) / most, 1);
  filled.style.width = `${width}%`;
  filled.style.marginLeft = `${value < 0 ? 50 - width : 50}%`;
  return make("div", { class: "bar" }, filled);
}

function signedList(rows) {
  const most = Math.max(...rows.map(([, value]) => Math.abs(value)), 1e-30);
  const list = make("dl", { class: "list" });
  for (const [said, value] of rows) list.append(make("dt", {}, signed(value)), make("dd", { dir: "auto" }, said), twoSided(value, most));
  return list;
}

function explainedDetail(one) {
  const name = make("a", { href: imageAddress(one.image), class: "text", dir: "auto" }, data.images[one.image]);
  const margin = make("dl", { class: "facts" }, fact("margin", signed(one.margin)));
  const said = section("Image", name, margin, make("p", { class: "faint" }, "Logits of the first text less those of the second; the parts add up to the margin."));
  const parts = section("Parts of the margin", signedList(one.parts.map(([key, value]) => [PART_NAMES[key] ?? key, value])));
  const units = section(`The ${plural} of largest excess, a share less its mean over images`, signedList(one.units.map((each) => {
    const words = [each.sees.length ? `sees ${each.sees.slice(0, 3).join(", ")};` : "", each.writes.length ? `writes ${each.writes.slice(0, 3).join(", ")}` : ""];
    return [unitLink(each.unit, [[words.filter(Boolean).join(" ")]]), each.excess];
  })));
  const shown = make("section", {}, picture(data.picture[one.image], marginLabel(one), "picture large"));
  const body = make("div", { class: "body" }, shown, said, parts, inWhole(units));
  const maps = one.units.filter((each) => each.picture >= 0);
  if (maps.length) {
    const tops = make("div", { class: "tops" });
    for (const each of maps) {
      const label = `${shortName(each.unit)}, ${signed(each.excess)}`;
      tops.append(make("figure", {}, picture(each.picture, label), make("figcaption", {}, isolated(label))));
    }
    body.append(inWhole(section("Where they act", tops)));
  }
  return body;
}

function fooledDetail(one) {
  const facts = make("dl", { class: "facts" }, fact("margin", digits(one.margin, 3)));
  if (one.by) facts.append(fact("words by", one.by));
  const said = section("Description", make("p", { dir: "auto" }, one.description ?? "none"), badge(one), facts);
  if (one.check) said.append(make("p", { class: "faint", dir: "auto" }, checked(one)));
  if (one.words.length) said.append(section("Words in it", make("div", { class: "links" }, ...one.words.map((word) => isolated(word)))));
  return make("div", { class: "body" }, make("section", {}, picture(one.picture, one.description ?? fooledTitle(one), "picture large")), said);
}
