/* The attention explorer: one front end, for the page (page.html) and for notebooks (explorer.py, as an anywidget).

It draws one clip with its captions from three plain objects:

  clip      title, note, times (T, seconds), timed (false: no times are known), images (T data: addresses, or none: numbered
            tiles are drawn), aspect (width / height), references, events (kind, words, start, end: what is true when)
  captions  hidden (frames the model was not shown), start (words that someone chose, the captions go on from them), before
            (words and score of the model's own with all frames, or null), beams; a beam has words (L), score, and for every
            word, then for <end> where it was reached: probabilities, weights (T each)
  needs     one for each beam, or none: needs {frames left out at once: a row of nats for every word and <end>}, others
            {words, probabilities: the likeliest at each place, needs: their rows; for the best beam alone}

Text reaches the document through textContent and properties alone: no caption, id or file name is ever read as HTML. */

const END = "<end>";
const UNIFORM_TONE = 0.25; // where uniform attention lies on the colour scale
const FLAT = 0.95; // the spread from which on a row is called uniform
const LONG = 12; // with more words than this the caption is set smaller
const WIDE = 20; // with more frames than this the heatmap has no room for numbers and pictures
const HALF = Math.LN2; // nats: without the frame the word is half as likely
const NO_NEED = 0.1; // nats: a word that loses less without any one frame (10 %) needs none of them
const MODES = { looked: "looked at", needed: "needed", both: "both" };
const KEYS = [
  ["← →", "previous and next word"],
  ["↑ ↓", "on the caption: other captions"],
  ["Home End", "on the caption: first and last word"],
  ["space", "play or pause"],
  ["N", "looked at, needed, both"],
  ["H", "on a frame: hide or show it"],
];

/** The colour scale of a clip of `count` frames: weight to 0…1. The same weight has the same colour in every row. */
export function scaleOf(count) {
  const power = count > 1 ? -Math.log(UNIFORM_TONE) / Math.log(count) : 1;
  return (weight) => weight ** power;
}

/** The colour scale of need: nats to −1…1, with half as likely at ½. The same in every clip. */
export const needTone = (nats) => nats / (Math.abs(nats) + HALF);

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
const nats = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
/** How a word's probability changes without a frame, in words. */
const likely = (value) => `${Math.exp(Math.abs(value)).toFixed(Math.abs(value) < 2 ? 1 : 0)} times ${value < 0 ? "more" : "less"} likely`;
/** A number and its unit stay on one line. */
const whole = (text) => text.replace(/(?<=\d) (?=%|s\b)/g, "\u00a0");
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
function skeleton(root, controls, ask) {
  const part = {};
  const named = (name, tag, properties = {}, ...children) =>
    (part[name] = make(tag, { className: `vc-${name}`, ...properties }, ...children));
  const section = (heading, about, ...children) =>
    make("section", {}, make("div", { className: "vc-head" }, heading.nodeType ? heading : make("h3", { textContent: heading }), ...about), ...children);
  root.append(
    make("div", { className: "vc-head" }, named("title", "h2", { dir: "auto" }), named("chooser", "span", { hidden: true }), named("help", "button", { className: "vc-plain vc-help", textContent: "?", ariaLabel: "Guide: how to read this" })),
    named("note", "p", { dir: "auto" }),
    named("guide", "div", { hidden: true }),
    named("message", "p", { role: "status", dir: "auto" }),
    make("section", { ariaLabel: "Caption" },
      named("modes", "div", { role: "group", ariaLabel: "What the colours show", hidden: true }),
      named("words", "div", { dir: "auto", role: "group", ariaLabel: "Words of the caption" }),
      named("controls", "div", { hidden: !controls },
        named("previous", "button", { className: "vc-plain vc-previous", textContent: "‹", ariaLabel: "Previous word" }),
        named("play", "button", { className: "vc-plain vc-play", textContent: "Play" }),
        named("next", "button", { className: "vc-plain vc-next", textContent: "›", ariaLabel: "Next word" }),
        named("slider", "input", { type: "range", min: 0, step: 1, ariaLabel: "Word" }),
        named("position", "span", { className: "vc-position vc-quiet" })),
      named("about", "p", { className: "vc-about vc-quiet" }),
      named("effect", "div", { hidden: true })),
    make("div", { className: "vc-stage" },
      named("answer", "p", { role: "status", dir: "auto" }), named("big", "figure"), named("runners", "div"),
      named("instead", "div", { role: "group", ariaLabel: "Likely words in this place", hidden: true })),
    section(named("lit", "h3"), [],
      named("legends", "div"), named("lighting", "p", { className: "vc-lighting vc-quiet" }),
      named("lane", "div", { hidden: true }), named("strip", "ol"), named("hiding", "div", {}, named("now", "p", { dir: "auto" }))),
    section("Every word and every frame", [named("tools", "div")],
      named("heats", "div"), named("marks", "p", { className: "vc-marks vc-quiet", hidden: true })),
    named("others", "div", {},
      section("Captions the model weighed against each other", [quiet("score: log-probability, scaled by length; nearer to 0 is better"), named("size", "label", { className: "vc-size vc-quiet", hidden: true })],
        named("beams", "ol"))),
    named("people", "div", {}, section("What people wrote", [], named("references", "ul", { className: "vc-references vc-quiet" }))),
    make("footer", { className: "vc-quiet" }, ...KEYS.filter(([key]) => (key !== "space" || controls) && (key !== "H" || ask)).map(([key, does]) =>
      make("span", {}, ...key.split(" ").flatMap((name) => [make("kbd", { textContent: name }), " "]), does))),
  );
  return part;
}

