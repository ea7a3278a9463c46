/* The attention explorer: one front end, for the page (page.html) and for notebooks (explorer.py, as an anywidget).

It draws one clip with its captions from two plain objects:

  clip      title, note, times (T, seconds), timed (false: no times are known), images (T data: addresses, or none: numbered
            tiles are drawn), aspect (width / height), references
  captions  hidden (frames the model was not shown), before (words and score with all frames, or null), beams; a beam has
            words (L), score, and for every word, then for <end> where it was reached: probabilities, weights (T each)

Text reaches the document through textContent and properties alone: no caption, id or file name is ever read as HTML. */

const END = "<end>";
const UNIFORM_TONE = 0.25; // where uniform attention lies on the colour scale
const FLAT = 0.95; // the spread from which on a row is called uniform
const LONG = 12; // with more words than this the caption is set smaller
const WIDE = 20; // with more frames than this the heatmap has no room for numbers and pictures
const KEYS = [
  ["← →", "previous and next word"],
  ["↑ ↓", "on the caption: other captions"],
  ["Home End", "on the caption: first and last word"],
  ["space", "play or pause"],
  ["H", "on a frame: hide or show it"],
];

/** The colour scale of a clip of `count` frames: weight to 0…1. The same weight has the same colour in every row. */
export function scaleOf(count) {
  const power = count > 1 ? -Math.log(UNIFORM_TONE) / Math.log(count) : 1;
  return (weight) => weight ** power;
}

/** Entropy of a row over `visible` frames as a share of its maximum: 0 = one frame, 1 = all frames alike. */
export function spreadOf(row, visible) {
  const entropy = row.reduce((sum, weight) => (weight > 0 ? sum - weight * Math.log(weight) : sum), 0);
  return visible > 1 ? Math.min(1, Math.max(0, entropy / Math.log(visible))) : 0;
}

