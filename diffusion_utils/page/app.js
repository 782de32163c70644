// The page: its form makes a request, the sampler walks, asking workers for the network's guesses, and each step is
// painted as it comes.
import { addNoise, alphaSigma, dpmSolver, encode, noise, remark, timesteps, toBytes } from "./draw.js";

const $ = (id) => document.getElementById(id);
const { one, many, build } = document.body.dataset; // a car, cars, and how the networks come here
const GAP = 2; // between the pictures of a grid
let size, numbers; // a picture's side, and how many numbers it has; it is stored square …
let width, height; // … and shown at its own aspect
const state = {
  provider: null, // of the runtime: "wasm" or "webgpu"
  workers: [], // each with the `job` it is at
  waiting: [], // jobs that no worker has yet: {question, resolve, reject}
  models: {}, // by name: a promise of what models/NAME.json says
  drawing: 0, // counts the drawings; an older one stops at its next step
  current: null, // the drawing on the page: {request, frames: [{t, noisy, guess}], parts, started, done}
};

// ---- workers

const ready = choose().then(start);
globalThis.state = state; // for the console

/** WebGPU where there is a device for it, else WebAssembly; ?backend=wasm has the last word. */
async function choose() {
  const backend = new URLSearchParams(location.search).get("backend");
  if (backend) return backend === "webgpu" ? "webgpu" : "wasm";
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return adapter && !adapter.info?.isFallbackAdapter ? "webgpu" : "wasm";
}

function start(provider) {
  for (const worker of state.workers) worker.terminate();
  state.provider = provider;
  // Each WebAssembly worker holds a network of its own: more than four are hardly faster, and phones are small.
  const count = provider === "webgpu" ? 1 : Math.min(4, navigator.hardwareConcurrency ?? 2);
  state.waiting = [];
  state.workers = Array.from({ length: count }, () => {
    const worker = new Worker("worker.js", { type: "module", name: provider });
    const answer = (error, x0) => {
      const { job } = worker;
      worker.job = null;
      if (error) job?.reject(new Error(error));
      else job.resolve(x0);
      handOut();
    };
    worker.onmessage = ({ data }) => answer(data.error, data.x0);
    worker.onerror = (event) => answer(event.message || "its program could not be loaded");
    return worker;
  });
}

/** Give what waits to the workers that are free. */
function handOut() {
  for (const worker of state.workers.filter(({ job }) => !job).slice(0, state.waiting.length)) {
    worker.job = state.waiting.shift();
    worker.postMessage(worker.job.question);
  }
}

/** The network's guess x̂₀, by the next worker that is free. */
function predict(question) {
  return new Promise((resolve, reject) => {
    state.waiting.push({ question, resolve, reject });
    handOut();
  });
}

// ---- drawing

function describe(name) {
  state.models[name] ??= fetch(`models/${name}.json`)
    .then((answer) => {
      if (!answer.ok) throw new Error(`The networks are missing here: build the page with  ${build}`);
      return answer.json();
    })
    .catch((error) => {
      delete state.models[name]; // so that the next drawing tries again
      throw error;
    });
  return state.models[name];
}

/** How a network's pictures are shown. */
function fit(about) {
  size = about.size;
  numbers = 3 * size * size;
  height = Math.max(64, size);
  width = Math.round(height * about.aspect);
  Object.assign(cell, { width: size, height: size });
}

/** Each picture's condition, as numbers for the network; undefined where it takes none. */
function conditions(about, seeds) {
  if (!about.words && !about.conditions) return undefined;
  if (about.words) return seeds.map(() => encode($("prompt").value, about.words, about.length));
  const kinds = Object.keys(about.conditions);
  const kind = $("kind").value;
  return seeds.map((seed) => {
    const chosen = kind ? kinds.indexOf(kind) : about.chosen[seed];
    return kinds.map((_, i) => (i === chosen ? 1 : 0));
  });
}

/** Draw what the form asks for; `from`: {t, x, seeds} to go on from noisy pictures; `scroll`: to the cars. */
async function draw(from, scroll = true) {
  if (!$("request").reportValidity()) return;
  const drawing = ++state.drawing;
  const name = $("request").elements.model.value;
  setStatus("Loading the network …", true);
  try {
    const [about] = await Promise.all([describe(name), ready]);
    if (drawing !== state.drawing) return;
    fit(about);
    if ($("kind").length === 1 && about.conditions) $("kind").append(...Object.keys(about.conditions).map((kind) => new Option(kind)));
    if (about.words) $("remark").textContent = remark($("prompt").value, about.words, about.length);
    const seeds = from?.seeds ?? Array.from({ length: Number($("count").value) }, (_, i) => Number($("seed").value) + i);
    const any = about.words ? `any ${one}` : about.conditions ? "each a kind of its own" : "of any kind";
    const condition = (about.words ? $("prompt").value.trim() : $("kind").value) || any;
    const [scale, steps] = ["scale", "steps"].map((id) => Number($(id).value));
    send({ scroll, name, about, seeds, condition, from, cond: conditions(about, seeds), scale, steps });
  } catch (error) {
    if (drawing === state.drawing) fail(error.message);
  }
}

