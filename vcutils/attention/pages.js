/* What stands around a view of view.js: the page with its chooser, table and address, and the notebook's widget. One script
holds both files. */

const GUIDE = [
  ["words", "Choose a word of the caption, by a click or with ← and →. The bar under it shows which frames the model looked at before it said the word."],
  ["legends", "The colours are the same for every word. The mark “uniform” is what each frame would get if the model looked at all of them alike: a row of that colour chose nothing."],
  ["modes", "“Needed” shows how much less likely the word becomes without each frame. The words before it are kept for that; hiding frames asks anew, from the first word on. A word marked ∅ needs no single frame: ask where it comes from."],
  ["instead", "These words were likely here, too. Where the model is at hand, choose one or hide frames, and see what it says then."],
];
const SEEN = "vcutils-explorer-guide";

/** Four steps for someone who sees this for the first time; `again` shows them whether they were seen or not. */
function showGuide(view, again = false) {
  const { guide } = view.part;
  const remembered = (value) => {
    try {
      if (value) localStorage.setItem(SEEN, value);
      return localStorage.getItem(SEEN);
    } catch {
      return null; // no storage here: nothing is remembered
    }
  };
  const spot = (index) => GUIDE.forEach(([name], i) => view.part[name].classList.toggle("vc-spot", i === index));
  const leave = () => {
    spot(-1);
    guide.hidden = true;
    remembered("seen");
  };
  const step = (index) => {
    spot(index);
    const last = index === GUIDE.length - 1;
    const next = make("button", { className: "vc-plain", textContent: last ? "Done" : "Next", onclick: () => (last ? leave() : (step(index + 1), guide.querySelector("button").focus())) });
    guide.replaceChildren(make("p", { textContent: GUIDE[index][1] }), quiet(`${index + 1} of ${GUIDE.length}`), next,
      ...(last ? [] : [make("button", { className: "vc-plain vc-leave", textContent: "Leave the guide", onclick: leave })]));
    guide.hidden = false;
  };
  guide.role = "region";
  guide.ariaLabel = "Guide";
  if (again || !remembered()) step(0);
}

