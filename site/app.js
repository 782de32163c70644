// The page: what is asked for, shared among workers, and painted as it comes.
import { addNoise, alphaSigma, encode, noise, remark, toBytes } from "./draw.js";

const $ = (id) => document.getElementById(id);
const SIZE = 64; // of a picture; it is stored square and shown at 4:3
const NUMBERS = 3 * SIZE * SIZE;
const CELL = { width: 85, height: 64, gap: 2 };
const CARS = "stanford-cars-1m";
const descriptions = {}; // by name: a promise of what models/NAME.json says
let provider, workers;
let drawing = 0; // counts the drawings; answers to an older one are ignored
let current; // the drawing on show: {request, frames: [{t, noisy, guess}], parts, started, done}

// ---- workers

const ready = choose().then(start);

/** WebGPU where there is a device for it, else WebAssembly; ?backend=wasm has the last word. */
async function choose() {
  const asked = new URLSearchParams(location.search).get("backend");
  if (asked) return asked === "webgpu" ? "webgpu" : "wasm";
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return adapter && !adapter.info?.isFallbackAdapter ? "webgpu" : "wasm";
}

function start(which) {
  workers?.forEach((worker) => worker.terminate());
  provider = which;
  // Each WebAssembly worker holds a network of its own: more than four are hardly faster, and phones are small.
  const count = provider === "webgpu" ? 1 : Math.min(4, navigator.hardwareConcurrency ?? 2);
  workers = Array.from({ length: count }, () => {
    const worker = new Worker("worker.js", { type: "module" });
    worker.onmessage = ({ data }) => receive(data);
    worker.onerror = (event) => receive({ drawing, error: event.message || "its program could not be loaded" });
    worker.postMessage({ provider });
    return worker;
  });
}

// ---- drawing

function describe(name) {
  descriptions[name] ??= fetch(`models/${name}.json`)
    .then((answer) => {
      if (!answer.ok) throw new Error("The networks are missing here: build the page with  python site/build.py");
      return answer.json();
    })
    .catch((error) => {
      delete descriptions[name]; // so that the next drawing tries again
      throw error;
    });
  return descriptions[name];
}

/** What each car shall show, as the network wants to be told. */
function conditions(about, seeds) {
  if (about.words) return seeds.map(() => encode($("prompt").value, about.words, about.length));
  const kinds = Object.keys(about.conditions);
  const wish = $("kind").value;
  return seeds.map((seed) => {
    const chosen = wish ? kinds.indexOf(wish) : about.chosen[seed];
    return kinds.map((_, i) => (i === chosen ? 1 : 0));
  });
}

/** Draw what the form asks for; `from`: {t, x, seeds} to go on from noisy pictures; `asked`: by the reader. */
async function draw(from, asked = true) {
  if (!$("wishes").reportValidity()) return;
  const mine = ++drawing;
  const name = $("wishes").elements.model.value;
  say("Loading the network …", true);
  try {
    const [about] = await Promise.all([describe(name), ready]);
    if (mine !== drawing) return;
    if ($("kind").length === 1 && about.conditions) $("kind").append(...Object.keys(about.conditions).map((kind) => new Option(kind)));
    $("remark").textContent = about.words ? remark($("prompt").value, about.words, about.length) : "";
    const seeds = from?.seeds ?? Array.from({ length: Number($("count").value) }, (_, i) => Number($("seed").value) + i);
    const wish = about.words ? $("prompt").value.trim() || "any car" : $("kind").value || "each a kind of its own";
    send({ asked, name, about, seeds, wish, from, cond: conditions(about, seeds), scale: Number($("scale").value), steps: Number($("steps").value) });
  } catch (error) {
    if (mine === drawing) fail(error.message);
  }
}

