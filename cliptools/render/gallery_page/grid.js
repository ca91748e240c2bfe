// A grid of thousands of items of which only those near the window are made.

const GAP = 14;
const AROUND = 600; // pixels above and below the window in which cards are there

class Grid {
  constructor(place) {
    this.place = place;
    this.items = [];
    this.cards = new Map();
    this.active = -1;
    this.waiting = false;
    const later = () => this.later();
    addEventListener("scroll", later, { passive: true });
    new ResizeObserver(later).observe(place);
    addEventListener("resize", later);
    place.addEventListener("focusin", (event) => {
      const card = event.target.closest(".card");
      if (card) this.active = Number(card.dataset.place);
    });
  }

  // Show these items: kind.least is a card's least width, kind.height(width) its height, kind.card(item) makes it.
  show(items, kind) {
    this.items = items;
    this.kind = kind;
    this.active = -1;
    for (const card of this.cards.values()) card.remove();
    this.cards.clear();
    this.draw();
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  measure() {
    const width = this.place.clientWidth;
    const columns = Math.max(1, Math.floor((width + GAP) / (this.kind.least + GAP)));
    const card = (width - GAP * (columns - 1)) / columns;
    return { columns, card, height: Math.round(this.kind.height(card)) };
  }

  draw() {
    if (!this.kind || !this.place.clientWidth) return;
    const size = this.measure();
    const step = size.height + GAP;
    this.place.style.height = `${Math.max(0, Math.ceil(this.items.length / size.columns) * step - GAP)}px`;
    const top = this.place.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor((-top - AROUND) / step)) * size.columns;
    const last = Math.min(this.items.length, Math.max(0, Math.ceil((innerHeight - top + AROUND) / step)) * size.columns);
    for (const [i, card] of this.cards) {
      if ((i < first || i >= last) && i !== this.active) {
        card.remove();
        this.cards.delete(i);
      }
    }
    for (let i = first; i < last; i++) if (!this.cards.has(i)) this.add(i);
    for (const [i, card] of this.cards) this.put(card, i, size, step);
  }

  // Cards stand in the page in the order of the items, so that the Tab key goes from each to the next.
  add(i) {
    const card = this.kind.card(this.items[i]);
    card.classList.add("card");
    card.dataset.place = i;
    let after = this.cards.get(i - 1)?.nextSibling;
    if (after === undefined) after = [...this.place.children].find((other) => Number(other.dataset.place) > i) ?? null;
    this.place.insertBefore(card, after);
    this.cards.set(i, card);
  }

  put(card, i, size, step) {
    const x = (i % size.columns) * (size.card + GAP);
    const y = Math.floor(i / size.columns) * step;
    card.style.width = `${size.card}px`;
    card.style.height = `${size.height}px`;
    card.style.transform = `translate(${x}px, ${y}px)`;
  }

  // Bring an item into view and give it the keyboard.
  go(i) {
    if (i < 0 || i >= this.items.length) return;
    const { columns, height } = this.measure();
    const y = Math.floor(i / columns) * (height + GAP) + this.place.getBoundingClientRect().top;
    const head = document.querySelector("header");
    const above = getComputedStyle(head).position === "sticky" ? head.offsetHeight + GAP : GAP;
    if (y < above) scrollBy(0, y - above);
    else if (y + height > innerHeight - GAP) scrollBy(0, Math.min(y - above, y + height - innerHeight + GAP));
    this.active = i;
    this.draw();
    this.cards.get(i)?.focus({ preventScroll: true });
  }

  // The place that an arrow key leads to from the one that has the keyboard.
  beside(key) {
    const { columns } = this.measure();
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
    if (key === "Home") return 0;
    if (key === "End") return this.items.length - 1;
    return this.active < 0 ? 0 : this.active + step;
  }
}
