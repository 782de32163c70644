// Draws some of the cars, away from the page, so that it can still be scrolled while the network works.
// One worker is one thread; the page starts several and shares the cars among them.
import { dpmSolver, noise, timesteps, toBytes } from "./draw.js";

const provider = self.name; // of the runtime: "wasm" or "webgpu"
const sessions = {}; // by name of the network: a promise
let ort; // the runtime, once it is loaded
let latest = 0; // the drawing to work on; an older one stops at its next step
let queue = Promise.resolve(); // one drawing after the other: the runtime cannot do two things at once

async function load(name) {
  if (!ort) {
    ort = await import(`./vendor/ort.${provider}.min.mjs`);
    ort.env.logLevel = "error"; // it would warn that shapes are computed without the GPU
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = new URL("vendor/", import.meta.url).href;
  }
  return ort.InferenceSession.create(`models/${name}.onnx`, { executionProviders: [provider] });
}

async function draw({ drawing, name, about, seeds, cond, scale, steps, from, first }) {
  sessions[name] ??= load(name).catch((error) => {
    delete sessions[name]; // so that the next drawing tries again
    throw error;
  });
  const session = await sessions[name];
  if (drawing !== latest) return;
  const count = 3 * about.size ** 2;
  const shape = [seeds.length, 3, about.size, about.size];
  const inputs = {
    cond: about.words
      ? new ort.Tensor("int64", BigInt64Array.from(cond.flat(), BigInt), [seeds.length, about.length])
      : new ort.Tensor("float32", Float32Array.from(cond.flat()), [seeds.length, cond[0].length]),
    guidance_scale: new ort.Tensor("float32", [scale], []),
  };
  const predict = async (x, t) => {
    inputs.x_t = new ort.Tensor("float32", x, shape);
    inputs.t = new ort.Tensor("int64", BigInt64Array.from(seeds, () => BigInt(t)), [seeds.length]);
    const { x0 } = await session.run(inputs);
    return Float32Array.from(await x0.getData());
  };
  // A drawing starts from noise, or from a noisy picture at a timestep on the way.
  let visited = timesteps(about.alphas_cumprod.length, steps);
  if (from) visited = [from.t, ...visited.filter((t) => t < from.t)];
  const start = from ? from.x : noise(seeds, count);
  let step = 0;
  for await (const { t, x, x0 } of dpmSolver(predict, about.alphas_cumprod, start, visited)) {
    postMessage({ drawing, first, step: step++, steps: visited.length, t, noisy: toBytes(x), guess: toBytes(x0) });
    await new Promise((resolve) => setTimeout(resolve)); // lets a newer request arrive
    if (drawing !== latest) return;
  }
}

onmessage = ({ data }) => {
  latest = data.drawing;
  queue = queue
    .then(() => data.drawing === latest && draw(data))
    .catch((error) => postMessage({ drawing: data.drawing, error: `${error.message ?? error}` }));
};
