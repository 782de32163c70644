// The playground: noise walks to points of the plane, through the exact velocity field; see notebook 9.
// No network is asked.  The counterparts in Python are diffusion_utils/data/plane.py and the notebook's cells.
import { randn } from "./draw.js";

const LIMIT = 2.7; // the canvas shows [-LIMIT, LIMIT] in both directions
const DOTS = 256;
const GRID = 15; // arrows in a row
const MOST = 400; // own points

// ---- data sets: the same points as in Python

/** `count` points in equal distances along a line of corners. */
function along(line, count) {
  const ends = [0];
  for (let i = 1; i < line.length; i++) ends.push(ends[i - 1] + Math.hypot(line[i][0] - line[i - 1][0], line[i][1] - line[i - 1][1]));
  return Array.from({ length: count }, (_, k) => {
    const place = ((k + 0.5) / count) * ends.at(-1);
    const i = Math.max(1, ends.findIndex((end) => end > place));
    const share = (place - ends[i - 1]) / (ends[i] - ends[i - 1]);
    return [0, 1].map((axis) => line[i - 1][axis] + share * (line[i][axis] - line[i - 1][axis]));
  });
}

const turn = (from, to, at) => Array.from({ length: 400 }, (_, i) => at(from + ((to - from) * i) / 399));
const circle = (x, y, r) => turn(0, 2 * Math.PI, (a) => [x + r * Math.cos(a), y + r * Math.sin(a)]);
const BODY = [[-1.25, -0.3], [-1.3, 0.1], [-0.95, 0.2], [-0.6, 0.62], [0.25, 0.62], [0.62, 0.2], [1.2, 0.08], [1.3, -0.3]];
const LINES = {
  moons: [turn(0, Math.PI, (a) => [Math.cos(a), Math.sin(a)]), turn(0, Math.PI, (a) => [1 - Math.cos(a), 0.4 - Math.sin(a)])],
  car: [
    BODY,
    ...[[1.3, 0.96], [0.48, -0.51], [-0.99, -1.25]].map(([from, to]) => [[from, -0.3], [to, -0.3]]),
    circle(-0.75, -0.3, 0.24),
    circle(0.72, -0.3, 0.24),
  ],
  ring: [circle(0, 0, 1)],
};

/** Points [x, y] of a data set, evenly along its lines, with mean 0 and variance 1. */
export function points(name, count = 600) {
  const lengths = LINES[name].map((line) => line.slice(1).reduce((sum, p, i) => sum + Math.hypot(p[0] - line[i][0], p[1] - line[i][1]), 0));
  const total = lengths.reduce((a, b) => a + b);
  let sum = 0;
  const ends = lengths.map((length) => Math.round(((sum += length) / total) * count));
  const found = LINES[name].flatMap((line, i) => along(line, ends[i] - (ends[i - 1] ?? 0)));
  const mean = [0, 1].map((axis) => found.reduce((s, p) => s + p[axis], 0) / count);
  const centred = found.map((p) => [p[0] - mean[0], p[1] - mean[1]]);
  const scale = Math.sqrt(centred.reduce((s, p) => s + p[0] ** 2 + p[1] ** 2, 0) / (2 * count));
  return centred.map((p) => [p[0] / scale, p[1] / scale]);
}

// ---- the exact field

/** The velocity u = (y - x̂₀)/τ at a place y and a time τ in (0, 1], for these points of data. */
export function velocity([x, y], tau, data) {
  const fall = -1 / (2 * tau * tau);
  const logs = data.map((p) => fall * ((x - (1 - tau) * p[0]) ** 2 + (y - (1 - tau) * p[1]) ** 2));
  const largest = logs.reduce((a, b) => Math.max(a, b), -Infinity);
  let all = 0, px = 0, py = 0;
  data.forEach((p, i) => {
    const weight = Math.exp(logs[i] - largest);
    all += weight;
    px += weight * p[0];
    py += weight * p[1];
  });
  return [(x - px / all) / tau, (y - py / all) / tau];
}

/** All stops of Euler's walk from τ = 1 to 0 in equal steps: steps + 1 lists of dots. */
export function euler(dots, steps, data) {
  const path = [dots];
  for (let k = 0; k < steps; k++) {
    path.push(path[k].map((dot) => {
      const u = velocity(dot, 1 - k / steps, data);
      return [dot[0] - u[0] / steps, dot[1] - u[1] / steps];
    }));
  }
  return path;
}

// ---- the page

const $ = (id) => document.getElementById(id);
const noise = randn(2 * DOTS, 0);
const start = Array.from({ length: DOTS }, (_, i) => [noise[2 * i], noise[2 * i + 1]]);
const state = { own: [], data: [], path: [start], pen: [0, 0], playing: 0 };
const own = () => $("field-data").value === "own";
const steps = () => Number($("field-steps").value);
const tau = () => Number($("field-tau").value) / 100;

/** Where the dots are at the slider's τ: between two stops Euler walks straight on. */
function dots() {
  const place = (1 - tau()) * (state.path.length - 1);
  const k = Math.min(Math.floor(place), state.path.length - 2);
  if (k < 0) return state.path[0];
  const share = place - k;
  return state.path[k].map((dot, i) => [0, 1].map((axis) => dot[axis] + share * (state.path[k + 1][i][axis] - dot[axis])));
}