/**
 * Draw a request's cars, in parts: two for each worker, so that none waits long for another whose processor has more
 * to do.
 */
function send(request) {
  const { seeds } = request;
  const share = state.provider === "webgpu" ? seeds.length : Math.ceil(seeds.length / state.workers.length / 2);
  const parts = Array.from({ length: Math.ceil(seeds.length / share) }, (_, i) => ({ first: i * share, step: 0 }));
  const current = { request, frames: [], parts, started: performance.now() };
  state.current = current;
  state.waiting = []; // what an older drawing still wanted
  setBusy(true);
  if (request.scroll) $("cars").scrollIntoView({ block: "nearest" }); // on a phone it may be out of sight
  const { drawing } = state;
  for (const part of parts) walk(current, part, share).catch((error) => drawing === state.drawing && stumble(error));
}

/** Walk from noise, or from a noisy picture at a timestep on the way, to one part of the cars. */
async function walk(current, part, share) {
  const { name, about, scale, steps, cond, from, seeds } = current.request;
  const { drawing } = state;
  const which = [part.first, part.first + share];
  const question = { name, about, scale, cond: cond?.slice(...which) };
  let visited = timesteps(about.alphas_cumprod.length, steps);
  if (from) visited = [from.t, ...visited.filter((t) => t < from.t)];
  const start = from ? from.x.slice(...which.map((i) => i * numbers)) : noise(seeds.slice(...which), numbers);
  const guess = (x, t) => predict({ ...question, x, t });
  for await (const { t, x, x0 } of dpmSolver(guess, about.alphas_cumprod, start, visited)) {
    if (drawing !== state.drawing) return;
    keep(current, part, visited.length, t, toBytes(x), toBytes(x0));
  }
}

/** Keep and paint a step of one part of the cars. */
function keep(current, part, steps, t, noisy, guess) {
  const count = current.request.seeds.length;
  const frame = (current.frames[part.step] ??= {
    t, noisy: new Uint8ClampedArray(count * numbers), guess: new Uint8ClampedArray(count * numbers),
  });
  frame.noisy.set(noisy, part.first * numbers);
  frame.guess.set(guess, part.first * numbers);
  paint(frame, part.first, part.first + noisy.length / numbers);
  part.step++;
  const done = Math.min(...current.parts.map(({ step }) => step)) - 1; // the guess at the start is step 0
  if (done < 0) return;
  $("progress").value = done / steps;
  if (done < steps) return setStatus(`Step ${done} of ${steps}, t = ${current.frames[done].t}`);
  finish(count, steps);
}

/** A worker failed: the processor takes over from the graphics card, or the page says so. */
function stumble(error) {
  if (state.provider !== "webgpu") return fail(error.message);
  console.warn(`WebGPU did not work, so WebAssembly draws: ${error.message}`);
  start("wasm");
  send(state.current.request);
}

function finish(count, steps) {
  const { current, provider } = state;
  const { seeds, condition, from } = current.request;
  const seconds = ((performance.now() - current.started) / 1000).toFixed(1);
  const cars = count === 1 ? `One ${one}` : `${count} ${many}`;
  const busy = Math.min(current.parts.length, state.workers.length);
  const threads = busy === 1 ? "one thread" : `${busy} threads`;
  setStatus(`${cars} in ${seconds} s: ${steps} steps, ${provider === "webgpu" ? "WebGPU" : `WebAssembly on ${threads}`}, ` +
    `seeds from ${seeds[0]}. Nothing is picked.`, true);
  $("grid").setAttribute("aria-label", `${cars}, drawn from ${from ? `pictures with the noise of t = ${from.t}` : "noise"}: ${condition}`);
  current.done = true;
  setBusy(false);
  $("step").max = $("step").value = steps;
  $("step-value").textContent = `${steps} of ${steps}`;
  paintNoised();
  // From now on the page also opens without network. Not before: it would compete with the first drawing.
  navigator.serviceWorker?.register(`sw.js?runtime=${provider}`);
}

// ---- painting

const cell = new OffscreenCanvas(1, 1);
const cellContext = cell.getContext("2d");

