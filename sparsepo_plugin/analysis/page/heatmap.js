"use strict";
// Tokens coloured by a quantity. A pair is drawn when it comes near the window and cleared when it is far from it, so
// that the page is as fast with hundreds of pairs as with one. Texts only ever become text nodes.

const setup = document.getElementById("heatmap") && JSON.parse(document.getElementById("heatmap").textContent);
const LEVELS = 40;
const MARKS = { "\n": "↵", "\t": "⇥", "\u200b": "·", "\ufeff": "·" };
const PALETTES = {
  light: {
    q: ["#fffde3", "#edf8b1", "#c7e9b4", "#7fcdbb", "#41b6c4", "#1d91c0", "#225ea8", "#253494", "#081d58"],
    n: ["#fff6ea", "#fee0b6", "#fdb863", "#e08214", "#b35806", "#7f3b08"],
    p: ["#eff6fb", "#d1e5f0", "#92c5de", "#4393c3", "#2166ac", "#053061"],
  },
  dark: {
    q: ["#1a2233", "#20305f", "#253f8f", "#225ea8", "#1d91c0", "#41b6c4", "#7fcdbb", "#c7e9b4", "#fbfdc8"],
    n: ["#241c13", "#4a2e0f", "#8a4b08", "#d07a14", "#fdb863", "#ffe9c9"],
    p: ["#131e2a", "#15395c", "#1f5f9e", "#4393c3", "#92c5de", "#e2f1fb"],
  },
};

// Colours -----------------------------------------------------------------------------------------------------------

function mixed(stops, share) {
  const place = share * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const channel = (stop, at) => parseInt(stop.slice(at, at + 2), 16);
  return [1, 3, 5].map((at) =>
    Math.round(channel(stops[low], at) * (low + 1 - place) + channel(stops[low + 1], at) * (place - low)));
}