/** Buttons that copy what the heatmaps show; where copying is not allowed it is saved as a file. */
function addTools(view) {
  const say = (text) => (view.part.tools.lastChild.textContent = text);
  async function give(blob, name) {
    try {
      const item = blob.type === "image/png" ? new ClipboardItem({ [blob.type]: blob }) : null;
      await (item ? navigator.clipboard.write([item]) : navigator.clipboard.writeText(await blob.text()));
      say("copied");
    } catch {
      if (self !== top && origin === "null") return say("not allowed inside another page: open this one by itself");
      const link = make("a", { href: URL.createObjectURL(blob), download: name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
      say(`saved as ${name}`);
    }
  }
  const tool = (textContent, act) => make("button", { className: "vc-plain vc-tool", textContent, onclick: () => act().catch((error) => say(error.message)) });
  view.part.tools.replaceChildren(quiet("copy as"),
    tool("PNG", async () => give(await pngOf(svgOf(view)), "attention.png")),
    tool("SVG", async () => give(new Blob([svgOf(view).text], { type: "image/svg+xml" }), "attention.svg")),
    tool("CSV", async () => give(new Blob([csvOf(view)], { type: "text/csv" }), "attention.csv")),
    make("span", { className: "vc-quiet", role: "status" }));
}

/** Words × frames as text: a line for every word, the exact numbers. */
function csvOf(view) {
  const cell = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`; // no program may take a word for a formula
  return view.rows().flatMap(({ head, labels, words, values }) => [
    ["word", ...labels].map(cell).join(","),
    ...words.map((word, i) => [cell(word), ...values[i]].join(",")),
  ].map((line, i) => `${cell(i ? head : "shows")},${line}\n`)).join("");
}

/** The heatmaps as an SVG drawing {text, width, height}, with the colours that they have on the screen. */
function svgOf(view) {
  const NS = ["http", "//www.w3.org/2000/svg"].join(":"); // a name, no address: nothing in the page looks like one
  const pen = make("canvas", { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const plain = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return `rgb(${[...pen.getImageData(0, 0, 1, 1).data.slice(0, 3)].join(",")})`;
  };
  const svg = document.createElementNS(NS, "svg");
  const put = (tag, attributes, text = "") => {
    const node = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    svg.append(node);
  };
  const [W, H, ink, paper] = [38, 22, plain(getComputedStyle(view.part.title).color), plain(getComputedStyle(view.part.title).getPropertyValue("--vc-paper"))];
  const tables = [...view.part.heats.querySelectorAll("table")];
  const rows = view.rows();
  const name = 20 + 8 * Math.max(...rows[0].words.map((word) => word.length));
  const width = name + W * rows[0].labels.length + 20;
  const height = 30 + tables.length * (H * (rows[0].words.length + 2) + 10);
  for (const [key, value] of Object.entries({ xmlns: NS, viewBox: `0 0 ${width} ${height}`, width, height, "font-family": "system-ui, sans-serif", "font-size": 12 })) svg.setAttribute(key, value);
  put("rect", { width, height, fill: paper });
  put("text", { x: 10, y: 20, fill: ink, "font-weight": 600 }, `${view.part.title.textContent}: ${rows[0].words.join(" ")}`);
  tables.forEach((table, n) => {
    const top = 30 + n * (H * (rows[n].words.length + 2) + 10);
    put("text", { x: 10, y: top + 14, fill: ink }, rows[n].head);
    rows[n].labels.forEach((label, frame) => put("text", { x: name + (frame + 0.5) * W, y: top + H + 14, fill: ink, "text-anchor": "middle", "font-size": 9 }, label));
    [...table.tBodies[0].rows].forEach((row, i) => {
      const y = top + (i + 2) * H;
      put("text", { x: name - 8, y: y + 15, fill: ink, "text-anchor": "end" }, rows[n].words[i]);
      [...row.cells].slice(1, -1).forEach((each, frame) => {
        const style = getComputedStyle(each);
        put("rect", { x: name + frame * W, y, width: W - 1, height: H - 1, fill: plain(style.backgroundColor) });
        if (each.textContent) put("text", { x: name + (frame + 0.5) * W, y: y + 15, fill: plain(style.color), "text-anchor": "middle", "font-size": 10 }, each.textContent);
      });
    });
  });
  return { text: new XMLSerializer().serializeToString(svg), width, height };
}

async function pngOf({ text, width, height }) {
  const image = make("img", { src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}` });
  await image.decode();
  const canvas = make("canvas", { width: 2 * width, height: 2 * height });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

const COLUMNS = {
  title: ["clip", "The clip’s name"], caption: ["caption", "The model’s best caption"],
  cider: ["CIDEr", "How much of the human captions’ wording it has, × 100; rare words count more"],
  spread: ["spread", "Mean spread of its words: 0 = one frame, 1 = all frames alike"],
  need: ["need", "Mean over its words of the most that one frame is worth, in nats"],
};

/** A table of clips, rows {title, caption, cider, spread, need}, that can be sorted and searched; `open(i)` opens row i's clip. */
function tableOf(rows, open) {
  const table = make("table", {});
  const found = make("span", { className: "vc-quiet", role: "status" });
  const search = make("input", { type: "search", className: "vc-plain", placeholder: "e.g. a dog", ariaLabel: "Every clip where it says" });
  const digits = { cider: (value) => (100 * value).toFixed(0), spread: (value) => value.toFixed(2), need: (value) => value.toFixed(2) };
  const known = Object.keys(COLUMNS).filter((key) => rows.some((row) => row[key] !== null));
  const lines = rows.map((row, i) => {
    const cells = known.map((key) => key === "title" ? make("th", { scope: "row" }, make("button", { className: "vc-plain", textContent: row.title, onclick: () => open(i) }))
      : make("td", { dir: key === "caption" ? "auto" : "", className: key === "caption" ? "" : "vc-score", textContent: key === "caption" ? row.caption : row[key] === null ? "–" : digits[key](row[key]) }));
    return { row, line: make("tr", {}, ...cells), text: ` ${row.caption.toLowerCase()} ` };
  });
  let order = { key: "", up: true };
  const sort = (key) => {
    order = { key, up: order.key === key ? !order.up : key === "title" || key === "caption" };
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : (a ?? -Infinity) - (b ?? -Infinity));
    lines.sort((a, b) => compare(a.row[key], b.row[key]) * (order.up ? 1 : -1));
    for (const head of table.tHead.rows[0].cells) head.ariaSort = head.dataset.key === key ? (order.up ? "ascending" : "descending") : "none";
    table.tBodies[0].replaceChildren(...lines.map(({ line }) => line));
  };
  const look = () => {
    const wanted = ` ${search.value.trim().toLowerCase()}`;
    let count = 0;
    for (const { line, text } of lines) count += !(line.hidden = wanted !== " " && !text.includes(wanted));
    found.textContent = wanted === " " ? `${rows.length} clips` : `${count} of ${rows.length} clips`;
  };
  table.append(
    make("thead", {}, make("tr", {}, ...known.map((key) => {
      const head = make("th", { scope: "col", title: COLUMNS[key][1] }, make("button", { className: "vc-sort", textContent: COLUMNS[key][0], onclick: () => sort(key) }));
      head.dataset.key = key;
      return head;
    }))),
    make("tbody", {}, ...lines.map(({ line }) => line)));
  search.addEventListener("input", look);
  look();
  const box = make("details", { className: "vc-table", open: rows.length > 8 }, make("summary", { textContent: "All clips" }),
    make("p", { className: "vc-quiet" }, make("label", {}, "every clip where it says ", search), " ", found), make("div", { className: "vc-rows" }, table));
  box.current = (title) => lines.forEach(({ row, line }) => (row.title === title ? line.setAttribute("aria-current", "true") : line.removeAttribute("aria-current")));
  return box;
}

