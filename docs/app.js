// The page: what is asked for, shared among workers, and painted as it comes.
import { addNoise, alphaSigma, encode, noise, remark, toBytes } from "./draw.js";

const $ = (id) => document.getElementById(id);
const SIZE = 64; // of a picture; it is stored square and shown at 4:3
const CELL = { width: 85, height: 64, gap: 2 };
const descriptions = {}; // by name: a promise of what models/NAME.json says
let drawing = 0; // counts the drawings; answers to an older one are ignored
let current; // the drawing on show: {name, seeds, cond, scale, frames: [{t, noisy, guess}], pictures}

// ---- workers

let provider, workers;
start(await choose());

function start(which) {
  workers?.forEach((worker) => worker.terminate());
  provider = which;
  workers = Array.from({ length: provider === "webgpu" ? 1 : threads() }, () => {
    const worker = new Worker("worker.js", { type: "module" });
    worker.onmessage = ({ data }) => receive(data);
    worker.onerror = (event) => receive({ drawing, error: event.message });
    worker.postMessage({ provider });
    return worker;
  });
}

/** WebGPU where there is a device for it, else WebAssembly; ?backend=wasm has the last word. */
async function choose() {
  const asked = new URLSearchParams(location.search).get("backend");
  if (asked) return asked === "webgpu" ? "webgpu" : "wasm";
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return adapter && !adapter.info?.isFallbackAdapter ? "webgpu" : "wasm";
}

function threads() {
  return Math.min(8, Math.max(1, navigator.hardwareConcurrency ?? 2));
}

// ---- drawing

function describe(name) {
  descriptions[name] ??= fetch(`models/${name}.json`).then((answer) => {
    if (!answer.ok) throw new Error("The networks are missing here: build the page with  python docs/build.py");
    return answer.json();
  });
  return descriptions[name];
}

/** What each car shall show, as the network wants to be told. */
function conditions(about, seeds) {
  if (about.words) return seeds.map(() => encode($("prompt").value, about.words, about.length));
  const kinds = Object.keys(about.conditions);
  const wish = $("kind").value;
  return seeds.map((seed) => {
    const chosen = wish ? kinds.indexOf(wish) : Number(about.chosen[seed]);
    return kinds.map((_, i) => (i === chosen ? 1 : 0));
  });
}

/** Draw what the form asks for; `from`: {t, x} to go on from noisy pictures instead of from noise. */
async function draw(from) {
  const mine = ++drawing;
  try {
    const name = $("wishes").elements.model.value;
    say("Loading the network …");
    const about = await describe(name);
    if (mine !== drawing) return;
    $("remark").textContent = about.words ? remark($("prompt").value, about.words, about.length) : "";
    const seeds = from ? current.seeds : Array.from({ length: Number($("count").value) }, (_, i) => Number($("seed").value) + i);
    const scale = Number($("scale").value);
    const cond = conditions(about, seeds);
    const share = Math.ceil(seeds.length / workers.length);
    const parts = workers.map((worker, i) => ({ worker, first: i * share, count: seeds.slice(i * share, (i + 1) * share).length }));
    current = { name, about, seeds, from, frames: [], parts: parts.filter((part) => part.count), started: performance.now() };
    lock(true);
    for (const { worker, first, count } of current.parts) {
      const numbers = 3 * SIZE * SIZE;
      worker.postMessage({
        drawing, name, first, scale, steps: Number($("steps").value), seeds: seeds.slice(first, first + count),
        cond: cond.slice(first, first + count),
        from: from && { t: from.t, x: from.x.slice(first * numbers, (first + count) * numbers) },
      });
    }
  } catch (error) {
    if (mine === drawing) fail(error.message);
  }
}

