/* The captioner itself, for a page without a kernel: model.py, frames.py and beams.py once more, in plain JavaScript.

`openCaptioner(content)` starts it in a worker and returns what may be asked of it; `content` is what embed.py makes of a run.
Shapes as in Python: T frames, L words, V vocabulary, C context, A attention, H hidden; a matrix is one Float32Array, row by row. */

/** All that computes, in one function: its source is what the worker runs. Returns the calls that it answers. */
function engine(content) {
  const { config, words, decode, ranks, tensors, data } = typeof content === "string" ? JSON.parse(content) : content;
  const [PAD, START, END, UNK] = [0, 1, 2, 3];
  const NEVER = [PAD, START, UNK]; // words that no caption may hold
  const [V, C, A, H] = [words.length, 2 * config.encoder_dim, config.attention_dim, config.decoder_dim];
  const isMatched = config.attention === "matched";
  const numbers = new Map(words.map((word, i) => [word, i]));
  const spoken = new Map(); // word number -> its part of the decoder's gates
  const clips = new Map(); // the latest clips, by their features

  const half = Float32Array.from({ length: 65536 }, (_, bits) => {
    const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  });
  function floats(base64) {
    const bytes = atob(base64);
    const values = new Float32Array(bytes.length / 2);
    for (let i = 0; i < values.length; i++) values[i] = half[bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8)];
    return values;
  }

  const all = floats(data);
  const weight = {};
  let taken = 0;
  for (const [name, shape] of tensors) {
    const size = shape.reduce((product, side) => product * side, 1);
    weight[name] = { width: shape.at(-1), values: all.subarray(taken, (taken += size)) };
  }

  /** rows (n, k) times the transpose of a weight (m, k), plus a bias (m): (n, m). Two rows and four outputs at once: each
   * number that is read serves several sums, and those do not wait for each other. At an odd end the last ones are made twice. */
  function multiply(rows, { values, width: k }, bias) {
    const [n, m] = [rows.length / k, values.length / k];
    const out = new Float32Array(n * m);
    for (let j = 0; j < m; j += 4) {
      const [j1, j2, j3] = [Math.min(j + 1, m - 1), Math.min(j + 2, m - 1), Math.min(j + 3, m - 1)];
      const [w0, w1, w2, w3] = [j * k, j1 * k, j2 * k, j3 * k];
      for (let r = 0; r < n; r += 2) {
        const next = Math.min(r + 1, n - 1);
        let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
        for (let i = 0, a = r * k, b = next * k; i < k; i++, a++, b++) {
          const x = rows[a], y = rows[b];
          const v0 = values[w0 + i], v1 = values[w1 + i], v2 = values[w2 + i], v3 = values[w3 + i];
          a0 += x * v0;
          a1 += x * v1;
          a2 += x * v2;
          a3 += x * v3;
          b0 += y * v0;
          b1 += y * v1;
          b2 += y * v2;
          b3 += y * v3;
        }
        const [at, below] = [r * m, next * m];
        out[at + j] = a0;
        out[at + j1] = a1;
        out[at + j2] = a2;
        out[at + j3] = a3;
        out[below + j] = b0;
        out[below + j1] = b1;
        out[below + j2] = b2;
        out[below + j3] = b3;
      }
    }
    if (bias) for (let i = 0; i < out.length; i++) out[i] += bias.values[i % m];
    return out;
  }
  const linear = (name, rows) => multiply(rows, weight[`${name}.weight`], weight[`${name}.bias`]);
  const sigmoid = (x) => 1 / (1 + Math.exp(-x));

  /** One step of an LSTM: gates (n, 4 · size) and cell states c (n, size), which become the new ones; returns h (n, size). */
  function cell(gates, c, size) {
    const h = new Float32Array(c.length);
    for (let i = 0; i < c.length; i++) {
      const at = 4 * size * Math.floor(i / size) + (i % size);
      c[i] = sigmoid(gates[at + size]) * c[i] + sigmoid(gates[at]) * Math.tanh(gates[at + 2 * size]);
      h[i] = sigmoid(gates[at + 3 * size]) * Math.tanh(c[i]);
    }
    return h;
  }

  /** What all encodings of a clip share, whichever of its frames are seen: everything that reads a frame by itself. */
  function open({ shape, data: features }) {
    if (!clips.has(features)) {
      const own = linear("encoder.project", floats(features)).map((value) => Math.max(0, value)); // (T, C)
      const directions = config.encoder === "bilstm" ? ["", "_reverse"] : [];
      const gates = directions.map((direction) =>
        multiply(own, weight[`encoder.lstm.weight_ih_l0${direction}`], weight[`encoder.lstm.bias_ih_l0${direction}`]));
      const keys = isMatched ? linear("decoder.attention.keys", floats(features)) : null;
      if (clips.size > 3) clips.delete(clips.keys().next().value);
      clips.set(features, { T: shape[0], own, directions, gates, keys, before: new Map(), asked: 0 });
    }
    return clips.get(features);
  }

  const seen = ({ T }, hidden) => {
    const frames = Array.from({ length: T }, (_, frame) => frame).filter((frame) => !hidden.includes(frame));
    if (!frames.length) throw new Error("At least one frame must stay visible.");
    return frames;
  };

  /** Which of the visible frames the model reads, and in which order. */
  function framesOf(visible) {
    let used = visible.map((_, position) => position);
    if (config.max_frames !== null) { // the middle frames of equal parts
      const parts = Math.min(used.length, config.max_frames);
      used = Array.from({ length: parts }, (_, part) => Math.floor(((2 * part + 1) * visible.length) / (2 * parts)));
    }
    const frames = used.map((position) => visible[position]);
    const order = frames.map((_, i) => i);
    if (config.frame_order === "shuffled") order.sort((a, b) => ranks[used[a]] - ranks[used[b]]);
    return { frames, order };
  }

  /** An LSTM's states (size) behind every frame of several lists of frames, read in step: lists that begin alike share their rows. */
  function read(clip, d, lists) {
    const [direction, size] = [clip.directions[d], config.encoder_dim];
    const states = lists.map(() => []);
    let [h, c, rows] = [new Float32Array(size), new Float32Array(size), lists.map(() => 0)];
    for (let i = 0; lists.some((frames) => i < frames.length); i++) {
      const [numbered, reads] = [new Map(), []];
      rows = lists.map((frames, n) => {
        if (i >= frames.length) return -1;
        const key = rows[n] * clip.T + frames[i];
        if (!numbered.has(key)) numbered.set(key, reads.push({ k: rows[n], frame: frames[i] }) - 1);
        return numbered.get(key);
      });
      const gates = multiply(pick(h, reads, size), weight[`encoder.lstm.weight_hh_l0${direction}`], weight[`encoder.lstm.bias_hh_l0${direction}`]);
      reads.forEach(({ frame }, r) => {
        for (let j = 0, to = r * 4 * size, at = frame * 4 * size; j < 4 * size; j++, to++, at++) gates[to] += clip.gates[d][at];
      });
      c = pick(c, reads, size);
      h = cell(gates, c, size);
      rows.forEach((row, n) => row >= 0 && states[n].push(h.subarray(row * size, (row + 1) * size)));
    }
    return states;
  }

  /** The memories of a clip of which the model is shown these frames (in time) or those, each with the decoder's state before the first word. */
  function encodeAll(clip, shown) {
    const parts = shown.map(framesOf);
    const memories = parts.map(({ frames }) => {
      const values = new Float32Array(frames.length * C);
      frames.forEach((frame, i) => values.set(clip.own.subarray(frame * C, (frame + 1) * C), i * C));
      return { T: clip.T, frames, values };
    });
    clip.directions.forEach((_, d) => {
      const orders = parts.map(({ order }) => (d ? [...order].reverse() : order));
      const states = read(clip, d, orders.map((order, n) => order.map((i) => parts[n].frames[i])));
      states.forEach((rows, n) => rows.forEach((h, at) => {
        const to = orders[n][at] * C + d * config.encoder_dim;
        for (let j = 0; j < h.length; j++) memories[n].values[to + j] += h[j];
      }));
    });
    return memories.map(({ T, frames, values }) => {
      const mean = new Float32Array(C);
      values.forEach((value, i) => (mean[i % C] += value / frames.length));
      const keys = clip.keys ? Float32Array.from(frames.flatMap((frame) => [...clip.keys.subarray(frame * A, (frame + 1) * A)])) : linear("decoder.attention.keys", values);
      const [h, c] = ["h", "c"].map((part) => linear(`decoder.init_${part}`, mean).map(Math.tanh));
      return { T, frames, values, keys, h, c, said: new Float32Array(isMatched ? A : 0) };
    });
  }
  const encode = (clip, visible) => encodeAll(clip, [visible])[0];

  /** Attention weights over a memory's frames for row `r` of queries (n, A). */
  function weigh(queries, r, { keys, frames }) {
    const v = weight["decoder.attention.score.weight"]?.values;
    const scores = frames.map((_, i) => {
      let score = 0;
      for (let a = 0, q = r * A, k = i * A; a < A; a++, q++, k++) {
        score += isMatched ? queries[q] * keys[k] : v[a] * Math.tanh(queries[q] + keys[k]);
      }
      return config.attention === "uniform" ? 0 : score;
    });
    const most = Math.max(...scores);
    const shares = scores.map((score) => Math.exp(score - most));
    const sum = shares.reduce((total, share) => total + share);
    return shares.map((share) => share / sum);
  }

  function gatesOf(word) {
    const size = config.embed_dim;
    if (!spoken.has(word)) {
      const row = weight["decoder.embed.weight"].values.subarray(word * size, (word + 1) * size);
      spoken.set(word, linear("decoder.word_gates", row));
    }
    return spoken.get(word);
  }

  /** Reads one word for each of n captions, each on a memory of its own, from states h and c (n, H), and the sums of the words said
   * (n, A) where attention goes by them.
   * Returns the new states, the log-probabilities of the next word, n times (V), and the attention, n times (T), 0 where no frame was read. */
  function step(memories, read, { h, c, said: before }) {
    const n = read.length;
    const vectors = weight["decoder.attention.said.weight"]?.values;
    const said = before.map((sum, i) => sum + vectors[read[Math.floor(i / A)] * A + (i % A)]);
    const queries = isMatched ? said : linear("decoder.attention.query", h);
    const [inputs, outputs] = [new Float32Array(n * (C + H)), new Float32Array(n * (C + H))]; // [context; h], [h; context]
    const attention = memories.map((memory, r) => {
      const context = new Float32Array(C);
      const row = new Array(memory.T).fill(0);
      weigh(queries, r, memory).forEach((share, i) => {
        row[memory.frames[i]] = share;
        for (let j = 0, at = i * C; j < C; j++, at++) context[j] += share * memory.values[at];
      });
      inputs.set(context, r * (C + H));
      inputs.set(h.subarray(r * H, (r + 1) * H), r * (C + H) + C);
      outputs.set(context, r * (C + H) + H);
      return row;
    });
    const gates = multiply(inputs, weight["decoder.state_gates.weight"]);
    read.forEach((word, r) => gatesOf(word).forEach((value, i) => (gates[r * 4 * H + i] += value)));
    const next = c.slice();
    const state = { h: cell(gates, next, H), c: next, said };
    for (let r = 0; r < n; r++) outputs.set(state.h.subarray(r * H, (r + 1) * H), r * (C + H));
    const logits = linear("decoder.output", linear("decoder.readout", outputs).map(Math.tanh));
    const logProbs = memories.map((_, r) => logSoftmax(logits.subarray(r * V, (r + 1) * V)));
    return { state, logProbs, attention };
  }

  function logSoftmax(row) {
    const most = row.reduce((a, b) => Math.max(a, b), -Infinity);
    const total = most + Math.log(row.reduce((sum, value) => sum + Math.exp(value - most), 0));
    return row.map((value) => value - total);
  }

  /** Numbers of the `count` largest values, largest first; of equals the first, and none that is -Infinity or NaN. */
  function largest(values, count) {
    const best = [];
    for (let i = 0; i < values.length; i++) {
      if (!(values[i] > (best.length < count ? -Infinity : values[best[count - 1]]))) continue;
      let at = best.length;
      while (at && values[best[at - 1]] < values[i]) at--;
      best.splice(at, 0, i);
      best.length = Math.min(best.length, count);
    }
    return best;
  }

  const forbid = (logProbs, isFirst) => { // a caption has at least one word
    for (const word of isFirst ? [...NEVER, END] : NEVER) logProbs[word] = -Infinity;
  };

  /** Forbids every word that would repeat an n-gram of its own caption. */
  function blockRepeats(ids, logProbs, size) {
    const tail = ids.slice(ids.length - size + 1);
    for (let begin = 0; begin + size <= ids.length; begin++) {
      if (tail.every((id, i) => id === ids[begin + i])) logProbs[ids[begin + size - 1]] = -Infinity;
    }
  }

  /** Up to K captions that begin with the words `given`, best first, ended ones before those cut at max_length: `beams.search`. */
  function search(clip, visible, given, K) {
    const memory = encode(clip, visible);
    const score = (beam, length) => beam.total / length ** (decode.length_penalty ?? 1);
    const ranked = (beams) => beams.sort((a, b) => b.score - a.score); // a stable sort, as in Python
    const ended = [];
    let beams = [{ ids: [], total: 0, probabilities: [], weights: [] }];
    let state = memory;
    for (let t = 0; ; t++) {
      const next = step(beams.map(() => memory), beams.map((beam) => beam.ids.at(-1) ?? START), state);
      const candidates = beams.flatMap((beam, k) => {
        const logProbs = next.logProbs[k];
        forbid(logProbs, t === 0);
        if (decode.no_repeat_ngram !== null) blockRepeats(beam.ids, logProbs, decode.no_repeat_ngram);
        const likely = t < given.length ? [given[t]].filter((word) => logProbs[word] > -Infinity) : largest(logProbs, 2 * K);
        return likely.map((word) => ({
          k, ids: [...beam.ids, word], total: Math.fround(beam.total + logProbs[word]),
          probabilities: [...beam.probabilities, Math.exp(logProbs[word])], weights: [...beam.weights, next.attention[k]],
        }));
      }).sort((a, b) => b.total - a.total).slice(0, 2 * K); // each beam ends in one way only: K of these go on
      for (const beam of candidates.slice(0, K)) if (beam.ids.at(-1) === END) ended.push({ ...beam, score: score(beam, t + 1) });
      beams = candidates.filter((beam) => beam.ids.at(-1) !== END).slice(0, K);
      ranked(ended);
      // Five poor endings must not cut off a good caption that is still being written.
      const settled = beams.length && ended.length >= K && ended[K - 1].score >= score(beams[0], t + 1);
      if (settled || !beams.length || t + 1 >= decode.max_length) {
        return [...ended, ...ranked(beams.map((beam) => ({ ...beam, score: score(beam, t + 1) })))].slice(0, K);
      }
      const { h, c, said } = next.state;
      state = { h: pick(h, beams, H), c: pick(c, beams, H), said: pick(said, beams, isMatched ? A : 0) };
    }
  }

  /** Of rows (n, size) those that the beams go on from. */
  function pick(rows, beams, size) {
    const picked = new Float32Array(beams.length * size);
    beams.forEach(({ k }, i) => picked.set(rows.subarray(k * size, (k + 1) * size), i * size));
    return picked;
  }

  const idsOf = (texts) => texts.map((word) => numbers.get(word) ?? UNK);

  /** Teacher forcing: what `step` makes of n memories for every word of `ids`. A `path` that an earlier caption left behind is
   * taken as far as the two begin alike. */
  function force(memories, ids, path) {
    const join = (part) => Float32Array.from(memories.flatMap((memory) => [...memory[part]]));
    const first = ids.findIndex((id, t) => !path[t] || (t && path[t].read !== ids[t - 1]));
    if (first >= 0) path.length = first;
    while (path.length < ids.length) {
      const read = path.length ? ids[path.length - 1] : START;
      const state = path.at(-1)?.state ?? { h: join("h"), c: join("c"), said: join("said") };
      path.push({ read, ...step(memories, memories.map(() => read), state) });
    }
    return path.slice(0, ids.length).map(({ logProbs }) => logProbs);
  }

  /** The memories of a clip without every frame in turn, and with it the neighbours that `window` counts. */
  function without(clip, visible, window) {
    if (!(window >= 1 && window < visible.length)) {
      throw new Error(`A clip of ${visible.length} visible frames cannot do without ${window} of them.`);
    }
    const back = Math.floor((window - 1) / 2);
    return encodeAll(clip, visible.map((_, t) => visible.filter((_, i) => i < t - back || i >= t - back + window)));
  }

  /** For every word of `ids` the likeliest in its place, and what the frames are worth to the word and to those, once for each
   * list of memories in `parts`. */
  function measure(clip, visible, ids, parts = [], path = []) {
    const spread = (nats) => { // from the visible frames to all
      const row = new Array(clip.T).fill(0);
      visible.forEach((frame, i) => (row[frame] = nats[i]));
      return row;
    };
    return force([encode(clip, visible), ...parts.flat()], ids, path).map(([whole, ...rest], t) => {
      const likely = whole.slice();
      forbid(likely, t === 0);
      const best = largest(likely, 5);
      const nats = (word) => parts.map((part, i) => spread(part.map((_, frame) => whole[word] - rest[i * part.length + frame][word])));
      const alternatives = best.map((word) => ({ word: words[word], probability: Math.exp(whole[word]) }));
      return { alternatives, needed: nats(ids[t]), others: best.map(nats) };
    });
  }

  function captionsOf(features, start, { hidden = [], beam = decode.beam_size } = {}) {
    const clip = open(features);
    const visible = seen(clip, hidden);
    clip.asked++;
    const found = search(clip, visible, idsOf(start), beam);
    if (!found.length) {
      throw new Error(start.length ? `no caption can begin with “${start.join(" ")}”` : "the model's numbers are not finite; train again with a lower lr");
    }
    const beams = found.map(({ ids, score, probabilities, weights }) =>
      ({ words: ids.filter((id) => id !== END).map((id) => words[id]), score, probabilities, weights }));
    let before = null;
    if (hidden.length || start.length) {
      if (!clip.before.has(beam)) clip.before.set(beam, captionsOf(features, [], { beam }).beams[0]);
      before = { words: clip.before.get(beam).words, score: clip.before.get(beam).score };
    }
    return { hidden: [...hidden].sort((a, b) => a - b), start, before, beams };
  }

  return {
    settings: () => decode,
    caption: (features, options) => captionsOf(features, [], options),
    continueFrom: captionsOf,
    alternatives(features, texts, { hidden = [] } = {}) {
      const clip = open(features);
      return measure(clip, seen(clip, hidden), [...idsOf(texts), END]).map(({ alternatives }) => alternatives);
    },
    need(features, texts, { hidden = [], window = 1 } = {}) {
      const clip = open(features);
      const visible = seen(clip, hidden);
      return measure(clip, visible, [...idsOf(texts), END], [without(clip, visible, window)]).map(({ needed }) => needed[0]);
    },
    async needs(features, { beams }, { hidden = [], windows = [1, 3] } = {}) {
      const clip = open(features);
      const visible = seen(clip, hidden);
      const sizes = windows.filter((window) => window < visible.length);
      const parts = sizes.map((window) => without(clip, visible, window));
      const [asked, path, measured] = [clip.asked, [], []];
      const byWindow = (tables) => Object.fromEntries(sizes.map((window, i) => [window, tables(i)]));
      const memories = [encode(clip, visible), ...parts.flat()];
      let rested = -Infinity;
      for (const { words: texts, weights } of sizes.length ? beams : []) {
        const ids = [...idsOf(texts), ...(weights.length > texts.length ? [END] : [])];
        for (let t = 1; t <= ids.length; t++) {
          if (performance.now() - rested > 30) {
            await new Promise((resolve) => setTimeout(resolve)); // what was asked in the meantime comes first
            if (clip.asked !== asked) return []; // another caption of this clip: no one waits for these any more
            rested = performance.now();
          }
          force(memories, ids.slice(0, t), path);
        }
        const places = measure(clip, visible, ids, parts, path);
        const likely = (name) => places.map(({ alternatives }) => alternatives.map((each) => each[name]));
        const others = { words: likely("word"), probabilities: likely("probability") };
        if (!measured.length) others.needs = byWindow((i) => places.map((place) => place.others.map((nats) => nats[i])));
        measured.push({ needs: byWindow((i) => places.map(({ needed }) => needed[i])), others });
      }
      return measured;
    },
  };
}

