// Elements, made of names and texts: whatever comes from the data becomes text, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const isolated = (text, kind = "text", whole = text) => make("span", { class: kind, dir: "auto", title: whole }, text);
const lastPart = (name) => name.slice(name.lastIndexOf("/") + 1) || name;
const digits = (value, count = 2) => value.toFixed(count).replace("-", "−");
const signed = (value) => (value > 0 ? "+" : "") + digits(value);
const norm = (value) => String(Number(value.toPrecision(3)));

// A picture by its number among the pictures; pictures are stored once and shared by all who show them.
function picture(number, text, kind = "picture") {
  if (number < 0) return make("span", { class: kind, role: "img", "aria-label": `${text} (no picture)` });
  const made = make("img", { class: kind, alt: text, loading: "lazy", decoding: "async", draggable: "false" });
  made.src = data.prefix + data.pictures[number];
  return made;
}

// Names of files may hold halves of characters, which no address can.
const wellFormed = (text) => (text.toWellFormed ? text.toWellFormed() : text);
const imageAddress = (image) => `#image-${encodeURIComponent(wellFormed(data.images[image]))}`;

function bar(share, kind = "") {
  const filled = make("i", { class: kind });
  filled.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  return make("div", { class: "bar" }, filled);
}

// How the norms of a unit's top images fall, from the first on the left; dashed, the norm above which it is active.
function curve(values, threshold, width, height, text) {
  const most = Math.max(...values, 1e-30);
  const x = (i) => ((width * i) / Math.max(values.length - 1, 1)).toFixed(1);
  const y = (value) => (height * (1 - value / most)).toFixed(1);
  const line = values.map((value, i) => `${i ? "L" : "M"}${x(i)} ${y(value)}`).join("");
  const made = draw("svg", { class: "curve", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": text });
  if (!values.length) return made;
  made.append(draw("path", { class: "under", d: `${line}L${x(values.length - 1)} ${height}L0 ${height}Z` }), draw("path", { d: line }));
  if (threshold <= most) made.append(draw("line", { x1: 0, x2: width, y1: y(threshold), y2: y(threshold) }));
  return made;
}

// A text with the parts that were searched for marked.
function marked(text, terms) {
  const made = make("span", { class: "text", dir: "auto", title: text });
  const lower = text.toLowerCase();
  if (lower.length !== text.length) terms = []; // places would not be the same
  let done = 0;
  while (done < text.length) {
    let at = text.length, length = 0;
    for (const term of terms) {
      const found = lower.indexOf(term, done);
      if (found >= 0 && found < at) [at, length] = [found, term.length];
    }
    made.append(text.slice(done, at));
    if (length) made.append(make("mark", {}, text.slice(at, at + length)));
    done = at + length;
  }
  return made;
}