/** What a page's address says behind its #, and back. */
const readState = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
function writeState(state) {
  const text = `#${new URLSearchParams(Object.entries(state).filter(([, value]) => value !== "" && value !== null && value !== undefined))}`;
  try {
    if (text !== location.hash) history.replaceState(null, "", text);
  } catch {
    // a page inside a page has no address of its own
  }
}

/** A view of one of the page's clips, which are of the models in turn. `models` start theirs (captioner.js' openCaptioner). */
function clipView(root, read, models, options) {
  let data, asked = 0;
  const view = createView(root, { ...options, ask: models.length ? answer : null });
  async function answer({ hidden, start, size }, position = {}) {
    const [number, { features }] = [++asked, data];
    try {
      const captioner = await models[view.index % models.length]();
      if (number !== asked) return; // someone asked for something else since then
      const settings = { hidden, beam: size };
      const captions = await (start.length ? captioner.continueFrom(features, start, settings) : captioner.caption(features, settings));
      if (number !== asked) return;
      view.say("");
      view.show(data, captions, { size, ...position });
      const needs = await captioner.needs(features, captions, { hidden });
      if (number === asked) view.setNeeds(needs);
    } catch (error) {
      if (number !== asked) return;
      view.say(error.message);
      view.want(view.shown());
    }
  }
  view.open = (index, { word = 0, beam = 0, hidden = [], start = [], size } = {}) => {
    asked++;
    view.index = index;
    data = read(index);
    view.size = data.beams.length;
    const other = size && size !== data.beams.length;
    view.show(data, data, { word, beam: Math.min(beam, data.beams.length - 1), needs: data.needs });
    if (models.length && (hidden.length || start.length || other)) {
      view.want({ hidden, start, size: size ?? data.beams.length });
      answer(view.wanted, { word, beam });
    }
  };
  return view;
}