/** Share a drawing's cars among the workers. */
function send(request) {
  const share = Math.ceil(request.seeds.length / workers.length);
  const parts = workers.map((worker, i) => {
    const first = i * share;
    return { worker, first, seeds: request.seeds.slice(first, first + share), step: 0 };
  });
  current = { request, frames: [], parts: parts.filter(({ seeds }) => seeds.length), started: performance.now() };
  setBusy(true);
  if (request.asked) $("cars").scrollIntoView({ block: "nearest" }); // on a phone it may be out of sight
  for (const { worker, first, seeds } of current.parts) {
    const last = first + seeds.length;
    const { name, scale, steps, cond, from } = request;
    worker.postMessage({
      drawing, name, first, scale, steps, seeds, cond: cond.slice(first, last),
      from: from && { t: from.t, x: from.x.slice(first * NUMBERS, last * NUMBERS) },
    });
  }
}

/** A worker has done a step for its share of the cars, or failed. */
function receive({ drawing: whose, error, first, step, steps, t, noisy, guess }) {
  if (whose !== drawing) return;
  if (error && provider === "webgpu") {
    console.warn(`WebGPU did not work, so WebAssembly draws: ${error}`);
    start("wasm");
    if (current && !current.done) send(current.request);
    return;
  }
  if (error) return fail(error);
  const count = current.request.seeds.length;
  const frame = (current.frames[step] ??= {
    t, noisy: new Uint8ClampedArray(count * NUMBERS), guess: new Uint8ClampedArray(count * NUMBERS),
  });
  frame.noisy.set(noisy, first * NUMBERS);
  frame.guess.set(guess, first * NUMBERS);
  const part = current.parts.find((each) => each.first === first);
  part.step = step;
  paint(first, part.seeds.length, frame);
  const done = Math.min(...current.parts.map((each) => each.step));
  $("progress").value = done / steps;
  if (done < steps) return say(`Step ${done} of ${steps}, t = ${current.frames[done].t}`);
  finish(count, steps);
}

function finish(count, steps) {
  const { seeds, wish, from } = current.request;
  const seconds = ((performance.now() - current.started) / 1000).toFixed(1);
  const cars = count === 1 ? "One car" : `${count} cars`;
  const threads = current.parts.length === 1 ? "one thread" : `${current.parts.length} threads`;
  say(`${cars} in ${seconds} s: ${steps} steps, ${provider === "webgpu" ? "WebGPU" : `WebAssembly on ${threads}`}, ` +
    `seeds from ${seeds[0]}. Nothing is picked.`, true);
  $("grid").setAttribute("aria-label", `${cars}, drawn from ${from ? `pictures with the noise of t = ${from.t}` : "noise"}: ${wish}`);
  current.done = true;
  setBusy(false);
  $("step").max = $("step").value = steps;
  $("step-value").textContent = `${steps} of ${steps}`;
  drown();
  // From now on the page also opens without network. Not before: it would compete with the first drawing.
  navigator.serviceWorker?.register(`sw.js?runtime=${provider}`);
}

// ---- painting

/** Make a canvas as large as a grid of so many pictures; it is cleared where that changes its size. */
function fit(canvas, count, columns) {
  const rows = Math.ceil(count / columns);
  const width = columns * (CELL.width + CELL.gap) - CELL.gap;
  const height = rows * (CELL.height + CELL.gap) - CELL.gap;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
}

const cell = new OffscreenCanvas(SIZE, SIZE);
const cellContext = cell.getContext("2d");

/** Paint the pictures first … first+count-1 out of bytes (pictures, 3, 64, 64). */
function paintCells(canvas, columns, bytes, first, count) {
  const context = canvas.getContext("2d");
  const plane = SIZE * SIZE;
  for (let i = first; i < first + count; i++) {
    const image = cellContext.createImageData(SIZE, SIZE);
    for (let j = 0; j < plane; j++) {
      for (let c = 0; c < 3; c++) image.data[4 * j + c] = bytes[(3 * i + c) * plane + j];
      image.data[4 * j + 3] = 255;
    }
    cellContext.putImageData(image, 0, 0);
    const x = (i % columns) * (CELL.width + CELL.gap);
    const y = Math.floor(i / columns) * (CELL.height + CELL.gap);
    context.drawImage(cell, x, y, CELL.width, CELL.height);
  }
}

