// Answers for the network, away from the page, so that it can still be scrolled while the network works.
// One worker is one thread; the page starts several, and asks whichever is free.
const provider = self.name; // of the runtime: "wasm" or "webgpu"
const sessions = {}; // by name of the network: a promise
let ort; // the runtime, once it is loaded

async function load(name) {
  if (!ort) {
    ort = await import(`./vendor/ort.${provider}.min.mjs`);
    ort.env.logLevel = "error"; // it would warn that shapes are computed without the GPU
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = new URL("vendor/", import.meta.url).href;
  }
  return ort.InferenceSession.create(`models/${name}.onnx`, { executionProviders: [provider] });
}

/** x̂₀ of noisy pictures x at timestep t, a Float32Array; cond: a condition, or the numbers of words, for each, if any. */
async function predict({ name, about, x, t, cond, scale }) {
  sessions[name] ??= load(name).catch((error) => {
    delete sessions[name]; // so that the next drawing tries again
    throw error;
  });
  const session = await sessions[name];
  const count = x.length / (3 * about.size ** 2);
  const inputs = {
    x_t: new ort.Tensor("float32", x, [count, 3, about.size, about.size]),
    t: new ort.Tensor("int64", new BigInt64Array(count).fill(BigInt(t)), [count]),
  };
  if (about.words) inputs.cond = new ort.Tensor("int64", BigInt64Array.from(cond.flat(), BigInt), [count, about.length]);
  else if (cond) inputs.cond = new ort.Tensor("float32", Float32Array.from(cond.flat()), [count, cond[0].length]);
  if (about.guided) inputs.guidance_scale = new ort.Tensor("float32", [scale], []);
  const { x0 } = await session.run(inputs);
  return Float32Array.from(await x0.getData());
}

onmessage = ({ data }) =>
  predict(data)
    .then((x0) => postMessage({ x0 }, [x0.buffer]))
    .catch((error) => postMessage({ error: `${error.message ?? error}` }));