/** Another data set, other points or another number of steps: walk anew. */
function walk() {
  state.data = own() ? state.own : points($("field-data").value, 300);
  state.path = state.data.length ? euler(start, steps(), state.data) : [start];
  $("field-clear").disabled = !own();
  $("field").style.touchAction = own() ? "none" : "auto"; // a finger draws there, or scrolls the page
  paint();
}

function paint() {
  const canvas = $("field"), context = canvas.getContext("2d");
  const colours = getComputedStyle(document.documentElement);
  const [ink, soft, accent] = ["--ink", "--soft", "--accent"].map((name) => colours.getPropertyValue(name));
  const at = ([x, y]) => [((x + LIMIT) / (2 * LIMIT)) * canvas.width, ((LIMIT - y) / (2 * LIMIT)) * canvas.height];
  const spot = (place, radius, colour) => {
    context.fillStyle = colour;
    context.beginPath();
    context.arc(...at(place), radius, 0, 2 * Math.PI);
    context.fill();
  };
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (const place of state.data) spot(place, 2.5, soft);
  if ($("field-arrows").checked && state.data.length) arrows(context, at, ink);
  for (const place of dots()) spot(place, 4, accent);
  if (own() && document.activeElement === canvas) {
    const [x, y] = at(state.pen);
    context.strokeStyle = ink;
    context.strokeRect(x - 8, y - 8, 16, 16);
  }
  $("field-tau-value").textContent = tau().toFixed(2);
  const said = state.data.length
    ? `${DOTS} dots at τ = ${tau().toFixed(2)}, ${steps()} step${steps() > 1 ? "s" : ""}; ${state.data.length} points of data`
    : "Draw some points: with a finger, a pen or a mouse; or with the arrow keys and the space bar.";
  $("field-status").textContent = said;
  canvas.ariaLabel = state.data.length ? `A plane with ${said}` : "An empty plane, to draw points into";
}

/** -u on a grid: the way back from noise to data.  Long arrows are shortened. */
function arrows(context, at, colour) {
  const apart = 4.6 / (GRID - 1), cells = [...Array(GRID * GRID).keys()];
  const places = cells.map((i) => [-2.3 + apart * (i % GRID), -2.3 + apart * Math.floor(i / GRID)]);
  const fields = places.map((place) => velocity(place, Math.max(tau(), 0.02), state.data));
  const lengths = fields.map((u) => Math.hypot(...u));
  const typical = [...lengths].sort((a, b) => a - b)[Math.floor(lengths.length / 2)] || 1;
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = 1.5;
  places.forEach((place, i) => {
    const factor = (-0.9 * apart * Math.tanh(lengths[i] / typical)) / (lengths[i] || 1);
    const [x, y] = at(place), [tx, ty] = at([place[0] + factor * fields[i][0], place[1] + factor * fields[i][1]]);
    const angle = Math.atan2(ty - y, tx - x), head = Math.min(7, 0.5 * Math.hypot(tx - x, ty - y));
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(tx, ty);
    context.stroke();
    context.beginPath();
    context.moveTo(tx, ty);
    for (const side of [-0.5, 0.5]) context.lineTo(tx - head * Math.cos(angle + side), ty - head * Math.sin(angle + side));
    context.fill();
  });
}

function add(place) {
  if (state.own.length < MOST) state.own.push(place.map((v) => Math.max(-LIMIT, Math.min(LIMIT, v))));
}

/** From noise to data in two seconds. */
function play() {
  const begun = performance.now(), mine = ++state.playing;
  const frame = (now) => {
    if (mine !== state.playing) return; // the slider was moved, or it is played again
    $("field-tau").value = Math.max(0, Math.round(100 - (now - begun) / 20));
    paint();
    if (tau() > 0) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

function pointer(event) {
  if (!own() || !event.buttons) return;
  const box = $("field").getBoundingClientRect();
  const place = [((event.clientX - box.left) / box.width) * 2 * LIMIT - LIMIT, LIMIT - ((event.clientY - box.top) / box.height) * 2 * LIMIT];
  const last = state.own.at(-1);
  if (event.type === "pointermove" && last && Math.hypot(place[0] - last[0], place[1] - last[1]) < 0.06) return;
  add(place);
  state.pen = place;
  state.path = [start]; // the walk waits until the pen is lifted
  paint();
}

const MOVES = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] };

function key(event) {
  if (!own()) return;
  const move = MOVES[event.key];
  if (move) state.pen = state.pen.map((v, axis) => Math.max(-LIMIT, Math.min(LIMIT, v + move[axis])));
  else if (event.key === " " || event.key === "Enter") add(state.pen);
  else return;
  event.preventDefault();
  move ? paint() : walk();
}

if (globalThis.document && $("field")) {
  $("field-tau").oninput = () => (state.playing++, paint());
  $("field-data").onchange = $("field-steps").onchange = walk;
  $("field-arrows").onchange = paint;
  $("field-play").onclick = play;
  $("field-clear").onclick = () => ((state.own.length = 0), walk());
  $("field").onpointerdown = $("field").onpointermove = pointer;
  $("field").onpointerup = $("field").onpointercancel = () => own() && walk();
  $("field").onkeydown = key;
  $("field").onfocus = $("field").onblur = paint;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  walk();
}