/** A worker has done a step for its share of the cars. */
function receive({ drawing: whose, error, first, step, steps, t, noisy, guess }) {
  if (whose !== drawing) return;
  if (error && provider === "webgpu") {
    console.warn(`WebGPU did not work, so WebAssembly draws: ${error}`);
    start("wasm");
    return draw(current.from);
  }
  if (error) return fail(error);
  const frame = (current.frames[step] ??= {
    t, arrived: 0, noisy: new Uint8ClampedArray(current.seeds.length * 3 * SIZE * SIZE),
    guess: new Uint8ClampedArray(current.seeds.length * 3 * SIZE * SIZE),
  });
  frame.noisy.set(noisy, first * 3 * SIZE * SIZE);
  frame.guess.set(guess, first * 3 * SIZE * SIZE);
  frame.arrived += noisy.length / (3 * SIZE * SIZE);
  const behind = current.parts.find((part) => part.first === first);
  behind.step = step;
  paint(first, behind.count, frame);
  const done = Math.min(...current.parts.map((part) => part.step ?? 0));
  $("progress").value = done / steps;
  if (done < steps) return say(`Step ${done} of ${steps}, t = ${current.frames[done]?.t ?? t}`);

  const seconds = (performance.now() - current.started) / 1000;
  const cars = current.seeds.length === 1 ? "One car" : `${current.seeds.length} cars`;
  say(`${cars} in ${seconds.toFixed(1)} s: ${steps} steps, ${provider === "webgpu" ? "WebGPU" : `WebAssembly on ${current.parts.length} threads`}, ` +
    `seeds from ${current.seeds[0]}. Nothing is picked.`);
  $("grid").setAttribute("aria-label", `${cars}, drawn from noise: ${wish()}`);
  current.done = true;
  lock(false);
  $("step").max = $("step").value = steps;
  $("step-value").textContent = `${steps} of ${steps}`;
  drown();
}

function wish() {
  if ($("wishes").elements.model.value === "stanford-cars-text") return $("prompt").value || "any car";
  return $("kind").value || "each a kind of its own";
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
  const columns = Math.min(4, current.seeds.length);
  fit($("grid"), current.seeds.length, columns);
  paintCells($("grid"), columns, $("noisy").checked ? frame.noisy : frame.guess, first, count);
}

function look() {
  if (!current?.done) return;
  const frame = current.frames[Number($("step").value)];
  paint(0, current.seeds.length, frame);
  $("step-value").textContent = `${$("step").value} of ${$("step").max}${frame.t < 0 ? "" : `, t = ${frame.t}`}`;
}

// ---- noise

const few = () => Math.min(4, current.seeds.length);

/** The drawn cars at timestep t of the forward process, with noise of their own. */
function noisyPictures(count) {
  const finished = current.frames.at(-1).noisy;
  const x0 = Float32Array.from(finished.subarray(0, count * 3 * SIZE * SIZE), (byte) => byte / 127.5 - 1);
  // Other noise than the cars came from: that noise would lead back to them at any t.
  const epsilon = noise(current.seeds.slice(0, count).map((seed) => seed + 1_000_000), 3 * SIZE * SIZE);
  return addNoise(current.about.alphas_cumprod, x0, epsilon, Number($("t").value));
}

function drown() {
  if (!current?.done) return;
  const t = Number($("t").value);
  fit($("drowned"), few(), few());
  paintCells($("drowned"), few(), toBytes(noisyPictures(few())), 0, few());
  const [alpha, sigma] = alphaSigma(current.about.alphas_cumprod, t);
  const snr = (alpha / sigma) ** 2;
  $("t-value").textContent = `t = ${t} · signal-to-noise ratio ${Number(snr.toPrecision(3)).toLocaleString("en")} (${(10 * Math.log10(snr)).toFixed(1).replace("-", "−")} dB) · ` +
    `share of signal left √ᾱ = ${alpha.toFixed(3)}`;
  $("drowned").setAttribute("aria-label", `The first ${few()} cars with the noise of t = ${t}`);
}

// ---- controls

function say(text) {
  $("status").textContent = text;
}

function fail(message) {
  say(`This did not work: ${message}`);
  lock(false);
}

function lock(busy) {
  for (const id of ["step", "t", "again"]) $(id).disabled = busy || !current?.done;
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
$("again").addEventListener("click", () => draw({ t: Number($("t").value), x: noisyPictures(current.seeds.length) }));
for (const radio of $("wishes").elements.model) radio.addEventListener("change", showFields);
for (const id of ["scale", "steps"]) {
  $(id).addEventListener("input", () => ($(`${id}-value`).textContent = $(id).value));
}
$("step").addEventListener("input", look);
$("noisy").addEventListener("change", look);
$("t").addEventListener("input", drown);

// ---- start

navigator.serviceWorker?.register("sw.js");
showFields();
const about = await describe("stanford-cars-1m").catch((error) => fail(error.message));
if (about) {
  $("kind").append(...Object.keys(about.conditions).map((kind) => new Option(kind)));
  if (navigator.connection?.saveData) say("Press Draw: about 8 MB will be loaded first.");
  else draw();
}