/** Answers requests {id, name, values} by `reply`, in the worker or in the page. */
function answer(reply) {
  let calls;
  return async ({ id, name, values }) => {
    try {
      if (name === "open") calls = engine(...values);
      reply({ id, value: name === "open" ? calls.settings() : await calls[name](...values) });
    } catch (error) {
      reply({ id, error: error.message });
    }
  };
}

/** Starts the captioner. `content`: the model as embed.py writes it, an object or its JSON text, which is read in the worker.
 *
 * Returns, behind promises: caption(features, {hidden, beam}), continueFrom(features, words, {hidden, beam}),
 * alternatives(features, words, {hidden}), need(features, words, {hidden, window}), needs(features, captions, {hidden, windows}).
 * `words` is a caption without <end>; `features` are a clip's as embed.py writes them; frames count from 0. */
export async function openCaptioner(content) {
  const waiting = new Map();
  let last = 0;
  const settle = ({ id, value, error }) => {
    const [resolve, reject] = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) resolve(value);
    else reject(new Error(error));
  };
  const worker = await startWorker().catch(() => null); // refused, as in a sandbox: then it works in the page
  const here = worker ? null : answer(settle);
  if (worker) {
    worker.onmessage = ({ data }) => settle(data);
    worker.onerror = ({ message }) => [...waiting.keys()].forEach((id) => settle({ id, error: message }));
  }
  const ask = (name) => (...values) => new Promise((resolve, reject) => {
    waiting.set(++last, [resolve, reject]);
    const request = { id: last, name, values };
    if (worker) worker.postMessage(request);
    else setTimeout(here, 0, request);
  });
  const names = ["caption", "continueFrom", "alternatives", "need", "needs"];
  const decode = await ask("open")(content);
  return { decode, inWorker: Boolean(worker), close: () => worker?.terminate(), ...Object.fromEntries(names.map((name) => [name, ask(name)])) };
}

async function startWorker() {
  const source = `${engine}\n${answer}\nconst handle = answer(postMessage);\nonmessage = ({ data }) => handle(data);\npostMessage("ready");`;
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  try {
    const worker = new Worker(url);
    await new Promise((resolve, reject) => Object.assign(worker, { onmessage: resolve, onerror: reject }));
    return worker;
  } finally {
    URL.revokeObjectURL(url);
  }
}