/** The page: a chooser and a table (its rows: see `tableOf`) over clips that are read when they are opened, one of them or two
 * side by side.
 *
 * `read(index)` gives what view.js draws from, with `features` where the page carries models; each of `models` starts one. */
export function openPage(root, rows, read, models = []) {
  const titles = rows.map(({ title }) => title);
  const names = titles.map((title, i) => (titles.indexOf(title) === i ? title : `${title} (${i + 1})`)); // for the address
  let second = null, writing = 0, table = null;
  const started = [];
  const starts = models.map((open, i) => () => (started[i] ??= open()));
  root.addEventListener("pointermove", () => starts.forEach((start) => start().catch(() => null)), { once: true }); // so that the first question waits less
  const [main, pair] = [make("div"), make("div", { className: "vc-pair" })];
  let leading = false; // two views have one word slider: whichever moves, the other follows
  const follow = (other) => {
    let last = 0;
    return ({ word }) => {
      if (other() && word !== last && !leading) lead(() => other().choose(word));
      last = word;
      clearTimeout(writing);
      writing = setTimeout(remember, 250);
    };
  };
  const lead = (act) => {
    leading = true;
    act();
    leading = false;
  };
  const view = clipView(main, read, starts, { controls: true, moved: follow(() => second) });
  const select = (name, chosen, first = []) => make("select", { className: "vc-plain", ariaLabel: name }, ...first.map((textContent) => make("option", { value: -1, textContent })),
    ...titles.map((title, value) => make("option", { value, textContent: title, selected: value === chosen })));
  const [chooser, other] = [select("Clip", 0), select("Beside it", -1, ["–"])];
  chooser.addEventListener("change", () => show(Number(chooser.value)));
  other.addEventListener("change", () => beside(Number(other.value)));
  view.part.chooser.append(make("label", {}, "Clip ", chooser), make("label", {}, "beside ", other));
  view.part.chooser.hidden = titles.length < 2;
  if (rows.length > 1) main.prepend((table = tableOf(rows, (i) => (show(i), view.part.title.scrollIntoView({ block: "nearest" })))));
  pair.append(main);
  root.append(pair);
  addTools(view);
  view.part.help.addEventListener("click", () => showGuide(view, true));

  function remember() {
    const { hidden, start: words, size } = view.wanted;
    const own = !hidden.length && !words.length && size === view.size;
    writeState({ clip: names[view.index], word: view.word || "", beam: view.beam || "", mode: view.mode === "looked" ? "" : view.mode, left: view.window === 1 ? "" : view.window,
      hidden: hidden.join("."), start: words.join(" "), size: own ? "" : size, beside: second ? names[second.index] : "" });
  }
  const partner = (index) => titles.findIndex((title, i) => i !== index && title.includes(" · ") && title.split(" · ")[0] === titles[index].split(" · ")[0]); // the same clip of another run
  function show(index, state) {
    chooser.value = index;
    view.open(index, state);
    table?.current(titles[index]);
    if (second && partner(index) >= 0) beside(partner(index));
  }
  function beside(index) {
    other.value = index;
    document.body.classList.toggle("vc-wide", index >= 0);
    if (index < 0) {
      second?.close();
      pair.replaceChildren(main);
      second = view.modeMoved = null;
    } else if (!second) {
      const place = make("div");
      pair.append(place);
      second = clipView(place, read, starts, { moved: follow(() => view) });
      addTools(second);
      second.part.help.hidden = true;
    }
    if (!second) return remember();
    lead(() => second.open(index, { word: view.word }));
    view.modeMoved = () => alike(view, second);
    second.modeMoved = () => alike(second, view);
    view.modeMoved();
  }
  const alike = (one, other) => other && (other.mode !== one.mode || other.window !== one.window) && other.setMode(one.mode, one.window);
  function apply() {
    const { clip, word, beam, mode = "looked", left, hidden = "", start: words = "", size, beside: title } = readState();
    view.setMode(mode, left);
    show(Math.max(0, names.indexOf(clip)), { word: Number(word) || 0, beam: Number(beam) || 0, size: Number(size) || undefined,
      hidden: hidden.split(".").filter(Boolean).map(Number), start: words.split(" ").filter(Boolean) });
    if (names.includes(title)) beside(names.indexOf(title));
    else if (partner(view.index) >= 0) beside(partner(view.index));
    else if (second) beside(-1);
  }
  addEventListener("hashchange", apply);
  apply();
  showGuide(view);
}

