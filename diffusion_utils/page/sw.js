// Keeps what the page needs, so that it also opens without network. With network, the network has the word.
const CACHE = "cars";
const SCOPE = new URL("./", location).href;

/** Fetch everything that the page can use with one runtime, ahead of use. */
async function fill() {
  const { page, models, runtimes } = await (await fetch("manifest.json")).json();
  const runtime = runtimes[new URLSearchParams(location.search).get("runtime")] ?? runtimes.wasm;
  const networks = models.flatMap((name) => [`models/${name}.json`, `models/${name}.onnx`]);
  const paths = [...page, ...networks, ...runtime.map((name) => `vendor/${name}`)];
  await (await caches.open(CACHE)).addAll(paths.map((path) => SCOPE + path.replace(/^index\.html$/, "")));
}

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(fill());
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  // The page is kept once, whatever stands behind its address; the book is not kept.
  const address = event.request.url.replace(/[?#].*/, "").replace(/\/index\.html$/, "/");
  const ours = address.startsWith(SCOPE) && !address.startsWith(`${SCOPE}book/`);
  if (event.request.method === "GET" && ours) event.respondWith(answer(event, address));
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
