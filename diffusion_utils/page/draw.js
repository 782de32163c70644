// Drawing, without the network: torch's noise, DPM-Solver++(2M), and the words of a prompt.
// The counterparts in Python are diffusion_utils/sampling.py and diffusion_utils/networks/text.py.

/** Mersenne Twister (Matsumoto & Nishimura 1998), which torch's generator on the CPU is. */
function twister(seed) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i++) {
    const last = state[i - 1] ^ (state[i - 1] >>> 30);
    state[i] = Math.imul(1812433253, last) + i;
  }
  let place = 624;
  return () => {
    if (place === 624) {
      for (let i = 0; i < 624; i++) {
        const joined = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (joined >>> 1) ^ (joined & 1 ? 0x9908b0df : 0);
      }
      place = 0;
    }
    let y = state[place++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
}

/**
 * torch.randn(count, generator=torch.Generator().manual_seed(seed)): standard normal numbers.
 * Torch takes uniform numbers of 24 bits, 16 at a time, and makes normal ones of the first eight and the
 * last eight (Box & Muller 1958). count: a multiple of 16.
 */
export function randn(count, seed) {
  // Larger ones are folded in sampling.py, by arithmetic that the page has not.
  if (!(Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32)) throw new RangeError(`no seed below 2 ** 32: ${seed}`);
  const next = twister(seed);
  const numbers = Float32Array.from({ length: count }, () => (next() & 0xffffff) / 2 ** 24);
  for (let block = 0; block < count; block += 16) {
    for (let i = block; i < block + 8; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - numbers[i]));
      const angle = 2 * Math.PI * numbers[i + 8];
      numbers[i] = radius * Math.cos(angle);
      numbers[i + 8] = radius * Math.sin(angle);
    }
  }
  return numbers;
}

/** Noise for several pictures of `count` numbers, one seed each, one after the other. */
export function noise(seeds, count) {
  const all = new Float32Array(seeds.length * count);
  seeds.forEach((seed, i) => all.set(randn(count, seed), i * count));
  return all;
}

/** The timesteps that a walk of so many steps visits, from noisy to clean ("trailing"). */
export function timesteps(T, steps) {
  // Python rounds halves to the even neighbour.
  const round = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));
  return Array.from({ length: steps }, (_, i) => round(T - (i * T) / steps) - 1);
}

/** √ᾱ and √(1 - ᾱ) at timestep t; -1 is the finished picture. */
export function alphaSigma(alphasCumprod, t) {
  return t < 0 ? [1, 0] : [Math.sqrt(alphasCumprod[t]), Math.sqrt(1 - alphasCumprod[t])];
}

/**
 * DPM-Solver++(2M) (Lu et al. 2022, algorithm 1 with data prediction): yields {t, x, x0} before each move, and
 * at the end {t: -1, x, x0: x}.
 * predict: async (x, t) to x̂₀, Float32Arrays;  x: where to start, changed on the way.
 */
export async function* dpmSolver(predict, alphasCumprod, x, visited) {
  let previous = null;
  for (const [i, t] of visited.entries()) {
    const [alphaT, sigmaT] = alphaSigma(alphasCumprod, t);
    const [alphaS, sigmaS] = alphaSigma(alphasCumprod, visited[i + 1] ?? -1);
    const x0 = (await predict(x, t)).map((value) => Math.min(1, Math.max(-1, value)));
    yield { t, x, x0 };
    const lambda = Math.log(alphaT / sigmaT);
    let bend = 0; // of the line through this guess and the previous one; straight in log(α/σ)
    if (previous && sigmaS > 0) {
      bend = (Math.log(alphaS / sigmaS) - lambda) / (2 * (lambda - previous.lambda));
    }
    const keep = sigmaS / sigmaT;
    const add = alphaS - (sigmaS * alphaT) / sigmaT;
    x = x.map((value, j) => keep * value + add * (x0[j] + (bend && bend * (x0[j] - previous.x0[j]))));
    previous = { x0, lambda };
  }
  yield { t: -1, x, x0: x };
}

/** x_t of the forward process: √ᾱ·x₀ + √(1 - ᾱ)·ε. */
export function addNoise(alphasCumprod, x0, epsilon, t) {
  const [alpha, sigma] = alphaSigma(alphasCumprod, t);
  return x0.map((value, i) => alpha * value + sigma * epsilon[i]);
}

/** The words of a text, in small letters. */
export const split = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];

/** Numbers of the known words, then zeros. */
export function encode(text, words, length) {
  const known = split(text).map((word) => words.indexOf(word) + 1).filter((place) => place > 0);
  return Array.from({ length }, (_, i) => known[i] ?? 0);
}

/** Which words of a prompt the network does not get; "" if it gets all. */
export function remark(text, words, length) {
  const known = split(text).filter((word) => words.includes(word));
  const unknown = [...new Set(split(text).filter((word) => !words.includes(word)))];
  const remarks = [];
  if (unknown.length) remarks.push(`Not learnt, so left out: ${unknown.join(", ")}.`);
  if (known.length > length) remarks.push(`Only the first ${length} words count, not: ${known.slice(length).join(" ")}.`);
  if (!known.length) remarks.push("No word to go by: any car may come.");
  return remarks.join(" ");
}

/** Numbers in [-1, 1], picture after picture, each 3×size×size, to bytes 0 … 255 of the same order. */
export function toBytes(numbers) {
  return Uint8ClampedArray.from(numbers, (value) => (value + 1) * 127.5); // clamps, and rounds
}