const UPLOAD_LIMIT = 10; // MB; Jupyter cuts the connection at messages of 10 MiB

/** The widget's choice among the corpus' clips, and clips of one's own; `open(name, content)` asks the kernel for one. */
function clipChooser(titles, open, say) {
  const file = make("input", { type: "file", accept: "video/*,.avi,.mkv", hidden: true });
  const upload = make("button", { className: "vc-plain vc-upload", textContent: "own clip …", onclick: () => file.click() });
  file.addEventListener("change", async () => {
    const [chosen] = file.files;
    const size = chosen.size / 1e6;
    if (size > UPLOAD_LIMIT) say(`${chosen.name}: ${size.toFixed(0)} MB, the limit is ${UPLOAD_LIMIT}; use show_file(path) in a cell`);
    else open(chosen.name, await chosen.arrayBuffer());
    file.value = ""; // so that the same file can be chosen again
  });
  const clips = make("select", { className: "vc-plain", ariaLabel: "Clip" }, ...titles.map((title) => make("option", { value: title, textContent: title })));
  clips.addEventListener("change", () => open(clips.value));
  const box = make("span", {}, ...(titles.length > 1 ? ["Clip ", clips, " "] : []), upload, file);
  box.current = (title) => (clips.value = title); // no choice for a clip of one's own
  return box;
}

/** The widget: its traits hold the same data; `word`, `beam` and `last` follow every step, for others to be linked to. */
function render({ model, el }) {
  const [root, above] = [make("div"), make("div")];
  el.append(root);
  const save = (values) => {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  };
  const get = (...names) => names.map((name) => model.get(name));
  // A word behind the end of this caption is that of a longer one beside it, linked to this.
  const moved = ({ word, beam, last }) => save(model.get("word") > last && word === last ? { beam, last } : { word, beam, last });
  const view = createView(root, { controls: model.get("controls"), ask: (wanted) => save({ wanted }), moved });
  addTools(view);
  view.part.help.addEventListener("click", () => showGuide(view, true));
  const open = (name, content) => model.send({ open: name }, undefined, content && [content]);
  let chooser;
  const offer = () => {
    chooser = clipChooser(model.get("titles"), open, view.say);
    chooser.current(model.get("clip").title);
    view.part.chooser.replaceChildren(chooser);
    view.part.chooser.hidden = false;
  };
  const draw = () => {
    if (!model.get("captions").beams) return; // no clip could be opened yet
    const [word, beam, wanted, needs] = get("word", "beam", "wanted", "needs");
    chooser.current(model.get("clip").title);
    view.show(model.get("clip"), model.get("captions"), { word, beam, ...wanted, needs });
    view.say(model.get("message"));
  };
  const list = () => {
    const rows = model.get("rows");
    above.replaceChildren(...(rows.length ? [tableOf(rows, (i) => open(rows[i].title))] : []));
  };
  const follow = {
    "change:clip": draw,
    "change:captions": draw,
    "change:needs": () => model.get("captions").beams && view.setNeeds(model.get("needs")),
    "change:wanted": () => model.get("captions").beams && view.want(model.get("wanted")),
    "change:titles": offer,
    "change:rows": list,
    "change:message": () => view.say(model.get("message")),
    "change:word": () => model.get("captions").beams && model.get("word") !== view.word && view.choose(model.get("word")),
  };
  root.prepend(above);
  offer();
  draw();
  list();
  view.say(model.get("message"));
  for (const [event, act] of Object.entries(follow)) model.on(event, act);
  return () => {
    for (const [event, act] of Object.entries(follow)) model.off(event, act);
    view.close();
  };
}

export default { render };