/** Draws a view into `root`.
 *
 * `controls`: with controls of its own (a notebook brings Play and a slider). `ask({hidden, start, size})`: called when someone asks
 * for captions without these frames, beginning with these words, from a search with so many beams; without it nothing of that can be
 * asked. `moved({word, beam, last})`: called after every step. Returns what the owner may ask of it: show, setNeeds, choose,
 * setMode, want, say, and close. */
export function createView(root, { controls = false, ask = null, moved = () => {} } = {}) {
  root.classList.add("vcx");
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the keys
  const part = skeleton(root, controls, ask);
  const view = { part, word: 0, beam: 0, mode: "looked", window: 1, wanted: null, show, setNeeds, choose, chooseBeam, setMode, want, say, close, rows, shown: () => shown };
  let clip, captions, needs = [], beam, labels, images, scale, shown = {}, instead = -1, enlarged = new Map(), forward = 0, timer = 0;

  const when = (frame) => labels[frame];
  const named = (frame) => (clip.timed ? `the frame at ${when(frame)}` : when(frame));
  const visible = () => labels.length - captions.hidden.length;
  const picture = (frame, alt = named(frame)) => make("img", { src: images[frame], alt });
  /** Draws a part anew; where the keyboard's focus was in it, it is afterwards on what `target(tag)` finds there. */
  function redraw(node, draw, target) {
    const focused = node.contains(root.getRootNode().activeElement) && root.getRootNode().activeElement.tagName;
    draw();
    if (focused) target(focused)?.focus();
  }
  const pressed = (node) => node.querySelector("[aria-pressed=true]");
  const isEnd = (i) => beam.ended && i === beam.texts.length - 1;
  // A picture's data: address is long to parse, so that each enlarged frame is made once and then only moved.
  function large(kind, frame) {
    const key = `${kind} ${frame}`;
    if (!enlarged.has(key)) enlarged.set(key, make("div", { className: "vc-frame" }, picture(frame)));
    return enlarged.get(key);
  }

  /* Looked at and needed: two kinds of rows over the frames, drawn by the same code. */
  const of = (node, name) => node.classList.contains(name) || (node.classList.remove("vc-hot", "vc-need", "vc-less"), node.classList.add(name));
  const LOOKED = {
    name: "Attention of every word to every frame", head: "looked at, in %", row: (i) => beam.weights[i],
    paint: (node, weight) => (of(node, "vc-hot"), tone(node, scale(weight))),
    text: (weight) => percent(weight), number: (weight) => (weight >= 0.005 ? String(Math.round(100 * weight)) : ""),
  };
  const NEEDED = {
    name: "Need of every word for every frame", head: "needed, in nats",
    row: (i) => (i === view.word && instead >= 0 ? needs[view.beam].others.needs[view.window][i][instead] : needs[view.beam].needs[view.window][i]),
    paint(node, value) {
      of(node, "vc-need");
      if (value < 0 !== node.classList.contains("vc-less")) node.classList.toggle("vc-less");
      return tone(node, Math.abs(needTone(value)));
    },
    text: (value) => `${nats(value)} nats`,
    number: (value) => (Math.abs(value) >= 0.05 ? `${value < 0 ? "−" : ""}${Math.abs(value).toFixed(1).replace(/^0/, "")}` : ""),
  };
  const hasNeeds = () => Boolean(needs[view.beam]?.needs[view.window]);
  const mode = () => (hasNeeds() ? view.mode : "looked");
  const kinds = () => ({ looked: [LOOKED], needed: [NEEDED], both: [LOOKED, NEEDED] })[mode()];

  /** What is to be said of word i: where it looks most, what it needs most, and whether both agree. */
  function findings(i) {
    const row = beam.weights[i];
    const strongest = strongestOf(row);
    const flat = spreadOf(row, visible()) >= FLAT;
    if (!hasNeeds()) return { strongest, flat };
    const of_word = NEEDED.row(i);
    const needed = strongestOf(of_word);
    const none = of_word[needed] < NO_NEED;
    return { strongest, flat, needed, most: of_word[needed], none, apart: !none && !flat && needed !== strongest && of_word[strongest] < of_word[needed] / 2 };
  }
  const markOf = ({ none, apart }) => (none ? "∅" : apart ? "≠" : "");
  const inWords = ({ none, apart }) => (none ? ", needs no single frame" : apart ? ", looks elsewhere than it needs" : "");

  function show(newClip, newCaptions, { word = view.word, beam: chosen = 0, hidden = newCaptions.hidden, start = newCaptions.start, size = newCaptions.beams.length, needs: newNeeds = [] } = {}) {
    pause();
    captions = newCaptions;
    needs = newNeeds;
    shown = { hidden: [...captions.hidden], start: [...(captions.start ?? [])], size };
    view.wanted = { hidden: [...hidden], start: [...(start ?? [])], size };
    if (newClip !== clip) drawClip(newClip);
    part.beams.replaceChildren(...captions.beams.map((each, i) =>
      make("li", {}, make("button", { className: "vc-plain", onclick: () => chooseBeam(i) },
        make("span", { className: "vc-score", textContent: number(each.score) }), make("bdi", { textContent: each.words.join(" ") })))));
    part.others.hidden = captions.beams.length < 2 && !ask;
    if (ask) drawSize();
    redraw(part.effect, drawEffect, () => part.effect.querySelector("button") ?? part.play);
    chooseBeam(Math.min(chosen, captions.beams.length - 1), word);
  }

  /** What comes later than the captions, since it takes longer. */
  function setNeeds(newNeeds) {
    needs = newNeeds;
    if (clip) chooseBeam(view.beam);
  }

  function setMode(newMode, window = view.window) {
    view.mode = newMode in MODES ? newMode : "looked";
    view.window = Number(window) || 1;
    if (clip) chooseBeam(view.beam);
    view.modeMoved?.();
  }

  /** What the heatmaps show, in numbers. */
  function rows() {
    return kinds().map((kind) => ({ head: kind.head, labels, words: beam.texts, values: beam.texts.map((_, i) => kind.row(i)) }));
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
        make("span", { className: "vc-frame" }, picture(frame, "")), make("span", { className: "vc-bands" }), label);
      const item = make("li", {}, tile);
      if (ask) item.append(make("button", { className: "vc-eye", onclick: () => toggle(frame) }));
      return item;
    }));
    part.hiding.hidden = !ask;
    if (ask) drawHiding();
    drawLane();
    part.references.replaceChildren(...clip.references.map((text) => make("li", { dir: "auto", textContent: text })));
    part.people.hidden = !clip.references.length;
  }

  const button = (className, textContent, onclick) => make("button", { className: `vc-plain ${className}`, textContent, onclick });

  function drawHiding() {
    const choice = (name, chosen) => make("select", { className: "vc-plain", ariaLabel: name }, ...labels.map((label, i) =>
      make("option", { value: i, textContent: label, selected: i === chosen })));
    const [from, to] = [choice("from", 0), choice("to", labels.length - 1)];
    part.hiding.replaceChildren(
      make("span", { className: "vc-quiet", textContent: "What would it say without them, from its first word on? Hide single frames (⊘), or from " }),
      from, quiet("to"), to,
      button("vc-hide", "Hide", () => {
        const [first, last] = [Number(from.value), Number(to.value)].sort((a, b) => a - b);
        hideFrames([...view.wanted.hidden, ...Array.from({ length: last - first + 1 }, (_, i) => first + i)]);
      }),
      button("vc-show", "Show all", () => hideFrames([])), part.now);
  }

  function drawSize() {
    const choice = make("select", { className: "vc-plain", ariaLabel: "Beam size" }, ...[1, 2, 3, 5, 8, 10, view.wanted.size].sort((a, b) => a - b)
      .filter((size, i, all) => size !== all[i - 1]).map((size) => make("option", { value: size, textContent: size, selected: size === view.wanted.size })));
    choice.addEventListener("change", () => request({ size: Number(choice.value) }));
    part.size.replaceChildren("beam size ", choice);
    part.size.hidden = false;
  }

  /** The frames where they lie in time, and above them what is true when, where that is known. */
  function drawLane() {
    const { times, events = [] } = clip;
    part.lane.hidden = !clip.timed || times.length < 2;
    if (part.lane.hidden) return part.lane.replaceChildren();
    const end = Math.max(times.at(-1) + (times.at(-1) - times.at(-2)) / 2, ...events.map((event) => event.end));
    const at = (node, from, to = from) => {
      node.style.setProperty("--vc-from", `${(100 * from) / end}%`);
      node.style.setProperty("--vc-wide", `${(100 * (to - from)) / end}%`);
      return node;
    };
    const rows = []; // intervals of one row do not overlap
    for (const event of [...events].sort((a, b) => a.start - b.start)) {
      const row = rows.find((each) => each[0].kind === event.kind && each.at(-1).end <= event.start) ?? rows[rows.push([]) - 1];
      row.push(event);
    }
    rows.sort((a, b) => (a[0].kind < b[0].kind ? 1 : a[0].kind > b[0].kind ? -1 : 0));
    const bars = rows.map((row) => make("div", { className: "vc-lanerow" }, ...row.map((event) => {
      const words = event.words.join(" / ");
      const bar = make("span", { className: "vc-event", title: `${event.kind}: ${words}, true from ${event.start.toFixed(1)} s to ${event.end.toFixed(1)} s` }, make("bdi", { textContent: words }));
      bar.event = event;
      return at(bar, event.start, event.end);
    })));
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300].find((each) => end / each <= 8) ?? 600;
    const ticks = Array.from({ length: Math.floor((0.95 * end) / step) + 1 }, (_, i) => at(make("span", { className: "vc-second", textContent: `${Number((i * step).toFixed(1))} s` }), i * step));
    const dots = times.map((time, frame) => at(make("i", { className: "vc-dot", ariaHidden: "true", title: when(frame), onclick: () => look(frame) }), time));
    part.lane.style.setProperty("--vc-dot", `min(.8rem, ${80 / times.length}%)`);
    part.lane.replaceChildren(...(rows.length ? [quiet("What is true when (known for this corpus); the chosen word’s times are filled")] : []),
      ...bars, make("div", { className: "vc-lanerow vc-dots" }, ...dots), make("div", { className: "vc-axis" }, ...ticks));
  }
  const trueEvents = () => (clip.events ?? []).filter((event) => event.words.includes(beam.texts[view.word]));

  function legend(kind) {
    const tick = (at, text, name = "") => {
      const node = make("span", { className: `vc-tick ${name}`, textContent: text });
      node.style.setProperty("--vc-at", `${100 * at}%`);
      return node;
    };
    if (kind === NEEDED) {
      const at = (value) => 0.5 + needTone(value) / 2;
      return make("div", { className: "vc-legend", role: "img", ariaLabel: "Colours of need: without the frame the word is less likely (blue), as likely (plain) or more likely (magenta)" },
        make("span", { className: "vc-ramp vc-nats" }), tick(at(-HALF), "twice as likely"), tick(0.5, "no change"), tick(at(HALF), "half"), tick(at(Math.log(20)), "a 20th"));
    }
    const uniform = 1 / visible();
    const ticks = [tick(0, "0 %"), tick(1, "100 %")];
    if (uniform < 1) ticks.push(tick(scale(uniform), `uniform ${percent(uniform)}`, "vc-uniform"));
    if (uniform < 0.3) ticks.push(tick(scale(0.5), "50 %"));
    return make("div", { className: "vc-legend", role: "img", ariaLabel: `Colours from 0 % to 100 % of the attention; uniform attention is ${percent(uniform)}` },
      make("span", { className: "vc-ramp" }), ...ticks);
  }

  /** The switch, and what the colours mean in the mode that it is in. */
  function drawMode() {
    const now = mode();
    part.modes.hidden = !hasNeeds() && (!ask || visible() < 2);
    part.modes.replaceChildren(...Object.entries(MODES).map(([name, text]) => {
      const each = button("vc-mode", text, () => setMode(name));
      each.ariaPressed = String(name === now);
      each.disabled = name !== "looked" && !hasNeeds();
      return each;
    }));
    if (!part.modes.hidden && !hasNeeds()) part.modes.append(quiet("computing what each word needs …"));
    if (now !== "looked" && Object.keys(needs[view.beam].needs).length > 1) {
      const choice = make("select", { className: "vc-plain" }, ...Object.keys(needs[view.beam].needs).map((count) =>
        make("option", { value: count, textContent: count === "1" ? "one frame" : `${count} frames around it`, selected: Number(count) === view.window })));
      choice.addEventListener("change", () => setMode(view.mode, choice.value));
      part.modes.append(make("label", { className: "vc-quiet" }, "left out: ", choice));
    }
    part.about.textContent = {
      looked: "The model’s caption. Choose a word to see which frames the model attended to: under it stand its row of attention over the frames, and the time of the strongest.",
      needed: "Need: how much less likely the word becomes, behind the same words, when the model is not shown the frame. Under each word stand its row of need over the frames, and the frame that it needs most.",
      both: "Under each word: its row of attention, below it its row of need, and the time of the frame that it looks at most.",
    }[now];
    part.lit.textContent = { looked: "All frames, lit by this word’s attention", needed: "All frames, lit by this word’s need", both: "All frames, lit by this word’s attention, with its need below" }[now];
    part.lighting.textContent = {
      looked: "The brighter a frame, the larger its attention weight for this word: evidence of where the model looked, not proof of why it said the word.",
      needed: "The brighter a frame, the less likely the word without it. Frames resemble their neighbours: what one shows may be seen in the next, so try several left out.",
      both: "The brighter a frame, the larger its attention weight; the second band below it shows need.",
    }[now];
    part.legends.replaceChildren(...kinds().map(legend));
    part.marks.hidden = now === "looked";
    part.marks.textContent = `≠ the word looks most at a frame that it needs less than half as much as another. ∅ the word needs no single place: without any ${view.window > 1 ? `${view.window} frames in a row` : "one frame"} it loses less than a tenth of its probability, the words before it kept; it may come from several frames alike, from those words, or from nowhere.`;
  }

  function drawEffect() {
    const { before, beams, hidden, start = [] } = captions;
    part.effect.hidden = !before;
    part.now.replaceChildren(...(before && hidden.length ? ["Without the hidden frames: ", make("bdi", { textContent: beams[0].words.join(" ") })] : []));
    if (!before) return part.effect.replaceChildren();
    const after = beams[0];
    const marks = changesOf(before.words, after.words);
    const line = (name, caption, changed, tag) => make("tr", {}, make("th", { scope: "row" }, ...name), 
      make("td", { dir: "auto" }, ...caption.words.flatMap((word, i) => [i ? " " : "", changed[i] ? make(tag, { textContent: word }) : word])),
      make("td", { className: "vc-score", textContent: number(caption.score) }));
    const chosen = start.length ? ["from “", make("bdi", { textContent: start.at(-1) }), "” on"] : [];
    const name = [...(hidden.length ? ["without the hidden"] : []), ...(hidden.length && start.length ? [", "] : []), ...chosen];
    part.effect.replaceChildren(
      make("table", {}, make("tbody", {}, line([start.length && !hidden.length ? "the model’s own" : "all frames"], before, marks[0], "del"), line(name, after, marks[1], "mark"))),
      quiet(hidden.length ? "Each score is for the frames that were shown: they do not say which caption is the better one." : ""));
    if (ask && start.length) part.effect.append(button("vc-own", "Back to the model’s own words", () => request({ start: [] })));
  }

  function chooseBeam(index, word = view.word) {
    const { words, weights, probabilities } = captions.beams[index];
    const ended = weights.length > words.length;
    beam = { texts: ended ? [...words, END] : words, ended, weights, probabilities };
    view.beam = index;
    const windows = Object.keys(needs[index]?.needs ?? {});
    if (windows.length && !windows.includes(String(view.window))) view.window = Number(windows[0]); // too few frames for the other
    forward = 0;
    instead = -1;
    mark(part.beams.querySelectorAll("button"), index);
    redraw(part.modes, drawMode, (tag) => (tag === "SELECT" ? part.modes.querySelector("select") : pressed(part.modes)));
    part.words.classList.toggle("vc-long", words.length > LONG);
    redraw(part.words, drawWords, () => part.words.children[Math.min(word, beam.texts.length - 1)]);
    part.slider.max = beam.texts.length - 1;
    part.slider.disabled = beam.texts.length < 2;
    drawHeats();
    choose(word);
  }

  function drawWords() {
    part.words.replaceChildren(...beam.texts.map((text, i) => {
      const found = findings(i);
      const rows = kinds().map((kind) => make("span", { className: "vc-row", dir: "ltr" }, ...kind.row(i).map((value) => kind.paint(make("i"), value))));
      const looks = found.flat ? "all alike" : when(found.strongest);
      const small = mode() === "needed" ? (found.none ? "none" : when(found.needed)) : looks;
      const node = make("button", { className: isEnd(i) ? "vc-end" : "", onclick: () => choose(i) }, make("span", { dir: isEnd(i) ? "ltr" : "", textContent: text }),
        ...rows, make("small", { dir: "ltr", textContent: mode() === "looked" ? small : `${small} ${markOf(found)}`.trim() }));
      const looking = found.flat ? "looks at all frames alike" : `looks most at ${named(found.strongest)}`;
      const needing = found.none === false ? `, needs most ${named(found.needed)}` : "";
      node.ariaLabel = mode() === "looked" ? `${text}, ${looking}` : `${text}, ${looking}${needing}${inWords(found)}`;
      if (i < (captions.start?.length ?? 0)) node.classList.add("vc-given");
      return node;
    }));
  }

  function drawHeats() {
    const frames = labels.length;
    const longest = Math.min(12, Math.max(5, ...beam.texts.map((text) => text.length)));
    part.heats.classList.toggle("vc-two", kinds().length > 1 && frames <= WIDE);
    part.heats.style.setProperty("--vc-name", `${longest * 0.6 + (mode() === "looked" ? 1.8 : 3)}rem`);
    part.heats.replaceChildren(...kinds().map(drawHeat));
    thin();
  }

  /** One heatmap: a row for each word, a column for each frame, and a number for the whole row. */
  function drawHeat(kind) {
    const frames = labels.length;
    const heads = labels.map((label, i) => make("th", { scope: "col" }, ...(frames <= WIDE ? [picture(i, "")] : []), make("span", { textContent: label })));
    const rows = beam.texts.map((text, i) => {
      const found = findings(i);
      const name = make("button", { onclick: () => choose(i), tabIndex: -1, dir: "auto", className: isEnd(i) ? "vc-end" : "" }, make("bdi", { textContent: text }));
      const flag = mode() === "looked" ? "" : markOf(found);
      if (flag) name.append(make("span", { className: "vc-mark", textContent: flag, title: inWords(found).slice(2) }));
      const cells = kind.row(i).map((value, frame) => {
        const off = captions.hidden.includes(frame);
        const cell = make("td", { title: `${text}, ${when(frame)}: ${off ? "hidden" : kind.text(value)}` });
        cell.onclick = () => (choose(i), look(frame));
        if (off) return cell.classList.add("vc-out"), cell;
        if (frames <= WIDE) cell.textContent = kind.number(value);
        return kind.paint(cell, value);
      });
      const most = kind === LOOKED ? spreadOf(beam.weights[i], visible()) : Math.max(0, found.most);
      const last = make("td", { className: "vc-spread", textContent: number(most) });
      last.style.setProperty("--vc-spread", `${100 * (kind === LOOKED ? most : needTone(most))}%`);
      return make("tr", {}, make("th", { scope: "row" }, name), ...cells, last);
    });
    const table = make("table", { className: "vc-heat", ariaLabel: kind.name },
      make("thead", {}, make("tr", {}, make("td", { className: "vc-corner" }), ...heads, make("th", { scope: "col", className: "vc-spread", textContent: kind === LOOKED ? "spread" : "most", title: kind === LOOKED ? "0 = one frame, 1 = all frames alike" : "the largest need of the row" }))),
      make("tbody", {}, ...rows));
    table.classList.toggle("vc-many", frames > WIDE);
    return make("div", { className: "vc-heatbox" }, make("p", { className: "vc-quiet", textContent: `${kind.head}${kind === NEEDED ? " (0.69: half as likely)" : ""}, colours as above` }), table);
  }
  const tables = () => [...part.heats.querySelectorAll("table")];

  /** As many times over a heatmap as there is room for. */
  function thin() {
    for (const table of tables()) {
      const every = Math.ceil(labels.length / Math.max(1, Math.floor((table.clientWidth * 0.75) / 54)));
      table.querySelectorAll("thead th > span").forEach((label, i) => label.classList.toggle("vc-gone", i % every !== 0));
    }
  }

  function choose(index) {
    const word = (view.word = Math.min(Math.max(0, index), beam.texts.length - 1));
    instead = -1;
    mark(part.words.childNodes, word);
    for (const table of tables()) mark(table.tBodies[0].rows, word);
    part.slider.value = word;
    part.slider.setAttribute("aria-valuetext", beam.texts[word]);
    part.position.textContent = isEnd(word) ? "the end" : `word ${word + 1} of ${beam.texts.length - beam.ended}`;
    drawWord();
    moved({ word, beam: view.beam, last: beam.texts.length - 1 });
  }

  /** What depends on the word, or on the word that stands in its place. */
  function drawWord() {
    light();
    const row = kinds()[0].row(view.word);
    const order = row.map((_, frame) => frame).sort((a, b) => row[b] - row[a] || a - b);
    part.runners.replaceChildren(...order.slice(1, 5).filter((frame) => row[frame] > 0).map((frame) => enlarge("runner", frame)));
    redraw(part.instead, drawInstead, () => pressed(part.instead) ?? part.words.children[view.word]);
    look(strongestOf(row));
  }

  /** The likeliest words in this place. */
  function drawInstead() {
    const likely = needs[view.beam]?.others;
    part.instead.hidden = !likely;
    if (!likely) return part.instead.replaceChildren();
    const [words, shares] = [likely.words[view.word], likely.probabilities[view.word]];
    const said = beam.texts[view.word];
    const all = words.map((word, i) => ({ word, share: shares[i], at: i }));
    if (!words.includes(said)) all.push({ word: said, share: beam.probabilities[view.word], at: -1 });
    const active = instead >= 0 ? words[instead] : said;
    part.instead.replaceChildren(make("p", { className: "vc-quiet", textContent: `The likeliest words here, after the words before it. ${ask ? "Choose one, and the caption goes on from it." : likely.needs ? "Choose one to see what it would need." : ""}` }),
      ...all.map(({ word, share, at }) => {
        const node = make("button", { className: "vc-plain vc-likely", onclick: () => putInstead(at, word) },
          make("bdi", { textContent: word }), make("span", { className: "vc-share", textContent: percent(share) }));
        node.style.setProperty("--vc-share", `${100 * share}%`);
        node.ariaPressed = String(word === active);
        node.disabled = !ask && !likely.needs;
        node.ariaLabel = `${word}, probability ${percent(share)}${word === said ? ", said" : ""}`;
        return node;
      }));
  }

  function putInstead(at, word) {
    if (ask) {
      const own = word === captions.before?.words[view.word] && captions.start?.length === view.word + 1 && !captions.hidden.length;
      if (word !== beam.texts[view.word]) request({ start: own ? [] : [...beam.texts.slice(0, view.word), word] });
      return;
    }
    instead = word === beam.texts[view.word] ? -1 : at;
    drawWord();
  }

  /** The strip, lit by the word's row; frames that are to be hidden say so at once, before there is a new caption. */
  function light() {
    const [first] = kinds();
    const row = first.row(view.word);
    const strongest = strongestOf(row);
    const rows = kinds().map((kind) => [kind, kind.row(view.word)]);
    [...part.strip.children].forEach((item, frame) => {
      const [tile, eye] = item.children;
      const off = view.wanted.hidden.includes(frame);
      const strength = first === LOOKED ? Math.sqrt(scale(row[frame])) : Math.sqrt(Math.max(0, needTone(row[frame])));
      tile.style.setProperty("--vc-light", (0.25 + 0.75 * strength).toFixed(3));
      tile.classList.toggle("vc-strongest", frame === strongest);
      const texts = rows.map(([kind, values]) => kind.text(values[frame]));
      const bands = tile.children[1];
      if (bands.childElementCount !== rows.length) bands.replaceChildren(...rows.map(() => make("span", { className: "vc-band" })));
      rows.forEach(([kind, values], i) => kind.paint(bands.children[i], values[frame]));
      tile.lastChild.lastChild.textContent = off ? "hidden" : first === LOOKED ? (row[frame] < 0.005 ? "" : texts[0]) : Math.abs(row[frame]) < 0.05 ? "" : nats(row[frame]);
      tile.ariaLabel = `${named(frame)}, ${off ? "hidden" : rows.map(([kind], i) => `${texts[i]} ${kind === LOOKED ? "of the attention" : "of need"}`).join(", ")}`;
      item.classList.toggle("vc-off", off);
      if (!eye) return;
      eye.textContent = off ? "↺" : "⊘";
      eye.ariaLabel = eye.title = `${off ? "Show" : "Hide"} ${named(frame)}`;
    });
    for (const bar of part.lane.querySelectorAll(".vc-event")) bar.classList.toggle("vc-true", bar.event.words.includes(beam.texts[view.word]));
    part.lane.querySelectorAll(".vc-dot").forEach((dot, frame) => first.paint(dot, row[frame]));
    root.classList.toggle("vc-busy", JSON.stringify(shown) !== JSON.stringify(view.wanted));
  }

  function enlarge(kind, frame) {
    const rows = kinds().map((each) => [each, each.row(view.word)[frame]]);
    const bands = rows.map(([each, value]) => each.paint(make("span", { className: "vc-band" }), value));
    const texts = captions.hidden.includes(frame) ? ["hidden"] : rows.map(([each, value]) => each.text(value));
    return make("figure", {}, large(kind, frame), ...bands, make("figcaption", { className: "vc-quiet", textContent: whole([when(frame), ...texts].join(" · ")) }));
  }

  function look(frame) {
    mark([...part.strip.children].map((item) => item.firstChild), frame);
    mark(part.lane.querySelectorAll(".vc-dot"), frame);
    for (const table of tables()) {
      table.querySelector(".vc-looked")?.classList.remove("vc-looked");
      table.tBodies[0].rows[view.word].cells[frame + 1].classList.add("vc-looked");
    }
    part.big.replaceChildren(...enlarge("big", frame).childNodes);
    part.big.dataset.frame = frame;
    part.answer.replaceChildren(...tell(frame));
  }

  /** The word and this frame in a sentence or two. */
  function tell(frame) {
    const { word } = view;
    const row = beam.weights[word];
    const { strongest, needed, most, none, apart } = findings(word);
    const [weight, uniform, spread] = [row[strongest], 1 / visible(), spreadOf(row, visible())];
    const text = instead >= 0 ? needs[view.beam].others.words[word][instead] : beam.texts[word];
    let looks = ` looks most at ${named(strongest)}, with ${percent(weight)} of its attention (uniform: ${percent(uniform)}).`;
    if (visible() === 1) looks = " has only this frame to look at.";
    else if (captions.hidden.includes(frame)) looks = `: ${named(frame)} is hidden, the model was not shown it; most attention, ${percent(weight)}, is on ${named(strongest)}.`;
    else if (frame !== strongest && mode() !== "needed") looks = `: ${named(frame)} has ${percent(row[frame])} of its attention; most, ${percent(weight)}, is on ${named(strongest)}.`;
    else if (spread >= FLAT) looks = ` looks at all frames almost alike: at most ${percent(weight)}, at ${named(strongest)}, where uniform attention would give ${percent(uniform)}.`;
    if (instead >= 0) looks = ` would look where “${beam.texts[word]}” does: the model looks before it chooses the word.`;
    const sentences = [make("strong", {}, "“", make("bdi", { textContent: text }), "”"), looks, " "];
    if (mode() !== "looked") {
      const [those, one] = view.window === 1 ? ["it", "any one frame"] : [`the ${view.window} frames there`, `any ${view.window} frames in a row`];
      const here = NEEDED.row(word)[frame];
      const verb = most < HALF ? "would miss" : "needs";
      let needing = none ? `It needs no single place: without ${one} it loses less than a tenth of its probability.` : `It ${verb} ${named(needed)} most: without ${those}, it is ${likely(most)} (${nats(most)} nats).`;
      if (frame !== needed && Math.abs(here) >= 0.05) needing += ` Without ${view.window === 1 ? named(frame) : `the ${view.window} frames around ${named(frame)}`}, it is ${likely(here)}.`;
      if (apart) needing += " It looks elsewhere than it needs.";
      sentences.push(needing, " ");
    }
    const events = trueEvents();
    if (events.length && instead < 0) {
      const inside = events.some((event) => event.start <= clip.times[frame] && clip.times[frame] < event.end);
      sentences.push(`It is true ${events.map((event) => `from ${event.start.toFixed(1)} s to ${event.end.toFixed(1)} s`).join(" and ")}: this frame lies ${inside ? "inside" : "outside"}. `);
    }
    const share = instead >= 0 ? needs[view.beam].others.probabilities[word][instead] : beam.probabilities[word];
    const ending = text === END ? "Probability of ending here" : "Probability of the word";
    sentences.push(quiet(whole(`${ending}: ${percent(share)} · spread ${number(spread)} (0 = one frame, 1 = all frames alike)`)));
    return sentences.map((each) => (typeof each === "string" ? whole(each) : each));
  }

  /** Ask the owner for other captions: without frames, from words on, with another search. */
  function request(change) {
    const next = { ...view.wanted, ...change };
    want(next);
    ask(next);
  }
  function hideFrames(frames) {
    const hidden = [...new Set(frames)].sort((a, b) => a - b);
    if (hidden.length >= labels.length) return say("At least one frame must stay visible.");
    request({ hidden });
  }
  const toggle = (frame) => {
    const { hidden } = view.wanted;
    hideFrames(hidden.includes(frame) ? hidden.filter((each) => each !== frame) : [...hidden, frame]);
  };

  function want(change) {
    view.wanted = { ...view.wanted, ...change };
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
    if (event.ctrlKey || event.metaKey || event.altKey || !beam || event.defaultPrevented || target.matches?.("select, input")) return;
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
    } else if (ask && tile >= 0 && (key === "h" || key === "H")) toggle(tile);
    else if ((key === "n" || key === "N") && hasNeeds()) setMode(Object.keys(MODES)[(Object.keys(MODES).indexOf(view.mode) + 1) % 3]);
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