function luminance(rgb) {
  const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// Black or white, whichever contrasts more: never less than 4.5 to 1.
function rule(name, rgb) {
  const light = luminance(rgb);
  return `.${name}{background:rgb(${rgb});color:${(light + 0.05) / 0.05 > 1.05 / (light + 0.05) ? "#000" : "#fff"}}`;
}

function colours(palette) {
  return Object.entries(palette).map(([kind, stops]) =>
    Array.from({ length: LEVELS }, (_, i) => rule(kind + (i + 1), mixed(stops, i / (LEVELS - 1)))).join("")).join("");
}

function addColours() {
  const sheet = document.createElement("style");
  sheet.textContent = colours(PALETTES.light) + `@media (prefers-color-scheme:dark){${colours(PALETTES.dark)}}`;
  document.head.append(sheet);
}

// The class of a value; zero has no colour.
function level(value, end, signed) {
  if (!value) return "";
  const step = Math.min(LEVELS, Math.max(1, Math.ceil((Math.abs(value) / end) * LEVELS)));
  return (signed ? (value < 0 ? "n" : "p") : "q") + step;
}

// What is shown -----------------------------------------------------------------------------------------------------

const state = { quantity: null, scaled: false, token: null };

function levels(values) {
  const { end, signed } = state.quantity;
  if (!state.scaled) return values.map((value) => level(value, end, signed));
  return scaledValues(values).map((value) => level(value, 1, false));
}

// To [0, 1] in a response; where all values are the same, 0.
function scaledValues(values) {
  const least = values.reduce((a, b) => Math.min(a, b)), most = values.reduce((a, b) => Math.max(a, b));
  return values.map((value) => (most > least ? (value - least) / (most - least) : 0));
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function marksOf(text) {
  const mark = (c) => MARKS[c] ?? (c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : c === "\x7f" ? "␡" : "");
  const marks = Array.from(text, mark).join("");
  return marks || (text === "" ? "∅" : "");
}

function tokenOf(text, index) {
  const token = element("span", "", text);
  const marks = marksOf(text);
  if (marks) token.dataset.mark = marks;
  token.dataset.index = index;
  token.tabIndex = index ? -1 : 0;
  token.setAttribute("role", "option");
  return token;
}

function responseOf(values, side, run) {
  const box = element("div", "response");
  const name = setup.runs.length > 1 ? `${setup.runs[run]} · ${side}` : side;
  box.append(element("h4", "", `${name} · ${values.text.length} tokens`), element("h4", "absent"));
  const tokens = element("div", "tokens");
  tokens.dir = "auto";
  tokens.setAttribute("role", "listbox");
  tokens.setAttribute("aria-label", name);
  const items = values.text.map(tokenOf), apart = !values.text.some((text) => text.startsWith(" "));
  tokens.classList.toggle("apart", apart); // tokens without spaces of their own: whole words
  for (const item of items) tokens.append(...(apart || item.textContent.startsWith(" ") ? [element("wbr")] : []), item);
  Object.assign(tokens, { items, values, side, run });
  box.append(tokens);
  return box;
}

function draw(pair) {
  if (pair.querySelector(".responses")) return;
  const data = JSON.parse(pair.querySelector("script").textContent);
  const prompt = element("div", "prompt", data.prompt);
  prompt.dir = "auto";
  prompt.tabIndex = 0;
  prompt.setAttribute("role", "group");
  prompt.setAttribute("aria-label", "prompt");
  const responses = element("div", "responses");
  data.runs.forEach((run, number) =>
    responses.append(responseOf(run.chosen, "chosen", number), responseOf(run.rejected, "rejected", number)));
  pair.append(prompt, responses);
  pair.style.minHeight = "";
  paint(pair);
}

function clear(pair) {
  if (!pair.querySelector(".responses") || pair.contains(document.activeElement)) return;
  pair.style.minHeight = `${pair.offsetHeight}px`;
  pair.querySelector(".prompt").remove();
  pair.querySelector(".responses").remove();
}

function paint(root) {
  for (const tokens of root.querySelectorAll(".tokens")) {
    const values = tokens.values[state.quantity.name];
    const classes = values ? levels(values) : [];
    tokens.parentElement.querySelector(".absent").textContent = values ? "" : `has no ${state.quantity.label}`;
    tokens.items.forEach((token, i) => { token.className = classes[i] ?? ""; });
  }
}

function drawLegend() {
  const legend = document.getElementById("legend"), { end, signed, label } = state.quantity;
  const both = signed && !state.scaled;
  const ends = state.quantity.clipped ? ["≤ ", "≥ "] : ["", ""];
  const raw = [both ? `${ends[0]}−${end}` : "0", ends[1] + end];
  const labels = state.scaled ? ["0, least", "1, most"] : raw;
  const steps = [...Array(LEVELS).keys()];
  const bar = element("div", "bar");
  if (both) bar.append(...steps.map((i) => element("i", `n${LEVELS - i}`)));
  bar.append(...steps.map((i) => element("i", `${both ? "p" : "q"}${i + 1}`)));
  legend.replaceChildren(element("span", "", labels[0]), bar, element("span", "", labels[1]));
  legend.setAttribute("aria-label", `${label}: colours from ${labels[0]} to ${labels[1]}`);
}

function repaint() {
  drawLegend();
  paint(document);
  if (state.token) describe(state.token);
}

// Numbers of a token ------------------------------------------------------------------------------------------------

// The same token of each run, where runs have the same tokens.
function twins(token) {
  const { side } = token.parentElement, index = token.dataset.index;
  return [...token.closest(".responses").querySelectorAll(".tokens")]
    .filter((tokens) => tokens.side === side)
    .map((tokens) => tokens.items[index])
    .filter((other) => other && other.textContent === token.textContent);
}

function describe(token) {
  state.token = token;
  for (const other of document.querySelectorAll(".here, .twin")) other.classList.remove("here", "twin");
  const all = twins(token), tokens = token.parentElement, panel = document.getElementById("numbers");
  for (const other of all) other.classList.add(other === token ? "here" : "twin");
  const head = element("p");
  const place = ` ${tokens.side}, token ${+token.dataset.index + 1} of ${tokens.items.length}`;
  head.append(element("code", "", JSON.stringify(token.textContent)), place);
  const scroll = element("div", "scroll");
  scroll.append(tableOf(all));
  panel.replaceChildren(head, scroll);
  panel.hidden = false;
}

function tableOf(tokens) {
  const table = element("table"), several = setup.runs.length > 1;
  const row = (kind, first, cells) => {
    const made = element("tr");
    if (several) made.append(element("th", "", first));
    setup.quantities.forEach((quantity, i) =>
      made.append(element(kind, quantity === state.quantity ? "chosen-quantity" : "", cells[i])));
    return made;
  };
  table.createTHead().append(row("th", "", setup.quantities.map(({ label }) => label)));
  const body = table.createTBody();
  for (const token of tokens) body.append(row("td", setup.runs[token.parentElement.run], valuesOf(token)));
  return table;
}

function valuesOf(token) {
  const { values } = token.parentElement, index = +token.dataset.index;
  return setup.quantities.map((quantity) => {
    const column = values[quantity.name];
    if (!column) return "–";
    const scaled = state.scaled && quantity === state.quantity ? ` → ${scaledValues(column)[index].toFixed(3)}` : "";
    return String(column[index]).replace("-", "−") + scaled;
  });
}

// Mouse and keyboard ------------------------------------------------------------------------------------------------

function tokenAt(event) {
  return event.target.closest?.(".tokens span");
}

// The token above or below that lies nearest.
function neighbour(token, down) {
  const here = token.getBoundingClientRect();
  let best = null, least = Infinity;
  for (const other of token.parentElement.items) {
    const there = other.getBoundingClientRect();
    const lines = (down ? there.top - here.top : here.top - there.top) / here.height;
    if (lines < 0.5) continue;
    const distance = Math.round(lines) * 1e5 + Math.abs(there.left - here.left);
    if (distance < least) [best, least] = [other, distance];
  }
  return best;
}

function target(token, key) {
  const all = token.parentElement.items, index = +token.dataset.index;
  const forward = getComputedStyle(token.parentElement).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
  if (key === "ArrowLeft" || key === "ArrowRight") return all[index + (key === forward ? 1 : -1)];
  if (key === "ArrowUp" || key === "ArrowDown") return neighbour(token, key === "ArrowDown");
  return { Home: all[0], End: all[all.length - 1] }[key];
}

function move(event, token) {
  if (!/^(Arrow|Home|End)/.test(event.key) || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  target(token, event.key)?.focus();
}

function take(token) {
  for (const other of token.parentElement.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
  token.tabIndex = 0;
  describe(token);
  token.setAttribute("aria-describedby", "numbers");
}

function shortcut(event) {
  const control = event.target.matches("select, input:not([type=radio])");
  if (control || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape") document.getElementById("numbers").hidden = true;
  if (event.key === "s") document.querySelector("[name=scale]:not(:checked)").click();
  const select = document.getElementById("quantity");
  if (/^[1-9]$/.test(event.key) && event.key <= select.length) {
    select.selectedIndex = event.key - 1;
    choose(select.selectedIndex);
  }
}

function choose(index) {
  state.quantity = setup.quantities[index];
  repaint();
}

// Change pairs, some of which are above the window, without moving what is in it.
function inPlace(pairs, change) {
  const box = (pair) => pair.getBoundingClientRect();
  const held = pairs.find((pair) => box(pair).top >= 0 && box(pair).top < innerHeight) ??
    pairs.find((pair) => box(pair).bottom > 0);
  const place = () => (held ? box(held).top : document.documentElement.scrollHeight);
  const before = place();
  change();
  scrollBy(0, place() - before);
}

function watch(pairs) {
  const near = new IntersectionObserver((entries) => inPlace(pairs, () => {
    for (const { target: pair, isIntersecting } of entries) (isIntersecting ? draw : clear)(pair);
  }), { rootMargin: "600px 0px" });
  for (const pair of pairs) near.observe(pair);
}

function start() {
  addColours();
  const select = document.getElementById("quantity"), pairs = [...document.querySelectorAll(".pair")];
  setup.quantities.forEach(({ label }, i) => select.append(new Option(`${i + 1} ${label}`)));
  select.addEventListener("change", () => choose(select.selectedIndex));
  for (const radio of document.querySelectorAll("[name=scale]")) {
    radio.addEventListener("change", () => { state.scaled = radio.value === "response"; repaint(); });
  }
  document.getElementById("pair").addEventListener("change", (event) => pairs[event.target.value - 1]?.scrollIntoView());
  document.addEventListener("mouseover", (event) => { if (tokenAt(event)) describe(tokenAt(event)); });
  document.addEventListener("focusin", (event) => { if (tokenAt(event)) take(tokenAt(event)); });
  document.addEventListener("focusout", (event) => { tokenAt(event)?.removeAttribute("aria-describedby"); });
  document.addEventListener("keydown", (event) => { if (tokenAt(event)) move(event, tokenAt(event)); shortcut(event); });
  choose(select.selectedIndex);
  watch(pairs);
}

if (setup) start();