function paint(first, count, frame) {
  const columns = Math.min(4, current.request.seeds.length);
  fit($("grid"), current.request.seeds.length, columns);
  paintCells($("grid"), columns, $("noisy").checked ? frame.noisy : frame.guess, first, count);
}

function look() {
  if (!current?.done) return;
  const frame = current.frames[Number($("step").value)];
  paint(0, current.request.seeds.length, frame);
  $("step-value").textContent = `${$("step").value} of ${$("step").max}${frame.t < 0 ? "" : `, t = ${frame.t}`}`;
}

// ---- noise

/** The first drawn cars at timestep t of the forward process, with noise of their own. */
function noisyPictures(count) {
  const { seeds, about } = current.request;
  const x0 = Float32Array.from(current.frames.at(-1).noisy.subarray(0, count * NUMBERS), (byte) => byte / 127.5 - 1);
  // Other noise than the cars came from: that noise would lead back to them at any t.
  const epsilon = noise(seeds.slice(0, count).map((seed) => seed + 1_000_000), NUMBERS);
  return addNoise(about.alphas_cumprod, x0, epsilon, Number($("t").value));
}

function drown() {
  if (!current?.done) return;
  const t = Number($("t").value);
  const few = Math.min(4, current.request.seeds.length);
  fit($("drowned"), few, few);
  paintCells($("drowned"), few, toBytes(noisyPictures(few)), 0, few);
  const [alpha, sigma] = alphaSigma(current.request.about.alphas_cumprod, t);
  const snr = (alpha / sigma) ** 2;
  const decibels = (10 * Math.log10(snr)).toFixed(1).replace("-", "−");
  $("t-value").textContent = `t = ${t} · signal-to-noise ratio ${Number(snr.toPrecision(3)).toLocaleString("en")} (${decibels} dB) · ` +
    `share of signal left √ᾱ = ${alpha.toFixed(3)}`;
  $("drowned").setAttribute("aria-label", `The first of the cars with the noise of t = ${t}`);
}

/** Let the network draw on from the cars as they are drowned now. */
function drawOn() {
  if (!current?.done) return;
  const { seeds } = current.request;
  draw({ t: Number($("t").value), x: noisyPictures(seeds.length), seeds });
}

// ---- controls

/** Tell how things stand; screen readers read out only what is news. */
function say(text, news = false) {
  $("status").textContent = text;
  if (news) $("news").textContent = text;
}

function fail(message) {
  drawing++; // what other workers still answer does not count
  say(`This did not work: ${message}`, true);
  setBusy(false);
}

function setBusy(busy) {
  $("grid").setAttribute("aria-busy", busy);
  for (const id of ["step", "t"]) $(id).disabled = busy || !current?.done;
}

function showFields() {
  for (const field of document.querySelectorAll(".for")) {
    field.hidden = !field.classList.contains($("wishes").elements.model.value);
  }
}

$("wishes").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
$("another").addEventListener("click", () => {
  $("seed").value = Math.floor(Math.random() * (Number($("seed").max) + 1));
  draw();
});
$("again").addEventListener("click", drawOn);
for (const radio of $("wishes").elements.model) radio.addEventListener("change", showFields);
for (const id of ["scale", "steps"]) {
  const show = () => ($(`${id}-value`).textContent = $(id).value);
  $(id).addEventListener("input", show);
  show();
}
$("step").addEventListener("input", look);
$("noisy").addEventListener("change", look);
$("t").addEventListener("input", drown);
showFields();

if (navigator.connection?.saveData) say("Press Draw: up to 17 MB will be loaded first.", true);
else draw(undefined, false);