/** Paint the pictures first … last-1 out of bytes (pictures, 3, size, size), where a grid of all of them has these. */
function paintCells(canvas, bytes, first = 0, last = bytes.length / numbers) {
  const all = bytes.length / numbers;
  const columns = Math.min(4, all);
  const whole = [columns * (width + GAP) - GAP, Math.ceil(all / columns) * (height + GAP) - GAP];
  // A change of its size, and only that, clears the canvas.
  if (canvas.width !== whole[0] || canvas.height !== whole[1]) [canvas.width, canvas.height] = whole;
  const plane = size * size;
  for (let i = first; i < last; i++) {
    const image = cellContext.createImageData(size, size);
    for (let j = 0; j < plane; j++) {
      for (let c = 0; c < 3; c++) image.data[4 * j + c] = bytes[(3 * i + c) * plane + j];
      image.data[4 * j + 3] = 255;
    }
    cellContext.putImageData(image, 0, 0);
    const x = (i % columns) * (width + GAP);
    const y = Math.floor(i / columns) * (height + GAP);
    canvas.getContext("2d").drawImage(cell, x, y, width, height);
  }
}

function paint(frame, ...range) {
  paintCells($("grid"), $("noisy").checked ? frame.noisy : frame.guess, ...range);
}

/** Paint the step that the slider points to. */
function paintStep() {
  const { current } = state;
  if (!current?.done) return;
  const frame = current.frames[Number($("step").value)];
  paint(frame);
  $("step-value").textContent = `${$("step").value} of ${$("step").max}${frame.t < 0 ? "" : `, t = ${frame.t}`}`;
}

// ---- noise

/** The first drawn cars at timestep t of the forward process, with noise of their own. */
function noisyPictures(count) {
  const { request: { seeds, about }, frames } = state.current;
  const x0 = Float32Array.from(frames.at(-1).noisy.subarray(0, count * numbers), (byte) => byte / 127.5 - 1);
  // Other noise than the cars came from: that noise would lead back to them at any t.
  const epsilon = noise(seeds.slice(0, count).map((seed) => seed + 1_000_000), numbers);
  return addNoise(about.alphas_cumprod, x0, epsilon, Number($("t").value));
}

function paintNoised() {
  const { current } = state;
  if (!current?.done) return;
  const t = Number($("t").value);
  paintCells($("noised"), toBytes(noisyPictures(Math.min(4, current.request.seeds.length))));
  const [alpha, sigma] = alphaSigma(current.request.about.alphas_cumprod, t);
  const snr = (alpha / sigma) ** 2;
  const decibels = (10 * Math.log10(snr)).toFixed(1).replace("-", "−");
  $("t-value").textContent = `t = ${t} · signal-to-noise ratio ${Number(snr.toPrecision(3)).toLocaleString("en")} (${decibels} dB) · ` +
    `share of signal left √ᾱ = ${alpha.toFixed(3)}`;
  $("noised").setAttribute("aria-label", `The first of the ${many} with the noise of t = ${t}`);
}

/** Draw again from the cars with the noise that they have now. */
function drawFromNoised() {
  if (!state.current?.done) return;
  const { seeds } = state.current.request;
  draw({ t: Number($("t").value), x: noisyPictures(seeds.length), seeds });
}

// ---- controls

/** Show the status; screen readers announce only what `announce` says. */
function setStatus(text, announce = false) {
  $("status").textContent = text;
  if (announce) $("announcement").textContent = text;
}

function fail(message) {
  state.drawing++; // the other parts stop
  setStatus(`This did not work: ${message}`, true);
  setBusy(false);
}

function setBusy(busy) {
  $("grid").setAttribute("aria-busy", busy);
  for (const id of ["step", "t"]) $(id).disabled = busy || !state.current?.done;
}

function showFields() {
  for (const field of document.querySelectorAll(".for")) {
    field.hidden = !field.classList.contains($("request").elements.model.value);
  }
}

$("request").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
$("another").addEventListener("click", () => {
  $("seed").value = Math.floor(Math.random() * (Number($("seed").max) + 1));
  draw();
});
$("again").addEventListener("click", drawFromNoised);
for (const radio of document.querySelectorAll("[name=model]")) radio.addEventListener("change", showFields);
for (const id of ["scale", "steps"]) {
  const show = () => ($(`${id}-value`).textContent = $(id).value);
  $(id).addEventListener("input", show);
  show();
}
$("step").addEventListener("input", paintStep);
$("noisy").addEventListener("change", paintStep);
$("t").addEventListener("input", paintNoised);
showFields();

if (navigator.connection?.saveData) setStatus("Press Draw: up to 17 MB will be loaded first.", true);
else draw(undefined, false);