/** For the words of two captions: true where a word takes no part in their longest common subsequence. */
export function changesOf(before, after) {
  const common = Array.from({ length: before.length + 1 }, () => new Uint16Array(after.length + 1));
  for (let i = before.length - 1; i >= 0; i--) {
    for (let j = after.length - 1; j >= 0; j--) {
      common[i][j] = before[i] === after[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  const changed = [before.map(() => true), after.map(() => true)];
  for (let i = 0, j = 0; i < before.length && j < after.length; ) {
    if (before[i] === after[j]) changed[0][i++] = changed[1][j++] = false;
    else if (common[i + 1][j] >= common[i][j + 1]) i++;
    else j++;
  }
  return changed;
}

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}
const quiet = (text) => make("span", { className: "vc-quiet", textContent: text });
const percent = (share) => (share > 0 && share < 0.01 ? "<1 %" : `${Math.round(100 * share)} %`);
const number = (value) => value.toFixed(2).replace("-", "−");
const strongestOf = (row) => row.indexOf(Math.max(...row));
const tone = (node, value) => (node.style.setProperty("--vc-tone", value.toFixed(3)), node);

/** What stands under each frame: its time, with as many digits as tell neighbours apart. */
export function labelsOf({ times, timed }) {
  const close = times.some((time, i) => i && time - times[i - 1] < 0.1);
  return times.map((time, i) => (timed ? `${time.toFixed(close ? 2 : 1)} s` : `frame ${i + 1}`));
}

/** Pictures that stand in for `count` frames whose own are not at hand. */
function numberTiles(count) {
  const canvas = make("canvas", { width: 160, height: 120 });
  const pen = canvas.getContext("2d");
  return Array.from({ length: count }, (_, i) => {
    Object.assign(pen, { fillStyle: "#606c7c", textAlign: "center", textBaseline: "middle", font: "600 52px system-ui, sans-serif" });
    pen.fillRect(0, 0, 160, 120);
    pen.fillStyle = "#e8ecf0";
    pen.fillText(i + 1, 80, 64);
    return canvas.toDataURL();
  });
}

function mark(nodes, chosen) {
  [...nodes].forEach((node, i) => (i === chosen ? node.setAttribute("aria-current", "true") : node.removeAttribute("aria-current")));
}

/** Light or dark like the text around it, whatever the notebook calls its themes; returns the function that looks, and one that ends it. */
function followTheme(root) {
  const look = () => {
    if (!root.isConnected) return;
    const [red, green, blue] = getComputedStyle(root.parentNode.host ?? root.parentNode).color.match(/[\d.]+/g).map(Number);
    root.classList.toggle("vc-dark", 0.3 * red + 0.59 * green + 0.11 * blue > 128);
  };
  const watcher = new MutationObserver(look);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  for (const node of [document.documentElement, document.body]) watcher.observe(node, { attributes: true });
  scheme.addEventListener("change", look);
  return [look, () => (watcher.disconnect(), scheme.removeEventListener("change", look))];
}

/** The skeleton of a view, its parts by name. */
function skeleton(root, controls, hide) {
  const part = {};
  const named = (name, tag, properties = {}, ...children) =>
    (part[name] = make(tag, { className: `vc-${name}`, ...properties }, ...children));
  const section = (heading, about, ...children) =>
    make("section", {}, make("div", { className: "vc-head" }, make("h3", { textContent: heading }), ...about), ...children);
  root.append(
    make("div", { className: "vc-head" }, named("title", "h2", { dir: "auto" }), named("chooser", "label", { hidden: true })),
    named("note", "p", { dir: "auto" }),
    named("message", "p", { role: "status", dir: "auto" }),
    make("section", { ariaLabel: "Caption" },
      named("words", "div", { dir: "auto", role: "group", ariaLabel: "Words of the caption" }),
      named("controls", "div", { hidden: !controls },
        named("previous", "button", { className: "vc-plain vc-previous", textContent: "‹", ariaLabel: "Previous word" }),
        named("play", "button", { className: "vc-plain vc-play", textContent: "Play" }),
        named("next", "button", { className: "vc-plain vc-next", textContent: "›", ariaLabel: "Next word" }),
        named("slider", "input", { type: "range", min: 0, step: 1, ariaLabel: "Word" }),
        named("position", "span", { className: "vc-position vc-quiet" })),
      make("p", { className: "vc-quiet", textContent:
        "The model’s caption. Choose a word to see which frames the model attended to: under it stand its row of attention over the " +
        "frames, and the time of the strongest." })),
    make("div", { className: "vc-stage" },
      named("answer", "p", { role: "status", dir: "auto" }), named("big", "figure"), named("runners", "div")),
    section("All frames, lit by this word’s attention", [named("legend", "div", { role: "img" })],
      make("p", { className: "vc-quiet", textContent:
        "The brighter a frame, the larger its attention weight for this word: evidence of where the model looked, not proof of " +
        "why it said the word." }),
      named("strip", "ol"), named("hiding", "div"), named("effect", "div", { hidden: true })),
    section("Every word and every frame", [quiet("in %, with the colours of the legend above")],
      named("heat", "table", { ariaLabel: "Attention of every word to every frame" })),
    named("others", "div", {},
      section("Captions the model weighed against each other", [quiet("score: log-probability, scaled by length; nearer to 0 is better")],
        named("beams", "ol"))),
    named("people", "div", {}, section("What people wrote", [], named("references", "ul", { className: "vc-references vc-quiet" }))),
    make("footer", { className: "vc-quiet" }, ...KEYS.filter(([key]) => (key !== "space" || controls) && (key !== "H" || hide)).map(([key, does]) =>
      make("span", {}, ...key.split(" ").flatMap((name) => [make("kbd", { textContent: name }), " "]), does))),
  );
  return part;
}

/** Draws a view into `root`.
 *
 * `controls`: with controls of its own (a notebook brings Play and a slider). `hide(frames)`: called when someone asks for exactly
 * these frames to be hidden; without it nothing can be hidden. `moved({word, beam, last})`: called after every step.
 * Returns what the owner may ask of it: show, choose, setHidden, say, and close. */
export function createView(root, { controls = false, hide = null, moved = () => {} } = {}) {
  root.classList.add("vcx");
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the keys
  const part = skeleton(root, controls, hide);
  const view = { part, word: 0, beam: 0, show, choose, setHidden, say, close };
  let clip, captions, beam, labels, images, scale, wanted = new Set(), enlarged = new Map(), forward = 0, timer = 0;

  const when = (frame) => labels[frame];
  const named = (frame) => (clip.timed ? `the frame at ${when(frame)}` : when(frame));
  const visible = () => labels.length - captions.hidden.length;
  const picture = (frame, alt = named(frame)) => make("img", { src: images[frame], alt });
  // A picture's data: address is long to parse, so that each enlarged frame is made once and then only moved.
  function large(kind, frame) {
    const key = `${kind} ${frame}`;
    if (!enlarged.has(key)) enlarged.set(key, make("div", { className: "vc-frame" }, picture(frame)));
    return enlarged.get(key);
  }

  function show(newClip, newCaptions, { word = view.word, beam: chosen = 0, hidden = newCaptions.hidden } = {}) {
    pause();
    captions = newCaptions;
    wanted = new Set(hidden);
    if (newClip !== clip) drawClip(newClip);
    part.beams.replaceChildren(...captions.beams.map((each, i) =>
      make("li", {}, make("button", { className: "vc-plain", onclick: () => chooseBeam(i) },
        make("span", { className: "vc-score", textContent: number(each.score) }), make("bdi", { textContent: each.words.join(" ") })))));
    part.others.hidden = captions.beams.length < 2;
    drawLegend();
    drawEffect();
    chooseBeam(Math.min(chosen, captions.beams.length - 1), word);
  }

  function drawClip(newClip) {
    clip = newClip;
    labels = labelsOf(clip);
    images = clip.images.length ? clip.images : numberTiles(labels.length);
    enlarged = new Map();
    scale = scaleOf(labels.length);
    part.title.textContent = clip.title;
    part.note.textContent = clip.note;
    part.note.hidden = !clip.note;
    root.style.setProperty("--vc-aspect", clip.aspect);
    root.style.setProperty("--vc-tile", `${Math.round(94 * Math.min(1.2, Math.max(0.72, Math.sqrt(clip.aspect / 1.33))))}px`);
    part.strip.replaceChildren(...images.map((_, frame) => {
      const label = make("span", { className: "vc-label" }, make("span", { textContent: when(frame) }), make("span"));
      const tile = make("button", { className: "vc-tile", onclick: () => look(frame) },
        make("span", { className: "vc-frame" }, picture(frame, "")), make("span", { className: "vc-band vc-hot" }), label);
      const item = make("li", {}, tile);
      if (hide) item.append(make("button", { className: "vc-eye", onclick: () => toggle(frame) }));
      return item;
    }));
    part.hiding.hidden = !hide;
    if (hide) drawHiding();
    part.references.replaceChildren(...clip.references.map((text) => make("li", { dir: "auto", textContent: text })));
    part.people.hidden = !clip.references.length;
  }

  function drawHiding() {
    const choice = (name, chosen) => make("select", { className: "vc-plain", ariaLabel: name }, ...labels.map((label, i) =>
      make("option", { value: i, textContent: label, selected: i === chosen })));
    const [from, to] = [choice("from", 0), choice("to", labels.length - 1)];
    const button = (className, textContent, onclick) => make("button", { className: `vc-plain ${className}`, textContent, onclick });
    part.hiding.replaceChildren(
      make("span", { className: "vc-quiet", textContent: "What would it say without them? Hide single frames (⊘), or from " }),
      from, quiet("to"), to,
      button("vc-hide", "Hide", () => {
        const [first, last] = [Number(from.value), Number(to.value)].sort((a, b) => a - b);
        ask([...wanted, ...Array.from({ length: last - first + 1 }, (_, i) => first + i)]);
      }),
      button("vc-show", "Show all", () => ask([])));
  }

  function drawLegend() {
    const uniform = 1 / visible();
    const tick = (weight, text, name = "") => {
      const node = make("span", { className: `vc-tick ${name}`, textContent: text });
      node.style.setProperty("--vc-at", `${100 * scale(weight)}%`);
      return node;
    };
    part.legend.ariaLabel = `Colours from 0 % to 100 % of the attention; uniform attention is ${percent(uniform)}`;
    const ticks = [tick(0, "0 %"), tick(1, "100 %")];
    if (uniform < 1) ticks.push(tick(uniform, `uniform ${percent(uniform)}`, "vc-uniform"));
    if (uniform < 0.3) ticks.push(tick(0.5, "50 %"));
    part.legend.replaceChildren(make("span", { className: "vc-ramp" }), ...ticks);
  }

  function drawEffect() {
    const { before, beams } = captions;
    part.effect.hidden = !before;
    if (!before) return part.effect.replaceChildren();
    const after = beams[0];
    const marks = changesOf(before.words, after.words);
    const line = (name, caption, changed, tag) => make("tr", {}, make("th", { scope: "row", textContent: name }),
      make("td", { dir: "auto" }, ...caption.words.flatMap((word, i) => [i ? " " : "", changed[i] ? make(tag, { textContent: word }) : word])),
      make("td", { className: "vc-score", textContent: number(caption.score) }));
    part.effect.replaceChildren(
      make("table", {}, make("tbody", {}, line("all frames", before, marks[0], "del"), line("without the hidden", after, marks[1], "mark"))),
      quiet(before.words.join(" ") === after.words.join(" ") ? "The same words: compare the scores." : ""));
  }

  function chooseBeam(index, word = view.word) {
    const { words, weights, probabilities } = captions.beams[index];
    const ended = weights.length > words.length;
    beam = { texts: ended ? [...words, END] : words, ended, weights, probabilities };
    view.beam = index;
    forward = 0;
    mark(part.beams.querySelectorAll("button"), index);
    part.words.classList.toggle("vc-long", words.length > LONG);
    part.words.replaceChildren(...beam.texts.map((text, i) => {
      const strongest = strongestOf(weights[i]);
      const flat = spreadOf(weights[i], visible()) >= FLAT;
      const row = make("span", { className: "vc-row", dir: "ltr" }, ...weights[i].map((weight) => tone(make("i", { className: "vc-hot" }), scale(weight))));
      const time = make("small", { dir: "ltr", textContent: flat ? "all alike" : when(strongest) });
      const button = make("button", { className: isEnd(i) ? "vc-end" : "", onclick: () => choose(i) }, make("span", { dir: isEnd(i) ? "ltr" : "", textContent: text }), row, time);
      button.ariaLabel = `${text}, ${flat ? "looks at all frames alike" : `looks most at ${named(strongest)}`}`;
      return button;
    }));
    part.slider.max = beam.texts.length - 1;
    part.slider.disabled = beam.texts.length < 2;
    drawHeat();
    choose(word);
  }
  const isEnd = (i) => beam.ended && i === beam.texts.length - 1;

  function drawHeat() {
    const frames = labels.length;
    const heads = labels.map((label, i) => make("th", { scope: "col" }, ...(frames <= WIDE ? [picture(i, "")] : []), make("span", { textContent: label })));
    const rows = beam.texts.map((text, i) => {
      const name = make("button", { onclick: () => choose(i), tabIndex: -1, dir: "auto", className: isEnd(i) ? "vc-end" : "" }, make("bdi", { textContent: text }));
      const cells = beam.weights[i].map((weight, frame) => {
        const cell = make("td", { className: "vc-hot", title: `${text}, ${when(frame)}: ${percent(weight)}` });
        cell.onclick = () => (choose(i), look(frame));
        if (frames <= WIDE && weight >= 0.005) cell.textContent = Math.round(100 * weight);
        return tone(cell, scale(weight));
      });
      const spread = make("td", { className: "vc-spread", textContent: number(spreadOf(beam.weights[i], visible())) });
      spread.style.setProperty("--vc-spread", `${100 * spreadOf(beam.weights[i], visible())}%`);
      return make("tr", {}, make("th", { scope: "row" }, name), ...cells, spread);
    });
    const longest = Math.min(12, Math.max(5, ...beam.texts.map((text) => text.length)));
    part.heat.style.setProperty("--vc-name", `${longest * 0.6 + 1.8}rem`);
    part.heat.classList.toggle("vc-many", frames > WIDE);
    part.heat.replaceChildren(
      make("thead", {}, make("tr", {}, make("td", { className: "vc-corner" }), ...heads, make("th", { scope: "col", className: "vc-spread", textContent: "spread" }))),
      make("tbody", {}, ...rows));
    thin();
  }

  /** As many times over the heatmap as there is room for. */
  function thin() {
    const every = Math.ceil(labels.length / Math.max(1, Math.floor((part.heat.clientWidth * 0.75) / 46)));
    part.heat.querySelectorAll("thead th > span").forEach((label, i) => (label.hidden = i % every !== 0));
  }

  function choose(index) {
    const word = (view.word = Math.min(Math.max(0, index), beam.texts.length - 1));
    const row = beam.weights[word];
    const strongest = strongestOf(row);
    mark(part.words.childNodes, word);
    mark(part.heat.tBodies[0].rows, word);
    part.slider.value = word;
    part.slider.setAttribute("aria-valuetext", beam.texts[word]);
    part.position.textContent = isEnd(word) ? "the end" : `word ${word + 1} of ${beam.texts.length - beam.ended}`;
    light();
    const order = row.map((_, frame) => frame).sort((a, b) => row[b] - row[a] || a - b);
    part.runners.replaceChildren(...order.slice(1, 5).filter((frame) => row[frame] > 0).map((frame) => enlarge("runner", frame, row)));
    look(strongest);
    moved({ word, beam: view.beam, last: beam.texts.length - 1 });
  }

  /** The strip, lit by the word's row; frames that are to be hidden say so at once, before there is a new caption. */
  function light() {
    const row = beam.weights[view.word];
    const strongest = strongestOf(row);
    [...part.strip.children].forEach((item, frame) => {
      const [tile, eye] = item.children;
      const off = wanted.has(frame);
      tone(tile, scale(row[frame])).style.setProperty("--vc-light", (0.14 + 0.86 * Math.sqrt(scale(row[frame]))).toFixed(3));
      tile.classList.toggle("vc-strongest", frame === strongest);
      tile.lastChild.lastChild.textContent = off ? "hidden" : row[frame] < 0.005 ? "" : percent(row[frame]);
      tile.ariaLabel = `${named(frame)}, ${off ? "hidden" : `${percent(row[frame])} of the attention`}`;
      item.classList.toggle("vc-off", off);
      if (!eye) return;
      eye.textContent = off ? "↺" : "⊘";
      eye.ariaLabel = eye.title = `${off ? "Show" : "Hide"} ${named(frame)}`;
    });
    const { hidden } = captions;
    root.classList.toggle("vc-busy", wanted.size !== hidden.length || hidden.some((frame) => !wanted.has(frame)));
  }

  function enlarge(kind, frame, row) {
    const band = tone(make("span", { className: "vc-band vc-hot" }), scale(row[frame]));
    return make("figure", {}, large(kind, frame), band, make("figcaption", { className: "vc-quiet", textContent: `${when(frame)} · ${percent(row[frame])}` }));
  }

  function look(frame) {
    const row = beam.weights[view.word];
    const strongest = strongestOf(row);
    const [most, uniform, spread] = [row[strongest], 1 / visible(), spreadOf(row, visible())];
    mark([...part.strip.children].map((item) => item.firstChild), frame);
    part.heat.querySelector(".vc-looked")?.classList.remove("vc-looked");
    part.heat.tBodies[0].rows[view.word].cells[frame + 1].classList.add("vc-looked");
    part.big.replaceChildren(...enlarge("big", frame, row).childNodes);
    part.big.dataset.frame = frame;
    let attention = ` looks most at ${named(frame)}, with ${percent(most)} of its attention (uniform: ${percent(uniform)}).`;
    if (visible() === 1) attention = " has only this frame to look at.";
    else if (frame !== strongest) attention = `: ${named(frame)} has ${percent(row[frame])} of its attention; most, ${percent(most)}, is on ${named(strongest)}.`;
    else if (spread >= FLAT) attention = ` looks at all frames almost alike: at most ${percent(most)}, at ${named(frame)}, where uniform attention would give ${percent(uniform)}.`;
    const facts = `${isEnd(view.word) ? "Probability of ending here" : "Probability of the word"}: ${percent(beam.probabilities[view.word])} · spread ${number(spread)} (0 = one frame, 1 = all frames alike)`;
    part.answer.replaceChildren(make("strong", {}, "“", make("bdi", { textContent: beam.texts[view.word] }), "”"), attention, " ", quiet(facts));
  }

  function ask(frames) {
    const next = new Set(frames);
    if (next.size >= labels.length) return say("At least one frame must stay visible.");
    setHidden(next);
    hide([...next].sort((a, b) => a - b));
  }
  const toggle = (frame) => ask(wanted.has(frame) ? [...wanted].filter((each) => each !== frame) : [...wanted, frame]);

  function setHidden(frames) {
    wanted = new Set(frames);
    light();
  }

  function say(text) {
    part.message.textContent = text;
    part.message.hidden = !text;
  }

  function step(by) {
    const next = view.word + by;
    if (next >= 0 && next < beam.texts.length) choose(next);
    return next;
  }
  function pause() {
    clearInterval(timer);
    timer = 0;
    part.play.textContent = "Play";
    part.answer.ariaLive = "polite";
  }
  function play() {
    if (timer) return pause();
    if (view.word === beam.texts.length - 1) choose(0);
    part.play.textContent = "Pause";
    part.answer.ariaLive = "off";
    timer = setInterval(() => step(1) >= beam.texts.length - 1 && pause(), 1100);
  }

  function onKey(event) {
    const [target] = event.composedPath();
    if (event.ctrlKey || event.metaKey || event.altKey || target.matches?.("select, input")) return;
    const caption = part.words.contains(target);
    const list = caption || part.beams.contains(target);
    const tile = [...part.strip.children].findIndex((item) => item.contains(target));
    const { key } = event;
    forward ||= getComputedStyle(part.words).direction === "rtl" ? -1 : 1; // once a caption: it costs a layout
    if (key === "ArrowRight") step(forward);
    else if (key === "ArrowLeft") step(-forward);
    else if (caption && key === "Home") choose(0);
    else if (caption && key === "End") choose(beam.texts.length - 1);
    else if (list && (key === "ArrowDown" || key === "ArrowUp")) {
      const next = view.beam + (key === "ArrowDown" ? 1 : -1);
      if (next < 0 || next >= captions.beams.length) return;
      chooseBeam(next);
      if (!caption) part.beams.children[next].firstChild.focus();
    } else if (hide && tile >= 0 && (key === "h" || key === "H")) toggle(tile);
    else if (controls && key === " " && (!target.matches?.("button") || (target.ariaCurrent && caption))) play();
    else return;
    event.preventDefault();
    if (caption) part.words.children[view.word].focus();
  }

  part.slider.addEventListener("input", () => choose(Number(part.slider.value)));
  part.previous.addEventListener("click", () => step(-1));
  part.next.addEventListener("click", () => step(1));
  part.play.addEventListener("click", play);
  const listener = controls ? document : root;
  listener.addEventListener("keydown", onKey);
  const [matchTheme, endTheme] = followTheme(root);
  const sizes = new ResizeObserver(() => (matchTheme(), clip && thin())); // a notebook puts the view into the document later
  sizes.observe(root);
  matchTheme();
  function close() {
    pause();
    endTheme();
    sizes.disconnect();
    listener.removeEventListener("keydown", onKey);
  }
  say("");
  return view;
}

/** The page: a chooser over clips that are read (parsed) when they are opened. */
export function openPage(root, titles, read) {
  const view = createView(root, { controls: true });
  const open = (index) => {
    const data = read(index);
    view.show(data, data, { word: 0 });
  };
  const select = make("select", { className: "vc-plain" }, ...titles.map((title, value) => make("option", { value, textContent: title })));
  select.addEventListener("change", () => open(Number(select.value)));
  view.part.chooser.append("Clip ", select);
  view.part.chooser.hidden = titles.length < 2;
  open(0);
}

/** The widget: its traits hold the same data; `word`, `beam` and `last` follow every step, for others to be linked to. */
function render({ model, el }) {
  const root = make("div");
  el.append(root);
  const save = (values) => {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  };
  const view = createView(root, { controls: model.get("controls"), hide: (frames) => save({ hide: frames }), moved: save });
  const draw = () => {
    if (!model.get("captions").beams) return; // no clip could be opened yet
    const [word, beam, hidden] = ["word", "beam", "hide"].map((name) => model.get(name));
    view.show(model.get("clip"), model.get("captions"), { word, beam, hidden });
    view.say(model.get("message"));
  };
  const follow = {
    "change:clip": draw,
    "change:captions": draw,
    "change:hide": () => model.get("captions").beams && view.setHidden(model.get("hide")),
    "change:message": () => view.say(model.get("message")),
    "change:word": () => model.get("word") !== view.word && view.choose(model.get("word")),
  };
  draw();
  view.say(model.get("message"));
  for (const [event, act] of Object.entries(follow)) model.on(event, act);
  return () => {
    for (const [event, act] of Object.entries(follow)) model.off(event, act);
    view.close();
  };
}

export default { render };
