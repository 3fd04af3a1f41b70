"use strict";
const {rows, empty, words, entries: given} = DATA;
const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
const at = (r, c) => document.getElementById(`c${r}-${c}`);
const said = document.getElementById("said"), now = document.getElementById("now"), clock = document.getElementById("time");
const entries = given.map(([number, direction, row, column, length], index) => {
  const down = direction === "down";
  const cells = Array.from({length}, (_, i) => at(row + i * down, column + i * !down));
  const button = document.querySelector(`[data-entry="${index}"]`);
  return {number, direction, cells, button};
});
const inputs = [...document.querySelectorAll("#grid input")];
const places = new Map(inputs.map(input => [input, input.id.slice(1).split("-").map(Number)]));
const answer = input => { const [r, c] = places.get(input); return rows[r][c]; };
const through = input => entries.filter(entry => entry.cells.includes(input));
let entry = entries[0], here = entry.cells[0], seconds = 0, running = false, finished = false, helped = false;

function letter(text) {
  const plain = text.toUpperCase().replace(/Æ/g, "AE").replace(/Œ/g, "OE").normalize("NFD").replace(/[^A-Z]/g, "");
  return plain.slice(-1);
}
function select(input, wanted) {
  const options = through(input);
  entry = options.includes(wanted) ? wanted : options.find(option => option.direction === entry.direction) || options[0];
  here = input;
  for (const one of inputs) {
    one.parentElement.classList.toggle("word", entry.cells.includes(one));
    one.parentElement.classList.toggle("here", one === here);
    one.tabIndex = one === here ? 0 : -1;
  }
  for (const one of entries) {
    one.button.classList.toggle("now", one === entry);
    if (one === entry) one.button.setAttribute("aria-current", "true"); else one.button.removeAttribute("aria-current");
  }
  now.textContent = `${entry.number} ${words[entry.direction]}: ${entry.button.textContent.trim().replace(/^\d+\s*/, "")}`;
}
function go(input, wanted) { select(input, wanted); input.focus({preventScroll: false}); input.select(); }
function turn() { const other = through(here).find(one => one !== entry); if (other) go(here, other); }
function step(by) { const next = entry.cells[entry.cells.indexOf(here) + by]; if (next) go(next, entry); else go(here, entry); }
function move(dr, dc) {
  let [r, c] = places.get(here);
  for (r += dr, c += dc; r >= 0 && c >= 0 && r < rows.length && c < rows[0].length; r += dr, c += dc) {
    if (rows[r][c] === empty) continue;
    const input = at(r, c), direction = dr ? "down" : "across";
    return go(input, through(input).find(one => one.direction === direction));
  }
}
function another(by) {
  const order = [...entries].sort((a, b) => (a.direction > b.direction) - (a.direction < b.direction) || a.number - b.number);
  const next = order[(order.indexOf(entry) + by + order.length) % order.length];
  go(next.cells.find(cell => !cell.value) || next.cells[0], next);
}
function put(input, value, given = false) {
  input.value = value;
  input.parentElement.classList.remove("wrong");
  input.removeAttribute("aria-invalid");
  input.parentElement.classList.toggle("given", given);
  for (const one of through(input)) one.button.classList.toggle("full", one.cells.every(cell => cell.value));
  if (value) start();
  say("", "");
  if (inputs.every(one => one.value === answer(one))) finish();
}
function say(text, tone) { said.textContent = text; said.className = tone; }
function shown(total) { return `${Math.floor(total / 60)}:${String(total % 60).padStart(2, "0")}`; }
function start() { if (!finished) running = true; }
function finish() {
  finished = true; running = false;
  say(fill(helped ? words.shown : words.done, {time: shown(seconds)}), "good");
}
setInterval(() => { if (running && !document.hidden) clock.textContent = shown(++seconds); }, 1000);

for (const input of inputs) {
  input.addEventListener("mousedown", event => {
    event.preventDefault();
    if (input === here && document.activeElement === input) turn(); else go(input);
  });
  input.addEventListener("focus", () => { if (input !== here) select(input); });
  input.addEventListener("input", () => {  // also what a keyboard on the screen writes
    const value = letter(input.value);
    const typed = input.value !== "";
    put(input, value);
    if (value) step(1); else if (typed) input.select();
  });
  input.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrows = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
    if (arrows[event.key]) move(...arrows[event.key]);
    else if (event.key === " ") turn();
    else if (event.key === "Enter") another(event.shiftKey ? -1 : 1);
    else if (event.key === "Tab") {
      const order = [...entries].sort((a, b) => (a.direction > b.direction) - (a.direction < b.direction) || a.number - b.number);
      const place = order.indexOf(entry) + (event.shiftKey ? -1 : 1);
      if (place < 0 || place >= order.length) return;  // leaves the grid
      another(event.shiftKey ? -1 : 1);
    }
    else if (event.key === "Home") go(entry.cells[0], entry);
    else if (event.key === "End") go(entry.cells.at(-1), entry);
    else if (event.key === "Backspace") { if (here.value) put(here, ""); else { step(-1); put(here, ""); } }
    else if (event.key === "Delete") put(here, "");
    else return;
    event.preventDefault();
  });
}
for (const one of entries) one.button.addEventListener("click", () => go(one.cells.find(cell => !cell.value) || one.cells[0], one));
document.getElementById("check").addEventListener("click", () => {
  let count = 0, blank = 0;
  for (const input of inputs) {
    const wrong = Boolean(input.value) && input.value !== answer(input);
    input.parentElement.classList.toggle("wrong", wrong);
    if (wrong) input.setAttribute("aria-invalid", "true"); else input.removeAttribute("aria-invalid");
    count += wrong; blank += !input.value;
  }
  if (!count && !blank) finish();
  else say(fill(count ? words.wrong : words.right, {count, empty: blank}), count ? "bad" : "good");
});
function reveal(cells) {
  helped = true;
  for (const input of cells) if (input.value !== answer(input)) put(input, answer(input), true);
}
document.getElementById("letter").addEventListener("click", () => { reveal([here]); step(1); });
document.getElementById("word").addEventListener("click", () => reveal(entry.cells));
document.getElementById("all").addEventListener("click", () => { if (confirm(words.sure)) reveal(inputs); });
document.getElementById("clear").addEventListener("click", () => {
  if (!confirm(words.forget)) return;
  finished = helped = running = false; seconds = 0; clock.textContent = shown(0);
  for (const input of inputs) put(input, "");
  running = false;
});
document.getElementById("print").addEventListener("click", () => print());
select(here, entry);
