// Keeps what the page needs, so that it also opens without network. With network, the network has the word.
const CACHE = "cars";
const RUNTIMES = {
  wasm: ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"],
  webgpu: ["ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"],
};
const runtime = RUNTIMES[new URLSearchParams(location.search).get("runtime")] ?? RUNTIMES.wasm;
const NEEDED = [
  "./", "style.css", "app.js", "draw.js", "worker.js", "icon.svg", ...runtime.map((name) => `vendor/${name}`),
  "models/stanford-cars-1m.json", "models/stanford-cars-1m.onnx",
  "models/stanford-cars-text.json", "models/stanford-cars-text.onnx",
].map((path) => new URL(path, location).href);

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(NEEDED)));
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  // The page is kept once, whatever stands behind its address.
  const address = event.request.url.replace(/[?#].*/, "").replace(/\/index\.html$/, "/");
  if (event.request.method === "GET" && NEEDED.includes(address)) event.respondWith(answer(event, address));
});

async function answer(event, address) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(address);
  let response;
  try {
    response = await fetch(event.request);
  } catch (error) {
    if (kept) return kept;
    throw error;
  }
  const changed = ["etag", "last-modified"].some((name) => kept?.headers.get(name) !== response.headers.get(name));
  // Storage may be full: that is no reason to hold back the answer.
  if (response.status === 200 && changed) event.waitUntil(cache.put(address, response.clone()).catch(() => {}));
  return response;
}
